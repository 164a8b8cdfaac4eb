//! What becomes of other tasks.

use std::fs;

use super::elsewhere;

/// `SIGKILL` in the masks of `/proc/PID/status`.
const KILL: u64 = 1 << (libc::SIGKILL - 1);

/// Whether a thread, named by its id in this process's pid namespace, is about to end: any fatal signal that leaves no core
/// becomes a pending `SIGKILL` of each thread. False for 0, which stands for a thread that is not seen from here, and
/// wherever nothing can be told.
pub fn is_being_killed(thread: u32) -> bool {
    has_kill(&status(thread))
}

/// Whether a process, named likewise, has a supplementary group. One that cannot be told of has none.
pub fn has_group(process: u32, group: u32) -> bool {
    status(process)
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .is_some_and(|groups| groups.split_whitespace().any(|g| g.parse() == Ok(group)))
}

/// What `/proc/PID/status` says, as far as it is asked for here.
fn status(task: u32) -> String {
    elsewhere::task_status(task).unwrap_or_else(|| status_here(task))
}

/// The same, whatever this process may have others do for it.
pub(super) fn status_here(task: u32) -> String {
    if task == 0 || !proc_is_ours() {
        return String::new();
    }
    // A process may have any bytes for its name.
    let status = fs::read(format!("/proc/{task}/status")).unwrap_or_default();
    String::from_utf8_lossy(&status).into_owned()
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
