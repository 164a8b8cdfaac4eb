# What people do in a Debian root filesystem. Runs by `sh -eu` with that as its root.
export DEBIAN_FRONTEND=noninteractive
export GIT_AUTHOR_DATE='2024-01-01T00:00:00Z' GIT_COMMITTER_DATE='2024-01-01T00:00:00Z'
mkdir /root/work
cd /root/work

# Packages: dpkg writes, fsyncs and renames over files of every layer.
dpkg -i /srv/debs/hello_*.deb
apt-get install -y --no-install-recommends /srv/debs/tree_*.deb /srv/debs/bc_*.deb /srv/debs/less_*.deb
test "$(hello)" = 'Hello, world!'
test "$(echo '2^64' | bc)" = 18446744073709551616
tree --version
apt-get purge -y hello
if test -e /usr/bin/hello; then exit 1; fi
dpkg --audit
dpkg --verify tree bc less

# Byte code beside every module of a lower layer.
python3 -m compileall -q -f /usr/lib/python3 /usr/lib/python3.11
python3 -c 'import json, sqlite3, email.message'

# C.
mkdir c
for i in 1 2 3 4 5 6 7 8; do
  printf '#include <stdio.h>\nint part%s(void) { return %s; }\n' "$i" "$i" >"c/part$i.c"
  gcc -O1 -c "c/part$i.c" -o "c/part$i.o"
done
cat >c/main.c <<'C'
#include <stdio.h>
int part1(void); int part2(void); int part3(void); int part4(void);
int part5(void); int part6(void); int part7(void); int part8(void);
int main(void) {
  printf("%d\n", part1() + part2() + part3() + part4() + part5() + part6() + part7() + part8());
  return 0;
}
C
ar rcD c/libparts.a c/part*.o
gcc -O1 c/main.c c/libparts.a -o c/program
test "$(c/program)" = 36

# git, which maps its packs, links, renames, and packs everything again.
git config --global user.name tester
git config --global user.email tester@localhost
git config --global pack.threads 1
git config --global gc.autoDetach false
git init -q repository
cd repository
cp -r /usr/include/linux /usr/include/asm-generic .
git add .
git commit -qm first
for i in 1 2 3 4 5; do
  date -d @$i >"file$i"
  mv linux "linux$i"
  cp -r "linux$i" linux
  rm -r "linux$i"
  sed -i "1i /* $i */" linux/*.h
  git add -A
  git commit -qm "change $i"
done
cd ..
git clone -q repository clone
git clone -q --no-hardlinks repository copy
for i in repository clone copy; do
  git -C $i gc -q --prune=now
  git -C $i fsck --full --strict
  test -z "$(git -C $i status --porcelain)"
done
git -C repository rev-parse HEAD >head
git -C clone rev-parse HEAD | cmp - head

# sqlite, with rollback journal and with write-ahead log, two processes at once.
for mode in delete wal; do
  sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a integer primary key, b text);" >/dev/null
  for writer in 1 2; do
    i=0
    while [ $i -lt 40 ]; do
      echo ".timeout 60000"
      echo "begin immediate; insert into t(a, b) values($i * 2 + $writer, hex(zeroblob(300))); commit;"
      i=$((i + 1))
    done | sqlite3 $mode.db &
    eval "pid$writer=$!"
  done
  wait $pid1
  wait $pid2
  test "$(sqlite3 $mode.db 'pragma integrity_check; select count(*) from t;')" = "ok
80"
done
# In which order the two wrote decides where a row lies in the file.
for mode in delete wal; do
  sqlite3 $mode.db .dump | sort >$mode.dump
  rm -f $mode.db $mode.db-wal $mode.db-shm
done
