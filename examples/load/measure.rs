//! One run of a command: how long, how much processor, how much memory.

use std::fmt;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What one run took.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    wall: Duration,
    /// User and system time of the process, its finished children included.
    cpu: Duration,
    /// Bytes that it had in memory at most.
    memory: u64,
    /// What it printed.
    pub(crate) output: String,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8.3} {:>8.2} {:>5} MiB",
            self.wall.as_secs_f64(),
            self.cpu.as_secs_f64(),
            self.memory >> 20
        )
    }
}

/// Runs a command to its end. Its highest memory is looked up while it runs, every few milliseconds.
pub(crate) fn run(mut command: Command) -> Result<Sample> {
    let before = children_cpu();
    let begin = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let status_file = format!("/proc/{}/status", child.id());
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || stdout.map(std::io::read_to_string));
    let mut memory = 0;
    let mut wait = Duration::from_micros(200);
    let (status, wall) = loop {
        if let Some(high) = fs::read_to_string(&status_file).ok().and_then(high_water) {
            memory = memory.max(high);
        }
        if let Some(status) = child.try_wait()? {
            break (status, begin.elapsed());
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(Duration::from_millis(5));
    };
    let output = match reader.join() {
        Ok(Some(output)) => output?,
        _ => bail!("the output of {command:?} is lost"),
    };
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(Sample {
        wall,
        cpu: children_cpu().saturating_sub(before),
        memory,
        output,
    })
}

/// The one in the middle by time.
pub(crate) fn median(samples: &[Sample]) -> Option<Sample> {
    let mut samples = samples.to_vec();
    samples.sort_by_key(|sample| sample.wall);
    samples.get(samples.len() / 2).cloned()
}

fn high_water(status: String) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Processor time of all children that have ended, from fields 16 and 17 of `/proc/self/stat`, in ticks of 10 ms.
fn children_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
