//! Compares what acetate did with what a plain directory and the kernel's overlayfs did. The differences that
//! are allowed, each with its reason, are all here.

use super::op::{Op, Value as Xvalue};
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

/// The handle whose data the operation looks at. A lower file that is run or mapped is served by passthrough
/// (`passthrough_lower`); who opened it before it was copied up keeps the old data, and locks of its own.
pub fn reader(op: &Op) -> Option<u8> {
    match op {
        Op::Read { slot, .. }
        | Op::Pread { slot, .. }
        | Op::Seek { slot, .. }
        | Op::MapRead { slot, .. }
        | Op::MapPrivate { slot, .. }
        | Op::MapHold { slot }
        | Op::Flock { slot, .. }
        | Op::Lock { slot, .. } => Some(*slot),
        _ => None,
    }
}
