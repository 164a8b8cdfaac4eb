//! What the demo prints, and the hashes by which it proves its claim.

use std::fs;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The headline.
pub(crate) fn title(text: &str) {
    println!("{}", paint("1", text));
}

/// What happens next, in words.
pub(crate) fn step(text: &str) {
    println!("\n{}", paint("1;36", &format!("# {text}")));
}

/// What happens next, as a command.
pub(crate) fn command(text: &str) {
    println!("\n{}", paint("1;32", &format!("$ {text}")));
}

/// What a shell is given to do.
pub(crate) fn script(text: &str) {
    for line in text.lines() {
        println!("  {}", paint("32", &format!("/ # {line}")));
    }
}

/// A line of the demo's own.
pub(crate) fn line(text: &str) {
    println!("  {text}");
}

/// What a command printed.
pub(crate) fn output(text: &str) {
    for line in text.lines() {
        println!("  {}", paint("2", line));
    }
}

/// One hash over each layer: names, types, modes, owners, sizes, data and modification times.
#[derive(Debug)]
pub(crate) struct Hashes(Vec<String>);

impl Hashes {
    /// Reads every layer whole.
    pub(crate) fn of(layers: &[PathBuf]) -> Result<Hashes> {
        let hash = |layer: &PathBuf| -> Result<String> {
            let mut hash = Sha256::new();
            add(&mut hash, layer)?;
            Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
        };
        Ok(Hashes(layers.iter().map(hash).collect::<Result<_>>()?))
    }

    /// A line for each layer, the lowest first; an error when one changed.
    pub(crate) fn compare(&self, before: &Hashes) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for (i, (now, then)) in self.0.iter().zip(&before.0).enumerate().rev() {
            if now != then {
                bail!("layer {} was changed", i + 1);
            }
            let short = now.get(..16).unwrap_or(now);
            lines.push(format!(
                "layer {}  sha256 {short}…  before and after",
                i + 1
            ));
        }
        Ok(lines)
    }
}

fn add(hash: &mut Sha256, path: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    for number in [
        u64::from(meta.mode()),
        u64::from(meta.uid()),
        u64::from(meta.gid()),
        meta.rdev(),
        meta.mtime().cast_unsigned(),
        meta.mtime_nsec().cast_unsigned(),
    ] {
        hash.update(number.to_le_bytes());
    }
    if meta.is_symlink() {
        hash.update(fs::read_link(path)?.as_os_str().as_bytes());
    } else if meta.is_file() {
        hash.update(meta.len().to_le_bytes());
        hash.update(fs::read(path)?);
    } else if meta.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        for name in names {
            hash.update(name.as_bytes());
            hash.update([0]);
            add(hash, &path.join(name))?;
        }
    }
    Ok(())
}
