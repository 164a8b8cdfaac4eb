//! What one command in an image makes the mount copy up, why, and what to do about it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::Serialize;

use super::disk::Filesystem;
use super::error::{BenchError, at};
use super::scene::Scene;
use super::system::{Kind, Place, System, this_program};
use crate::image::{PreparedImage, Store};
use crate::mount;
use crate::union::ChangeKind;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to work.
    pub dir: PathBuf,
    /// Where the store lies.
    pub store: PathBuf,
    /// The image.
    pub image: OsString,
    /// The program and its arguments, as they are called in the image.
    pub command: Vec<OsString>,
}

/// What was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `trace`.
    pub benchmark: &'static str,
    /// The image's name.
    pub image: String,
    /// How the command ended, as a shell would say it.
    pub status: String,
    /// Whether it ended with 0.
    pub success: bool,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// The files that were copied up and are still there, the most bytes first.
    pub files: Vec<Copied>,
    /// Directories that were copied up, which is without data.
    pub directories: u64,
    /// Copy-ups of files that are gone: removed, or replaced by others.
    pub gone: u64,
    /// Bytes copied for everything, also for what is gone.
    pub bytes: u64,
    /// What to change, the most useful first.
    pub advice: Vec<String>,
}

/// One file that was copied up.
#[derive(Clone, Debug, Serialize)]
pub struct Copied {
    /// From the image's root; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What asked for it, such as `open for writing` or `chmod`.
    pub reason: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that were copied for it.
    pub bytes: u64,
    /// How long that took, in microseconds.
    pub us: u64,
    /// Its contents are what they were below.
    pub unchanged: bool,
    /// What to do about it.
    pub advice: String,
}

/// Runs the command in the image and tells what it copied. Must be called before the process has any other thread.
pub fn run(request: &Request) -> Result<Report, BenchError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::Usage(
            "--trace changes its root, which needs root".into(),
        ));
    }
    let Some((program, arguments)) = request.command.split_first() else {
        return Err(BenchError::Usage(
            "name the command to trace behind --".into(),
        ));
    };
    let store = Store::open(&request.store)?;
    let image = store.prepare(&request.image, None)?;
    let (scene, _ending) = Scene::new(&request.dir)?;
    let place = place(&scene, &image)?;
    let this = this_program()?;
    let system = System::new("acetate", Kind::Acetate, Filesystem::Host, "", &this, "");
    let mounted = system.mount(&scene, &place)?;
    let dir = mounted.dir.clone();
    let inside = helpers(&scene, &dir)?;
    let mut command = Command::new("chroot");
    command.arg(&dir).arg(program).args(arguments);
    environment(&mut command, &image);
    let begin = Instant::now();
    let status = scene.run_attended(&mut command)?;
    let seconds = begin.elapsed().as_secs_f64();
    for helper in inside.iter().rev() {
        scene.unmount(helper)?;
    }
    let mut report = look(&dir, &image)?;
    report.status = status.to_string();
    report.success = status.success();
    report.seconds = seconds;
    mounted.unmount(&scene)?;
    Ok(report)
}

fn place(scene: &Scene, image: &PreparedImage) -> Result<Place, BenchError> {
    let base = scene.make_dir("layers")?;
    let mut lowers = Vec::new();
    for (i, layer) in image.layers.iter().enumerate() {
        let name = PathBuf::from(i.to_string());
        let link = base.join(&name);
        symlink(layer, &link).map_err(at("cannot link to the layer", &link))?;
        lowers.push(name);
    }
    Ok(Place {
        base,
        lowers,
        private: scene.dir().join("private"),
        image: None,
    })
}

/// What programs expect beside the image's own files, where the image has a place for it.
fn helpers(scene: &Scene, dir: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let mut mounted = Vec::new();
    for (name, words) in [
        ("proc", ["-t", "proc", "proc"]),
        ("dev", ["-o", "bind", "/dev"]),
    ] {
        let target = dir.join(name);
        // A link would lead out of the image.
        if fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_dir()) {
            scene.mount_by(&target, Command::new("mount").args(words).arg(&target))?;
            mounted.push(target);
        }
    }
    Ok(mounted)
}

fn environment(command: &mut Command, image: &PreparedImage) {
    let config = image.config.config().as_ref();
    let set = config
        .and_then(|config| config.env().clone())
        .unwrap_or_default();
    command.env_clear();
    command.env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    command.env("HOME", "/root");
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
    for variable in &set {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
}

fn look(dir: &Path, image: &PreparedImage) -> Result<Report, BenchError> {
    let stats = mount::stats(dir)?;
    let mut files = Vec::new();
    let mut directories = 0;
    for change in mount::diff(dir)? {
        let relative = change.path.trim_start_matches('/');
        let path = dir.join(relative);
        if change.kind == ChangeKind::D {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let explained = mount::explain(&path)?;
        let Some(reason) = explained.copy_up_reason.filter(|_| explained.copied_up) else {
            continue;
        };
        if meta.is_dir() {
            directories += 1;
            continue;
        }
        let bytes = explained.copy_up_bytes.unwrap_or(0);
        let partial = explained.partial.is_some();
        let kind = meta.file_type();
        let compared = kind.is_file() && !kind.is_fifo() && bytes > 0 && !partial;
        let unchanged = compared && same_as_below(&path, relative, image);
        files.push(Copied {
            advice: if partial {
                BY_BLOCK.to_owned()
            } else {
                advice(&change.path, &reason, bytes, unchanged).to_owned()
            },
            path: change.path,
            reason,
            size: meta.len(),
            bytes,
            us: explained.copy_up_us.unwrap_or(0),
            unchanged,
        });
    }
    files.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.path.cmp(&b.path)));
    let all = stats.copy_up_data + stats.copy_up_meta + stats.copy_up_partial;
    let mut report = Report {
        benchmark: "trace",
        image: image.name.clone(),
        status: String::new(),
        success: false,
        seconds: 0.0,
        gone: all.saturating_sub(files.len() as u64 + directories),
        files,
        directories,
        bytes: stats.copy_up_bytes,
        advice: Vec::new(),
    };
    report.advice = in_all(&report);
    Ok(report)
}

/// Whether the topmost layer that has the file has the same bytes.
fn same_as_below(path: &Path, relative: &str, image: &PreparedImage) -> bool {
    let mut layers = image.layers.iter().map(|layer| layer.join(relative));
    let Some(below) =
        layers.find(|below| fs::symlink_metadata(below).is_ok_and(|meta| meta.is_file()))
    else {
        return false;
    };
    // What cannot be compared is not called unchanged.
    equal(path, &below).unwrap_or(false)
}

fn equal(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut blocks = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = one.read(&mut blocks.0)?;
        if read == 0 {
            return Ok(true);
        }
        let (mine, theirs) = (blocks.0.get(..read), blocks.1.get_mut(..read));
        let (Some(mine), Some(theirs)) = (mine, theirs) else {
            return Ok(false);
        };
        other.read_exact(theirs)?;
        if mine != theirs {
            return Ok(false);
        }
    }
}

const LARGE: u64 = 1 << 20;

/// Of a file that was copied up by blocks.
const BY_BLOCK: &str =
    "only the blocks that changed were copied, and the rest follows in the background: leave it";

/// What to do about one file.
fn advice(path: &str, reason: &str, bytes: u64, unchanged: bool) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let attributes = [
        "chmod", "chown", "utimes", "setxattr", "set", "link", "rename", "truncate",
    ];
    let attribute =
        attributes.iter().any(|word| reason.contains(word)) && reason != "open for writing";
    if bytes == 0 && reason == "open for writing" {
        BY_BLOCK
    } else if bytes == 0 {
        "nothing was copied"
    } else if attribute && unchanged {
        "set owner, mode and times when the image is built, in the step that adds the file; or mount with metacopy=on"
    } else if unchanged {
        "it was opened for writing and is as before: open it for reading"
    } else if ends(&[".db", ".sqlite", ".sqlite3", ".mdb", ".ibd", ".frm"])
        || path.contains("/pgdata/")
    {
        "a database: keep it on a volume"
    } else if path.starts_with("/var/log/") || ends(&[".log"]) {
        "a log: write it to standard output or a volume, and leave it out of the image"
    } else if ends(&[".pyc"]) {
        "byte code: compile it when the image is built"
    } else if path.starts_with("/var/lib/dpkg/")
        || path.starts_with("/var/lib/apt/")
        || path.starts_with("/var/lib/rpm/")
        || path.starts_with("/lib/apk/")
        || path.starts_with("/var/cache/")
    {
        "packages change at run time: install them when the image is built"
    } else if bytes >= LARGE {
        "large: keep what changes on a volume, or apart from what does not"
    } else {
        "small: leave it"
    }
}

/// What to do first.
fn in_all(report: &Report) -> Vec<String> {
    let mut sums: Vec<(&str, u64, usize)> = Vec::new();
    for file in &report.files {
        match sums
            .iter_mut()
            .find(|(advice, _, _)| *advice == file.advice)
        {
            Some((_, bytes, count)) => {
                *bytes += file.bytes;
                *count += 1;
            }
            None => sums.push((&file.advice, file.bytes, 1)),
        }
    }
    sums.sort_by_key(|sum| std::cmp::Reverse(sum.1));
    let dear = |(advice, bytes, _): &(&str, u64, usize)| {
        *bytes > 0 && !advice.starts_with("small") && *advice != BY_BLOCK
    };
    let mut lines: Vec<String> = sums
        .iter()
        .filter(|sum| dear(sum))
        .map(|(advice, bytes, count)| {
            format!("{count} files, {}: {advice}", super::report::bytes(*bytes))
        })
        .collect();
    let kept: u64 = report.files.iter().map(|file| file.bytes).sum();
    let lost = report.bytes.saturating_sub(kept);
    if report.gone > 0 && lost > 0 {
        lines.push(format!(
            "{} copy-ups, {}: of files that are gone now; write new files and rename them over the old ones",
            report.gone,
            super::report::bytes(lost)
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_by_what_was_done() {
        for (path, reason, bytes, unchanged, part) in [
            ("/a", "chmod", 0, false, "nothing"),
            ("/a", "open for writing", 0, false, "only the blocks"),
            ("/a", "chmod", 9, true, "metacopy=on"),
            ("/a", "open for writing", 9, true, "for reading"),
            ("/srv/a.sqlite3", "open for writing", 9, false, "database"),
            ("/var/log/messages", "open for writing", 9, false, "log"),
            (
                "/var/lib/dpkg/status",
                "open for writing",
                9,
                false,
                "packages",
            ),
            ("/data", "open for writing", 2 << 20, false, "large"),
            ("/etc/hosts", "open for writing", 200, false, "small"),
        ] {
            let text = advice(path, reason, bytes, unchanged);
            assert!(text.contains(part), "{path} {reason}: {text}");
        }
    }

    #[test]
    fn files_are_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut bytes = vec![1u8; 100_000];
        fs::write(path("a"), &bytes).unwrap();
        fs::write(path("b"), &bytes).unwrap();
        bytes[99_999] = 2;
        fs::write(path("c"), &bytes).unwrap();
        assert!(equal(&path("a"), &path("b")).unwrap());
        assert!(!equal(&path("a"), &path("c")).unwrap());
    }
}
