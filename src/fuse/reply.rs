//! Results of the union as replies to the kernel.

use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, RenameFlags, ReplyAttr, ReplyCreate, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyXattr, Request,
};

use super::convert::{attr, created_attr, entry_attr, errno};
use super::passthrough::{backing_id, registered};
use crate::sys::worker::{wrap_for_create, wrap_for_open};
use crate::union::{Attr, Caller, Entry, Error, OpenMode, Opened, RenameMode, Result};

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn reply_entry(reply: ReplyEntry, result: Result<Entry>) {
    match result {
        Ok(entry) => {
            let (attr, attr_ttl) = entry_attr(&entry);
            let generation = Generation(entry.generation);
            reply.entry_with_ttls(&attr_ttl, &entry.entry_ttl, &attr, generation);
        }
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn reply_attr(reply: ReplyAttr, result: Result<(Attr, Duration)>) {
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

pub(super) fn reply_value(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
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

pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    match flags.bits() {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        // RENAME_WHITEOUT is for unions stacked on top; the kernel's overlayfs has it as little.
        _ => Err(Error::Errno(libc::EINVAL)),
    }
}

pub(super) fn reply_open(reply: ReplyOpen, result: Result<Opened>) {
    let opened = match result {
        Ok(opened) => opened,
        Err(e) => return reply.error(errno(&e)),
    };
    let (handle, flags) = (FileHandle(opened.handle), open_flags(&opened));
    match &opened.mode {
        OpenMode::Cached { .. } => reply.opened(handle, flags),
        OpenMode::Passthrough(backing) => match (backing_id(backing), registered(backing)) {
            (Some(id), _) => reply.opened_passthrough(handle, flags, id),
            (None, Some(registered)) => {
                let id = wrap_for_open(&reply, registered.id());
                reply.opened_passthrough(handle, flags, &id);
                id.into_raw();
            }
            (None, None) => reply.error(Errno::EIO),
        },
    }
}

pub(super) fn reply_create(reply: ReplyCreate, result: Result<(Entry, Opened)>) {
    let (entry, opened) = match result {
        Ok(created) => created,
        Err(e) => return reply.error(errno(&e)),
    };
    let (attr, ttl) = created_attr(&entry);
    let generation = Generation(entry.generation);
    let (handle, flags) = (FileHandle(opened.handle), open_flags(&opened));
    match &opened.mode {
        OpenMode::Cached { .. } => reply.created(&ttl, &attr, generation, handle, flags),
        OpenMode::Passthrough(backing) => match (backing_id(backing), registered(backing)) {
            (Some(id), _) => reply.created_passthrough(&ttl, &attr, generation, handle, flags, id),
            (None, Some(registered)) => {
                let id = wrap_for_create(&reply, registered.id());
                reply.created_passthrough(&ttl, &attr, generation, handle, flags, &id);
                id.into_raw();
            }
            (None, None) => reply.error(Errno::EIO),
        },
    }
}
