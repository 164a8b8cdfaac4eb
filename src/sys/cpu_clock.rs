//! The processor time of other processes, more exact than the hundredths of a second of `/proc/PID/stat`.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// No process has this number or a larger one (`PID_MAX_LIMIT`). A clock's number has room for 29 bits of it: what does not fit would
/// come out as another process, or as this one.
const NO_PROCESS: u32 = 1 << 22;

/// How much processor time all threads of a process have used since it began, those that ended included.
pub fn used_by(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|_| pid < NO_PROCESS)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the call writes one clock's number to `clock`, which outlives it.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one `timespec` to `time`, which outlives it.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let out_of_range = |_| io::Error::from_raw_os_error(libc::EOVERFLOW);
    let seconds = u64::try_from(time.tv_sec).map_err(out_of_range)?;
    let nanos = u32::try_from(time.tv_nsec).map_err(out_of_range)?;
    Ok(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_time_and_one_that_is_not_has_none() {
        let before = used_by(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while used_by(std::process::id()).unwrap() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(used_by(u32::MAX).is_err());
        assert!(used_by(NO_PROCESS).is_err());
        // Cut down to what fits, it would be 0, which stands for the caller.
        assert!(used_by(1 << 30).is_err());
    }
}
