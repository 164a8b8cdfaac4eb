//! Names and listings: the longest names, cookies that stay while entries come and go, locks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{FlockOperation, RawDir, RenameFlags, SeekFrom, fcntl_lock, flock, renameat_with};

use crate::common::skip;
use crate::like_ext4::like_ext4;
use crate::require;
use crate::rig::{Rig, open, open_creat};

fn long(length: usize) -> String {
    "n".repeat(length)
}

#[test]
fn a_name_that_is_too_long_is_refused_by_every_operation() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        fs::write(dir.join("file"), "data").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
    };
    like_ext4("names-too-long", build, |script| {
        let (bad, file, dir) = (script.at(&long(256)), script.at("file"), script.at("dir"));
        script.note("stat", fs::symlink_metadata(&bad).map(drop));
        script.note("open", open(&bad, libc::O_RDONLY).map(drop));
        script.note("create", open_creat(&bad, libc::O_RDWR, 0o644).map(drop));
        script.note("mkdir", fs::create_dir(&bad));
        script.note("symlink", symlink("x", &bad));
        script.note("link", fs::hard_link(&file, &bad));
        script.note("rename", fs::rename(&file, &bad));
        script.note("rename of a directory", fs::rename(&dir, &bad));
        script.note("rename from", fs::rename(&bad, &file));
        script.note("unlink", fs::remove_file(&bad));
        script.note("rmdir", fs::remove_dir(&bad));
        let fifo = nix::unistd::mkfifo(&bad, nix::sys::stat::Mode::S_IRWXU);
        script.note("mkfifo", fifo.map_err(Into::into));
        script.note(
            "truncate",
            nix::unistd::truncate(&bad, 0).map_err(Into::into),
        );
        script.note(
            "symlink to a long target",
            symlink(long(4095), dir.join("link")),
        );
        script.note(
            "symlink to one too long",
            symlink(long(4096), dir.join("link2")),
        );
        script.note(
            "readlink",
            fs::read_link(dir.join("link")).map(|t| t.as_os_str().len()),
        );
    });
}

#[test]
fn the_longest_names_are_copied_up_hidden_and_renamed() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        for first in ["a", "b", "c"] {
            fs::write(dir.join(first.repeat(255)), first).unwrap();
        }
        fs::create_dir(dir.join("d".repeat(255))).unwrap();
        fs::write(dir.join("d".repeat(255)).join("e".repeat(255)), "deep").unwrap();
        // Bytes that are no text.
        fs::write(dir.join(OsString::from_vec(vec![0xff; 255])), "bytes").unwrap();
    };
    like_ext4("names-longest", build, |script| {
        let name = |c: &str| c.repeat(255);
        script.note("write", fs::write(script.at(&name("a")), "changed"));
        script.note("unlink", fs::remove_file(script.at(&name("b"))));
        script.note(
            "rename",
            fs::rename(script.at(&name("c")), script.at(&name("f"))),
        );
        script.note(
            "rename of a directory",
            fs::rename(script.at(&name("d")), script.at(&name("g"))),
        );
        let deep = script.at(&name("g")).join(name("e"));
        script.note("append", fs::write(&deep, "changed"));
        script.note("read", fs::read(&deep));
        let mut left: Vec<_> = fs::read_dir(script.at(""))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        script.note("left", Ok(left));
    });
}

#[test]
fn a_path_of_the_longest_length_works_and_a_longer_is_refused() {
    require!(skip::privileged());
    like_ext4(
        "names-path",
        |_| {},
        |script| {
            // Depth beyond PATH_MAX is reached by descending; each step is relative.
            let mut at = rustix::fs::open(
                script.at(""),
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .unwrap();
            for _ in 0..24 {
                rustix::fs::mkdirat(&at, long(200), rustix::fs::Mode::RWXU).unwrap();
                at = rustix::fs::openat(
                    &at,
                    long(200),
                    rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                )
                .unwrap();
            }
            let flags =
                rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
            let file = rustix::fs::openat(&at, "deep", flags, rustix::fs::Mode::RUSR);
            script.note(
                "a file below 4,800 bytes of path",
                file.map(drop).map_err(Into::into),
            );
            let whole = vec![long(200); 24].join("/");
            script.note("its path in one", fs::metadata(script.at(&whole)).map(drop));
            script.note("removed", fs::remove_dir_all(script.at(&long(200))));
        },
    );
}

/// Reads entries with their cookies, at most `limit`.
fn read_some(dir: &std::os::fd::OwnedFd, limit: usize) -> Vec<(OsString, u64)> {
    use std::os::unix::ffi::OsStrExt;
    let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 2048];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut seen = Vec::new();
    while seen.len() < limit {
        let Some(entry) = raw.next() else { break };
        let entry = entry.unwrap();
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        seen.push((name, entry.next_entry_cookie()));
    }
    seen
}

fn many(dir: &Path) {
    fs::create_dir(dir.join("dir")).unwrap();
    for i in 0..1500 {
        fs::write(dir.join(format!("dir/lower-{i:04}")), "").unwrap();
    }
}

fn open_dir(path: &Path) -> std::os::fd::OwnedFd {
    rustix::fs::open(
        path,
        rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap()
}

#[test]
fn cookies_stay_while_entries_come_and_go() {
    require!(skip::privileged());
    let rig = Rig::new("cookies", "", many);
    let dir = rig.at("dir");
    for i in 0..500 {
        fs::write(dir.join(format!("upper-{i:04}")), "").unwrap();
    }
    let handle = open_dir(&dir);
    let mut seen = read_some(&handle, 700);
    assert_eq!(seen.len(), 700);
    let resume = seen.last().unwrap().1;
    rustix::fs::seek(&handle, SeekFrom::Start(resume)).unwrap();
    // Half of what was read goes, some of what was not goes, and other names come.
    let mut gone = Vec::new();
    for (name, _) in seen.iter().step_by(2) {
        let name = name.to_str().unwrap();
        if name.starts_with("lower") || name.starts_with("upper") {
            fs::remove_file(dir.join(name)).unwrap();
            gone.push(name.to_owned());
        }
    }
    for i in 0..300 {
        fs::write(dir.join(format!("late-{i:04}")), "").unwrap();
    }
    let read: Vec<String> = seen
        .iter()
        .map(|(n, _)| n.to_str().unwrap().to_owned())
        .collect();
    for i in (0..1500).step_by(50) {
        let name = format!("lower-{i:04}");
        if !read.contains(&name) {
            fs::remove_file(dir.join(&name)).unwrap();
            gone.push(name);
        }
    }
    seen.extend(read_some(&handle, usize::MAX));
    let mut count: BTreeMap<&str, u32> = BTreeMap::new();
    for (name, _) in &seen {
        *count.entry(name.to_str().unwrap()).or_default() += 1;
    }
    let twice: Vec<_> = count.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "listed twice: {twice:?}");
    for name in (0..1500)
        .map(|i| format!("lower-{i:04}"))
        .chain((0..500).map(|i| format!("upper-{i:04}")))
    {
        assert!(
            count.contains_key(name.as_str()) || gone.contains(&name),
            "{name} was never listed"
        );
    }
    drop(handle);
    rig.finish(|_| {});
}

#[test]
fn a_remembered_cookie_leads_back_to_the_same_entry() {
    require!(skip::privileged());
    let rig = Rig::new("cookies-back", "", many);
    let dir = rig.at("dir");
    let handle = open_dir(&dir);
    let first = read_some(&handle, usize::MAX);
    assert_eq!(first.len(), 1502);
    fs::write(dir.join("new"), "").unwrap();
    fs::remove_file(dir.join("lower-0000")).unwrap();
    for at in [5, 100, 700, 1400] {
        let next = first[at + 1..]
            .iter()
            .find(|(n, _)| n != "lower-0000")
            .unwrap();
        rustix::fs::seek(&handle, SeekFrom::Start(first[at].1)).unwrap();
        assert_eq!(read_some(&handle, 1)[0].0, next.0, "after cookie {at}");
    }
    drop(handle);
    rig.finish(|_| {});
}

#[test]
fn rm_rf_of_a_merged_tree_leaves_nothing() {
    require!(skip::privileged());
    let rig = Rig::new("rm-rf", "", |lower| {
        many(lower);
        for i in 0..40 {
            let sub = lower.join(format!("dir/sub-{i}/deeper"));
            fs::create_dir_all(&sub).unwrap();
            for j in 0..40 {
                fs::write(sub.join(format!("f{j}")), "").unwrap();
            }
        }
    });
    for i in 0..200 {
        fs::write(rig.at(format!("dir/sub-{}/upper-{i}", i % 40)), "").unwrap();
    }
    fs::remove_dir_all(rig.at("dir")).unwrap();
    assert_eq!(fs::read_dir(rig.mount.path()).unwrap().count(), 0);
    fs::create_dir(rig.at("dir")).unwrap();
    assert_eq!(
        fs::read_dir(rig.at("dir")).unwrap().count(),
        0,
        "what was removed shines through"
    );
    rig.finish(|_| {});
}

#[test]
fn locks_of_both_kinds_exclude() {
    require!(skip::privileged());
    like_ext4(
        "locks",
        |dir| fs::write(dir.join("file"), "data").unwrap(),
        |script| {
            let path = script.at("file");
            let (a, b) = (
                open(&path, libc::O_RDWR).unwrap(),
                open(&path, libc::O_RDWR).unwrap(),
            );
            let try_flock = |f: &fs::File, op| flock(f, op).map_err(std::io::Error::from);
            script.note(
                "shared",
                try_flock(&a, FlockOperation::NonBlockingLockShared),
            );
            script.note(
                "shared twice",
                try_flock(&b, FlockOperation::NonBlockingLockShared),
            );
            script.note(
                "upgrade",
                try_flock(&a, FlockOperation::NonBlockingLockExclusive),
            );
            script.note("unlock", try_flock(&b, FlockOperation::Unlock));
            script.note(
                "upgrade",
                try_flock(&a, FlockOperation::NonBlockingLockExclusive),
            );
            script.note(
                "excluded",
                try_flock(&b, FlockOperation::NonBlockingLockShared),
            );
            // Of fcntl's locks the owner is the process, so another one has to ask.
            script.note(
                "fcntl",
                fcntl_lock(&a, FlockOperation::NonBlockingLockExclusive).map_err(Into::into),
            );
            script.note("another process", other_process_locks(&path));
            script.note(
                "unlock",
                fcntl_lock(&a, FlockOperation::Unlock).map_err(Into::into),
            );
            script.note("another process", other_process_locks(&path));
            drop(a);
            script.note(
                "after close",
                try_flock(&b, FlockOperation::NonBlockingLockExclusive),
            );
        },
    );
}

/// Whether another process gets an fcntl lock, asked of Python, whose interface takes one without blocking.
fn other_process_locks(path: &Path) -> std::io::Result<bool> {
    let script = "import fcntl, sys\nf = open(sys.argv[1], 'r+')\nfcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)";
    let output = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(path)
        .output()?;
    Ok(output.status.success())
}

#[test]
fn renames_with_flags_are_atomic_on_directories_too() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        for name in ["one", "two"] {
            fs::create_dir(dir.join(name)).unwrap();
            fs::write(dir.join(name).join(name), name).unwrap();
        }
        fs::write(dir.join("file"), "file").unwrap();
    };
    like_ext4("rename-flags", build, |script| {
        let rename = |a: &Path, b: &Path, flags| {
            renameat_with(rustix::fs::CWD, a, rustix::fs::CWD, b, flags)
                .map_err(std::io::Error::from)
        };
        let (one, two, file, new) = (
            script.at("one"),
            script.at("two"),
            script.at("file"),
            script.at("new"),
        );
        script.note("noreplace onto", rename(&one, &two, RenameFlags::NOREPLACE));
        script.note("exchange", rename(&one, &two, RenameFlags::EXCHANGE));
        script.note("one holds", fs::read(one.join("two")));
        script.note(
            "exchange with a file",
            rename(&one, &file, RenameFlags::EXCHANGE),
        );
        script.note("the file is", fs::read(&one));
        script.note(
            "exchange with nothing",
            rename(&one, &new, RenameFlags::EXCHANGE),
        );
        script.note("noreplace", rename(&file, &new, RenameFlags::NOREPLACE));
        script.note("moved", fs::read(new.join("two")));
        script.note(
            "onto a full directory",
            rename(&new, &two, RenameFlags::empty()),
        );
        script.note(
            "into itself",
            rename(&two, &two.join("x"), RenameFlags::empty()),
        );
    });
}
