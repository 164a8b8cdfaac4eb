//! A copy of a whole file whose program is killed.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::stand::{Stand, end};
use crate::common::{LoopImage, Watchdog, skip};
use crate::require;
use crate::rig::{MIB, pattern, stat};

/// More than is ever on its way to the disk: a copy cannot end while the disk takes nothing.
const SIZE: usize = 32 * MIB;

/// A disk that takes nothing: the filesystem that its image lies on is frozen, by a helper that thaws it also when the test
/// is killed. Nothing on the machine could be synced otherwise.
struct Stopped {
    helper: Child,
}

const HELPER: &str = r#"PATH=$PATH:/usr/sbin:/sbin
fsfreeze --freeze "$1" || exit
echo frozen
timeout 90 head -c 1
exec fsfreeze --unfreeze "$1""#;

impl Stopped {
    fn new(below: &Path) -> Stopped {
        let mut helper = Command::new("sh")
            .args(["-c", HELPER, "sh"])
            .arg(below)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut said = [0; 7];
        helper.stdout.take().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"frozen\n");
        Stopped { helper }
    }

    fn go_on(self) {}
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.helper.stdin.take());
        match self.helper.wait() {
            Ok(status) if status.success() => {}
            other => eprintln!("not thawed: {other:?}"),
        }
    }
}

/// Writes one byte at an offset.
fn writer(path: &Path, at: usize) -> Child {
    Command::new("dd")
        .args(["if=/dev/zero", "bs=1", "count=1", "conv=notrunc"])
        .arg(format!("seek={at}"))
        .arg({
            let mut of = std::ffi::OsString::from("of=");
            of.push(path);
            of
        })
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether something comes about soon. Where somebody had all disks synced at that moment, the journal may stop the copy before
/// its first byte; then it is given up there, to the same effect.
fn soon(condition: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > Duration::from_secs(3) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Whether it waits for the daemon's answer, as far as this kernel tells.
fn asks(child: &Child) -> bool {
    let wchan = format!("/proc/{}/wchan", child.id());
    fs::read_to_string(wchan).is_ok_and(|at| at == "request_wait_answer")
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
}

#[test]
fn a_killed_program_s_copy_ends_and_leaves_nothing() {
    require!(skip::privileged());
    require!(skip::program("fsfreeze"));
    let _limit = Watchdog::new("interrupt", Duration::from_secs(240));
    let mut stand = Stand::new("interrupt");
    let disk = match LoopImage::new(&stand.scratch, "ext4", 1 << 30) {
        Ok(disk) => disk,
        Err(reason) => crate::skip!("{reason}"),
    };
    let upper_image = {
        // A commit of the journal while nothing is taken would stop the copy before it has begun.
        let on_disk = crate::common::Scratch::new_in(disk.path(), "image");
        (
            LoopImage::with_options(&on_disk, "ext4", 400 << 20, &[], "loop,commit=300").unwrap(),
            on_disk,
        )
    };
    let image = upper_image.0;
    stand.put_changes_on(image.path());
    let model = pattern(1, SIZE);
    for name in ["alone", "meta", "two", "waits"] {
        fs::write(stand.lower.join(name), &model).unwrap();
    }
    let mount = stand.acetate("partial=off").mount();
    fs::set_permissions(mount.join("meta"), fs::Permissions::from_mode(0o4751)).unwrap();
    let meta = fs::metadata(mount.join("meta")).unwrap();
    let sync = || rustix::fs::syncfs(File::open(image.path()).unwrap()).unwrap();
    let staged = || -> Vec<PathBuf> {
        stand
            .left_in_work()
            .into_iter()
            .filter(|p| p.is_file())
            .collect()
    };
    // Of what is not data there may be a block or two.
    let has_begun = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.blocks() > 64);
    let begins = || soon(|| staged().iter().any(|p| has_begun(p)));
    let check = |name: &str, at: Option<usize>| {
        let mut expected = model.clone();
        if let Some(at) = at {
            expected[at] = 0;
        }
        assert!(fs::read(mount.join(name)).unwrap() == expected, "{name}");
    };

    // The copy that nobody waits for any more leaves nothing, and the next writer gets its own.
    sync();
    let stopped = Stopped::new(disk.path());
    let mut child = writer(&mount.join("alone"), 5);
    let mut begun = usize::from(begins());
    child.kill().unwrap();
    stopped.go_on();
    kill(child);
    assert!(!stand.upper.join("alone").exists());
    assert!(staged().is_empty(), "{:?}", stand.left_in_work());
    assert_eq!(stat(mount.path(), "copy_up_data"), 0);
    check("alone", None);
    assert!(writer(&mount.join("alone"), 7).wait().unwrap().success());
    check("alone", Some(7));

    // The same in a file of which the attributes are there.
    sync();
    let stopped = Stopped::new(disk.path());
    let mut child = writer(&mount.join("meta"), 5);
    begun += usize::from(soon(|| has_begun(&stand.upper.join("meta"))));
    child.kill().unwrap();
    stopped.go_on();
    kill(child);
    let left = fs::metadata(stand.upper.join("meta")).unwrap();
    assert!(!has_begun(&stand.upper.join("meta")), "{left:?}");
    assert_eq!(left.len(), SIZE as u64);
    assert_eq!(left.mode(), meta.mode());
    assert_eq!(left.modified().unwrap(), meta.modified().unwrap());
    check("meta", None);
    assert!(writer(&mount.join("meta"), 9).wait().unwrap().success());
    check("meta", Some(9));

    // Who waits for the same copy does not suffer from the other's death.
    sync();
    let stopped = Stopped::new(disk.path());
    let mut first = writer(&mount.join("two"), 5);
    begun += usize::from(begins());
    let mut second = writer(&mount.join("two"), 11);
    first.kill().unwrap();
    stopped.go_on();
    kill(first);
    assert!(second.wait().unwrap().success());
    check("two", Some(11));

    // And dies at once when it is killed itself.
    sync();
    let stopped = Stopped::new(disk.path());
    let mut first = writer(&mount.join("waits"), 13);
    let stuck = begins();
    begun += usize::from(stuck);
    let mut child = writer(&mount.join("waits"), 5);
    if stuck && soon(|| asks(&child)) {
        kill(child);
        stopped.go_on();
    } else {
        child.kill().unwrap();
        stopped.go_on();
        kill(child);
    }
    assert!(first.wait().unwrap().success());
    check("waits", Some(13));
    println!("{begun} of 4 copies were under way");
    end(mount);
    image.unmount().unwrap();
}
