# Removes half of the tree, of every layer and of what was written, and begins anew in its place.
rm -rf /usr/share /usr/include /usr/lib/python3 /usr/lib/python3.11 /usr/lib/git-core /var/lib/dpkg /srv
rm -rf /root/work/repository /root/work/c
for i in /usr/share /usr/include /usr/lib/python3 /usr/lib/python3.11 /usr/lib/git-core /var/lib/dpkg /srv; do
  if test -e $i; then exit 1; fi
done
# A new directory in place of a removed one shows nothing of the old.
mkdir /usr/share /srv
test -z "$(ls -A /usr/share /srv | grep -v :)"
echo new >/usr/share/file
mv /usr/share /srv/share
mv /etc/apt /srv/apt
test -f /srv/apt/sources.list
ln /srv/share/file /usr/include
if rmdir /var/lib/dpkg 2>/dev/null; then exit 1; fi
test "$(cat /usr/include)" = new
