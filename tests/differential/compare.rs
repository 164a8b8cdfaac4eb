//! Compares what acetate did with what a plain directory and the kernel's overlayfs did. The differences that
//! are allowed, each with its reason, are all here; what a test never does is said in `generate` (`O_TMPFILE`,
//! which FUSE has since Linux 6.1 but acetate has not; fallocate's collapse and insert, which FUSE refuses; the
//! overlay's own xattrs, which the kernel escapes).

use super::exec::Executor;
use super::op::{Features, Op, Setup, Step, Value as Xvalue, Who};
use super::outcome::{Attr, Outcome, Value};

/// The link count of a directory counts its subdirectories on ext4, and is 1 for a merged directory on the
/// kernel's overlayfs: 1 is POSIX's "not counted". A removed directory that is open may keep its count there.
fn dir_nlink(acetate: &Attr, kernel: Option<&Attr>, plain: &Attr) -> bool {
    let uncounted = acetate.nlink == 1 || plain.nlink == 1;
    acetate.is_dir() && (uncounted || kernel.is_some_and(|k| k.nlink == acetate.nlink))
}

/// The names of a lower file that an upper layer hides or replaced before the mount still count as links on
/// the kernel's overlayfs; the plain directory never had them.
fn file_nlink(acetate: &Attr, kernel: Option<&Attr>) -> bool {
    !acetate.is_dir() && kernel.is_some_and(|k| k.nlink == acetate.nlink)
}

/// True when the attributes agree.
pub fn attr(acetate: &Attr, kernel: Option<&Attr>, plain: &Attr) -> bool {
    let nlink = acetate.nlink == plain.nlink
        || dir_nlink(acetate, kernel, plain)
        || file_nlink(acetate, kernel);
    nlink
        && Attr {
            nlink: plain.nlink,
            ..acetate.clone()
        } == *plain
}

fn result(
    op: &Op,
    acetate: &Result<Value, i32>,
    kernel: Option<&Result<Value, i32>>,
    plain: &Result<Value, i32>,
) -> bool {
    if acetate == plain {
        return true;
    }
    match (acetate, plain) {
        (Ok(Value::Attr(a)), Ok(Value::Attr(p))) => {
            let kernel = match kernel {
                Some(Ok(Value::Attr(k))) => Some(k),
                _ => None,
            };
            attr(a, kernel, p)
        }
        // How finely holes are told is the filesystem's choice.
        (Ok(Value::Number(_)), Ok(Value::Number(_))) => {
            matches!(
                op,
                Op::Seek {
                    whence: libc::SEEK_DATA | libc::SEEK_HOLE,
                    ..
                }
            )
        }
        // ext4 calls the removal of an ACL that is not there a success, the kernel's overlayfs does not.
        (Err(libc::ENODATA), Ok(Value::Done)) => removes_acl(op),
        // Lest a write fails before which the kernel takes away capabilities that are gone by then.
        (Ok(Value::Done), Err(libc::ENODATA)) => removes_capability(op),
        _ => false,
    }
}

fn removes_capability(op: &Op) -> bool {
    match op {
        Op::RemoveXattr { name, .. } | Op::Fremovexattr { name, .. } => {
            *name == "security.capability"
        }
        _ => false,
    }
}

fn removes_acl(op: &Op) -> bool {
    match op {
        Op::RemoveXattr { name, .. }
        | Op::Fremovexattr { name, .. }
        | Op::SetXattr {
            name,
            value: Xvalue::Bytes(0),
            ..
        }
        | Op::Fsetxattr {
            name,
            value: Xvalue::Bytes(0),
            ..
        } => name.starts_with("system.posix_acl_"),
        _ => false,
    }
}

/// What is wrong with acetate's outcome; `None` when all is well.
pub fn outcome(
    op: &Op,
    acetate: &Outcome,
    kernel: Option<&Outcome>,
    plain: &Outcome,
) -> Option<String> {
    // A name that a symlink or an exchange leads elsewhere afterwards is so on the plain directory too.
    if !acetate.broken.is_empty() && plain.broken.is_empty() {
        return Some(acetate.broken.join("; "));
    }
    let kernel = kernel.map(|k| &k.result);
    if result(op, &acetate.result, kernel, &plain.result) {
        return None;
    }
    Some("differs".into())
}

/// What is wrong where the kernel's overlayfs was not asked: link counts may then be those of hidden names.
pub fn alone(op: &Op, acetate: &Outcome, plain: &Outcome) -> Option<String> {
    outcome(op, acetate, Some(acetate), plain)
}

fn passed_through(setup: &Setup) -> bool {
    !setup.options.contains("passthrough=off")
}

/// What is not run at all, since the trees would differ from then on.
pub fn left_out(step: &Step, setup: &Setup, plain: &Executor) -> bool {
    match step.op {
        // A write to a file with suid, or by root to one with capabilities, makes the very same request.
        Op::Fchown {
            uid: None,
            gid: None,
            ..
        } => true,
        Op::Chown {
            path,
            uid: None,
            gid: None,
            ..
        } => step.who == Who::Root || plain.has_open(path),
        // In the `user.` form a directory of a lower layer cannot be renamed.
        Op::Rename { from, to, .. } => {
            setup.features == Features::User && (plain.is_dir(from) || plain.is_dir(to))
        }
        // Who writes to a backing file counts as unprivileged, so that a plain user's write takes suid and sgid
        // away; a file that has them is not passed through, but one that gets them while it is open already is.
        Op::Fchmod { mode, .. } => passed_through(setup) && mode & 0o6000 != 0,
        Op::Chmod { path, mode } => {
            passed_through(setup) && mode & 0o6000 != 0 && plain.has_open(path)
        }
        // A mapped write reaches the daemon as a write, which takes the capability away.
        Op::MapWrite { slot, .. } | Op::MapHold { slot } => plain.has_capability(slot),
        Op::MapPoke { .. } => plain.map_has_capability(),
        // A path through /proc to a reader that was passed through is stale after the copy-up.
        Op::Reopen { .. } => !setup.strict_readers(),
        // And what is copied from such a reader may be old.
        Op::Copy { from, .. } => !setup.strict_readers() && plain.is_reader(from),
        // With the writeback cache the kernel keeps the times by itself, and takes this for no change.
        Op::Truncate { path, size } => !passed_through(setup) && plain.has_size(path, size),
        _ => false,
    }
}

/// Whether the operation looks at the data of a lower file that may have been passed through: one that is run or
/// mapped (`passthrough_lower`). Who opened it before it was copied up keeps the old data, and locks of its own.
pub fn may_be_old(step: &Step, setup: &Setup, plain: &Executor) -> bool {
    let slot = match step.op {
        Op::Read { slot, .. }
        | Op::Pread { slot, .. }
        | Op::Seek { slot, .. }
        | Op::MapRead { slot, .. }
        | Op::MapPrivate { slot, .. }
        | Op::MapHold { slot }
        | Op::Flock { slot, .. }
        | Op::Lock { slot, .. } => slot,
        _ => return false,
    };
    !setup.strict_readers() && plain.is_reader(slot)
}
