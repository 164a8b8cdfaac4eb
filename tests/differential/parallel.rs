//! Several processes at once: each in a directory of its own, where it must not notice the others, and all in
//! the same directories, where whatever comes about must be sound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::common::Watchdog;
use super::compare;
use super::exec::Executor;
use super::generate;
use super::ground::Ground;
use super::op::{Features, Layer, Op, Setup, Step};
use super::sys;
use super::view::View;
use super::world::{by_the_kernel, quiet_unmount};

const PROCESSES: usize = 4;
const STEPS: usize = 400;
/// Directories of the processes: paths of the layers are moved below them.
const HOMES: [&str; PROCESSES] = ["p0", "p1", "p2", "p3"];

/// What a worker is told, by its environment.
const ROOT: &str = "ACETATE_WORKER_ROOT";
const PLAIN: &str = "ACETATE_WORKER_PLAIN";
const SEED: &str = "ACETATE_WORKER_SEED";

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(Config::default(), rng)
}

fn steps(seed: u64) -> Vec<Step> {
    let strategy = vec(generate::step(), STEPS..STEPS + 1);
    let mut steps = strategy.new_tree(&mut runner(seed)).unwrap().current();
    steps.retain(|s| s.op != Op::Remount);
    steps
}

/// The body of a worker process: random operations on a tree, and the same on a plain directory where there is
/// one, with equal outcomes.
pub fn work() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    sys::unshare_fs().unwrap();
    let plain = std::env::var_os(PLAIN).map(|p| Executor::new(Path::new(&p), false));
    let mut here = Executor::new(Path::new(&root), false);
    match plain {
        Some(mut plain) => {
            for (index, step) in steps(seed).iter().enumerate() {
                if compare::left_out(step, &setup(), &plain) {
                    continue;
                }
                let (there, here) = (plain.run(step), here.run(step));
                if let Some(wrong) = compare::alone(&step.op, &here, &there) {
                    panic!(
                        "step {index}, {step:?}: {wrong}\n  here:  {here:?}\n  plain: {there:?}"
                    );
                }
            }
        }
        None => {
            for step in steps(seed) {
                // Any outcome may come about; the tree is looked at afterwards. But the daemon may not fail.
                let outcome = here.run(&step);
                if let Err(errno @ (libc::EIO | libc::ENOTCONN | libc::ENOSYS)) = outcome.result {
                    panic!("{step:?}: errno {errno}");
                }
            }
        }
    }
}

fn start(seed: u64, root: &Path, plain: Option<&Path>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker_process", "--ignored", "--nocapture"]);
    command.env(ROOT, root).env(SEED, seed.to_string());
    if let Some(plain) = plain {
        command.env(PLAIN, plain);
    }
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(children: Vec<Child>) -> Result<(), String> {
    let mut errors = String::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            errors.push_str(&String::from_utf8_lossy(&output.stderr));
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// Random layers, moved below each of these directories.
fn layers(seed: u64, homes: &[&'static str]) -> Vec<Layer> {
    let mut runner = runner(seed);
    let count = 1 + (seed % 4) as usize;
    let mut layers = Vec::new();
    for _ in 0..count {
        let mut entries = Vec::new();
        for home in homes {
            let Layer::Tree(tree) = generate::tree().new_tree(&mut runner).unwrap().current()
            else {
                continue;
            };
            entries.extend(
                tree.into_iter()
                    .map(|(path, node)| (below(home, path), moved(home, node))),
            );
        }
        layers.push(Layer::Tree(entries));
    }
    layers
}

/// A path below a home; leaked, since paths of cases are static and these few live as long as the test.
fn below(home: &str, path: &str) -> &'static str {
    if home.is_empty() {
        path.to_owned().leak()
    } else {
        format!("{home}/{path}").leak()
    }
}

fn moved(home: &str, node: super::op::Node) -> super::op::Node {
    use super::op::Node;
    match node {
        Node::Link { to } => Node::Link {
            to: below(home, to),
        },
        // A symlink out of its home would lead to another one's.
        Node::Symlink { uid, .. } => Node::Symlink { target: "f", uid },
        other => other,
    }
}

fn limited(what: &str, test: impl FnOnce() -> Result<(), String> + Send + 'static) {
    let _limit = Watchdog::new(what, Duration::from_secs(240));
    let worker = thread::spawn(move || {
        sys::unshare_fs().unwrap();
        test()
    });
    match worker.join() {
        Ok(Ok(())) => {}
        Ok(Err(text)) => panic!("{what}: {text}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn setup() -> Setup {
    Setup {
        root_mode: 0o777,
        features: Features::All,
        options: "passthrough_lower=never",
        each: false,
    }
}

/// Each process in a directory of its own: outcomes and trees as on a plain directory.
pub fn disjoint(seed: u64) {
    limited("processes on their own directories", move || {
        let layers = layers(seed, &HOMES);
        let ground = Ground::new(&layers, setup(), true);
        let overlay = ground.overlay_all("kernel");
        for home in HOMES {
            // A layer may have left it out, and a home must be a directory.
            std::fs::create_dir_all(overlay.path().join(home)).map_err(|e| e.to_string())?;
        }
        ground.copy_to_plain(overlay.path());
        overlay.unmount().map_err(|e| e.to_string())?;
        let mount = ground.acetate("acetate");
        let children = HOMES.iter().zip(seed..).map(|(home, seed)| {
            std::fs::create_dir_all(mount.join(home)).unwrap();
            start(seed, &mount.join(home), Some(&ground.plain().join(home)))
        });
        finish(children.collect())?;
        let here = View::read(mount.path())?;
        let plain = View::read(&ground.plain())?;
        let text = here.differences(&here, &plain);
        if !text.is_empty() {
            return Err(text);
        }
        quiet_unmount(mount)?;
        ground.untouched()?;
        by_the_kernel(&ground, Some(&here), &plain)
    });
}

/// All processes on the same directories: no error of the daemon, a sound tree, the same by the kernel and
/// after a remount, the layers untouched.
pub fn shared(seed: u64) {
    limited("processes on the same directories", move || {
        let ground = Ground::new(&layers(seed, &[""]), setup(), true);
        let mount = ground.acetate("acetate");
        let begin = Instant::now();
        let root = mount.path().to_owned();
        finish(
            (seed..)
                .take(PROCESSES)
                .map(|seed| start(seed, &root, None))
                .collect(),
        )?;
        println!(
            "{PROCESSES} processes, {STEPS} operations each: {:?}",
            begin.elapsed()
        );
        let here = View::read(mount.path())?;
        sound(&here)?;
        quiet_unmount(mount)?;
        ground.untouched()?;
        by_the_kernel(&ground, Some(&here), &here)?;
        let mount = ground.acetate("acetate");
        let again = View::read(mount.path())?;
        let text = again.differences(&here, &here) + &here.moved(&again);
        if !text.is_empty() {
            return Err(format!("after a remount:\n{text}"));
        }
        quiet_unmount(mount)?;
        ground.untouched()
    });
}

/// Link counts are no less than the names that are seen.
fn sound(view: &View) -> Result<(), String> {
    let mut names: BTreeMap<u64, (u64, Vec<PathBuf>)> = BTreeMap::new();
    for (path, ino, nlink) in view.files() {
        let entry = names.entry(ino).or_insert((nlink, Vec::new()));
        entry.1.push(path.to_owned());
        if entry.0 != nlink {
            return Err(format!(
                "{}: link count {nlink} and {}",
                path.display(),
                entry.0
            ));
        }
    }
    for (nlink, paths) in names.values() {
        if *nlink < paths.len() as u64 {
            return Err(format!("link count {nlink} of {paths:?}"));
        }
    }
    Ok(())
}
