//! Work on contents.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::work::Ground;
use crate::bench::error::{BenchError, at};

const MIB: usize = 1 << 20;

/// How many mebibytes the large file has.
fn large(ground: &Ground) -> usize {
    (256 / ground.less).max(16)
}

fn file(dir: &Path) -> PathBuf {
    dir.join("bench-large")
}

pub(super) fn write(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let path = file(dir);
    let work = || -> io::Result<()> {
        let mut file = File::create(&path)?;
        let block = vec![1; MIB];
        for _ in 0..large(ground) {
            file.write_all(&block)?;
        }
        Ok(())
    };
    work().map_err(at("cannot write", &path))?;
    Ok(large(ground) as u64)
}

/// The same, and everything is on the disk.
pub(super) fn write_out(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let written = write(ground, dir)?;
    let path = file(dir);
    let synced = File::open(&path).and_then(|file| file.sync_all());
    synced.map_err(at("cannot sync", &path))?;
    Ok(written)
}

fn read_all(path: &Path) -> Result<u64, BenchError> {
    let work = || -> io::Result<u64> {
        let mut file = File::open(path)?;
        let mut block = vec![0; MIB];
        let mut count = 0;
        while file.read(&mut block)? != 0 {
            count += 1;
        }
        Ok(count)
    };
    work().map_err(at("cannot read", path))
}

pub(super) fn read(_: &Ground, dir: &Path) -> Result<u64, BenchError> {
    read_all(&file(dir))
}

pub(super) fn random(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let path = file(dir);
    let count = 10_000 / ground.less as u64;
    let blocks = (large(ground) * MIB / 4096) as u64;
    let work = || -> io::Result<()> {
        let file = File::options().read(true).write(true).open(&path)?;
        let block = [2; 4096];
        // A fixed sequence, the same for everyone.
        let mut at = 1u64;
        for _ in 0..count {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            file.write_all_at(&block, (at >> 33) % blocks * 4096)?;
        }
        Ok(())
    };
    work().map_err(at("cannot write", &path))?;
    Ok(count)
}

pub(super) fn append(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let path = dir.join("bench-log");
    let count = 200 / ground.less;
    let work = || -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(&path)?;
        for i in 0..count {
            writeln!(file, "line {i} of a log that must not be lost")?;
            file.sync_data()?;
        }
        Ok(())
    };
    work().map_err(at("cannot append to", &path))?;
    Ok(count as u64)
}

pub(super) fn no_large(ground: &Ground, _: &Path) -> Option<String> {
    let none = ground.survey.large.is_empty();
    none.then(|| "the layers have no file of 1 MiB or more".into())
}

pub(super) fn read_lower(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let mut count = 0;
    for (path, _) in &ground.survey.large {
        count += read_all(&dir.join(path))?;
    }
    Ok(count)
}

pub(super) fn change(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let Some((path, size)) = ground.survey.large.first() else {
        return Err(BenchError::Wrong("the layers have no large file".into()));
    };
    let path = dir.join(path);
    let changed = fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.write_all_at(&[3; 4096], size / 2 / 4096 * 4096));
    changed.map_err(at("cannot change", &path))?;
    Ok(1)
}
