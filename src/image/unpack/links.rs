//! Hard links, which may come before what they name.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::extract::{Extractor, is_whiteout};
use super::place::{self, Target};
use crate::image::error::ImageError;
use crate::image::tarball::Entry;

impl Extractor<'_> {
    pub(super) fn hard_link(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
        target: &[u8],
        entry: Entry,
    ) -> Result<(), ImageError> {
        let (parent, target_name) = match place::target(target) {
            Ok(Target::Entry(parent, name)) => (parent, name),
            Ok(_) => return Err(self.refuse(&path, "a hard link to what is no file")),
            Err(why) => {
                let target = String::from_utf8_lossy(target);
                return Err(self.refuse(&path, format!("a hard link to {target:?}: {why}")));
            }
        };
        let full = place::join(&parent, &target_name);
        if full == path {
            return Err(self.refuse(&path, "a hard link to itself"));
        }
        self.make_room(dir, name, &path)?;
        if !self.link(dir, name, &path, &parent, &target_name)? {
            self.links.insert(path, (full, Box::new(entry)));
            return Ok(());
        }
        self.dress_link(dir, name, &entry, &path)
    }

    /// Makes a hard link; false when its target is not there (yet).
    fn link(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        parent: &[u8],
        target: &[u8],
    ) -> Result<bool, ImageError> {
        let from = match self.dirs.get(parent) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(self.failed("link", path)(e)),
        };
        if is_whiteout(from.as_fd(), target) {
            return Ok(false);
        }
        let linked = rustix::fs::linkat(
            &from,
            OsStr::from_bytes(target),
            dir,
            OsStr::from_bytes(name),
            AtFlags::empty(),
        );
        match linked {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(self.failed("link", path)(e)),
        }
    }

    /// Makes the hard links that came before their target. One whose target is such a link waits for that, so that a
    /// chain of them costs no more than as many others.
    pub(super) fn finish_links(&mut self) -> Result<(), ImageError> {
        let mut links = std::mem::take(&mut self.links);
        let mut waiting: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
        let mut ready = VecDeque::new();
        for (path, (target, _)) in &links {
            if links.contains_key(target) {
                let waiters = waiting.entry(target.clone()).or_default();
                waiters.push(path.clone());
            } else {
                ready.push_back(path.clone());
            }
        }
        while let Some(path) = ready.pop_front() {
            let Some((target, entry)) = links.remove(&path) else {
                continue;
            };
            let (parent, name) = place::split(&path);
            let dir = self.parent(parent, &path)?;
            let (target_parent, target_name) = place::split(&target);
            if self.link(dir.as_fd(), name, &path, target_parent, target_name)? {
                self.dress_link(dir.as_fd(), name, &entry, &path)?;
                ready.extend(waiting.remove(&path).into_iter().flatten());
            } else {
                links.insert(path, (target, entry));
            }
        }
        // Their targets are nowhere, or they lead to each other.
        match links.first_key_value() {
            None => Ok(()),
            Some((path, (target, _))) => {
                let target = String::from_utf8_lossy(target);
                let why = format!("a hard link to {target:?}, which the layer has not");
                Err(self.refuse(path, why))
            }
        }
    }
}
