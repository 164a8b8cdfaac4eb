//! A plain user in a user namespace: everything that the kernel's overlayfs can do there.
//!
//! The same commands run on both, each over the same lower layer; what they print, the trees and the private
//! xattrs in the uppers must be equal, and each must be able to read the other's upper.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{Scratch, Watchdog, program, skip};

const USER: u32 = 54_322;

/// Makes the lower layer, as the user.
const LOWER: &str = r#"
mkdir -p lower/dir/sub lower/opaque/old lower/moved/sub lower/many
for i in file linked appended truncated removed mode times attr renamed; do echo "$i of the lower" >"lower/dir/$i"; done
ln lower/dir/linked lower/dir/link
ln -s file lower/dir/symlink
mkfifo lower/dir/fifo
echo old >lower/opaque/old/file
echo moved >lower/moved/sub/file
chmod 444 lower/dir/mode
setfattr -n user.mine -v lower lower/dir/attr
for i in $(seq 300); do echo $i >lower/many/$i; done
"#;

/// What is done below `$1`.
const WORK: &str = r#"
cd "$1"
echo new >new
echo more >>dir/appended
: >dir/truncated
rm dir/removed
rm -r opaque && mkdir opaque && echo new >opaque/file
ln dir/file dir/another
mv dir/renamed dir/sub/renamed
chmod 600 dir/mode && echo written >dir/mode && chmod 400 dir/mode
touch -d @1000000000 dir/times dir
setfattr -n user.mine -v changed dir/attr
setfattr -n user.more -v dir dir/sub
getfattr -n user.mine --only-values dir/attr; echo
setfacl -m u:1:r dir/file && getfacl -nc dir/file
setfacl -d -m g:2:rwx dir/sub && mkdir dir/sub/inherits && getfacl -nc dir/sub/inherits
ln -sf ../new dir/symlink
rm dir/fifo && mkfifo dir/fifo
mkdir -p deep/a/b && echo x >deep/a/b/c && mv deep/a deep/z
python3 -c '
import os, sys
os.rename("many/1", "many/2")
fd = os.open("many/3", os.O_RDWR)
os.unlink("many/3")
os.write(fd, b"unlinked")
print(os.pread(fd, 100, 0), os.fstat(fd).st_nlink)
print(sorted(set(os.listdir("many")) ^ {str(i) for i in range(1, 301)}))
try: os.chown("dir/file", 12345, 12345)
except OSError as e: print("chown to an id without a map:", e)
try: os.mknod("device", 0o20600, os.makedev(1, 3))
except OSError as e: print("mknod of a device:", e)
try: os.rmdir("many")
except OSError as e: print("rmdir:", e)
'
rm -r many
ls -A
"#;

/// udev lets everyone use the device; where there is no udev, these processes alone see one that does.
const FUSE_DEVICE: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
exec "$@"
"#;

/// Prints a tree: type, mode, owner, links of files, target, size and contents.
const SHOW: &str = r#"
cd "$1"
find . -mindepth 1 | sort | while read -r path; do
  if [ -L "$path" ]; then stat -c '%n %A %u:%g %N' "$path"
  elif [ -d "$path" ]; then stat -c '%n %A %u:%g' "$path"
  else stat -c '%n %A %u:%g %h %s' "$path"; fi
  [ -h "$path" ] || getfattr -d -m '^user\.[a-z]*$' "$path" 2>/dev/null | grep -v '^#' || :
  if [ -f "$path" ]; then md5sum <"$path"; fi
done
stat -c '%n %Y' dir/times
"#;

struct Stand {
    scratch: Scratch,
    binary: PathBuf,
}

impl Stand {
    fn new() -> Stand {
        let scratch = Scratch::new("rootless");
        // The build directory may lie where a plain user may not look.
        let binary = scratch.join("acetate");
        fs::copy(env!("CARGO_BIN_EXE_acetate"), &binary).unwrap();
        chown(scratch.path(), Some(USER), Some(USER)).unwrap();
        Stand { scratch, binary }
    }

    /// Runs a script as the user, as root of a user namespace with a mount namespace.
    #[track_caller]
    fn script(&self, script: &str) -> String {
        let preamble = format!(
            "set -eu; cd {}; acetate={}; export LC_ALL=C TZ=UTC; umask 022\n",
            self.scratch.path().display(),
            self.binary.display()
        );
        let functions = format!(
            "lower() {{ :\n{LOWER}\n}}\nwork() {{ (:\n{WORK}\n) 2>&1; }}\nshow() {{ (:\n{SHOW}\n) 2>&1; }}\n"
        );
        program::must(
            Command::new("unshare")
                .args([
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-euc",
                    FUSE_DEVICE,
                ])
                .arg("sh")
                .args([
                    "setpriv",
                    "--reuid",
                    &USER.to_string(),
                    "--regid",
                    &USER.to_string(),
                ])
                .args(["--clear-groups", "unshare", "--user", "--map-root-user"])
                .args(["--mount", "sh", "-c"])
                .arg(format!("{preamble}{functions}{script}"))
                .env("HOME", self.scratch.path())
                .env("XDG_RUNTIME_DIR", self.scratch.path()),
            Duration::from_secs(120),
        )
    }
}

/// The parts of a script's output, which `echo "=== NAME"` divides.
fn parts(text: &str) -> Vec<(&str, &str)> {
    text.split("=== ")
        .skip(1)
        .map(|part| part.split_once('\n').unwrap())
        .collect()
}

#[track_caller]
fn same(parts: &[(&str, &str)], left: &str, right: &str) {
    let part = |name: &str| {
        let found = parts.iter().find(|(n, _)| *n == name);
        found.unwrap_or_else(|| panic!("no {name}: {parts:?}")).1
    };
    let (a, b) = (part(left), part(right));
    assert!(!a.trim().is_empty(), "{left} printed nothing");
    let only = |these: &str, those: &str| -> Vec<String> {
        let those: Vec<&str> = those.lines().collect();
        let lines = these.lines().filter(|line| !those.contains(line));
        lines.map(str::to_owned).collect()
    };
    assert!(
        a == b,
        "only {left}: {:#?}, only {right}: {:#?}",
        only(a, b),
        only(b, a)
    );
}

fn able() -> Result<(), String> {
    skip::privileged()?;
    for name in ["setpriv", "unshare", "setfattr", "setfacl", "python3"] {
        program::find(name)?;
    }
    Ok(())
}

#[test]
fn a_plain_user_in_a_namespace_can_do_what_kernel_overlayfs_lets_him_do() {
    require!(able());
    let _limit = Watchdog::new("rootless", Duration::from_secs(200));
    let stand = Stand::new();
    let text = stand.script(
        r#"
        lower
        mkdir ours ours-upper ours-work kernel kernel-upper kernel-work
        mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=kernel-upper,workdir=kernel-work kernel
        "$acetate" -o lowerdir=lower,upperdir=ours-upper,workdir=ours-work ours
        echo "=== kernel-work"; work kernel
        echo "=== ours-work"; work ours
        echo "=== kernel-tree"; show kernel
        echo "=== ours-tree"; show ours
        umount kernel; umount ours
        # A new mount, and each other's upper: what the other wrote means the same.
        "$acetate" -o lowerdir=lower,upperdir=ours-upper,workdir=ours-work ours
        echo "=== ours-again"; show ours
        umount ours
        "$acetate" -o lowerdir=lower,upperdir=kernel-upper,workdir=kernel-work ours
        echo "=== ours-of-kernel"; show ours
        umount ours
        mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=ours-upper,workdir=ours-work kernel
        echo "=== kernel-of-ours"; show kernel
        umount kernel
        echo "=== xattrs"; getfattr -h -R -d -m - ours-upper
        "#,
    );
    let parts = parts(&text);
    same(&parts, "kernel-work", "ours-work");
    same(&parts, "kernel-tree", "ours-tree");
    same(&parts, "ours-tree", "ours-again");
    same(&parts, "kernel-tree", "ours-of-kernel");
    same(&parts, "ours-tree", "kernel-of-ours");
    let (_, xattrs) = parts.iter().find(|(name, _)| *name == "xattrs").unwrap();
    assert!(xattrs.contains("user.overlay.opaque=\"y\""), "{xattrs}");
    assert!(!xattrs.contains("trusted."), "{xattrs}");
}

#[test]
fn a_plain_user_moves_a_lower_directory_which_kernel_overlayfs_refuses() {
    require!(able());
    let _limit = Watchdog::new("rootless", Duration::from_secs(100));
    let stand = Stand::new();
    let text = stand.script(
        r#"
        lower
        mkdir ours upper work
        "$acetate" -o lowerdir=lower,upperdir=upper,workdir=work ours
        mv -T ours/moved ours/elsewhere
        umount ours
        "$acetate" -o lowerdir=lower,upperdir=upper,workdir=work ours
        echo "=== moved"; cat ours/elsewhere/sub/file; ls -d ours/moved || echo gone
        umount ours
        "#,
    );
    assert!(
        text.contains("moved\n") && text.ends_with("gone\n"),
        "{text}"
    );
}

#[test]
fn a_plain_users_mount_outlives_its_daemon_and_goes_over_to_another_program() {
    require!(able());
    require!(skip::kernel_resends());
    let _limit = Watchdog::new("rootless", Duration::from_secs(150));
    let stand = Stand::new();
    let text = stand.script(
        r#"
        lower
        mkdir ours upper work
        "$acetate" -o lowerdir=lower,upperdir=upper,workdir=work,supervise=on ours
        told() { "$acetate" mounts --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0][sys.argv[1]])' "$1"; }
        end() {
          for pid in $(cat "/proc/$1/task/$1/children"); do
            [ "$(cat "/proc/$pid/comm")" = acetate-outside ] || kill -KILL "$pid"
          done
        }
        exec 7>>ours/dir/appended 8<ours/dir/file
        echo one >&7
        end "$(told pid)"
        echo two >&7
        # The mode forbids its own user what has to be written down with the file.
        rm ours/dir/removed; ln ours/dir/mode ours/dir/second; rm ours/dir/mode
        cp "$acetate" other
        ./other upgrade "$PWD/ours" >&2
        echo "=== binary"; told binary
        echo three >&7
        end "$(told pid)"
        echo four >&7
        echo "=== before"; cat <&8
        echo "=== names"; ls ours/dir/removed ours/dir/mode 2>&1 || :; stat -c '%A %h' ours/dir/second
        exec 7>&- 8<&-
        umount ours
        echo "=== upper"; cat upper/dir/appended; stat -c %A upper/dir/second
        "#,
    );
    let parts = parts(&text);
    let part = |name: &str| parts.iter().find(|(n, _)| *n == name).unwrap().1;
    assert!(part("binary").trim().ends_with("/other"), "{text}");
    assert_eq!(part("before"), "file of the lower\n");
    let names = part("names");
    assert_eq!(names.matches("No such file").count(), 2, "{text}");
    assert!(names.ends_with("-r--r--r-- 1\n"), "{text}");
    let upper = "appended of the lower\none\ntwo\nthree\nfour\n-r--r--r--\n";
    assert_eq!(part("upper"), upper);
}
