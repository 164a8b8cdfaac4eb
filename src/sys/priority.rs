//! The priority of the calling thread.
#![allow(unsafe_code)]

use std::io;

/// `IOPRIO_WHO_PROCESS`; with 0 the calling thread.
const WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE`, shifted to its place.
const CLASS_IDLE: libc::c_int = 3 << 13;
/// The least of all.
const LEAST: libc::c_int = 19;

/// From now on the calling thread gets what the others leave of the disk and of the processor.
pub fn be_idle() -> io::Result<()> {
    // SAFETY: the call takes three numbers and touches no memory.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: likewise. On Linux, 0 stands for the calling thread alone.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LEAST) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_is_idle() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let after = stat.rsplit(')').next().unwrap().to_owned();
            after.split_whitespace().nth(16).unwrap().to_owned()
        };
        let before = nice();
        std::thread::spawn(move || {
            be_idle().unwrap();
            assert_eq!(nice(), "19");
        })
        .join()
        .unwrap();
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        assert_eq!(
            stat.rsplit(')').next().unwrap().split_whitespace().nth(16),
            Some(before.as_str())
        );
    }
}
