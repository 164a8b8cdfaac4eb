//! One method per request of the kernel: convert, call one operation of the union, reply.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{check_name, errno, file_type, name_list, no_entry, plus_attr, set_time};
use super::counters::Op;
use super::data;
use super::init::negotiate;
use super::passthrough::Opener;
use super::replay::Once;
use super::reply::{
    caller, rename_mode, reply_attr, reply_create, reply_empty, reply_entry, reply_open,
    reply_value,
};
use super::shared::{Shared, Turn};
use crate::sys::panics::caught;
use crate::union::{self, Error, Lookup, Result, SetAttr, Union};

/// A directory's listing changes only through this mount, and the kernel that makes the change drops what it caches of
/// the directory by itself.
const DIR_FLAGS: FopenFlags = FopenFlags::FOPEN_CACHE_DIR.union(FopenFlags::FOPEN_KEEP_CACHE);

/// Serves one mount.
#[derive(Debug)]
pub(super) struct Adaptor {
    /// Shared with the threads that long operations are handed to.
    shared: Arc<Shared>,
}

impl Adaptor {
    pub(super) fn new(shared: Arc<Shared>) -> Adaptor {
        Adaptor { shared }
    }

    /// Does the work of one request on this thread.
    fn serve(&self, op: Op, work: impl FnOnce(&Union)) {
        self.shared.serve(op, work);
    }

    /// Does the work of a request that may take long.
    fn serve_long(&self, op: Op, long: bool, work: impl FnOnce(&Union, Turn) + Send + 'static) {
        Shared::serve_long(&self.shared, op, long, work);
    }

    fn xattrs(&self) -> Result<()> {
        if self.shared.settings.no_xattrs {
            return Err(Error::Errno(libc::EOPNOTSUPP));
        }
        Ok(())
    }

    /// Whether a change of this node may have to copy a file's data first.
    fn may_copy(&self, node: INodeNo) -> bool {
        self.shared.ask(|union| union.may_copy_data(node.0))
    }
}

impl Filesystem for Adaptor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.shared.agree(negotiate(config, &self.shared.settings));
        Ok(())
    }

    /// Also called where this process fails, and another goes on with what is open and registered.
    fn destroy(&mut self) {
        if self.shared.goes_on() {
            return;
        }
        if let Err(text) = caught(|| self.shared.union.shutdown()) {
            log::error!("shutting down panicked: {text}");
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(Op::Lookup, |union| {
            match check_name(name).and_then(|name| union.lookup(parent.0, name)) {
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
        self.serve(Op::Forget, |union| union.forget(node.0, count));
    }

    fn getattr(&self, _: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(Op::Getattr, |union| {
            reply_attr(reply, union.getattr(node.0, handle.map(|h| h.0)));
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
        let caller = caller(request);
        self.serve_long(Op::Setattr, self.may_copy(node), move |union, turn| {
            let set = SetAttr {
                mode: mode.map(|m| m & 0o7777),
                uid,
                gid,
                size,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
                handle: handle.map(|h| h.0),
            };
            let changed = union.setattr(&caller, node.0, &set);
            drop(turn);
            reply_attr(reply, changed);
        });
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        self.serve(Op::Readlink, |union| match union.readlink(node.0) {
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
        self.serve(Op::Mknod, |union| {
            let once = Once::name(union, request.unique().0, parent.0, name);
            let made = check_name(name).and_then(|name| {
                once.make(
                    || union.mknod(&caller(request), parent.0, name, mode, umask, rdev),
                    || union.unlink(parent.0, name),
                )
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
        self.serve(Op::Mkdir, |union| {
            let once = Once::name(union, request.unique().0, parent.0, name);
            let made = check_name(name).and_then(|name| {
                once.make(
                    || union.mkdir(&caller(request), parent.0, name, mode, umask),
                    || union.rmdir(parent.0, name),
                )
            });
            reply_entry(reply, made);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, unique) = (name.to_owned(), request.unique().0);
        // It may wait for the copy-up of a file of several names, or be the cause of it.
        let long = self
            .shared
            .ask(|union| union.may_copy_linked(parent.0, &name));
        self.serve_long(Op::Unlink, long, move |union, turn| {
            let once = Once::name(union, unique, parent.0, &name);
            let removed = check_name(&name)
                .and_then(|name| once.remove(|| union.unlink(parent.0, name), libc::ENOENT));
            drop(turn);
            reply_empty(reply, removed);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Op::Rmdir, |union| {
            let once = Once::name(union, request.unique().0, parent.0, name);
            let removed = check_name(name)
                .and_then(|name| once.remove(|| union.rmdir(parent.0, name), libc::ENOENT));
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
        self.serve(Op::Symlink, |union| {
            let once = Once::name(union, request.unique().0, parent.0, name);
            let made = check_name(name).and_then(|name| {
                once.make(
                    || union.symlink(&caller(request), parent.0, name, target.as_os_str()),
                    || union.unlink(parent.0, name),
                )
            });
            reply_entry(reply, made);
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (caller, name, new_name) = (caller(request), name.to_owned(), new_name.to_owned());
        let unique = request.unique().0;
        // What is renamed may be a file of a lower layer, which is copied up first.
        self.serve_long(Op::Rename, true, move |union, turn| {
            let renamed = rename_mode(flags).and_then(|mode| {
                let (name, new_name) = (check_name(&name)?, check_name(&new_name)?);
                let to = (new_parent.0, new_name);
                let once = Once::rename(union, unique, (parent.0, name), to, mode);
                let renamed = once.moved(mode, to, || {
                    union.rename(&caller, parent.0, name, new_parent.0, new_name, mode)
                });
                Ok((renamed, once))
            });
            drop(turn);
            match renamed {
                Ok((renamed, _once)) => reply_empty(reply, renamed),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn link(
        &self,
        request: &Request,
        node: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (caller, new_name) = (caller(request), new_name.to_owned());
        let unique = request.unique().0;
        self.serve_long(Op::Link, self.may_copy(node), move |union, turn| {
            let once = Once::name(union, unique, new_parent.0, &new_name);
            let linked = check_name(&new_name).and_then(|new_name| {
                let link = || union.link(&caller, node.0, new_parent.0, new_name);
                once.link(link, (new_parent.0, new_name))
            });
            drop(turn);
            reply_entry(reply, linked);
        });
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (caller, registrar) = (caller(request), self.shared.registrar());
        let changes = flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        let long = changes && self.may_copy(node);
        self.serve_long(Op::Open, long, move |union, turn| {
            let opener = Opener::for_open(&reply, &registrar);
            let opened = union.open(&caller, node.0, flags.0, &opener);
            drop(turn);
            reply_open(reply, opened);
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
        self.serve(Op::Create, |union| {
            let registrar = self.shared.registrar();
            let opener = Opener::for_create(&reply, &registrar);
            let once = Once::name(union, request.unique().0, parent.0, name);
            let created = check_name(name).and_then(|name| {
                let caller = caller(request);
                once.make(
                    || union.create(&caller, parent.0, name, mode, umask, flags, &opener),
                    || union.unlink(parent.0, name),
                )
            });
            reply_create(reply, created);
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
        data::read(&self.shared, handle.0, offset, size, reply);
    }

    fn write(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kills = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let how = union::WriteFlags {
            kill_priv: kills.then(|| caller(request)),
            cached: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
        };
        data::write(&self.shared, handle.0, offset, data, how, reply);
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
        self.serve(Op::Release, |union| {
            union.release(handle.0);
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
        self.serve_long(Op::Fsync, true, move |union, turn| {
            let synced = union.fsync(handle.0, datasync);
            drop(turn);
            reply_empty(reply, synced);
        });
    }

    /// Directories are read by node: a kernel that can do without opening them asks once, and caches them as `DIR_FLAGS` say.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.serve(Op::Opendir, |_| {
            if self.shared.agreed().no_opendir {
                reply.error(Errno::ENOSYS);
            } else {
                reply.opened(FileHandle(0), DIR_FLAGS);
            }
        });
    }

    fn readdir(
        &self,
        _: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.serve(Op::Readdir, |union| {
            let read = union.readdir(node.0, offset, &mut |entry| {
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
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.serve(Op::Readdirplus, |union| {
            let read = union.readdirplus(node.0, offset, &mut |entry, found| {
                let (attr, ttl, generation) = plus_attr(&entry, found);
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
        _handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(Op::Releasedir, |_| reply.ok());
    }

    fn fsyncdir(
        &self,
        _: &Request,
        node: INodeNo,
        _handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve_long(Op::Fsyncdir, true, move |union, turn| {
            let synced = union.fsyncdir(node.0, datasync);
            drop(turn);
            reply_empty(reply, synced);
        });
    }

    fn statfs(&self, _: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.serve(Op::Statfs, |union| match union.statfs() {
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
        let allowed = self.xattrs();
        let (caller, name, value) = (caller(request), name.to_owned(), value.to_owned());
        let unique = request.unique().0;
        // Capabilities wait for the kernel to write the file's data.
        let long = name == "security.capability" || self.may_copy(node);
        self.serve_long(Op::Setxattr, long, move |union, turn| {
            let set = || union.setxattr(&caller, node.0, &name, &value, flags);
            if flags & libc::XATTR_CREATE == 0 {
                let done = allowed.and_then(|()| set());
                drop(turn);
                return reply_empty(reply, done);
            }
            let once = Once::xattr(union, unique, node.0, &name);
            let done = allowed.and_then(|()| once.set(set));
            drop(turn);
            reply_empty(reply, done);
        });
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(Op::Getxattr, |union| {
            let value = self.xattrs().and_then(|()| union.getxattr(node.0, name));
            reply_value(reply, size, value);
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(Op::Listxattr, |union| {
            let names = self
                .xattrs()
                .and_then(|()| union.listxattr(&caller(request), node.0));
            reply_value(reply, size, names.map(|names| name_list(&names)));
        });
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let allowed = self.xattrs();
        let (caller, name) = (caller(request), name.to_owned());
        let unique = request.unique().0;
        self.serve_long(Op::Removexattr, self.may_copy(node), move |union, turn| {
            let once = Once::xattr(union, unique, node.0, &name);
            let remove = || union.removexattr(&caller, node.0, &name);
            let removed = allowed.and_then(|()| once.remove(remove, libc::ENODATA));
            drop(turn);
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
        data::allocate(&self.shared, handle.0, offset, length, mode, reply);
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
        data::seek(&self.shared, handle.0, offset, whence, reply);
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
        let (from, to) = ((from.0, from_offset), (to.0, to_offset));
        data::copy(&self.shared, from, to, length, reply);
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
