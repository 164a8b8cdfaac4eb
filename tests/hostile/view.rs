//! What a program sees of a tree that may be damaged: errors are part of it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;
use rustix::fs::{XattrFlags, lsetxattr};

use crate::common::{Acetate, Mount, Overlay, Scratch};

/// What is found at each path: the kind and the content, or that it cannot be read.
pub type View = BTreeMap<PathBuf, String>;

/// Reads a tree as far as it can be read. Special files are looked at and not opened.
pub fn view(root: &Path) -> View {
    let mut seen = View::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let at = root.join(&path);
        let at = if path.as_os_str().is_empty() {
            root
        } else {
            &at
        };
        let text = match fs::symlink_metadata(at) {
            Err(_) => "unreadable".to_owned(),
            Ok(found) => match found.mode() & libc::S_IFMT {
                libc::S_IFDIR => match fs::read_dir(at) {
                    Err(_) => "unreadable directory".to_owned(),
                    Ok(entries) => {
                        let mut whole = true;
                        for entry in entries {
                            match entry {
                                Ok(entry) => left.push(path.join(entry.file_name())),
                                Err(_) => whole = false,
                            }
                        }
                        if whole {
                            "directory"
                        } else {
                            "part of a directory"
                        }
                        .to_owned()
                    }
                },
                libc::S_IFREG => match read(at) {
                    Ok(data) => format!("{:?}", String::from_utf8_lossy(&data)),
                    Err(_) => "unreadable file".to_owned(),
                },
                libc::S_IFLNK => match fs::read_link(at) {
                    Ok(target) => format!("-> {target:?}"),
                    // It may be something else by now, where layers change underneath.
                    Err(_) => "unreadable link".to_owned(),
                },
                kind => format!("{kind:o} {}", found.rdev()),
            },
        };
        assert!(!text.contains("SECRET"), "{path:?}: {text}");
        seen.insert(path, text);
    }
    seen
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file)?
        .take(1 << 20)
        .read_to_end(&mut data)?;
    Ok(data)
}

/// Two lower layers, the first the upper one of the two, and a directory with a file of the word SECRET beside them.
pub struct Layers {
    pub top: PathBuf,
    pub bottom: PathBuf,
    pub outside: PathBuf,
    scratch: Scratch,
}

impl Layers {
    pub fn new(name: &str) -> Layers {
        let scratch = Scratch::new(name);
        let layers = Layers {
            top: scratch.dir("top"),
            bottom: scratch.dir("bottom"),
            outside: scratch.dir("outside"),
            scratch,
        };
        fs::write(layers.outside.join("secret"), "SECRET").unwrap();
        layers
    }

    /// Read-only.
    pub fn acetate(&self) -> Mount {
        self.read_only().mount()
    }

    /// A read-only mount that is still to be made.
    pub fn read_only(&self) -> Acetate {
        Acetate::new(self.scratch.join("merged"))
            .lowers(&[&self.top, &self.bottom])
            .argument("--ro")
    }

    /// With an upper of its own.
    pub fn writable(&self) -> Mount {
        let (upper, work) = (self.scratch.dir("upper"), self.scratch.dir("work"));
        Acetate::new(self.scratch.join("merged"))
            .lowers(&[&self.top, &self.bottom])
            .upper(&upper, &work)
            .mount()
    }

    /// What both show, ours first.
    pub fn both(&self) -> (View, View) {
        let ours = self.acetate();
        let seen = view(ours.path());
        drop(ours.unmount().unwrap());
        let dir = self.scratch.dir("kernel");
        let options = "metacopy=on,redirect_dir=on,xino=on";
        let theirs = Overlay::mount(&dir, &[&self.top, &self.bottom], None, options).unwrap();
        let kernel = view(theirs.path());
        theirs.unmount().unwrap();
        (seen, kernel)
    }
}

/// Sets an xattr that nobody checks.
pub fn mark(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|e| {
        panic!("{}: {name}: {e}", path.display());
    });
}

pub fn special(path: &Path, kind: SFlag, rdev: u64) {
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(path, kind, mode, rdev).unwrap();
}

/// A name of any bytes.
pub fn name(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}
