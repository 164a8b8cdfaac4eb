//! What a daemon did: the clock of a noisy machine does not show where time goes, this does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::mount;
use crate::sys::cpu_clock;

/// What a daemon used, in all or between two moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Daemon {
    /// Seconds of processor time.
    pub cpu: f64,
    /// Bytes of memory that is its own, at the later moment.
    pub memory: u64,
    /// How often its threads were taken off a processor or left it.
    pub switches: u64,
    /// Requests of the kernel by their names; empty where a daemon does not count them.
    pub requests: BTreeMap<String, u64>,
}

impl Daemon {
    /// What the process has used by now. `None` where there is none, or no more.
    pub(in crate::bench) fn now(pid: Option<u32>, dir: &Path, counts: bool) -> Option<Daemon> {
        let pid = pid?;
        let cpu = cpu_clock::used_by(pid).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let mut switches = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let text = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            switches += number(&text, "voluntary_ctxt_switches:").unwrap_or(0)
                + number(&text, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        let mut requests = BTreeMap::new();
        if counts && let Ok(stats) = mount::stats(dir) {
            requests.extend(stats.operations.into_iter().map(|op| (op.name, op.count)));
        }
        Some(Daemon {
            cpu: cpu.as_secs_f64(),
            memory: number(&status, "RssAnon:").unwrap_or(0) * 1024,
            switches,
            requests,
        })
    }

    /// What was used since then.
    pub(in crate::bench) fn since(self, before: &Daemon) -> Daemon {
        let requests = self.requests.into_iter().map(|(name, count)| {
            let old = before.requests.get(&name).copied().unwrap_or(0);
            (name, count.saturating_sub(old))
        });
        Daemon {
            cpu: self.cpu - before.cpu,
            memory: self.memory,
            switches: self.switches.saturating_sub(before.switches),
            requests: requests.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// The median of each figure.
    pub(super) fn median(mut all: Vec<Daemon>) -> Option<Daemon> {
        let middle = all.len() / 2;
        let mut names: Vec<String> = all
            .iter()
            .flat_map(|d| d.requests.keys().cloned())
            .collect();
        names.sort();
        names.dedup();
        let mut of = |key: &dyn Fn(&Daemon) -> f64| {
            all.sort_by(|a, b| key(a).total_cmp(&key(b)));
            all.get(middle).map(key)
        };
        let requests = names.into_iter().filter_map(|name| {
            let count = of(&|d| d.requests.get(&name).copied().unwrap_or(0) as f64)?;
            Some((name, count as u64))
        });
        let requests = requests.collect();
        Some(Daemon {
            cpu: of(&|d| d.cpu)?,
            memory: of(&|d| d.memory as f64)? as u64,
            switches: of(&|d| d.switches as f64)? as u64,
            requests,
        })
    }

    /// All requests together, forgets aside: nobody waits for those.
    pub fn asked(&self) -> u64 {
        let waited = self.requests.iter().filter(|(name, _)| *name != "forget");
        waited.map(|(_, count)| count).sum()
    }
}

/// The number behind a name at the start of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let now = Daemon::now(Some(std::process::id()), Path::new("/"), false).unwrap();
        assert!(now.memory > 0);
        assert!(now.switches > 0);
        assert!(Daemon::now(None, Path::new("/"), false).is_none());
    }

    #[test]
    fn medians_and_differences() {
        let daemon = |cpu: f64, lookups: u64, forgets: u64| Daemon {
            cpu,
            memory: 1,
            switches: lookups,
            requests: [
                ("lookup".to_owned(), lookups),
                ("forget".to_owned(), forgets),
            ]
            .into(),
        };
        let since = daemon(3.0, 9, 4).since(&daemon(1.0, 4, 4));
        assert!((since.cpu - 2.0).abs() < 1e-9);
        assert_eq!(since.requests, [("lookup".to_owned(), 5)].into());
        let median = Daemon::median(vec![
            daemon(3.0, 1, 0),
            daemon(1.0, 9, 0),
            daemon(2.0, 5, 7),
        ]);
        let median = median.unwrap();
        assert!((median.cpu - 2.0).abs() < 1e-9);
        assert_eq!(median.asked(), 5);
        assert_eq!(Daemon::median(Vec::new()), None);
    }
}
