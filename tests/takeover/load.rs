//! The daemon is killed five times a second while programs work: none of them notices.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::common::{Tree, TreeOptions, skip};
use crate::require;
use crate::rig::{Rig, worker_of};

/// What runs in the directory `$1` for `$2` seconds: it prints a line for each thing that went wrong. Each function counts its rounds,
/// and what it leaves behind does not depend on how many there were.
const LOAD: &str = r#"
cd "$1" || exit 1
seconds=$2; tools=$3
bad() { echo "FAILED: $*"; }
more() { [ "$(date +%s)" -lt "$end" ]; }
end=$(($(date +%s) + seconds))

names() {
  mkdir names && cd names || bad mkdir
  n=0
  while more; do
    n=$((n + 1))
    echo "$n" > new || bad write
    mv new now || bad mv
    [ "$(cat now)" = "$n" ] || bad "content $n"
    ln now link || bad ln
    [ "$(stat -c %h now)" = 2 ] || bad "links $n"
    rm link || bad rm
    mkdir -p "d/e" && mv d f && rmdir f/e f || bad directories
    ln -s target sym && rm sym || bad symlink
    mkfifo pipe && rm pipe || bad fifo
    setfattr -n user.a -v "$n" now && setfattr -x user.a now || bad xattr
    echo line >> lines || bad append
    [ "$(wc -l < lines)" = "$n" ] || bad "lines $n"
  done
  rm now lines || bad last
}

trees() {
  while more; do
    mkdir tree && tar xf ../sources.tar -C tree || bad untar
    mv tree moved || bad "mv tree"
    tar cf - -C moved . | tar xf - --one-top-level=copy || bad copy
    diff -r moved copy || bad diff
    rm -r copy || bad "rm -r"
    [ -e kept ] && rm -r kept
    mv moved kept || bad "mv kept"
  done
}

low() {
  n=0
  while more && [ "$n" -lt 200 ]; do
    n=$((n + 1))
    mv "lower/d$n" "lower/r$n" || bad "mv lower $n"
    echo more >> "lower/r$n/file" || bad "append lower $n"
    chmod 600 "lower/r$n/other" || bad chmod
    [ "$(cat "lower/r$n/file")" = "$(printf 'text\nmore')" ] || bad "content lower $n"
    dd if=/dev/zero of="lower/r$n/large" bs=4k count=1 seek=100 conv=notrunc 2> /dev/null || bad "write lower $n"
    [ "$(stat -c %s "lower/r$n/large")" = 2097152 ] || bad "size lower $n"
    [ "$(head -c 409600 "lower/r$n/large" | tr -d x | wc -c)" = 0 ] || bad "large lower $n"
  done
}

base() {
  sqlite3 base 'create table t(a integer primary key, b)' || bad "create table"
  n=0
  while more; do
    n=$((n + 1))
    sqlite3 base "begin; insert into t(b) values(hex(randomblob(500))); insert into t(b) values($n); commit;" || bad "commit $n"
  done
  [ "$(sqlite3 base 'select count(*) from t')" = $((2 * n)) ] || bad rows
  [ "$(sqlite3 base 'pragma integrity_check')" = ok ] || bad integrity
  rm base
}

clones() {
  mkdir origin && cd origin && git init -q . && cp ../../sources.tar . && tar xf sources.tar && git add -A &&
    git -c user.name=a -c user.email=a@b commit -q -m all && cd .. || bad commit
  while more; do
    git clone -q --no-hardlinks origin clone || bad clone
    git -C clone fsck --no-progress > /dev/null 2>&1 || bad fsck
    [ -z "$(git -C clone status --porcelain)" ] || bad status
    rm -rf clone || bad "rm -rf"
  done
  rm -rf origin
}

exercise() {
  n=0
  while more; do
    n=$((n + 1))
    fsx -N 500 "x$n" > out 2>&1 || { bad fsx; tail -3 out; }
    rm -f x$n*
  done
  rm -f out
}

for job in $tools; do ( mkdir -p "$job.dir"; [ "$job" = low ] || cd "$job.dir"; "$job" ) & done
wait
"#;

fn build(lower: &Path) {
    for n in 1..=200 {
        let dir = lower.join(format!("lower/d{n}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), "text\n").unwrap();
        fs::write(dir.join("other"), "other").unwrap();
        fs::write(dir.join("large"), "x".repeat(2 << 20)).unwrap();
    }
}

fn pack(into: &Path) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let packed = Command::new("tar")
        .args([
            "cf".as_ref(),
            into.as_os_str(),
            "-C".as_ref(),
            sources.as_os_str(),
        ])
        .arg(".")
        .status()
        .unwrap();
    assert!(packed.success());
}

#[test]
#[ignore = "half a minute of load; two minutes with ACETATE_LONG=1"]
fn nobody_notices_that_the_daemon_is_killed_five_times_a_second() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    for program in ["tar", "git", "sqlite3", "setfattr"] {
        require!(skip::program(program));
    }
    // Or any other number.
    let long = std::env::var("ACETATE_LONG").ok().map(|text| text.parse());
    let seconds = match long {
        Some(Ok(seconds)) if seconds > 1 => seconds,
        Some(_) => 120,
        None => 12,
    };
    let mut tools = "names trees low base clones".to_owned();
    if skip::program("fsx").is_ok() {
        tools.push_str(" exercise");
    }
    let limit = Duration::from_secs(seconds + 600);
    let rig = Rig::new("takeover-load", limit, build);
    let work = rig.mount.join("sources.tar");
    pack(&work);

    let stop = Arc::new(AtomicBool::new(false));
    let kills = Arc::new(AtomicUsize::new(0));
    let served = Arc::new(AtomicUsize::new(0));
    let (supervisor, ended, counted) = (rig.supervisor(), stop.clone(), kills.clone());
    let seen = served.clone();
    let killer = thread::spawn(move || {
        let mut before = 0;
        while !ended.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(200));
            // On a busy machine a worker may need as long to start.
            let now = seen.load(Ordering::Relaxed);
            if now == before {
                continue;
            }
            before = now;
            if let Some(worker) = worker_of(supervisor)
                && kill(worker, Signal::SIGKILL).is_ok()
            {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let (probed, ended) = (rig.mount.join("probe"), stop.clone());
    let client = thread::spawn(move || {
        let mut gaps = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            let begin = Instant::now();
            File::create(&probed).unwrap();
            fs::remove_file(&probed).unwrap();
            gaps.push(begin.elapsed());
            served.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
        gaps.sort();
        gaps
    });
    let script = rig.scratch.join("load.sh");
    fs::write(&script, LOAD).unwrap();
    let output = Command::new("sh")
        .arg(&script)
        .arg(rig.mount.path())
        .arg(seconds.to_string())
        .arg(&tools)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    stop.store(true, Ordering::Relaxed);
    killer.join().unwrap();
    let gaps = client.join().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "", "log: {}", rig.mount.log());
    assert!(output.status.success());
    let kills = kills.load(Ordering::Relaxed);
    println!(
        "{kills} kills; a file made and removed, 99 of 100 within {:?}, all within {:?}",
        gaps[gaps.len() * 99 / 100],
        gaps[gaps.len() - 1]
    );
    assert!(kills > 3, "{kills}");

    // What is left is what the same makes of a plain directory.
    let plain = rig.scratch.dir("plain");
    let unpacked = Command::new("tar")
        .arg("xf")
        .arg(rig.mount.join("sources.tar"))
        .arg("-C")
        .arg(&plain)
        .status()
        .unwrap();
    assert!(unpacked.success());
    let expected = Tree::read(&plain, TreeOptions::CONTENTS).unwrap();
    let kept = Tree::read(&rig.mount.join("trees.dir/kept"), TreeOptions::CONTENTS).unwrap();
    kept.assert_same(&expected, "what was unpacked");
    // By now rather than at the unmount, for which there is a limit: of two hundred files each waits for the disk.
    let completed = Command::new(env!("CARGO_BIN_EXE_acetate"))
        .arg("complete")
        .arg(rig.mount.path())
        .output()
        .unwrap();
    assert!(completed.status.success(), "{completed:?}");
    let upper = rig.upper.clone();
    rig.mount.unmount().unwrap();
    let same = Command::new("diff")
        .arg("-r")
        .arg(&plain)
        .arg(upper.join("trees.dir/kept"))
        .output()
        .unwrap();
    assert!(same.status.success(), "{same:?}");
}
