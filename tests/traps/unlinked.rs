//! Open files without a name, and symlinks with xattrs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown, symlink};
use std::path::Path;

use rustix::fs::{
    FallocateFlags, XattrFlags, fallocate, fgetxattr, fsetxattr, lgetxattr, llistxattr, lsetxattr,
};

use crate::common::skip;
use crate::common::tree::xattrs;
use crate::like_ext4::{Script, like_ext4, open_path};
use crate::map::Map;
use crate::require;
use crate::rig::{open, read_all};

/// Every operation on a descriptor whose name is gone.
fn use_nameless(script: &mut Script, what: &str, file: &File) {
    let stat = |script: &mut Script, step: &str| {
        let seen = file.metadata().map(|m| {
            format!(
                "{:o} {}:{} {} links {}",
                m.mode(),
                m.uid(),
                m.gid(),
                m.size(),
                m.nlink()
            )
        });
        script.note(&format!("{what}: {step}"), seen);
    };
    stat(script, "fstat");
    script.note("read", read_all(file));
    script.note("write", file.write_all_at(b"fresh", 3));
    script.note("read", read_all(file));
    script.note("ftruncate", file.set_len(6));
    stat(script, "after ftruncate");
    script.note(
        "fchmod",
        file.set_permissions(fs::Permissions::from_mode(0o640)),
    );
    script.note("fchown", fchown(file, Some(1001), Some(1002)));
    stat(script, "after fchmod and fchown");
    script.note(
        "fsetxattr",
        fsetxattr(file, "user.late", b"value", XattrFlags::empty()).map_err(Into::into),
    );
    let mut value = [0; 16];
    script.note(
        "fgetxattr",
        fgetxattr(file, "user.late", &mut value[..]).map_err(Into::into),
    );
    script.note("value", Ok(value));
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(5);
    script.note("futimens", file.set_modified(time));
    script.note("mtime", file.metadata().map(|m| m.mtime()));
    script.note(
        "fallocate",
        fallocate(file, FallocateFlags::empty(), 0, 8192).map_err(Into::into),
    );
    stat(script, "after fallocate");
    let mut map = Map::shared(file, 8192).unwrap();
    map.write(4096, b"mapped");
    script.note("map", Ok(map.read(4096, 6)));
    drop(map);
    script.note("fsync", file.sync_all());
    let mut mapped = [0; 6];
    script.note(
        "read the map's write",
        file.read_exact_at(&mut mapped, 4096),
    );
    script.note("it is", Ok(mapped));
}

#[test]
fn an_unlinked_open_file_still_answers() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        for name in ["plain", "replaced", "by", "one", "copied"] {
            fs::write(dir.join(name), format!("data of {name}")).unwrap();
        }
        fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    };
    like_ext4("unlinked", build, |script| {
        let plain = open(&script.at("plain"), libc::O_RDWR).unwrap();
        fs::remove_file(script.at("plain")).unwrap();
        use_nameless(script, "unlinked", &plain);

        let replaced = open(&script.at("replaced"), libc::O_RDWR).unwrap();
        fs::rename(script.at("by"), script.at("replaced")).unwrap();
        use_nameless(script, "replaced by rename", &replaced);
        script.note("the new one", fs::read(script.at("replaced")));

        // Two links: the file lives on under the other name.
        let linked = open(&script.at("one"), libc::O_RDWR).unwrap();
        fs::remove_file(script.at("one")).unwrap();
        use_nameless(script, "one of two names unlinked", &linked);
        script.stat("the other name", "two");
        fs::remove_file(script.at("two")).unwrap();
        script.note("both gone", linked.metadata().map(|m| m.nlink()));

        // A reader from before, a writer after, then the name goes.
        let reader = open(&script.at("copied"), libc::O_RDONLY).unwrap();
        let writer = open(&script.at("copied"), libc::O_RDWR).unwrap();
        writer.write_all_at(b"DATA", 0).unwrap();
        fs::remove_file(script.at("copied")).unwrap();
        use_nameless(script, "copied up, then unlinked", &writer);
        script.note("reader's size", read_all(&reader).map(|d| !d.is_empty()));
    });
}

#[test]
fn a_read_only_descriptor_of_an_unlinked_lower_file_still_answers() {
    require!(skip::privileged());
    let build = |dir: &Path| {
        fs::write(dir.join("file"), "data").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
    };
    like_ext4("unlinked-read-only", build, |script| {
        let file = open(&script.at("file"), libc::O_RDONLY).unwrap();
        let dir = File::open(script.at("dir")).unwrap();
        fs::remove_file(script.at("file")).unwrap();
        fs::remove_dir(script.at("dir")).unwrap();
        script.note("read", read_all(&file));
        script.note(
            "fchmod",
            file.set_permissions(fs::Permissions::from_mode(0o600)),
        );
        script.note(
            "fstat",
            file.metadata().map(|m| (m.mode(), m.nlink(), m.size())),
        );
        script.note("fchown", fchown(&file, Some(7), Some(8)));
        script.note(
            "fsetxattr",
            fsetxattr(&file, "user.x", b"y", XattrFlags::empty()).map_err(Into::into),
        );
        script.note(
            "fstat",
            file.metadata()
                .map(|m| (m.mode(), m.uid(), m.gid(), m.nlink())),
        );
        script.note("read", read_all(&file));
        script.note("fstat of the directory", dir.metadata().map(|m| m.mode()));
        let mut entries = rustix::fs::Dir::read_from(&dir).unwrap();
        script.note(
            "entries",
            Ok(entries.next().map(|e| {
                e.map(|e| e.file_name().to_owned())
                    .map_err(|e| e.raw_os_error())
            })),
        );
        let made = rustix::fs::mkdirat(&dir, "new", rustix::fs::Mode::RWXU);
        script.note("mkdirat in it", made.map_err(Into::into));
    });
}

#[test]
fn xattrs_of_symlinks_are_never_followed() {
    require!(skip::privileged());
    let outside = crate::common::Scratch::new("outside");
    let target = outside.join("target");
    fs::write(&target, "outside").unwrap();
    lsetxattr(&target, "user.outside", b"kept", XattrFlags::empty()).unwrap();
    let before = xattrs(&target).unwrap();
    let build = |dir: &Path| {
        fs::write(dir.join("inside"), "inside").unwrap();
        symlink(&target, dir.join("out")).unwrap();
        symlink("inside", dir.join("in")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        symlink(&target, dir.join("marked")).unwrap();
        lsetxattr(
            dir.join("marked"),
            "trusted.mark",
            b"lower",
            XattrFlags::empty(),
        )
        .unwrap();
    };
    like_ext4("symlink-xattrs", build, |script| {
        for name in ["out", "in", "dangling", "marked"] {
            let path = script.at(name);
            let get = |name: &str| -> io::Result<Vec<u8>> {
                let mut value = vec![0; 64];
                let n = lgetxattr(&path, name, &mut value[..])?;
                value.truncate(n);
                Ok(value)
            };
            script.note("mark", get("trusted.mark"));
            script.note("outside's", get("user.outside"));
            script.note(
                "user.",
                lsetxattr(&path, "user.x", b"1", XattrFlags::empty()).map_err(Into::into),
            );
            script.note(
                "trusted.",
                lsetxattr(&path, "trusted.y", b"2", XattrFlags::empty()).map_err(Into::into),
            );
            script.note("again", get("trusted.y"));
            let mut list = vec![0; 256];
            script.note("list", llistxattr(&path, &mut list[..]).map_err(Into::into));
            script.note(
                "remove",
                rustix::fs::lremovexattr(&path, "trusted.y").map_err(Into::into),
            );
            script.note(
                "owner",
                std::os::unix::fs::lchown(&path, Some(11), Some(12)),
            );
            script.stat("after", name);
            let handle = open_path(&path).unwrap();
            script.note("fstat", File::from(handle).metadata().map(|m| m.size()));
        }
        script.stat("the inside target", "inside");
    });
    assert_eq!(
        xattrs(&target).unwrap(),
        before,
        "something outside the mount was changed"
    );
    assert_eq!(fs::metadata(&target).unwrap().uid(), 0);
}

#[test]
fn a_tmpfile_is_refused_as_unsupported() {
    require!(skip::privileged());
    let rig = crate::rig::Rig::new("tmpfile", "", |_| {});
    // A known difference: programs take this errno as "make a named one".
    let result = open(rig.mount.path(), libc::O_TMPFILE | libc::O_RDWR);
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    rig.finish(|upper| assert_eq!(fs::read_dir(upper).unwrap().count(), 0));
}
