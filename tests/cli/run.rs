//! Runs the binary and judges what it said.

#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::connection::mounted_at;
use crate::common::{Scratch, Tree, TreeOptions, Watchdog};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_acetate");

/// What a command line left behind.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

/// A place with two lower layers, an upper, a workdir and a mountpoint.
#[derive(Debug)]
pub struct Place {
    pub scratch: Scratch,
    pub top: PathBuf,
    pub bottom: PathBuf,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub merged: PathBuf,
    _limit: Watchdog,
}

impl Place {
    pub fn new(name: &str) -> Place {
        let limit = Watchdog::new(name, Duration::from_secs(60));
        let scratch = Scratch::new(name);
        let place = Place {
            top: scratch.dir("top"),
            bottom: scratch.dir("bottom"),
            upper: scratch.dir("upper"),
            work: scratch.dir("work"),
            merged: scratch.dir("merged"),
            scratch,
            _limit: limit,
        };
        fs::create_dir(place.bottom.join("dir")).unwrap();
        for name in ["kept", "overridden", "deleted", "dir/file"] {
            fs::write(place.bottom.join(name), format!("{name} of the bottom")).unwrap();
        }
        fs::write(place.top.join("overridden"), "overridden by the top").unwrap();
        place
    }

    /// The binary with this place's own store and runtime directory.
    pub fn command(&self) -> Command {
        self.program(BINARY)
    }

    /// Another program with the same surroundings.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("ACETATE_ROOT", self.scratch.join("store"))
            .current_dir(self.scratch.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary with words separated by blanks, in the scratch directory.
    pub fn run(&self, words: &str) -> Said {
        self.command()
            .args(words.split_whitespace())
            .output()
            .unwrap()
            .into()
    }

    /// The same, which must succeed in silence but for what it prints on standard output.
    #[track_caller]
    pub fn ok(&self, words: &str) -> String {
        let begin = Instant::now();
        let mut said = self.run(words);
        // Between fork and exec the child of another test holds what this test has open in the mount.
        while words.starts_with("umount")
            && said.err.contains("is in use")
            && begin.elapsed() < Duration::from_secs(10)
        {
            said = self.run(words);
        }
        assert_eq!(
            (said.code, said.err.as_str()),
            (Some(0), ""),
            "acetate {words}: {said:?}"
        );
        said.out
    }

    /// The same, parsed as JSON.
    #[track_caller]
    pub fn json(&self, words: &str) -> serde_json::Value {
        let out = self.ok(words);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("acetate {words}: {e}: {out}"))
    }

    fn state(&self) -> Tree {
        // Below a mount that a test made on purpose lies nothing of interest.
        let options = TreeOptions {
            inode: false,
            ..TreeOptions::CONTENTS
        };
        let mut tree = Tree::default();
        for dir in [&self.top, &self.bottom, &self.upper, &self.work] {
            if dir.is_dir() {
                for (path, node) in Tree::read(dir, options).unwrap().nodes {
                    tree.nodes.insert(dir.join(path), node);
                }
            }
        }
        tree
    }

    /// A command line that must be refused: in one line that names each of `culprits`, with an exit code, and
    /// without a trace.
    #[track_caller]
    pub fn refused(&self, words: &str, culprits: &[&str]) {
        self.refused_command(self.command().args(words.split_whitespace()), culprits);
    }

    /// The same of any command.
    #[track_caller]
    pub fn refused_command(&self, command: &mut Command, culprits: &[&str]) {
        let before = self.state();
        let mounted = mounted_at(&self.merged).map(|m| m.minor);
        let said = Said::from(command.output().unwrap());
        assert!(
            !matches!(said.code, None | Some(0 | 101)),
            "{command:?}: {said:?}"
        );
        assert_eq!(
            said.err.trim().lines().count(),
            1,
            "{command:?}: not one line: {}",
            said.err
        );
        assert!(
            said.err.starts_with("acetate: "),
            "{command:?}: {}",
            said.err
        );
        assert!(
            !said.err.contains('\u{fffd}') && !said.err.contains("Some("),
            "{}",
            said.err
        );
        assert_eq!(said.out, "", "{command:?}");
        for culprit in culprits {
            assert!(
                said.err.contains(culprit),
                "{command:?} does not name `{culprit}`: {}",
                said.err
            );
        }
        assert_eq!(
            mounted_at(&self.merged).map(|m| m.minor),
            mounted,
            "{command:?} left a mount"
        );
        before.assert_same(&self.state(), "the refused command left a trace");
    }
}

/// A program that an ordinary user runs (`nobody`, as `fusermount3` wants a name), with a FUSE device of the given mode.
pub fn as_plain_user(place: &Place, device_mode: u32, program: impl AsRef<OsStr>) -> Command {
    let device = place.scratch.join(format!("fuse-{device_mode:o}"));
    if !device.exists() {
        nix::sys::stat::mknod(
            &device,
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::empty(),
            nix::sys::stat::makedev(10, 229),
        )
        .unwrap();
        fs::set_permissions(&device, fs::Permissions::from_mode(device_mode)).unwrap();
    }
    let mut command = place.program("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg("mount --bind \"$0\" /dev/fuse; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"")
        .arg(device)
        .env_remove("XDG_RUNTIME_DIR")
        .env("HOME", place.scratch.path())
        .arg(program);
    command
}

impl Place {
    /// A copy of the binary that everybody can run: the original may lie where only root may look.
    pub fn installed(&self) -> PathBuf {
        let dir = self.scratch.dir("bin");
        let copy = dir.join("acetate");
        if !copy.exists() {
            fs::copy(BINARY, &copy).unwrap();
        }
        copy
    }

    /// Gives everything to the ordinary user of [`as_plain_user`].
    pub fn give_to_plain_user(&self) {
        let status = Command::new("chown")
            .args(["-R", "65534:65534"])
            .arg(self.scratch.path())
            .status();
        assert!(status.unwrap().success());
    }
}

/// Unmounts on drop, whatever happened.
#[derive(Debug)]
pub struct Guard(pub PathBuf);

impl Guard {
    pub fn at(dir: &Path) -> Guard {
        if let Some(mount) = mounted_at(dir)
            && mount.fstype.starts_with("fuse")
        {
            crate::common::connection::register(mount.minor);
        }
        Guard(dir.to_owned())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mount) = mounted_at(&self.0) {
            crate::common::mount::detach(&self.0);
            crate::common::connection::unregister(mount.minor);
        }
    }
}
