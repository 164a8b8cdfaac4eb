//! The seeds of the fuzz targets, and whatever they found: each input through the readers that its target tries.
//!
//! `cargo fuzz` is not needed here. A seed that is an image has to be read as one, so that a reader which refuses
//! everything is noticed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "fuzz/union.rs"]
mod union;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use acetate::image::{ImageError, probe};
use acetate::layer::packed::{Index, seal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use common::{Watchdog, skip};

/// The inputs of one target, by file name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/seeds")
        .join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths
        .into_iter()
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn layers_are_read_and_unpacked_twice_alike() {
    // Entries of the tar; none for what is no tar by itself. Those below the line are refused when unpacked.
    let known = [
        ("acl", 2),
        ("gnu", 3),
        ("links", 6),
        ("pax", 4),
        ("replaced", 8),
        ("sparse-gnu", 1),
        ("sparse-v00", 1),
        ("sparse-v01", 1),
        ("sparse-v10", 1),
        ("tree", 8),
        ("whiteouts", 8),
        ("escape", 1),
        ("through", 2),
    ];
    let mut met = 0;
    for (name, bytes) in seeds("layer") {
        let entries = probe::layer(&bytes);
        let decoded = probe::compressed(&bytes, 1 << 20);
        if name.ends_with(".gz") || name.ends_with(".zst") {
            assert!(decoded.unwrap() > 2000, "{name}");
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let unpacked = probe::unpack(&bytes, &inner);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{name}");
        assert!(!matches!(unpacked, Ok(Some(_))), "{name}: {unpacked:?}");
        if let Some((_, expected)) = known.iter().find(|(known, _)| *known == name) {
            met += 1;
            assert_eq!(entries.unwrap(), *expected, "{name}");
            let refused = matches!(name.as_str(), "escape" | "through");
            assert_eq!(unpacked.is_err(), refused, "{name}: {unpacked:?}");
        }
    }
    assert_eq!(met, known.len());
}

#[test]
fn archives_are_read() {
    for (name, bytes) in seeds("archive") {
        let found = probe::archive(&bytes);
        match name.as_str() {
            "docker.tar" | "oci.tar" => assert_eq!(found.unwrap(), 1, "{name}"),
            "loop.tar" => assert!(found.is_err(), "{found:?}"),
            _ => drop(found),
        }
    }
}

#[test]
fn documents_are_read() {
    for (name, bytes) in seeds("documents") {
        let found = [
            probe::docker_manifest(&bytes),
            probe::oci_index(&bytes),
            probe::oci_manifest(&bytes),
            probe::config(&bytes),
        ];
        let reader = match name.as_str() {
            "docker-manifest" => 0,
            "index" => 1,
            "manifest" => 2,
            "config" | "config-full" => 3,
            _ => continue,
        };
        assert_eq!(*found[reader].as_ref().unwrap(), 1, "{name}");
    }
    // What the probe offers is an image by its own account.
    assert_eq!(probe::oci_index(&probe::oci_index_seed()).unwrap(), 1);
}

#[test]
fn references_are_written_as_they_are_read() {
    for (name, bytes) in seeds("reference") {
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        match probe::reference(&text) {
            Err(e @ ImageError::Inconsistent { .. }) => panic!("{name}: {e}"),
            Ok(_) => assert!(!matches!(name.as_str(), "upper"), "{name}"),
            Err(e) => assert!(
                matches!(name.as_str(), "upper" | "ipv6") || name.len() == 40,
                "{name}: {e}"
            ),
        }
    }
}

#[test]
fn indexes_are_read() {
    for (name, bytes) in seeds("index") {
        let check = |bytes: &[u8]| {
            let index = Index::from_bytes(bytes.to_vec()).map_err(|e| e.to_string())?;
            index.check().map_err(|e| e.to_string())
        };
        assert_eq!(check(&bytes).is_ok(), name == "tree", "{name}");
        let mut sealed = bytes;
        seal(&mut sealed);
        match name.as_str() {
            "tree" | "damaged" => assert_eq!(check(&sealed), Ok(())),
            _ => assert!(check(&sealed).is_err(), "{name}"),
        }
    }
}

#[test]
fn marks_are_read() {
    use acetate::layer::format::{PartialRecord, probe as format};
    let names = [
        "opaque",
        "redirect",
        "metacopy",
        "origin",
        "nlink",
        "impure",
        "acetate.partial",
        "other",
    ];
    for (name, bytes) in seeds("marks") {
        drop(PartialRecord::decode(&bytes));
        let (first, value) = bytes.split_first().unwrap();
        let mark = format!("trusted.overlay.{}", names[usize::from(first % 8)]);
        let mark = format::mark(OsStr::new(&mark), value).unwrap();
        let stat = format::override_stat(value).unwrap();
        let hidden = format::entry_name(OsStr::from_bytes(value)).unwrap();
        let owned = |name: &str| format::owned(OsStr::new(name), value).unwrap();
        let (acl, capability) = (
            owned("system.posix_acl_access"),
            owned("security.capability"),
        );
        match name.as_str() {
            "opaque" | "redirect" | "metacopy" | "nlink" => assert!(mark.is_some(), "{name}"),
            "upwards" => assert_eq!(mark, None),
            "override" => assert_eq!(stat.as_deref(), Some("1000:1011:4755:block-5-6")),
            // Found by the target: a socket had a device number.
            "socket" => assert_eq!(stat.as_deref(), Some("0:1:0005:socket")),
            "acl" => assert_eq!((acl, capability), (2, 0)),
            "capability" => assert_eq!((acl, capability), (0, 1)),
            "whiteout" => assert_eq!(hidden, Some(OsStr::new("name"))),
            "handle" => {
                let (uuid, handle) = value.split_first_chunk::<16>().unwrap();
                let ino = u64::from(u32::from_ne_bytes(*b"1234"));
                assert_eq!(format::handle(uuid, handle), Some(ino));
                assert_eq!(format::handle(&[1; 16], handle), None);
            }
            _ => {}
        }
    }
}

#[test]
fn records_are_written_as_they_are_read() {
    use acetate::{container, mount};
    fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
        let Ok(read) = serde_json::from_slice::<T>(bytes) else {
            return false;
        };
        let written = serde_json::to_vec(&read).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), read);
        true
    }
    for (name, bytes) in seeds("records") {
        let read = [
            check::<mount::Record>(&bytes),
            check::<mount::Info>(&bytes),
            check::<container::Record>(&bytes),
            check::<container::State>(&bytes),
            check::<container::VolumeRecord>(&bytes),
        ];
        let reader = match name.as_str() {
            "mount" | "mount-old" => 0,
            "info" => 1,
            "container" => 2,
            "state" => 3,
            "volume" => 4,
            _ => continue,
        };
        assert!(read[reader], "{name}");
    }
}

#[test]
fn journals_are_read() {
    for (name, bytes) in seeds("journal") {
        let nodes = acetate::union::probe::journal(&bytes).unwrap();
        if matches!(name.as_str(), "all" | "torn") {
            assert_eq!(nodes, 2, "{name}");
        }
    }
}

/// As the target `union` does it, with inputs that are the same in each run. `ACETATE_LONG=1`: fifty times as many.
#[test]
fn unions_are_like_a_plain_directory() {
    require!(skip::privileged());
    let _limit = Watchdog::new("unions", Duration::from_secs(280));
    let rounds: u64 = match std::env::var_os("ACETATE_LONG") {
        Some(_) => 5_000,
        None => 100,
    };
    for round in 1..=rounds {
        let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        let bytes: Vec<u8> = (0..1200).map(|_| next()).collect();
        if let Err(panic) = std::panic::catch_unwind(|| union::run(&bytes)) {
            eprintln!("round {round}");
            std::panic::resume_unwind(panic);
        }
    }
}
