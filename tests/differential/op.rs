//! The operations, and whole cases. `Debug` prints them as the Rust code that makes them, so that what a
//! failure prints can be pasted into `regressions.rs`.

use std::fmt::Write as _;

/// A path below the root. `ÿ` stands for the byte 0xff, so that names that are no UTF-8 occur.
pub type Path = &'static str;

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root with all its capabilities.
    Root,
    /// uid 1000, gid 1000, no other group.
    Alice,
    /// uid 1001, gid 1001, and in Alice's group.
    Bob,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Leave it.
    Omit,
    /// The present.
    Now,
    /// Seconds and nanoseconds.
    At(i64, i64),
}

/// What an xattr or an ACL is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// So many bytes of a pattern.
    Bytes(u16),
    /// A valid `security.capability`.
    Capability,
    /// An access or default ACL equal to a mode.
    AclMode(u16),
    /// One with an entry for a user and a mask: permissions of Alice and the mask.
    AclUser(u16, u16),
    /// One with an entry for a group.
    AclGroup(u16, u16),
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    // Handles.
    Open {
        slot: u8,
        path: Path,
        flags: i32,
        mode: u32,
    },
    Close {
        slot: u8,
    },
    Read {
        slot: u8,
        len: u32,
    },
    Pread {
        slot: u8,
        off: u32,
        len: u32,
    },
    Write {
        slot: u8,
        len: u32,
        seed: u8,
    },
    Pwrite {
        slot: u8,
        off: u32,
        len: u32,
        seed: u8,
    },
    Seek {
        slot: u8,
        off: i32,
        whence: i32,
    },
    Ftruncate {
        slot: u8,
        size: u32,
    },
    Fallocate {
        slot: u8,
        mode: i32,
        off: u32,
        len: u32,
    },
    Sync {
        slot: u8,
        data: bool,
    },
    Copy {
        from: u8,
        to: u8,
        from_off: u32,
        to_off: u32,
        len: u32,
    },
    MapRead {
        slot: u8,
        off: u32,
        len: u32,
    },
    MapWrite {
        slot: u8,
        off: u32,
        len: u32,
        seed: u8,
    },
    MapPrivate {
        slot: u8,
        off: u32,
        len: u32,
        seed: u8,
    },
    MapHold {
        slot: u8,
    },
    MapPoke {
        off: u32,
        len: u32,
        seed: u8,
    },
    MapPeek {
        off: u32,
        len: u32,
    },
    MapDrop,
    Flock {
        slot: u8,
        how: i32,
    },
    Lock {
        slot: u8,
        kind: i32,
        start: u32,
        len: u32,
    },
    Fstat {
        slot: u8,
    },
    Fchmod {
        slot: u8,
        mode: u32,
    },
    Fchown {
        slot: u8,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Futimens {
        slot: u8,
        atime: Time,
        mtime: Time,
    },
    Fsetxattr {
        slot: u8,
        name: &'static str,
        value: Value,
        flags: i32,
    },
    Fgetxattr {
        slot: u8,
        name: &'static str,
    },
    Fremovexattr {
        slot: u8,
        name: &'static str,
    },
    Reopen {
        slot: u8,
        from: u8,
        flags: i32,
    },
    DirStart {
        slot: u8,
    },
    DirFinish {
        slot: u8,
    },
    DirSeek {
        slot: u8,
        at: u8,
    },
    // Paths.
    Truncate {
        path: Path,
        size: u32,
    },
    Mkdir {
        path: Path,
        mode: u32,
    },
    Rmdir {
        path: Path,
    },
    Unlink {
        path: Path,
    },
    Symlink {
        target: &'static str,
        path: Path,
    },
    Link {
        from: Path,
        to: Path,
        follow: bool,
    },
    Rename {
        from: Path,
        to: Path,
        flags: u32,
    },
    Mknod {
        path: Path,
        kind: u32,
        mode: u32,
        major: u32,
        minor: u32,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Chown {
        path: Path,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    Utimens {
        path: Path,
        atime: Time,
        mtime: Time,
        follow: bool,
    },
    SetXattr {
        path: Path,
        name: &'static str,
        value: Value,
        flags: i32,
        follow: bool,
    },
    GetXattr {
        path: Path,
        name: &'static str,
        follow: bool,
    },
    RemoveXattr {
        path: Path,
        name: &'static str,
        follow: bool,
    },
    ListXattr {
        path: Path,
        follow: bool,
    },
    Readlink {
        path: Path,
    },
    Stat {
        path: Path,
        follow: bool,
    },
    Access {
        path: Path,
        mode: i32,
    },
    List {
        path: Path,
    },
    /// Reads a file by an open of its own, as `cat`.
    Cat {
        path: Path,
    },
    // The process and the mount.
    Umask {
        mask: u32,
    },
    /// Closes everything, unmounts and mounts again.
    Remount,
}

/// One operation and who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub who: Who,
    pub op: Op,
}

/// Owner, mode and xattrs of a node of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attrs {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bits: 1 `user.layer`, 2 `trusted.layer`, 4 `security.capability`, 8 an access ACL, 16 a default ACL,
    /// 32 a long `user.long`.
    pub xattrs: u8,
}

/// What stands at a path in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    File {
        size: u32,
        sparse: bool,
        seed: u8,
        attrs: Attrs,
    },
    Dir {
        opaque: bool,
        attrs: Attrs,
    },
    Symlink {
        target: &'static str,
        uid: u32,
    },
    Link {
        to: Path,
    },
    Fifo {
        attrs: Attrs,
    },
    Socket {
        attrs: Attrs,
    },
    Device {
        attrs: Attrs,
    },
    Whiteout,
}

/// One lower layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A tree made by hand; entries whose place is taken or impossible are left out.
    Tree(Vec<(Path, Node)>),
    /// What the kernel's overlayfs wrote into its upper when these operations ran on the layers below: the
    /// source of redirects, metacopy files and origins.
    Written(Vec<Step>),
}

/// What the kernel's overlayfs is asked for, and the form of the private xattrs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// `redirect_dir`, `metacopy` and `index`.
    All,
    /// Its defaults: no redirects, no index.
    Default,
    /// `userxattr` on both sides, and no directory is renamed.
    User,
}

/// How a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Mode of the upper's root, which is that of the merged root.
    pub root_mode: u32,
    /// What the kernel's overlayfs is asked for.
    pub features: Features,
    /// Further options of acetate.
    pub options: &'static str,
    /// Compare the whole trees after each operation, not only at the end.
    pub each: bool,
}

impl Setup {
    /// Whether who opened a lower file for reading sees what is written afterwards in every case.
    pub fn strict_readers(&self) -> bool {
        self.options.contains("passthrough_lower=never") || self.options.contains("passthrough=off")
    }
}

/// A whole case. The first layer is the topmost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub setup: Setup,
    pub layers: Vec<Layer>,
    pub steps: Vec<Step>,
}

impl Case {
    /// The code of a regression test.
    pub fn as_code(&self) -> String {
        let mut code = String::from("#[test]\nfn name_it() {\n    replay(&Case {\n");
        let mut line = |indent: usize, text: String| {
            writeln!(code, "{:indent$}{text}", "").unwrap();
        };
        line(8, format!("setup: {:?},", self.setup));
        line(8, "layers: vec![".into());
        for layer in &self.layers {
            match layer {
                Layer::Tree(entries) => {
                    line(12, "Tree(vec![".into());
                    for entry in entries {
                        line(16, format!("{entry:?},"));
                    }
                }
                Layer::Written(steps) => {
                    line(12, "Written(vec![".into());
                    for step in steps {
                        line(16, format!("{step:?},"));
                    }
                }
            }
            line(12, "]),".into());
        }
        line(8, "],".into());
        line(8, "steps: vec![".into());
        for step in &self.steps {
            line(12, format!("{step:?},"));
        }
        line(8, "],".into());
        line(4, "});".into());
        line(0, "}".into());
        code
    }
}
