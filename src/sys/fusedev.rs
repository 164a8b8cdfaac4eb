//! The device by which the kernel is talked to: opened directly, or received from `fusermount3`.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use super::mount::{FuseMount, MountFlags};

/// Opens `/dev/fuse`.
pub fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        "/dev/fuse",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Has `fusermount3` make the mount, as a plain user must, and receives the device from it.
pub fn mount_by_helper(mount: &FuseMount<'_>) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // The helper inherits its end; the process has no other thread yet that could start a program meanwhile.
    fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut child = Command::new("fusermount3")
        .arg("-o")
        .arg(helper_options(mount))
        .arg("--")
        .arg(mount.mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(theirs);
    let device = receive(&ours);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    match device? {
        Some(device) if status.success() => Ok(device),
        _ if said.trim().is_empty() => Err(io::Error::other(format!("fusermount3: {status}"))),
        _ => Err(io::Error::other(said.trim().replace('\n', "; "))),
    }
}

fn helper_options(mount: &FuseMount<'_>) -> OsString {
    let mut options = OsString::from("default_permissions,subtype=acetate,fsname=");
    options.push(escape_commas(mount.source));
    if mount.allow_other {
        options.push(",allow_other");
    }
    // The helper sets nosuid and nodev for a plain user by itself, and knows no others than these.
    for (flag, name) in [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOATIME, "noatime"),
        (MountFlags::NODIRATIME, "nodiratime"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ] {
        if mount.flags.contains(flag) {
            options.push(",");
            options.push(name);
        }
    }
    for option in mount.security {
        options.push(",");
        options.push(option);
    }
    options
}

fn escape_commas(text: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut out = Vec::with_capacity(text.len());
    for byte in text.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

/// One message with one descriptor; `None` when the other end closed without any.
fn receive(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(device) = descriptors.next()
        {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn options_for_the_helper() {
        let mount = FuseMount {
            mountpoint: Path::new("/m"),
            source: OsStr::new("a,b"),
            flags: MountFlags::RDONLY | MountFlags::NOEXEC,
            allow_other: true,
            security: &[],
        };
        assert_eq!(
            helper_options(&mount),
            "default_permissions,subtype=acetate,fsname=a\\,b,allow_other,ro,noexec"
        );
    }
}
