//! What a directory tree holds, for comparison: "the layer is what it was", "both show the same".

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sha2::{Digest, Sha256};

/// What is recorded beside type, mode, owner, size, data and xattrs.
#[derive(Clone, Copy, Debug)]
pub struct TreeOptions {
    /// Access times.
    pub atime: bool,
    /// Modification times.
    pub mtime: bool,
    /// Inode numbers and change times: the very same inodes, untouched.
    pub inode: bool,
    /// Link counts of directories.
    pub dir_nlink: bool,
    /// Allocated blocks, which change by themselves while the filesystem writes back.
    pub blocks: bool,
}

impl TreeOptions {
    /// Everything: for a layer that nobody may have touched.
    pub const UNTOUCHED: TreeOptions = TreeOptions {
        atime: true,
        mtime: true,
        inode: true,
        dir_nlink: true,
        blocks: false,
    };
    /// What two filesystems with the same contents agree on.
    pub const CONTENTS: TreeOptions = TreeOptions {
        atime: false,
        mtime: true,
        inode: false,
        dir_nlink: false,
        blocks: false,
    };
}

/// One path of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeNode {
    /// `st_mode`.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Size; 0 for directories.
    pub size: u64,
    /// Link count where it is recorded.
    pub nlink: Option<u64>,
    /// Device number of a special file.
    pub rdev: u64,
    /// SHA-256 of the data, or the target of a symlink.
    pub data: Option<Vec<u8>>,
    /// Every xattr.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Modification time.
    pub mtime: Option<(i64, i64)>,
    /// Access time.
    pub atime: Option<(i64, i64)>,
    /// Device, inode number and change time.
    pub inode: Option<(u64, u64, i64, i64)>,
    /// Allocated 512-byte units.
    pub blocks: Option<u64>,
}

/// A whole tree by path; the root is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Its nodes.
    pub nodes: BTreeMap<PathBuf, TreeNode>,
    /// Paths that are one inode, each group sorted.
    pub links: Vec<Vec<PathBuf>>,
}

/// Every xattr of a path, not following a symlink.
pub fn xattrs(path: &Path) -> std::io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = vec![0u8; 65536];
    let used = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut all = BTreeMap::new();
    for name in names[..used].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 65536];
        let used = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(used);
        all.insert(OsString::from_vec(name.to_vec()), value);
    }
    Ok(all)
}

fn hash(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 16];
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(hash.finalize().to_vec()),
            n => hash.update(&buf[..n]),
        }
    }
}

/// A second mount of a directory, through which reading leaves no trace: a listing and a readlink change the
/// access time too, and no flag of theirs prevents that.
struct NoAtime {
    dir: tempfile::TempDir,
}

impl NoAtime {
    fn new(root: &Path) -> std::io::Result<NoAtime> {
        let clone = NoAtime {
            dir: tempfile::tempdir()?,
        };
        let dir = clone.dir.path();
        mount(
            Some(root),
            dir,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOATIME;
        mount(None::<&str>, dir, None::<&str>, flags, None::<&str>)?;
        Ok(clone)
    }
}

impl Drop for NoAtime {
    fn drop(&mut self) {
        if let Err(e) = umount2(self.dir.path(), MntFlags::MNT_DETACH) {
            eprintln!("umount {}: {e}", self.dir.path().display());
        }
    }
}

impl Tree {
    /// Reads a whole tree. With access times it needs root, and does not change them by reading.
    pub fn read(root: &Path, options: TreeOptions) -> std::io::Result<Tree> {
        if !options.atime {
            return Tree::read_at(root, options);
        }
        let clone = NoAtime::new(root)?;
        Tree::read_at(clone.dir.path(), options)
    }

    fn read_at(root: &Path, options: TreeOptions) -> std::io::Result<Tree> {
        let mut nodes = BTreeMap::new();
        let mut links: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
        let mut queue = vec![PathBuf::new()];
        while let Some(relative) = queue.pop() {
            // Joining the empty path would add a slash, which follows a symlink.
            let path = if relative.as_os_str().is_empty() {
                root.into()
            } else {
                root.join(&relative)
            };
            let name = |e: std::io::Error| {
                std::io::Error::new(e.kind(), format!("{}: {e}", path.display()))
            };
            let meta = fs::symlink_metadata(&path).map_err(name)?;
            let kind = meta.mode() & libc::S_IFMT;
            let is_dir = kind == libc::S_IFDIR;
            if is_dir {
                for entry in fs::read_dir(&path).map_err(name)? {
                    queue.push(relative.join(entry.map_err(name)?.file_name()));
                }
            } else {
                links
                    .entry((meta.dev(), meta.ino()))
                    .or_default()
                    .push(relative.clone());
            }
            let data = match kind {
                libc::S_IFREG => Some(hash(&path).map_err(name)?),
                libc::S_IFLNK => Some(
                    fs::read_link(&path)
                        .map_err(name)?
                        .into_os_string()
                        .into_vec(),
                ),
                _ => None,
            };
            nodes.insert(
                relative,
                TreeNode {
                    mode: meta.mode(),
                    owner: (meta.uid(), meta.gid()),
                    size: if is_dir { 0 } else { meta.size() },
                    nlink: (!is_dir || options.dir_nlink).then_some(meta.nlink()),
                    rdev: if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) {
                        meta.rdev()
                    } else {
                        0
                    },
                    data,
                    xattrs: xattrs(&path).map_err(name)?,
                    mtime: options.mtime.then(|| (meta.mtime(), meta.mtime_nsec())),
                    atime: options.atime.then(|| (meta.atime(), meta.atime_nsec())),
                    inode: options
                        .inode
                        .then(|| (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec())),
                    blocks: options.blocks.then(|| meta.blocks()),
                },
            );
        }
        let mut links: Vec<Vec<PathBuf>> = links.into_values().filter(|g| g.len() > 1).collect();
        for group in &mut links {
            group.sort();
        }
        links.sort();
        Ok(Tree { nodes, links })
    }

    /// What differs, one line each; empty when the trees are equal.
    pub fn differences(&self, other: &Tree) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                None => lines.push(format!("{}: only in the first", path.display())),
                Some(there) if there != node => {
                    lines.push(format!(
                        "{}:\n  first:  {node}\n  second: {there}",
                        path.display()
                    ));
                }
                Some(_) => {}
            }
        }
        for path in other.nodes.keys().filter(|p| !self.nodes.contains_key(*p)) {
            lines.push(format!("{}: only in the second", path.display()));
        }
        if self.links != other.links {
            lines.push(format!(
                "hard links: {:?} against {:?}",
                self.links, other.links
            ));
        }
        lines
    }

    /// Fails with every difference.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, what: &str) {
        let lines = self.differences(other);
        assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
    }
}

impl fmt::Display for TreeNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mode {:o} owner {:?} size {} nlink {:?} rdev {:x}",
            self.mode, self.owner, self.size, self.nlink, self.rdev
        )?;
        if let Some(data) = &self.data {
            let short: String = data.iter().take(6).map(|b| format!("{b:02x}")).collect();
            write!(f, " data {short}")?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.to_string_lossy(), value.escape_ascii())?;
        }
        write!(
            f,
            " mtime {:?} atime {:?} inode {:?} blocks {:?}",
            self.mtime, self.atime, self.inode, self.blocks
        )
    }
}
