//! Copies whose names are durable already: each file is the lower's or all of the copy, whatever had not reached the disk.
//!
//! After each copy-up a neighbour on the same disk is fsynced, which makes the copy's name durable and leaves data alone that
//! is still in memory. The power goes right then, and everything is lost that may be.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::stand::Stand;
use crate::common::{self, Watchdog, skip};
use crate::disk::{self, Disk, Event, Mounted};
use crate::power::{Shelf, apply};
use crate::require;

/// Attributes and data are copied up as one, as without privilege.
const OPTIONS: &str = "metacopy=off,partial=off";

/// From less than a block to more than one write of the disk.
const SIZES: [usize; 5] = [100, 4096, 5000, 70_000, 1_100_000];

fn name(number: usize) -> String {
    format!("f{number}")
}

/// No two files have a block in common, and none has one of zeros.
fn contents(number: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let byte = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 | 1
    };
    (0..SIZES[number % SIZES.len()]).map(byte).collect()
}

/// Copies one file after another up; returns what the disk saw, and where it was when each name was durable.
fn record(fstype: &str, stand: &mut Stand, image: PathBuf) -> (Vec<Event>, Vec<usize>) {
    let disk = Disk::new(&image, stand.scratch.join("device"));
    let mounted = Mounted::try_new(fstype, &disk.file(), stand.scratch.join("disk")).unwrap();
    (stand.upper, stand.work) = (mounted.path().join("upper"), mounted.path().join("work"));
    let mount = stand.acetate(OPTIONS).mount();
    let mut neighbour = File::create(mounted.path().join("neighbour")).unwrap();
    let mut durable = Vec::new();
    for number in 0..2 * SIZES.len() {
        let path = mount.path().join(name(number));
        if number < SIZES.len() {
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        } else {
            drop(OpenOptions::new().write(true).open(&path).unwrap());
        }
        neighbour.write_all(b"more").unwrap();
        neighbour.sync_all().unwrap();
        durable.push(disk.record.position());
    }
    drop(neighbour);
    common::stand::end(mount);
    drop(mounted);
    (disk.end(), durable)
}

/// The disk with nothing but what was on it for certain at some moment.
fn at(shelf: &Shelf, events: &[Event], moment: usize) -> PathBuf {
    let image = shelf.scratch.join("image");
    disk::copy(&shelf.empty, &image);
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    let before = &events[..moment];
    let flushed = before.iter().rposition(|e| matches!(e, Event::Flush));
    for event in &before[..flushed.map_or(0, |at| at + 1)] {
        apply(&file, event);
    }
    image
}

fn each_copy_is_whole(fstype: &str) {
    require!(skip::privileged());
    let _limit = Watchdog::new("power cuts after copies", Duration::from_secs(240));
    let shelf = match Shelf::new(fstype) {
        Ok(shelf) => shelf,
        Err(reason) => crate::skip!("{reason}"),
    };
    let mut stand = Stand::new("copies");
    for number in 0..2 * SIZES.len() {
        let path = stand.lower.join(name(number));
        fs::write(&path, contents(number)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }
    let recorded = shelf.scratch.join("recorded");
    disk::copy(&shelf.empty, &recorded);
    let (events, durable) = record(fstype, &mut stand, recorded);
    for (last, moment) in durable.iter().enumerate() {
        let image = at(&shelf, &events, *moment);
        let mounted = Mounted::try_new(fstype, &image, stand.scratch.join("disk")).unwrap();
        (stand.upper, stand.work) = (mounted.path().join("upper"), mounted.path().join("work"));
        // Otherwise nothing is tried here.
        for number in 0..=last {
            assert!(
                stand.upper.join(name(number)).exists(),
                "{fstype}: the name of file {number} was to be durable after {last}"
            );
        }
        let mount = stand.acetate(OPTIONS).mount();
        for number in 0..durable.len() {
            let path = mount.path().join(name(number));
            let found = fs::read(&path).unwrap();
            assert!(
                found == contents(number),
                "{fstype}: file {number} has {} bytes after the power went behind file {last}, and not what it had",
                found.len()
            );
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            let changed = number < SIZES.len() && number <= last;
            assert_eq!(mode, if changed { 0o600 } else { 0o644 }, "file {number}");
        }
        common::stand::end(mount);
        drop(mounted);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
#[ignore = "heavy: ten disks"]
fn copies_with_durable_names_are_whole_on_ext4() {
    each_copy_is_whole("ext4");
}

#[test]
#[ignore = "heavy: ten disks"]
fn copies_with_durable_names_are_whole_on_xfs() {
    each_copy_is_whole("xfs");
}
