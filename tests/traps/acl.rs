//! POSIX ACLs: checked, inherited, and kept together with the mode, as on an ordinary filesystem.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{XattrFlags, lsetxattr};

use crate::common::skip;
use crate::like_ext4::{KEPT_IN_XATTRS, Script, like_ext4, like_ext4_by};
use crate::require;
use crate::rig::{as_user, open, open_creat, with_umask};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// An ACL in the form of its xattr.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// rwx for the owner, `user` for uid 3000, `group` for gid 3001, all under `mask`.
fn sample(user: u16, group: u16, mask: u16) -> Vec<u8> {
    acl(&[
        (USER_OBJ, 7, u32::MAX),
        (USER, user, 3000),
        (GROUP_OBJ, 5, u32::MAX),
        (GROUP, group, 3001),
        (MASK, mask, u32::MAX),
        (OTHER, 0, u32::MAX),
    ])
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn default_acls_are_inherited_whatever_the_umask() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        for name in ["with", "without"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        set(&dir.join("with"), DEFAULT, &sample(6, 4, 7));
    };
    like_ext4("acl-default", build, |script| {
        for umask in [0o000, 0o022, 0o027, 0o077, 0o777] {
            for dir in ["with", "without"] {
                let name = |kind: &str| format!("{dir}/{kind}-{umask:o}");
                let at = |kind: &str| script.at(&name(kind));
                with_umask(umask, || {
                    open_creat(&at("file"), libc::O_WRONLY, 0o666).unwrap();
                    open_creat(&at("run"), libc::O_WRONLY, 0o755).unwrap();
                    fs::create_dir(at("dir")).unwrap();
                    let all = nix::sys::stat::Mode::from_bits_truncate(0o666);
                    nix::unistd::mkfifo(&at("fifo"), all).unwrap();
                    std::os::unix::fs::symlink("x", at("link")).unwrap();
                });
                for kind in ["file", "run", "dir", "fifo", "link"] {
                    script.stat("made", &name(kind));
                }
                // A second generation inherits from what was just made.
                let below = script.at(&name("dir")).join("below");
                with_umask(umask, || fs::create_dir(&below).unwrap());
                script.stat("below", &format!("{}/below", name("dir")));
            }
        }
    });
}

#[test]
fn access_acls_are_checked_and_follow_the_mode() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        fs::write(dir.join("file"), "data").unwrap();
        set(&dir.join("file"), ACCESS, &sample(6, 4, 7));
    };
    like_ext4("acl-access", build, |script| {
        let path = script.at("file");
        let try_all = |script: &mut Script, what: &str| {
            script.stat(what, "file");
            for (uid, gid) in [(3000, 3000), (4000, 3001), (5000, 5000)] {
                let seen = as_user(uid, gid, || {
                    [libc::O_RDONLY, libc::O_WRONLY]
                        .map(|flags| open(&path, flags).map(drop).map_err(|e| e.raw_os_error()))
                });
                script.note(&format!("{what}: {uid}:{gid}"), Ok(seen));
            }
        };
        try_all(script, "at first");
        // With an ACL the group bits of the mode are the mask.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o740)).unwrap();
        try_all(script, "masked by chmod");
        set(&path, ACCESS, &sample(4, 6, 6));
        try_all(script, "a new ACL");
        fs::write(&path, "more data").unwrap();
        try_all(script, "written");
        rustix::fs::lremovexattr(&path, ACCESS).unwrap();
        try_all(script, "removed");
        let minimal = acl(&[
            (USER_OBJ, 6, u32::MAX),
            (GROUP_OBJ, 4, u32::MAX),
            (OTHER, 4, u32::MAX),
        ]);
        set(&path, ACCESS, &minimal);
        try_all(script, "one that says no more than a mode");
        script.note(
            "a malformed ACL",
            rustix::fs::lsetxattr(&path, ACCESS, b"\x02\0\0\0x", XattrFlags::empty())
                .map_err(Into::into),
        );
        let on_file = rustix::fs::lsetxattr(&path, DEFAULT, &sample(4, 6, 6), XattrFlags::empty());
        script.note("a default ACL on a file", on_file.map_err(Into::into));
        let other = as_user(5000, 5000, || {
            rustix::fs::lsetxattr(&path, ACCESS, &sample(7, 7, 7), XattrFlags::empty())
        });
        script.note("another user's ACL", other.map_err(Into::into));
        script.stat("in the end", "file");
    });
}

#[test]
fn an_acl_set_from_outside_the_group_takes_sgid_away() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        for name in ["file", "mine"] {
            fs::write(dir.join(name), "data").unwrap();
            chown(
                dir.join(name),
                Some(3000),
                Some(if name == "mine" { 3000 } else { 1002 }),
            )
            .unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o2775)).unwrap();
        }
        fs::create_dir(dir.join("dir")).unwrap();
        chown(dir.join("dir"), Some(3000), Some(1002)).unwrap();
        fs::set_permissions(dir.join("dir"), fs::Permissions::from_mode(0o2775)).unwrap();
    };
    like_ext4("acl-sgid", build, |script| {
        for name in ["file", "mine", "dir"] {
            let path = script.at(name);
            let done = as_user(3000, 3000, || {
                rustix::fs::lsetxattr(&path, ACCESS, &sample(7, 5, 7), XattrFlags::empty())
            });
            script.note("set", done.map_err(Into::into));
            script.stat("after", name);
        }
    });
}

#[test]
fn an_acl_removed_from_outside_the_group_leaves_sgid() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        let file = dir.join("file");
        fs::write(&file, "data").unwrap();
        chown(&file, Some(3000), Some(1002)).unwrap();
        set(&file, ACCESS, &sample(7, 5, 7));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o2770)).unwrap();
    };
    like_ext4("acl-removed", build, |script| {
        let path = script.at("file");
        let done = as_user(3000, 3000, || rustix::fs::lremovexattr(&path, ACCESS));
        script.note("removed", done.map_err(Into::into));
        script.stat("after", "file");
    });
}

#[test]
fn a_copied_up_directory_keeps_both_acls() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/file"), "data").unwrap();
        set(&dir.join("a"), ACCESS, &sample(5, 5, 5));
        set(&dir.join("a/b"), DEFAULT, &sample(6, 4, 7));
        set(&dir.join("a/b"), ACCESS, &sample(7, 7, 7));
    };
    like_ext4("acl-copy-up", build, |script| {
        // This copies up the file and both parents.
        fs::set_permissions(script.at("a/b/file"), fs::Permissions::from_mode(0o640)).unwrap();
        for name in ["a", "a/b", "a/b/file"] {
            script.stat("after", name);
        }
        fs::rename(script.at("a/b"), script.at("a/c")).unwrap();
        script.stat("renamed", "a/c");
        fs::write(script.at("a/c/new"), "").unwrap();
        script.stat("inherits", "a/c/new");
    });
}

/// Where the mode is kept in an xattr, no filesystem sees to it that the two say the same.
#[test]
fn an_acl_and_a_mode_in_an_xattr_are_one() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        for name in ["file", "private", "shared"] {
            fs::write(dir.join(name), "data").unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::create_dir(dir.join("dir")).unwrap();
        set(&dir.join("shared"), ACCESS, &sample(6, 4, 6));
        set(&dir.join("dir"), DEFAULT, &sample(6, 4, 7));
    };
    like_ext4_by(&KEPT_IN_XATTRS, "acl-kept", build, |script| {
        let try_all = |script: &mut Script, what: &str, name: &str| {
            script.stat(what, name);
            let path = script.at(name);
            for (uid, gid) in [(3000, 3000), (4000, 3001), (5000, 5000)] {
                let seen = as_user(uid, gid, || {
                    [libc::O_RDONLY, libc::O_WRONLY]
                        .map(|flags| open(&path, flags).map(drop).map_err(|e| e.raw_os_error()))
                });
                script.note(&format!("{what}: {name}: {uid}:{gid}"), Ok(seen));
            }
        };
        let chmod = |script: &mut Script, name: &str, mode: u32| {
            let done = fs::set_permissions(script.at(name), fs::Permissions::from_mode(mode));
            script.note("chmod", done);
        };
        try_all(script, "found", "shared");
        chmod(script, "shared", 0o640);
        try_all(script, "less", "shared");
        set(&script.at("file"), ACCESS, &sample(6, 4, 6));
        try_all(script, "set", "file");
        for mode in [0o640, 0o4600, 0o777] {
            chmod(script, "file", mode);
            try_all(script, "changed", "file");
        }
        // Nothing that a mode could not say: none is kept.
        let minimal = acl(&[
            (USER_OBJ, 6, u32::MAX),
            (GROUP_OBJ, 4, u32::MAX),
            (OTHER, 4, u32::MAX),
        ]);
        set(&script.at("private"), ACCESS, &minimal);
        try_all(script, "minimal", "private");
        chmod(script, "private", 0o600);
        try_all(script, "changed", "private");
        let removed = rustix::fs::lremovexattr(script.at("file"), ACCESS);
        script.note("removed", removed.map_err(Into::into));
        try_all(script, "removed", "file");
        open_creat(&script.at("dir/new"), libc::O_WRONLY, 0o664).unwrap();
        try_all(script, "inherited", "dir/new");
        chmod(script, "dir/new", 0o600);
        try_all(script, "changed", "dir/new");
    });
}
