//! System calls that nobody makes who only serves files.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

fn path(path: &Path) -> CString {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn said(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Calls with numbers for arguments, none of which points anywhere: the call itself must be refused, with `ENOSYS`.
pub fn refused_calls(own_parent: i32) -> Vec<(&'static str, io::Result<libc::c_long>)> {
    let parent = libc::c_long::from(own_parent);
    let unix = libc::c_long::from(libc::AF_UNIX);
    let inet = libc::c_long::from(libc::AF_INET);
    let stream = libc::c_long::from(libc::SOCK_STREAM);
    let attach = libc::c_long::from(libc::PTRACE_ATTACH as i32);
    let calls: &[(&'static str, libc::c_long, [libc::c_long; 3])] = &[
        ("ptrace", libc::SYS_ptrace, [attach, parent, 0]),
        (
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            [parent, 0, 0],
        ),
        (
            "process_vm_writev",
            libc::SYS_process_vm_writev,
            [parent, 0, 0],
        ),
        ("pidfd_open", libc::SYS_pidfd_open, [parent, 0, 0]),
        ("kcmp", libc::SYS_kcmp, [parent, parent, 0]),
        ("kill", libc::SYS_kill, [parent, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [parent, parent, 0]),
        ("prlimit64", libc::SYS_prlimit64, [parent, 0, 0]),
        ("socket unix", libc::SYS_socket, [unix, stream, 0]),
        ("socket inet", libc::SYS_socket, [inet, stream, 0]),
        ("connect", libc::SYS_connect, [0, 0, 0]),
        ("bind", libc::SYS_bind, [0, 0, 0]),
        (
            "unshare",
            libc::SYS_unshare,
            [libc::CLONE_NEWUSER.into(), 0, 0],
        ),
        ("setns", libc::SYS_setns, [0, 0, 0]),
        ("chroot", libc::SYS_chroot, [0, 0, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0]),
        ("umount2", libc::SYS_umount2, [0, 0, 0]),
        ("pivot_root", libc::SYS_pivot_root, [0, 0, 0]),
        ("open_tree", libc::SYS_open_tree, [0, 0, 0]),
        ("move_mount", libc::SYS_move_mount, [0, 0, 0]),
        ("fsopen", libc::SYS_fsopen, [0, 0, 0]),
        ("fspick", libc::SYS_fspick, [0, 0, 0]),
        ("mount_setattr", libc::SYS_mount_setattr, [0, 0, 0]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [0, 0, 0]),
        ("fork", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0]),
        ("execve", libc::SYS_execve, [0, 0, 0]),
        ("execveat", libc::SYS_execveat, [0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, 0, 0]),
        ("add_key", libc::SYS_add_key, [0, 0, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0]),
        ("finit_module", libc::SYS_finit_module, [0, 0, 0]),
        ("delete_module", libc::SYS_delete_module, [0, 0, 0]),
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0]),
        ("reboot", libc::SYS_reboot, [0, 0, 0]),
        ("swapon", libc::SYS_swapon, [0, 0, 0]),
        ("setuid", libc::SYS_setuid, [0, 0, 0]),
        ("setresuid", libc::SYS_setresuid, [0, 0, 0]),
        ("settimeofday", libc::SYS_settimeofday, [0, 0, 0]),
        ("sethostname", libc::SYS_sethostname, [0, 0, 0]),
        ("personality", libc::SYS_personality, [0, 0, 0]),
        (
            "PR_SET_DUMPABLE",
            libc::SYS_prctl,
            [libc::PR_SET_DUMPABLE.into(), 1, 0],
        ),
        (
            "TIOCSTI",
            libc::SYS_ioctl,
            [0, libc::TIOCSTI as libc::c_long, 0],
        ),
    ];
    let mut answers = Vec::new();
    for (name, call, [a, b, c]) in calls {
        // SAFETY: no pointer is passed that the kernel could write to.
        let result = unsafe { libc::syscall(*call, *a, *b, *c, 0, 0) };
        answers.push((*name, said(result)));
    }
    answers
}

/// Maps a page that can be written and run.
pub fn map_code() -> io::Result<()> {
    // SAFETY: a new mapping, of which nothing is used.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A handle of a file, as the kernel gives it to anybody.
pub fn handle_of(file: &Path) -> Option<Vec<u8>> {
    let mut buffer = vec![0u8; 8 + 128];
    buffer[..4].copy_from_slice(&128u32.to_ne_bytes());
    let mut mount = 0;
    let name = path(file);
    // SAFETY: the buffer has room for a header and as many bytes as it says.
    let done = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            &mut mount,
            0,
        )
    };
    (done == 0).then_some(buffer)
}

/// Opens it.
pub fn open_handle(mount: BorrowedFd<'_>, handle: &mut [u8], flags: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the buffer is one that the kernel filled.
    let fd =
        unsafe { libc::open_by_handle_at(mount.as_raw_fd(), handle.as_mut_ptr().cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
