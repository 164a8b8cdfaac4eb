//! Requests for the contents of open files: reading, writing, copying, allocation.

use std::cell::RefCell;
use std::sync::Arc;

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite};

use super::convert::errno;
use super::counters::Op;
use super::reply::reply_empty;
use super::shared::Shared;
use crate::union::{HandleId, Result, WriteFlags};

/// The largest count that the reply to `copy_file_range` can hold, in whole pages.
const MAX_COPY: u64 = 0x7fff_f000;

thread_local! {
    /// What is read is put here: a new buffer for each request would be zeroed each time.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// `size`: in bytes.
pub(super) fn read(
    shared: &Arc<Shared>,
    handle: HandleId,
    offset: u64,
    size: u32,
    reply: ReplyData,
) {
    let long = shared.ask(|union| union.may_wait(handle));
    Shared::serve_long(shared, Op::Read, long, move |union, turn| {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let (part, _) = buffer.split_at_mut(size);
            let read = union.read(handle, offset, part);
            drop(turn);
            match read {
                Ok(length) => reply.data(&part[..length.min(size)]),
                Err(e) => reply.error(errno(&e)),
            }
        });
    });
}

/// A count of bytes. Requests ask for fewer than the reply can hold.
fn reply_written(reply: ReplyWrite, written: Result<impl TryInto<u32>>) {
    match written {
        Ok(written) => reply.written(written.try_into().unwrap_or(u32::MAX)),
        Err(e) => reply.error(errno(&e)),
    }
}

/// `how`: whose suid and sgid go with it.
pub(super) fn write(
    shared: &Arc<Shared>,
    handle: HandleId,
    offset: u64,
    data: &[u8],
    how: WriteFlags,
    reply: ReplyWrite,
) {
    if shared.ask(|union| union.may_wait(handle)) {
        let data = data.to_vec();
        return Shared::serve_long(shared, Op::Write, true, move |union, turn| {
            let written = union.write(handle, offset, &data, how);
            drop(turn);
            reply_written(reply, written);
        });
    }
    shared.serve(Op::Write, |union| {
        reply_written(reply, union.write(handle, offset, data, how));
    });
}

/// `mode`: as of `fallocate(2)`.
pub(super) fn allocate(
    shared: &Arc<Shared>,
    handle: HandleId,
    offset: u64,
    length: u64,
    mode: i32,
    reply: ReplyEmpty,
) {
    Shared::serve_long(shared, Op::Fallocate, true, move |union, turn| {
        let allocated = union.fallocate(handle, offset, length, mode);
        drop(turn);
        reply_empty(reply, allocated);
    });
}

/// `whence`: as of `lseek(2)`.
pub(super) fn seek(shared: &Shared, handle: HandleId, offset: i64, whence: i32, reply: ReplyLseek) {
    shared.serve(Op::Lseek, |union| {
        let found = union.lseek(handle, offset, whence);
        match found.map(i64::try_from) {
            Ok(Ok(offset)) => reply.offset(offset),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(e) => reply.error(errno(&e)),
        }
    });
}

/// From and to: a file and the offset in it.
pub(super) fn copy(
    shared: &Arc<Shared>,
    (from, from_offset): (HandleId, u64),
    (to, to_offset): (HandleId, u64),
    length: u64,
    reply: ReplyWrite,
) {
    Shared::serve_long(shared, Op::CopyFileRange, true, move |union, turn| {
        let length = length.min(MAX_COPY);
        let copied = union.copy_file_range(from, from_offset, to, to_offset, length);
        drop(turn);
        reply_written(reply, copied);
    });
}
