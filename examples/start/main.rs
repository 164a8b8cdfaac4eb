//! Times `acetate run --rm IMAGE true` beside the same runtime on a directory that is ready, with the same `config.json`:
//! `cargo run --release --example start -- [RUNTIME [ROUNDS]]`, as root, with busybox on the search path.
//!
//! Both are done in turns, so that what else the machine does hits both; the medians count.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// This program under this name is the `acetate` command, and so are the monitors that it starts.
const ACETATE: &str = "acetate";
/// How often each is done.
const ROUNDS: usize = 30;
/// The first ones only fill the caches.
const WARM: usize = 3;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().map(PathBuf::from);
    if name.is_some_and(|name| name.file_name() == Some(ACETATE.as_ref())) {
        return acetate::cli::run(std::env::args_os());
    }
    let runtime = arguments.next().unwrap_or_else(|| "runc".into());
    let rounds = arguments.next().map(|text| text.parse());
    let result = match rounds.transpose() {
        Ok(rounds) => race(&runtime, rounds.unwrap_or(ROUNDS)),
        Err(_) => Err(anyhow::anyhow!("usage: start [RUNTIME [ROUNDS]]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("start: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command to its end; gives how long that took, and what it printed.
fn timed(command: &mut Command) -> Result<(Duration, String)> {
    let begin = Instant::now();
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    let took = begin.elapsed();
    if !done.status.success() {
        bail!(
            "{command:?}: {}: {}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok((took, String::from_utf8_lossy(&done.stdout).into_owned()))
}

fn acetate(store: &Path, words: &[&OsStr]) -> Result<(Duration, String)> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/proc/self/exe");
    timed(command.arg0(ACETATE).env("ACETATE_ROOT", store).args(words))
}

/// A root filesystem of busybox.
fn tree(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("tree");
    fs::create_dir_all(root.join("bin"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let busybox = std::env::split_paths(&path)
        .map(|dir| dir.join("busybox"))
        .find(|file| file.is_file())
        .context("busybox is not on PATH (apt: busybox-static)")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for name in ["true", "sleep"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(root)
}

/// A bundle with a copy of the tree, and with the configuration that a container of it had.
fn bundle(dir: &Path, store: &Path, tree: &Path, runtime: &str) -> Result<PathBuf> {
    let words = ["run", "-d", "--runtime", runtime, "start", "sleep", "1000"];
    let (_, id) = acetate(store, &words.map(OsStr::new))?;
    let id = id.trim();
    let container = store.join("containers").join(id);
    let bundle = dir.join("bundle");
    fs::create_dir(&bundle)?;
    for file in ["hosts", "hostname", "resolv.conf"] {
        fs::copy(container.join(file), bundle.join(file))?;
    }
    let text = fs::read_to_string(container.join("config.json"))?;
    let text = text.replace(
        &container.display().to_string(),
        &bundle.display().to_string(),
    );
    let mut config: serde_json::Value = serde_json::from_str(&text)?;
    config["process"]["args"] = serde_json::json!(["true"]);
    config["linux"]["cgroupsPath"] = "/acetate-start-example".into();
    fs::write(bundle.join("config.json"), config.to_string())?;
    let copied = Command::new("cp")
        .arg("-a")
        .arg(tree)
        .arg(bundle.join("rootfs"))
        .status()?;
    if !copied.success() {
        bail!("cp: {copied}");
    }
    acetate(store, &["rm", "--force", id].map(OsStr::new))?;
    Ok(bundle)
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_secs_f64() * 1000.0
}

fn race(runtime: &str, rounds: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("store");
    let tree = tree(dir.path())?;
    acetate(
        &store,
        &["import".as_ref(), tree.as_os_str(), "start".as_ref()],
    )?;
    let bundle = bundle(dir.path(), &store, &tree, runtime)?;
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for round in 0..WARM + rounds {
        let mut command = Command::new(runtime);
        command.arg("--root").arg(dir.path().join("state"));
        command.args(["run", "--bundle"]).arg(&bundle);
        let (took, _) = timed(command.arg("acetate-start-example"))?;
        let words = ["run", "--rm", "--runtime", runtime, "start", "true"];
        let (took_ours, _) = acetate(&store, &words.map(OsStr::new))?;
        if round >= WARM {
            plain.push(took);
            ours.push(took_ours);
        }
    }
    let (plain, ours) = (median(&mut plain), median(&mut ours));
    println!("{runtime} run on a directory    {plain:6.1} ms");
    println!("acetate run --rm IMAGE true   {ours:6.1} ms");
    println!("ratio                         {:6.2}", ours / plain);
    Ok(())
}
