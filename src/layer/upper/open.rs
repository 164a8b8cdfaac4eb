//! Opening an upper: every check before anything is touched, then a clean workdir.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;

use super::index::Index;
use super::order::Order;
use super::partial::{self, Announcement, PARTIAL};
use super::sidecar::Sidecar;
use super::whiteout::{self, WhiteoutForm};
use super::workdir::{Workdir, clean, probe_renames};
use super::{Mark, Namespace, Upper, UpperOptions, private};
use crate::layer::dir::kept_override;
use crate::layer::error::UpperError;
use crate::layer::fdcache::FdCache;
use crate::layer::format::{MarkNames, OverrideXattr, mark_name};
use crate::layer::node::PathNode;
use crate::layer::tree::{Tree, TreeOptions};
use crate::sys::xattr::{self, Target};

/// Scratch space in the workdir.
const SCRATCH: &str = "work";
/// In the scratch space: features of what was mounted last, which whoever mounts next must know.
pub(super) const INCOMPAT: &str = "incompat";
/// The feature of a volatile mount, with the file in it.
const VOLATILE: &str = "volatile";
const DIRTY: &str = "dirty";

/// One of the two directories, for messages.
struct Place<'a> {
    what: &'static str,
    path: &'a Path,
}

impl Place<'_> {
    fn io(&self, e: impl Into<io::Error>) -> UpperError {
        UpperError::Io(self.what, self.path.to_owned(), e.into())
    }

    fn owned(&self) -> PathBuf {
        self.path.to_owned()
    }

    fn open(&self) -> Result<OwnedFd, UpperError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, self.path, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => UpperError::Missing(self.what, self.owned()),
            Errno::NOTDIR => UpperError::NotADirectory(self.what, self.owned()),
            Errno::ACCESS => UpperError::Unwritable(self.what, self.owned()),
            e => self.io(e),
        })
    }

    fn check_writable(&self, fd: &OwnedFd) -> Result<(), UpperError> {
        let vfs = rustix::fs::fstatvfs(fd).map_err(|e| self.io(e))?;
        if vfs.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(UpperError::ReadOnly(self.what, self.owned()));
        }
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        match rustix::fs::accessat(fd, ".", access, AtFlags::EACCESS) {
            Ok(()) => Ok(()),
            Err(Errno::ACCESS | Errno::PERM) => {
                Err(UpperError::Unwritable(self.what, self.owned()))
            }
            Err(Errno::ROFS) => Err(UpperError::ReadOnly(self.what, self.owned())),
            Err(e) => Err(self.io(e)),
        }
    }

    /// Held as long as the descriptor, and let go by the kernel when the process dies.
    fn lock(&self, fd: &OwnedFd) -> Result<(), UpperError> {
        match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(match strangers_lock(fd) {
                Some((process, user)) => UpperError::Locked {
                    what: self.what,
                    path: self.owned(),
                    process,
                    user,
                },
                None => UpperError::InUse(self.what, self.owned()),
            }),
            Err(e) => Err(self.io(e)),
        }
    }

    /// Refuses another directory than the one that was found there before.
    fn check_identity(&self, fd: &OwnedFd, expected: Identity) -> Result<(), UpperError> {
        if identity(fd).map_err(|e| self.io(e))? == expected {
            Ok(())
        } else {
            Err(UpperError::Replaced(self.what, self.owned()))
        }
    }
}

/// Device and inode number of a directory.
type Identity = (u64, u64);

fn identity(fd: &OwnedFd) -> io::Result<Identity> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

/// The process that locks a directory and its user, where that one is neither the user of this process nor root. Whoever may
/// open a directory may lock it, and is not to be taken for a mount that one could look for.
fn strangers_lock(fd: &OwnedFd) -> Option<(u32, u32)> {
    let (dev, ino) = identity(fd).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let process = holder_in(&locks, dev, ino)?;
    let user = std::fs::metadata(format!("/proc/{process}")).ok()?.uid();
    let ours = [0, rustix::process::geteuid().as_raw()];
    (!ours.contains(&user)).then_some((process, user))
}

/// The process that `/proc/locks` tells for a `flock` of this file; none where it is not to be seen from here.
fn holder_in(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let file = format!("{major:02x}:{minor:02x}:{ino}");
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, process, found) = (words.next()?, words.nth(2)?, words.next()?);
        let process: u32 = process.parse().ok()?;
        (kind == "FLOCK" && found == file && process > 0).then_some(process)
    })
}

/// Whether `inner` is `outer` or lies below it.
fn lies_in(inner: &OwnedFd, outer: &OwnedFd) -> io::Result<bool> {
    let sought = identity(outer)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(inner, ".", flags, Mode::empty())?;
    let mut here = identity(&at)?;
    loop {
        if here == sought {
            return Ok(true);
        }
        let above = match rustix::fs::openat(&at, "..", flags, Mode::empty()) {
            Ok(above) => above,
            // What is above cannot be seen, so neither could it have been named.
            Err(Errno::ACCESS) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let there = identity(&above)?;
        if there == here {
            return Ok(false);
        }
        (at, here) = (above, there);
    }
}

pub(super) fn mount_id(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok((stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id))
}

/// A plain user's own directory may lack the bits that let its owner in: the kernel makes its workdirs with mode 0.
pub(super) fn let_owner_in(fd: BorrowedFd<'_>) -> io::Result<()> {
    let access =
        rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::accessat(fd, ".", access, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(Errno::ACCESS) => crate::sys::path_fd::chmod(fd, 0o700),
        Err(e) => Err(e.into()),
    }
}

impl Upper {
    /// Checks both directories, takes them for this mount, and cleans the workdir.
    pub fn open(
        upper: &Path,
        work: &Path,
        options: UpperOptions,
        cache: Arc<FdCache>,
    ) -> Result<Arc<Upper>, UpperError> {
        Upper::open_as((upper, work), None, options, cache, false)
    }

    /// The same where both were found before: upper and workdir, each with its device and inode number. What has been put in the
    /// place of one of them since is refused, before anything in it is touched.
    ///
    /// `held`: for a mount that goes on. Both are held already, by descriptors that this process was given (see
    /// [`Upper::locks`]), and whoever changed them before has died.
    pub fn open_found(
        [(upper, upper_id), (work, work_id)]: [(&Path, (u64, u64)); 2],
        options: UpperOptions,
        cache: Arc<FdCache>,
        held: bool,
    ) -> Result<Arc<Upper>, UpperError> {
        let found = Some([upper_id, work_id]);
        Upper::open_as((upper, work), found, options, cache, held)
    }

    fn open_as(
        (upper, work): (&Path, &Path),
        expected: Option<[Identity; 2]>,
        options: UpperOptions,
        cache: Arc<FdCache>,
        held: bool,
    ) -> Result<Arc<Upper>, UpperError> {
        let up = Place {
            what: "upper directory",
            path: upper,
        };
        let wk = Place {
            what: "workdir",
            path: work,
        };
        if let Err(e) = boot_id() {
            log::info!("the time since the machine was started has no name: {e}");
        }
        let root_fd = up.open()?;
        let base = wk.open()?;
        if let Some([upper_id, work_id]) = expected {
            up.check_identity(&root_fd, upper_id)?;
            wk.check_identity(&base, work_id)?;
        }
        check_pair(&up, &root_fd, &wk, &base)?;
        let found = (root_fd.as_fd(), base.as_fd());
        let (root_fd, base, mount) =
            match private::reach((upper, work), found, options.access_times) {
                Ok(pair) => (pair.upper, pair.work, pair.mount),
                Err(e) => {
                    log::debug!("no private mount of {}: {e}", upper.display());
                    (root_fd, base, None)
                }
            };
        // On a descriptor of its own: nodes that outlive the upper hold the other one.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&root_fd, ".", flags, Mode::empty()).map_err(|e| up.io(e))?;
        for taken in [up.lock(&lock), wk.lock(&base)] {
            match taken {
                Err(UpperError::InUse(..) | UpperError::Locked { .. }) if held => {}
                taken => taken?,
            }
        }
        check_kernel_mounts(&up, &root_fd, &wk, &base)?;

        let scratch = open_scratch(&base).map_err(|e| wk.io(e))?;
        check_features(&wk, &scratch)?;
        let root_stat = rustix::fs::fstat(&root_fd).map_err(|e| up.io(e))?;
        let kept = kept_override(&root_fd).map_err(|e| up.io(e))?;
        let tree = Tree::new(
            cache,
            TreeOptions {
                may_hold_mounts: true,
                noatime_mount: true,
                override_xattr: OverrideXattr::of(options.override_stat).or(kept),
                names: MarkNames::Own(options.namespace),
                dot_whiteouts: true,
                metacopy: true,
                owners: None,
            },
        );
        let partial = partial::is_announced(&scratch).map_err(|e| wk.io(e))?;
        let kept = partial.then_some(INCOMPAT.as_ref());
        clean(&tree, scratch.as_fd(), kept).map_err(|e| wk.io(e))?;
        if partial {
            forget_volatile(&scratch).map_err(|e| wk.io(e))?;
        }
        check_xattrs(&up, &scratch, options.namespace)?;
        let form = whiteout_form(&scratch, options.namespace)
            .map_err(|e| wk.io(e))?
            .ok_or_else(|| UpperError::NoWhiteouts(up.owned()))?;
        let renames = probe_renames(scratch.as_fd()).map_err(|e| wk.io(e))?;
        if options.volatile {
            record_volatile(&scratch).map_err(|e| wk.io(e))?;
        }

        let root_fd = Arc::new(root_fd);
        let root = PathNode::root(tree.clone(), root_fd.clone(), root_stat.st_ino as u64);
        let index = Index::open(&tree, base.as_fd()).map_err(|e| wk.io(e))?;
        let sidecar = Sidecar::open(&tree, base.as_fd(), &root).map_err(|e| wk.io(e))?;
        let scratch = Arc::new(scratch);
        let scratch_ino = rustix::fs::fstat(&scratch).map_err(|e| wk.io(e))?.st_ino as u64;
        let scratch_node = PathNode::root(tree.clone(), scratch.clone(), scratch_ino);
        Ok(Arc::new(Upper {
            path: upper.to_owned(),
            order: Order::of(&root_fd),
            work: Workdir::new(base, scratch_node, scratch, form, renames),
            options,
            tree,
            root,
            root_fd,
            lock,
            _mount: mount,
            dev: root_stat.st_dev as u64,
            index,
            sidecar,
            handles: OnceLock::new(),
            partial: Announcement::new(partial),
        }))
    }

    /// Reads anew what is kept in memory of the directories, which another process has changed since they were opened, and
    /// died: what it had not published goes. Descriptors from before are never closed: a process that is made of the same
    /// memory later on has them too, and would close by their numbers what others open.
    pub fn renew(&self) -> Result<(), UpperError> {
        let wk = Place {
            what: "workdir",
            path: &self.path,
        };
        let scratch = self.work.fd.as_fd();
        clean(&self.tree, scratch, Some(INCOMPAT.as_ref())).map_err(|e| wk.io(e))?;
        self.work.renew();
        let base = self.work.base.as_fd();
        let index = Index::open(&self.tree, base).map_err(|e| wk.io(e))?;
        self.index.replace(index);
        let sidecar = Sidecar::open(&self.tree, base, &self.root).map_err(|e| wk.io(e))?;
        self.sidecar.replace(sidecar);
        let partial = partial::is_announced(&self.work.fd).map_err(|e| wk.io(e))?;
        self.partial.renew(partial);
        Ok(())
    }
}

/// Everything that can be told of the two without touching anything.
fn check_pair(
    up: &Place<'_>,
    root: &OwnedFd,
    wk: &Place<'_>,
    base: &OwnedFd,
) -> Result<(), UpperError> {
    let nested =
        lies_in(base, root).map_err(|e| wk.io(e))? || lies_in(root, base).map_err(|e| up.io(e))?;
    if nested {
        return Err(UpperError::Nested {
            upper: up.owned(),
            work: wk.owned(),
        });
    }
    up.check_writable(root)?;
    wk.check_writable(base)?;
    let dev = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
    let same = dev(root).map_err(|e| up.io(e))? == dev(base).map_err(|e| wk.io(e))?
        && mount_id(root.as_fd()).map_err(|e| up.io(e))?
            == mount_id(base.as_fd()).map_err(|e| wk.io(e))?;
    if !same {
        return Err(UpperError::OtherFilesystem {
            upper: up.owned(),
            work: wk.owned(),
        });
    }
    Ok(())
}

/// The kernel's overlayfs takes no lock that others see, but its mounts tell what they use.
fn check_kernel_mounts(
    up: &Place<'_>,
    root: &OwnedFd,
    wk: &Place<'_>,
    base: &OwnedFd,
) -> Result<(), UpperError> {
    // Without /proc nothing can be told.
    let Ok(mounts) = std::fs::read("/proc/self/mountinfo") else {
        return Ok(());
    };
    for path in crate::sys::mountinfo::overlay_directories(&mounts) {
        // One that cannot be seen from here cannot be one of the two.
        let Ok(stat) = rustix::fs::stat(&path) else {
            continue;
        };
        for (place, fd) in [(up, root), (wk, base)] {
            let own = rustix::fs::fstat(fd).map_err(|e| place.io(e))?;
            if (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino) {
                return Err(UpperError::InUse(place.what, place.owned()));
            }
        }
    }
    Ok(())
}

fn open_scratch(base: &OwnedFd) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(base, SCRATCH, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let scratch = rustix::fs::openat(base, SCRATCH, flags, Mode::empty())?;
    let_owner_in(scratch.as_fd())?;
    // New inodes would inherit these.
    for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
        match xattr::remove(Target::Fd(scratch.as_fd()), acl.as_ref()) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {}
            Err(e) => return Err(e),
        }
    }
    if rustix::fs::fstat(&scratch)?.st_mode as u32 & libc::S_ISGID != 0 {
        crate::sys::path_fd::chmod(&scratch, 0o700)?;
    }
    Ok(scratch)
}

/// Refuses a workdir whose last user left something that is not understood here.
fn check_features(wk: &Place<'_>, scratch: &OwnedFd) -> Result<(), UpperError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let incompat = match rustix::fs::openat(scratch, INCOMPAT, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(e) => return Err(wk.io(e)),
    };
    let entries = rustix::fs::Dir::read_from(&incompat).map_err(|e| wk.io(e))?;
    for entry in entries {
        let entry = entry.map_err(|e| wk.io(e))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if name == PARTIAL.as_bytes() {
            continue;
        }
        if name == VOLATILE.as_bytes() {
            if !same_boot(&incompat).map_err(|e| wk.io(e))? {
                return Err(UpperError::Volatile(wk.owned()));
            }
            continue;
        }
        let name = String::from_utf8_lossy(name).into_owned();
        return Err(UpperError::Incompatible(wk.owned(), name));
    }
    Ok(())
}

/// Whether the volatile mount that left its mark here was one of ours since the machine was started: then what it wrote is
/// in the page cache or on disk, and nothing is lost.
fn same_boot(incompat: &OwnedFd) -> io::Result<bool> {
    let path = format!("{VOLATILE}/{DIRTY}");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(incompat, path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(true),
        Err(e) => return Err(e.into()),
    };
    let recorded = io::read_to_string(file)?;
    Ok(!recorded.is_empty() && recorded == boot_id()?)
}

/// The mark of a volatile mount goes away, where that of partial files has to stay beside it.
fn forget_volatile(scratch: &OwnedFd) -> io::Result<()> {
    let volatile = format!("{INCOMPAT}/{VOLATILE}");
    for (path, flags) in [
        (format!("{volatile}/{DIRTY}"), AtFlags::empty()),
        (volatile, AtFlags::REMOVEDIR),
    ] {
        match rustix::fs::unlinkat(scratch, path, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Names the time since the machine was started. It is read once: a process in a sandbox cannot any more.
pub(super) fn boot_id() -> io::Result<String> {
    static READ: OnceLock<String> = OnceLock::new();
    if let Some(id) = READ.get() {
        return Ok(id.clone());
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(READ.get_or_init(|| id).clone())
}

/// Records, in the kernel's form, that a crash of the machine may lose what is written from now on.
fn record_volatile(scratch: &OwnedFd) -> io::Result<()> {
    use std::io::Write;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(scratch, ".", flags, Mode::empty())?;
    for name in [INCOMPAT, VOLATILE] {
        match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dirty = rustix::fs::openat(&dir, DIRTY, flags, Mode::from_raw_mode(0o600))?;
    File::from(dirty).write_all(boot_id()?.as_bytes())
}

/// Tries the marks on a file and on a directory, which are what must carry them.
fn check_xattrs(up: &Place<'_>, scratch: &OwnedFd, namespace: Namespace) -> Result<(), UpperError> {
    let word = match namespace {
        Namespace::Trusted => "trusted",
        Namespace::User => "user",
    };
    let probe = || -> io::Result<()> {
        let name = mark_name(namespace, &Mark::Opaque);
        match rustix::fs::mkdirat(scratch, "#x", Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            // A directory takes a block. The scratch directory itself has one, and may have room for an xattr beside.
            Err(Errno::NOSPC | Errno::DQUOT) => {
                let target = Target::Fd(scratch.as_fd());
                return match xattr::set(target, &name, b"y", 0) {
                    Ok(()) => xattr::remove(target, &name),
                    // Refused for want of room alone.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                        Ok(())
                    }
                    Err(e) => Err(e),
                };
            }
            Err(e) => return Err(e.into()),
        }
        let set = xattr::set(Target::At(scratch.as_fd(), "#x".as_ref()), &name, b"y", 0);
        rustix::fs::unlinkat(scratch, "#x", AtFlags::REMOVEDIR)?;
        set
    };
    match probe() {
        Ok(()) => Ok(()),
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EPERM | libc::EACCES)
            ) =>
        {
            Err(UpperError::NoXattrs(up.owned(), word))
        }
        Err(e) => Err(up.io(e)),
    }
}

/// The first form of whiteout that can be written and reads back right.
fn whiteout_form(scratch: &OwnedFd, namespace: Namespace) -> io::Result<Option<WhiteoutForm>> {
    for form in [
        WhiteoutForm::Device,
        WhiteoutForm::Marked,
        WhiteoutForm::Dot,
    ] {
        let name = "#w";
        match whiteout::make(form, namespace, scratch.as_fd(), name.as_ref()) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(
                        libc::EPERM | libc::EACCES | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS
                    )
                ) =>
            {
                continue;
            }
            Err(e) => return Err(e),
        }
        let stat = rustix::fs::statat(scratch, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = stat.st_mode as u32 & libc::S_IFMT;
        let right = match form {
            WhiteoutForm::Device => kind == libc::S_IFCHR && stat.st_rdev == 0,
            WhiteoutForm::Marked => {
                MarkNames::Own(namespace).is_whiteout(Target::At(scratch.as_fd(), name.as_ref()))?
            }
            WhiteoutForm::Dot => kind == libc::S_IFREG,
        };
        rustix::fs::unlinkat(scratch, name, AtFlags::empty())?;
        if right {
            return Ok(Some(form));
        }
    }
    Ok(None)
}
