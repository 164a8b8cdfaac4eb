//! What a program sees of a whole tree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::common::tree::xattrs;
use super::compare;
use super::outcome::{Attr, Bytes};

/// One path of a merged tree.
#[derive(Clone, Debug)]
struct Seen {
    attr: Attr,
    ino: u64,
    data: Option<Bytes>,
    xattrs: BTreeMap<std::ffi::OsString, Bytes>,
}

/// Everything that a program can see of a tree.
#[derive(Clone, Debug)]
pub struct View(BTreeMap<PathBuf, Seen>);

impl View {
    /// Reads a tree.
    pub fn read(root: &Path) -> Result<View, String> {
        View::read_with(root, false)
    }

    /// Reads a tree of the kernel's overlayfs.
    pub fn read_kernel(root: &Path) -> Result<View, String> {
        View::read_with(root, true)
    }

    fn read_with(root: &Path, ghosts: bool) -> Result<View, String> {
        let mut all = BTreeMap::new();
        let mut queue = vec![PathBuf::new()];
        while let Some(relative) = queue.pop() {
            let path = if relative.as_os_str().is_empty() {
                root.into()
            } else {
                root.join(&relative)
            };
            let told = |e: std::io::Error| format!("{}: {e}", path.display());
            let meta = match fs::symlink_metadata(&path) {
                // See `layers::copy`.
                Err(e) if ghosts && e.kind() == std::io::ErrorKind::NotFound => continue,
                meta => meta.map_err(told)?,
            };
            let kind = meta.mode() & libc::S_IFMT;
            let data = match kind {
                libc::S_IFDIR => {
                    for entry in fs::read_dir(&path).map_err(told)? {
                        queue.push(relative.join(entry.map_err(told)?.file_name()));
                    }
                    None
                }
                libc::S_IFREG => Some(Bytes(fs::read(&path).map_err(told)?)),
                libc::S_IFLNK => {
                    use std::os::unix::ffi::OsStringExt;
                    let target = fs::read_link(&path).map_err(told)?;
                    Some(Bytes(target.into_os_string().into_vec()))
                }
                _ => None,
            };
            let xattrs = xattrs(&path).map_err(told)?;
            let xattrs = xattrs.into_iter().map(|(k, v)| (k, Bytes(v))).collect();
            all.insert(
                relative,
                Seen {
                    attr: Attr::from(&meta),
                    ino: meta.ino(),
                    data,
                    xattrs,
                },
            );
        }
        Ok(View(all))
    }

    /// What of it an archive keeps: no sockets, and no times of access.
    pub fn archived(mut self) -> View {
        self.0
            .retain(|_, seen| seen.attr.mode & libc::S_IFMT != libc::S_IFSOCK);
        for seen in self.0.values_mut() {
            seen.attr.atime = seen.attr.mtime;
        }
        self
    }

    /// Groups of paths that are one inode.
    fn links(&self) -> Vec<Vec<&Path>> {
        let mut groups: BTreeMap<u64, Vec<&Path>> = BTreeMap::new();
        for (path, seen) in self.0.iter().filter(|(_, s)| !s.attr.is_dir()) {
            groups.entry(seen.ino).or_default().push(path);
        }
        let mut groups: Vec<_> = groups.into_values().filter(|g| g.len() > 1).collect();
        groups.sort();
        groups
    }

    /// What differs between acetate and the plain directory, with the kernel's word where there is one.
    pub fn differences(&self, kernel: &View, plain: &View) -> String {
        let mut text = String::new();
        for (path, here) in &self.0 {
            let shown = path.display();
            let Some(there) = plain.0.get(path) else {
                writeln!(text, "{shown}: only in acetate: {:?}", here.attr).unwrap();
                continue;
            };
            let kernel = kernel.0.get(path);
            if !compare::attr(&here.attr, kernel.map(|k| &k.attr), &there.attr) {
                let kernel = kernel.map(|k| &k.attr);
                let (here, there) = (&here.attr, &there.attr);
                writeln!(
                    text,
                    "{shown}: {here:?}\n  plain: {there:?}\n  kernel: {kernel:?}"
                )
                .unwrap();
            }
            if here.data != there.data {
                writeln!(text, "{shown}: {:?}\n  plain: {:?}", here.data, there.data).unwrap();
            }
            if here.xattrs != there.xattrs {
                writeln!(
                    text,
                    "{shown}: {:?}\n  plain: {:?}",
                    here.xattrs, there.xattrs
                )
                .unwrap();
            }
        }
        for path in plain.0.keys().filter(|p| !self.0.contains_key(*p)) {
            writeln!(text, "{}: only in the plain directory", path.display()).unwrap();
        }
        if self.links() != plain.links() {
            writeln!(
                text,
                "links: {:?}\n  plain: {:?}",
                self.links(),
                plain.links()
            )
            .unwrap();
        }
        text
    }

    /// Path, inode number and link count of everything but directories.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64, u64)> {
        let files = self.0.iter().filter(|(_, s)| !s.attr.is_dir());
        files.map(|(path, seen)| (path.as_path(), seen.ino, seen.attr.nlink))
    }

    /// Paths whose inode number differs.
    pub fn moved(&self, later: &View) -> String {
        let mut text = String::new();
        for (path, seen) in &self.0 {
            if let Some(now) = later.0.get(path).filter(|n| n.ino != seen.ino) {
                writeln!(
                    text,
                    "{}: inode {} became {}",
                    path.display(),
                    seen.ino,
                    now.ino
                )
                .unwrap();
            }
        }
        text
    }
}
