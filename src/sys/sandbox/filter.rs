//! seccomp: which calls are let through.
//!
//! A list of those that are allowed, so that a call that is new in tomorrow's kernel is not. All others answer `ENOSYS`,
//! as on a kernel that does not have them: a newer C library then takes the older call that it has a fallback to. Killing
//! the process instead would turn one forgotten call into a dead root filesystem of a running container. The kernel's
//! audit log names what was refused.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Files, by descriptor and by name.
const FILES: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_umask,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_name_to_handle_at,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // setxattrat, getxattrat, listxattrat, removexattrat: the same numbers everywhere.
    463,
    464,
    465,
    466,
];

/// What the same are called as well on the oldest architecture.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_pause,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Memory, threads, time, signals, and what a process may know of itself.
const PROCESS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigpending,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    // CAP_FSETID is laid down for a moment and taken up again; what was given up for good stays so.
    libc::SYS_capset,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
];

/// Waiting, and talking on sockets that are there: there is no call to make or to connect one.
const WAITING: &[libc::c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];

/// Requests of `ioctl`.
const REQUESTS: &[u64] = &[
    0x8004_e500, // FUSE_DEV_IOC_CLONE
    0x4010_e501, // FUSE_DEV_IOC_BACKING_OPEN
    0x4004_e502, // FUSE_DEV_IOC_BACKING_CLOSE
    0x4004_9409, // FICLONE
    0x4020_940d, // FICLONERANGE
    0x8011_1500, // FS_IOC_GETFSUUID
    0xc020_660b, // FS_IOC_FIEMAP
    0x8008_9418, // BTRFS_IOC_START_SYNC
    0x4008_9416, // BTRFS_IOC_WAIT_SYNC
    0x5401,      // TCGETS, by which isatty asks
    0x541b,      // FIONREAD
    0x5421,      // FIONBIO
    0x5450,      // FIONCLEX
    0x5451,      // FIOCLEX
];

/// Of `prctl`: names of threads and of memory, who dies with whom, and questions.
const CONTROLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_SET_PDEATHSIG as u64,
    libc::PR_GET_PDEATHSIG as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_GET_SECCOMP as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
    libc::PR_CAPBSET_READ as u64,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Built<T> = Result<T, seccompiler::BackendError>;

/// One argument, a number of 32 bits.
fn argument(index: u8, op: SeccompCmpOp, value: u64) -> Built<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)?;
    SeccompRule::new(vec![condition])
}

fn rules() -> Built<Rules> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules = Rules::new();
    for call in [FILES, OLDER, PROCESS, WAITING].into_iter().flatten() {
        rules.insert(*call, Vec::new());
    }
    let any = |values: &[u64], index| -> Built<Vec<SeccompRule>> {
        values.iter().map(|v| argument(index, Eq, *v)).collect()
    };
    rules.insert(libc::SYS_ioctl, any(REQUESTS, 1)?);
    rules.insert(libc::SYS_prctl, any(CONTROLS, 0)?);
    // Threads, and no processes; of what `clone3` does a filter sees nothing.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(
        libc::SYS_clone,
        vec![argument(0, MaskedEq(thread), thread)?],
    );
    // No new code: neither mapped from a file nor written.
    let run = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![argument(2, MaskedEq(run), 0)?]);
    }
    // Limits of its own, and signals to itself: by which abort(3) ends.
    rules.insert(libc::SYS_prlimit64, any(&[0], 0)?);
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, any(&[own], 0)?);
    Ok(rules)
}

const REFUSED: SeccompAction = SeccompAction::Errno(libc::ENOSYS as u32);

fn program(arch: TargetArch) -> Built<BpfProgram> {
    let mut rules = rules()?;
    // Left to the other filter.
    rules.insert(libc::SYS_clone3, Vec::new());
    SeccompFilter::new(rules, REFUSED, SeccompAction::Allow, arch)?.try_into()
}

/// Refuses what each start of a thread tries first, without a word in the audit log.
fn quiet_program(arch: TargetArch) -> Built<BpfProgram> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, REFUSED, arch)?.try_into()
}

pub(super) fn install() -> io::Result<Result<(), String>> {
    let arch = match TargetArch::try_from(std::env::consts::ARCH) {
        Ok(arch) => arch,
        Err(e) => return Ok(Err(e.to_string())),
    };
    let program = program(arch).map_err(io::Error::other)?;
    let quiet = quiet_program(arch).map_err(io::Error::other)?;
    // After the large one no other can be loaded.
    match load(&quiet, 0).and_then(|()| load(&program, libc::SECCOMP_FILTER_FLAG_LOG)) {
        Ok(()) => Ok(Ok(())),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
            Ok(Err(e.to_string()))
        }
        Err(e) => Err(e),
    }
}

fn load(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<()> {
    let described = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `described` tells the true length of `program`, whose elements have the layout of `struct sock_filter`;
    // the kernel only reads both, and they outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const described,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
