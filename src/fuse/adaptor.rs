//! One method per request of the kernel: convert, call one operation of the union, reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{attr, check_name, entry_attr, errno, file_type, no_entry, set_time};
use super::counters::{Counters, Op};
use super::init::{Settings, negotiate};
use super::passthrough::{Opener, backing_id};
use crate::union::{
    self, Attr, Caller, Entry, Error, Lookup, OpenMode, Opened, RenameMode, Result, SetAttr, Union,
};

/// The largest count that the reply to `copy_file_range` can hold, in whole pages.
const MAX_COPY: u64 = 0x7fff_f000;

/// A directory's listing changes only through this mount, and the kernel that makes the change drops what it caches of
/// the directory by itself.
const DIR_FLAGS: FopenFlags = FopenFlags::FOPEN_CACHE_DIR.union(FopenFlags::FOPEN_KEEP_CACHE);

thread_local! {
    /// What is read is put here: a new buffer for each request would be zeroed each time.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves one mount.
#[derive(Debug)]
pub(super) struct Adaptor {
    /// Immutable.
    union: Arc<Union>,
    /// Atomics.
    counters: Arc<Counters>,
    /// Immutable.
    settings: Settings,
    /// Set by `init`, before the first request.
    passthrough: bool,
}

impl Adaptor {
    pub(super) fn new(union: Arc<Union>, counters: Arc<Counters>, settings: Settings) -> Adaptor {
        Adaptor {
            union,
            counters,
            settings,
            passthrough: false,
        }
    }

    /// Does the work of one request. A panic in it drops the reply, which then answers `EIO`, and the mount goes on.
    fn serve(&self, op: Op, work: impl FnOnce()) {
        let start = Instant::now();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            log::error!("{} panicked and answers EIO: {text}", op.name());
        }
        self.counters.add(op, start.elapsed());
    }

    fn xattrs(&self) -> Result<()> {
        if self.settings.no_xattrs {
            return Err(Error::Errno(libc::EOPNOTSUPP));
        }
        Ok(())
    }
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_entry(reply: ReplyEntry, result: Result<Entry>) {
    match result {
        Ok(entry) => {
            let (attr, attr_ttl) = entry_attr(&entry);
            let generation = Generation(entry.generation);
            reply.entry_with_ttls(&attr_ttl, &entry.entry_ttl, &attr, generation);
        }
        Err(e) => reply.error(errno(&e)),
    }
}

fn reply_attr(reply: ReplyAttr, result: Result<(Attr, Duration)>) {
    match result {
        Ok((found, ttl)) => reply.attr(&ttl, &attr(&found)),
        Err(e) => reply.error(errno(&e)),
    }
}

/// The flags of an open reply. There is nothing to do at a flush: writes reach the file when they are answered.
fn open_flags(opened: &Opened) -> FopenFlags {
    match opened.mode {
        OpenMode::Cached { keep: true } => FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE,
        OpenMode::Cached { keep: false } | OpenMode::Passthrough(_) => FopenFlags::FOPEN_NOFLUSH,
    }
}

fn reply_value(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => match u32::try_from(value.len()) {
            Ok(length) => reply.size(length),
            Err(_) => reply.error(Errno::E2BIG),
        },
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(&e)),
    }
}

fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    match flags.bits() {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        // RENAME_WHITEOUT is for unions stacked on top; the kernel's overlayfs has it as little.
        _ => Err(Error::Errno(libc::EINVAL)),
    }
}

impl Filesystem for Adaptor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.passthrough = negotiate(config, &self.settings);
        Ok(())
    }

    fn destroy(&mut self) {
        self.union.shutdown();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(Op::Lookup, || {
            match check_name(name).and_then(|name| self.union.lookup(parent.0, name)) {
                Ok(Lookup::Found(entry)) => reply_entry(reply, Ok(entry)),
                Ok(Lookup::Absent(Duration::ZERO)) => reply.error(Errno::ENOENT),
                Ok(Lookup::Absent(ttl)) => {
                    reply.entry_with_ttls(&Duration::ZERO, &ttl, &no_entry(), Generation(0));
                }
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn forget(&self, _: &Request, node: INodeNo, count: u64) {
        self.serve(Op::Forget, || self.union.forget(node.0, count));
    }

    fn getattr(&self, _: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(Op::Getattr, || {
            reply_attr(reply, self.union.getattr(node.0, handle.map(|h| h.0)));
        });
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.serve(Op::Setattr, || {
            let set = SetAttr {
                mode: mode.map(|m| m & 0o7777),
                uid,
                gid,
                size,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
                handle: handle.map(|h| h.0),
            };
            reply_attr(reply, self.union.setattr(&caller(request), node.0, &set));
        });
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        self.serve(Op::Readlink, || match self.union.readlink(node.0) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.serve(Op::Mknod, || {
            let made = check_name(name).and_then(|name| {
                self.union
                    .mknod(&caller(request), parent.0, name, mode, umask, rdev)
            });
            reply_entry(reply, made);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.serve(Op::Mkdir, || {
            let made = check_name(name).and_then(|name| {
                self.union
                    .mkdir(&caller(request), parent.0, name, mode, umask)
            });
            reply_entry(reply, made);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Op::Unlink, || {
            let removed = check_name(name).and_then(|name| self.union.unlink(parent.0, name));
            reply_empty(reply, removed);
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Op::Rmdir, || {
            let removed = check_name(name).and_then(|name| self.union.rmdir(parent.0, name));
            reply_empty(reply, removed);
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.serve(Op::Symlink, || {
            let made = check_name(name).and_then(|name| {
                self.union
                    .symlink(&caller(request), parent.0, name, target.as_os_str())
            });
            reply_entry(reply, made);
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Rename, || {
            let renamed = rename_mode(flags).and_then(|mode| {
                let (name, new_name) = (check_name(name)?, check_name(new_name)?);
                self.union
                    .rename(parent.0, name, new_parent.0, new_name, mode)
            });
            reply_empty(reply, renamed);
        });
    }

    fn link(
        &self,
        _: &Request,
        node: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.serve(Op::Link, || {
            let linked = check_name(new_name)
                .and_then(|new_name| self.union.link(node.0, new_parent.0, new_name));
            reply_entry(reply, linked);
        });
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Op::Open, || {
            let opener = Opener::for_open(&reply, self.passthrough);
            let opened = match self.union.open(&caller(request), node.0, flags.0, &opener) {
                Ok(opened) => opened,
                Err(e) => return reply.error(errno(&e)),
            };
            let (handle, flags) = (FileHandle(opened.handle), open_flags(&opened));
            match &opened.mode {
                OpenMode::Cached { .. } => reply.opened(handle, flags),
                OpenMode::Passthrough(backing) => match backing_id(backing) {
                    Some(id) => reply.opened_passthrough(handle, flags, id),
                    None => reply.error(Errno::EIO),
                },
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.serve(Op::Create, || {
            let opener = Opener::for_create(&reply, self.passthrough);
            let created = check_name(name).and_then(|name| {
                let caller = caller(request);
                self.union
                    .create(&caller, parent.0, name, mode, umask, flags, &opener)
            });
            let (entry, opened) = match created {
                Ok(created) => created,
                Err(e) => return reply.error(errno(&e)),
            };
            // One time for both: the entry is asked for again where the attributes must be.
            let (attr, attr_ttl) = entry_attr(&entry);
            let ttl = attr_ttl.min(entry.entry_ttl);
            let generation = Generation(entry.generation);
            let (handle, flags) = (FileHandle(opened.handle), open_flags(&opened));
            match &opened.mode {
                OpenMode::Cached { .. } => reply.created(&ttl, &attr, generation, handle, flags),
                OpenMode::Passthrough(backing) => match backing_id(backing) {
                    Some(id) => {
                        reply.created_passthrough(&ttl, &attr, generation, handle, flags, id);
                    }
                    None => reply.error(Errno::EIO),
                },
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(Op::Read, || {
            BUFFER.with_borrow_mut(|buffer| {
                let size = size as usize;
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                let (part, _) = buffer.split_at_mut(size);
                match self.union.read(handle.0, offset, part) {
                    Ok(length) => reply.data(&part[..length.min(size)]),
                    Err(e) => reply.error(errno(&e)),
                }
            });
        });
    }

    fn write(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.serve(Op::Write, || {
            let how = union::WriteFlags {
                kill_priv: write_flags
                    .contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
                    .then(|| caller(request)),
                cached: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
                append: flags.0 & libc::O_APPEND != 0,
            };
            match self.union.write(handle.0, offset, data, how) {
                Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    /// Never again: the kernel stops asking after the first.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Release, || {
            self.union.release(handle.0);
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Fsync, || {
            reply_empty(reply, self.union.fsync(handle.0, datasync));
        });
    }

    fn opendir(&self, _: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Op::Opendir, || match self.union.opendir(node.0) {
            Ok(handle) => reply.opened(FileHandle(handle), DIR_FLAGS),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn readdir(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.serve(Op::Readdir, || {
            let read = self.union.readdir(handle.0, offset, &mut |entry| {
                let kind = file_type(entry.file_type);
                reply.add(INodeNo(entry.ino), entry.cookie, kind, entry.name)
            });
            match read {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.serve(Op::Readdirplus, || {
            let read = self
                .union
                .readdirplus(handle.0, offset, &mut |entry, found| {
                    let (attr, ttl, generation) = match found {
                        Some(found) => {
                            let (attr, attr_ttl) = entry_attr(found);
                            (attr, attr_ttl.min(found.entry_ttl), found.generation)
                        }
                        // `.` and `..`: the kernel takes no inode from them.
                        None => {
                            let mut attr = no_entry();
                            attr.ino = INodeNo(entry.ino);
                            attr.kind = file_type(entry.file_type);
                            (attr, Duration::ZERO, 0)
                        }
                    };
                    let generation = Generation(generation);
                    reply.add(attr.ino, entry.cookie, entry.name, &ttl, &attr, generation)
                });
            match read {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Releasedir, || {
            self.union.releasedir(handle.0);
            reply.ok();
        });
    }

    fn fsyncdir(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Fsyncdir, || {
            reply_empty(reply, self.union.fsyncdir(handle.0, datasync));
        });
    }

    fn statfs(&self, _: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.serve(Op::Statfs, || match self.union.statfs() {
            Ok(fs) => reply.statfs(
                fs.blocks(),
                fs.blocks_free(),
                fs.blocks_available(),
                fs.files(),
                fs.files_free(),
                fs.block_size() as u32,
                fs.name_max() as u32,
                fs.fragment_size() as u32,
            ),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Setxattr, || {
            let set = self.xattrs().and_then(|()| {
                self.union
                    .setxattr(&caller(request), node.0, name, value, flags)
            });
            reply_empty(reply, set);
        });
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(Op::Getxattr, || {
            let value = self
                .xattrs()
                .and_then(|()| self.union.getxattr(node.0, name));
            reply_value(reply, size, value);
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(Op::Listxattr, || {
            let names = self
                .xattrs()
                .and_then(|()| self.union.listxattr(&caller(request), node.0));
            let list = names.map(|names| {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(name.as_encoded_bytes());
                    list.push(0);
                }
                list
            });
            reply_value(reply, size, list);
        });
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Op::Removexattr, || {
            let removed = self
                .xattrs()
                .and_then(|()| self.union.removexattr(&caller(request), node.0, name));
            reply_empty(reply, removed);
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Fallocate, || {
            reply_empty(reply, self.union.fallocate(handle.0, offset, length, mode));
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(Op::Lseek, || {
            let found = self.union.lseek(handle.0, offset, whence);
            match found.map(i64::try_from) {
                Ok(Ok(offset)) => reply.offset(offset),
                Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _from: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _to: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.serve(Op::CopyFileRange, || {
            let copied = self.union.copy_file_range(
                from.0,
                from_offset,
                to.0,
                to_offset,
                length.min(MAX_COPY),
            );
            match copied {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    /// Never asked: `default_permissions` lets the kernel check.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// Never asked: locks are the kernel's own.
    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// Never asked: locks are the kernel's own.
    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// Regular files are always ready: the kernel says so by itself from now on.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
