//! What becomes of other tasks.

use std::fs;

/// `SIGKILL` in the masks of `/proc/PID/status`.
const KILL: u64 = 1 << (libc::SIGKILL - 1);

/// Whether a thread, named by its id in this process's pid namespace, is about to end: any fatal signal that leaves no core
/// becomes a pending `SIGKILL` of each thread. False for 0, which stands for a thread that is not seen from here, and
/// wherever nothing can be told.
pub fn is_being_killed(thread: u32) -> bool {
    if thread == 0 || !proc_is_ours() {
        return false;
    }
    fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|status| has_kill(&status))
}

/// The `/proc` that is mounted here may be another pid namespace's, in which the number is somebody else.
fn proc_is_ours() -> bool {
    fs::read_link("/proc/self").is_ok_and(|own| own.as_os_str() == &*std::process::id().to_string())
}

fn has_kill(status: &str) -> bool {
    status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or_else(|| line.strip_prefix("ShdPnd:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & KILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen_and_nothing_else() {
        let status = |own: &str, shared: &str| {
            format!("Name:\tx\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t0000000000000100\n")
        };
        assert!(has_kill(&status("0000000000000100", "0000000000000000")));
        assert!(has_kill(&status("0000000000000000", "0000000000000100")));
        assert!(!has_kill(&status("0000000000004002", "0000000000000002")));
        assert!(!has_kill(""));
        assert!(proc_is_ours());
        assert!(!is_being_killed(std::process::id()));
        assert!(!is_being_killed(0));
    }
}
