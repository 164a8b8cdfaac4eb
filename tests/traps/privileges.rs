//! Set-user-id, set-group-id and capabilities go as they do on an ordinary filesystem.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{FallocateFlags, XattrFlags, fallocate, lsetxattr};

use crate::common::skip;
use crate::like_ext4::{KEPT_IN_XATTRS, Script, like_ext4, like_ext4_by};
use crate::map::Map;
use crate::require;
use crate::rig::{Rig, as_user, open, open_creat};

/// `security.capability` with `cap_net_raw` effective and permitted (revision 2).
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

const MODES: [u32; 4] = [0o6777, 0o4777, 0o2777, 0o2767];

fn privileged_files(dir: &Path) {
    fs::write(dir.join("source"), vec![b's'; 1000]).unwrap();
    for mode in MODES {
        let path = dir.join(format!("{mode:o}"));
        fs::write(&path, vec![b'x'; 10_000]).unwrap();
        chown(&path, Some(1001), Some(1002)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        lsetxattr(
            &path,
            "security.capability",
            &CAPABILITY,
            XattrFlags::empty(),
        )
        .unwrap();
    }
}

fn after(name: &str, by: u32, act: impl Fn(&Path) -> io::Result<()> + Sync) {
    require!(skip::privileged());
    like_ext4(name, privileged_files, |script: &mut Script| {
        for mode in MODES {
            let file = format!("{mode:o}");
            let path = script.at(&file);
            let done = as_user(by, by, || act(&path));
            script.note("done", done);
            script.stat("after", &file);
        }
    });
}

fn write(path: &Path) -> io::Result<()> {
    open(path, libc::O_WRONLY)?.write_all_at(b"new", 10)
}

fn append(path: &Path) -> io::Result<()> {
    open(path, libc::O_WRONLY | libc::O_APPEND)?.write_all_at(b"new", 0)
}

fn truncate(path: &Path) -> io::Result<()> {
    Ok(nix::unistd::truncate(path, 100)?)
}

fn ftruncate(path: &Path) -> io::Result<()> {
    open(path, libc::O_WRONLY)?.set_len(100)
}

fn open_truncate(path: &Path) -> io::Result<()> {
    open(path, libc::O_WRONLY | libc::O_TRUNC).map(drop)
}

fn allocate(path: &Path) -> io::Result<()> {
    let file = open(path, libc::O_WRONLY)?;
    Ok(fallocate(file, FallocateFlags::empty(), 0, 20_000)?)
}

fn copy_range(path: &Path) -> io::Result<()> {
    let from = open(&path.with_file_name("source"), libc::O_RDONLY)?;
    let to = open(path, libc::O_WRONLY)?;
    let copied = rustix::fs::copy_file_range(from, Some(&mut 0), to, Some(&mut 0), 100)?;
    assert_eq!(copied, 100);
    Ok(())
}

fn give_away(path: &Path) -> io::Result<()> {
    chown(path, Some(1001), Some(2000))
}

fn same_owner(path: &Path) -> io::Result<()> {
    chown(path, Some(1001), Some(1002))
}

fn change_mode(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o6755))
}

macro_rules! each {
    ($($name:ident: $uid:expr, $act:ident;)*) => {$(
        #[test]
        fn $name() { after("killpriv", $uid, $act) }
    )*};
}

each! {
    another_user_writes: 3000, write;
    another_user_appends: 3000, append;
    another_user_truncates: 3000, truncate;
    another_user_truncates_by_descriptor: 3000, ftruncate;
    another_user_opens_with_o_trunc: 3000, open_truncate;
    another_user_allocates: 3000, allocate;
    another_user_copies_a_range: 3000, copy_range;
    another_user_may_not_chown: 3000, give_away;
    the_owner_writes: 1001, write;
    the_owner_truncates: 1001, truncate;
    the_owner_chowns_to_the_same: 1001, same_owner;
    the_owner_outside_the_group_chmods: 1001, change_mode;
    root_writes: 0, write;
    root_truncates: 0, truncate;
    root_truncates_by_descriptor: 0, ftruncate;
    root_opens_with_o_trunc: 0, open_truncate;
    root_allocates: 0, allocate;
    root_chowns: 0, give_away;
    root_chmods: 0, change_mode;
}

#[test]
fn many_writes_by_one_descriptor_take_the_bits_once() {
    require!(skip::privileged());
    like_ext4("killpriv-many", privileged_files, |script| {
        let path = script.at("6777");
        let file = as_user(3000, 3000, || open(&path, libc::O_RDWR).unwrap());
        // Opening for writing takes nothing away yet.
        script.stat("opened", "6777");
        as_user(3000, 3000, || {
            for i in 0..64 {
                file.write_all_at(b"data", i * 4096).unwrap();
            }
        });
        script.stat("written", "6777");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        script.stat("set again", "6777");
        as_user(3000, 3000, || file.write_all_at(b"again", 0).unwrap());
        script.stat("written again", "6777");
    });
}

#[test]
fn a_shared_map_moves_the_modification_time() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        fs::write(dir.join("file"), vec![b'x'; 16_384]).unwrap();
        crate::rig::set_times(&dir.join("file"), crate::rig::OLD, crate::rig::OLD);
    };
    like_ext4("mmap-mtime", build, |script| {
        let path = script.at("file");
        let moved = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(path).unwrap().mtime() > crate::rig::OLD
        };
        let file = open(&path, libc::O_RDWR).unwrap();
        script.note("opened", Ok(moved(&path)));
        let mut map = Map::shared(&file, 16_384).unwrap();
        drop(file);
        script.note("mapped", Ok(moved(&path)));
        map.write(100, b"through the map");
        map.sync().unwrap();
        script.note("written and synced", Ok(moved(&path)));
        drop(map);
        script.note("unmapped", Ok(moved(&path)));
        script.note("read", fs::read(&path).map(|d| d[100..115].to_vec()));
    });
}

#[test]
fn directories_with_sgid_pass_on_their_group() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        for (name, mode) in [("sgid", 0o2777), ("plain", 0o777), ("sticky", 0o3777)] {
            fs::create_dir(dir.join(name)).unwrap();
            chown(dir.join(name), Some(1001), Some(1002)).unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    like_ext4("sgid", build, |script| {
        for dir in ["sgid", "plain", "sticky"] {
            let at = |name: &str| script.at(dir).join(name);
            let (made, file, set, node, link) =
                (at("made"), at("file"), at("set"), at("fifo"), at("link"));
            let results = as_user(3000, 3001, || {
                [
                    fs::create_dir(&made),
                    open_creat(&file, libc::O_WRONLY | libc::O_EXCL, 0o644).map(drop),
                    open_creat(&set, libc::O_WRONLY | libc::O_EXCL, 0o2755).map(drop),
                    nix::unistd::mkfifo(&node, nix::sys::stat::Mode::S_IRWXU).map_err(Into::into),
                    std::os::unix::fs::symlink("x", &link),
                    // The group is none of the caller's, so the bit goes.
                    fs::set_permissions(&file, fs::Permissions::from_mode(0o2755)),
                    fs::remove_dir(&made).and_then(|()| fs::create_dir(&made)),
                ]
                .map(|r| r.map_err(|e| e.raw_os_error()))
            });
            script.note(dir, Ok(results));
            for name in ["", "/made", "/file", "/set", "/fifo", "/link"] {
                script.stat("after", &format!("{dir}{name}"));
            }
            let other = as_user(4000, 4000, || fs::remove_file(&file));
            script.note("another user removes", other);
        }
    });
}

#[test]
fn cached_paths_are_checked_against_their_rights() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        fs::create_dir(dir.join("dir")).unwrap();
        fs::write(dir.join("dir/file"), "data").unwrap();
    };
    like_ext4("permissions", build, |script| {
        let (dir, file) = (script.at("dir"), script.at("dir/file"));
        let try_all = |script: &mut Script| {
            let seen = as_user(3000, 3000, || {
                [
                    fs::read(&file).map(drop),
                    fs::metadata(&file).map(drop),
                    fs::read_dir(&dir).map(drop),
                    open(&file, libc::O_WRONLY).map(drop),
                    fs::create_dir(dir.join("new")),
                    nix::unistd::access(&file, nix::unistd::AccessFlags::R_OK).map_err(Into::into),
                ]
                .map(|r| r.map_err(|e| e.raw_os_error()))
            });
            script.note("as another user", Ok(seen));
        };
        try_all(script);
        for (path, mode) in [
            (&file, 0o600),
            (&file, 0o604),
            (&dir, 0o700),
            (&dir, 0o711),
            (&dir, 0o755),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            try_all(script);
        }
    });
}

/// What was written before a file got its capabilities, and is passed on by the kernel afterwards, leaves them.
#[test]
fn capabilities_outlive_what_was_written_before_them() {
    require!(skip::privileged());
    let capability = |path: &Path| {
        let mut value = [0; 32];
        let length = rustix::fs::lgetxattr(path, "security.capability", &mut value)?;
        io::Result::Ok(value[..length].to_vec())
    };
    for (options, name) in [
        ("", "new"),
        ("passthrough=off", "new"),
        ("partial=64K,complete=off", "large"),
    ] {
        let rig = Rig::new("capability", options, |lower| {
            fs::write(lower.join("large"), vec![b'l'; 1 << 20]).unwrap();
        });
        let path = rig.at(name);
        let file = open_creat(&path, libc::O_RDWR, 0o755).unwrap();
        let mut map = None;
        if name == "large" {
            let map = map.insert(Map::shared(&file, 100_000).unwrap());
            map.write(0, &[b'n'; 100_000]);
        } else {
            file.write_all_at(&[b'n'; 100_000], 0).unwrap();
        }
        let none = XattrFlags::empty();
        lsetxattr(&path, "security.capability", &CAPABILITY, none).unwrap();
        if let Some(map) = &map {
            map.sync().unwrap();
        }
        file.sync_all().unwrap();
        assert_eq!(capability(&path).unwrap(), CAPABILITY, "{options}");
        drop((map, file));
        assert_eq!(capability(&path).unwrap(), CAPABILITY, "{options}: closed");
        assert_eq!(fs::read(&path).unwrap()[..100_000], [b'n'; 100_000]);
        rig.finish(|upper| {
            assert_eq!(capability(&upper.join(name)).unwrap(), CAPABILITY);
        });
    }
}

/// The kernel takes a file's capabilities away before a write, and those that it saw may have gone by then: by what another program
/// wrote through a mapping, which it passes on at any time.
#[test]
fn a_write_beside_one_that_took_the_capabilities_away_does_not_fail() {
    require!(skip::privileged());
    let rig = Rig::new("capability-gone", "passthrough=off", |lower| {
        fs::write(lower.join("none"), "data").unwrap();
    });
    let remove = || rustix::fs::lremovexattr(rig.at("none"), "security.capability");
    assert_eq!(remove(), Err(rustix::io::Errno::NODATA));
    // A program that asks for it itself cannot be told from the kernel.
    fs::write(rig.at("none"), "written").unwrap();
    assert_eq!(remove(), Ok(()));
    let path = rig.at("file");
    let file = open_creat(&path, libc::O_RDWR, 0o755).unwrap();
    file.set_len(8192).unwrap();
    let writing = std::sync::atomic::AtomicBool::new(true);
    let busy = || writing.load(std::sync::atomic::Ordering::Acquire);
    let failed: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while busy() {
                let file = open(&path, libc::O_RDWR).unwrap();
                let mut map = Map::shared(&file, 4096).unwrap();
                map.write(0, b"mapped");
            }
        });
        scope.spawn(|| {
            while busy() {
                let flags = XattrFlags::empty();
                lsetxattr(&path, "security.capability", &CAPABILITY, flags).unwrap();
            }
        });
        let wrote = (0..4000).map(|_| file.write_all_at(b"written", 4096));
        let failed = wrote.filter_map(io::Result::err).collect();
        writing.store(false, std::sync::atomic::Ordering::Release);
        failed
    });
    assert!(failed.is_empty(), "{failed:?}");
    let mut data = [0; 7];
    file.read_exact_at(&mut data, 4096).unwrap();
    assert_eq!(&data, b"written");
    drop(file);
    rig.finish(|_| {});
}

/// Where the mode is kept in an xattr, no filesystem takes anything away by itself.
#[test]
fn a_new_owner_has_no_suid_and_sgid_of_the_old_one_by_an_xattr() {
    require!(skip::privileged());
    let owners = [
        (Some(1005), Some(1006)),
        (None, Some(1006)),
        (Some(1005), None),
    ];
    let build = |dir: &Path| {
        for owner in 0..owners.len() {
            let dir = dir.join(owner.to_string());
            fs::create_dir(&dir).unwrap();
            privileged_files(&dir);
            chown(&dir, Some(1001), Some(1002)).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o7777)).unwrap();
        }
    };
    like_ext4_by(&KEPT_IN_XATTRS, "killpriv-kept", build, |script| {
        for (at, (uid, gid)) in owners.into_iter().enumerate() {
            for mode in MODES {
                let file = format!("{at}/{mode:o}");
                let path = script.at(&file);
                script.note("done", chown(&path, uid, gid));
                script.stat("after", &file);
                script.note(
                    "again",
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)),
                );
                // A member of the group, or not.
                let done = as_user(uid.unwrap_or(1001), gid.unwrap_or(1002), || {
                    chown(&path, None, gid.or(Some(1002)))
                });
                script.note("by the owner", done);
                script.stat("after", &file);
            }
            script.note("directory", chown(script.at(&at.to_string()), uid, gid));
            script.stat("after", &at.to_string());
        }
    });
}
