//! The forms in which container engines, `mount` and `/etc/fstab` call the binary.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;

use crate::common::connection::mounted_at;
use crate::common::skip;
use crate::require;
use crate::run::{Guard, Place, Said};

const LAYERS: &str = "lowerdir=top:bottom,upperdir=upper,workdir=work";

/// Mounts, checks that it is right and that nothing was printed, and unmounts.
#[track_caller]
fn mounts_in_silence(place: &Place, words: &str) {
    assert_eq!(place.ok(words), "", "acetate {words}");
    let _guard = Guard::at(&place.merged);
    assert_eq!(
        fs::read_to_string(place.merged.join("overridden")).unwrap(),
        "overridden by the top",
        "acetate {words}"
    );
    assert_eq!(
        fs::read_to_string(place.merged.join("dir/file")).unwrap(),
        "dir/file of the bottom"
    );
    place.ok("umount merged");
}

#[test]
fn the_mount_program_form_with_relative_layers() {
    require!(skip::privileged());
    let place = Place::new("program");
    mounts_in_silence(&place, &format!("-o {LAYERS} merged"));
    mounts_in_silence(&place, &format!("merged -o {LAYERS}"));
    let work = place.scratch.dir("elsewhere");
    let output = place
        .command()
        .current_dir(work)
        .args([
            "-o",
            "lowerdir=../top:../bottom,upperdir=../upper,workdir=../work",
            "../merged",
        ])
        .output()
        .unwrap();
    let _guard = Guard::at(&place.merged);
    let said = Said::from(output);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(place.merged.join("kept").exists());
}

#[test]
fn the_mount_helper_form() {
    require!(skip::privileged());
    let place = Place::new("helper");
    mounts_in_silence(&place, &format!("overlay merged -o {LAYERS}"));
    mounts_in_silence(&place, &format!("overlay merged -o {LAYERS} -t acetate"));
    mounts_in_silence(&place, &format!("overlay merged -n -o rw,{LAYERS}"));
    place.ok(&format!("my-source merged -o {LAYERS}"));
    let guard = Guard::at(&place.merged);
    assert_eq!(mounted_at(&place.merged).unwrap().source, "my-source");
    drop(guard);
    for name in ["mount.acetate", "mount.fuse.acetate"] {
        symlink(crate::run::BINARY, place.scratch.join(name)).unwrap();
        let output = place
            .program(place.scratch.join(name))
            .args(["overlay", "merged", "-o", &format!("rw,{LAYERS}")])
            .output()
            .unwrap();
        let guard = Guard::at(&place.merged);
        let said = Said::from(output);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{name}");
        assert!(place.merged.join("kept").exists());
        drop(guard);
    }
}

#[test]
fn remount_by_the_helper() {
    require!(skip::privileged());
    let place = Place::new("remount");
    let helper = place.scratch.join("mount.fuse.acetate");
    symlink(crate::run::BINARY, &helper).unwrap();
    place.ok(&format!("overlay merged -o {LAYERS}"));
    let guard = Guard::at(&place.merged);
    let remount = |options: &str| {
        let output = place
            .program(&helper)
            .args(["overlay", "merged", "-o", options])
            .output()
            .unwrap();
        Said::from(output)
    };
    let file = place.merged.join("made");
    let said = remount("remount,ro,relatime,user_id=0,group_id=0,default_permissions");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let error = fs::write(&file, "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let said = remount("remount,rw");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    fs::write(&file, "").unwrap();
    drop(guard);
    let said = remount("remount,rw");
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("no acetate mount"), "{}", said.err);
}

#[test]
fn a_line_of_fstab() {
    require!(skip::privileged());
    require!(skip::program("mount.fuse3"));
    let place = Place::new("fstab");
    let at = |name: &str| place.scratch.join(name).display().to_string();
    let line = format!(
        "{}#overlay {} fuse3 rw,relatime,noauto,nofail,x-systemd.automount,lowerdir={}:{},upperdir={},workdir={} 0 0\n",
        crate::run::BINARY,
        at("merged"),
        at("top"),
        at("bottom"),
        at("upper"),
        at("work"),
    );
    fs::write(place.scratch.join("fstab"), line).unwrap();
    let output = place
        .program("mount")
        .args(["-T", "fstab"])
        .arg(&place.merged)
        .output()
        .unwrap();
    let guard = Guard::at(&place.merged);
    let said = Said::from(output);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_eq!(
        fs::read_to_string(place.merged.join("overridden")).unwrap(),
        "overridden by the top"
    );
    let status = place.program("umount").arg(&place.merged).status().unwrap();
    assert!(status.success());
    drop(guard);
}

#[test]
fn colons_commas_and_backslashes_in_names() {
    require!(skip::privileged());
    let place = Place::new("escapes");
    let odd = ["a:b", "c,d", "e\\f", "g h", "ü=1"];
    for name in odd {
        fs::write(
            place
                .scratch
                .dir(name)
                .join(format!("from {name}").replace('/', "")),
            "",
        )
        .unwrap();
    }
    let layers: Vec<String> = odd
        .iter()
        .map(|n| {
            n.replace('\\', "\\\\")
                .replace(':', "\\:")
                .replace(',', "\\,")
        })
        .collect();
    let mut option = OsString::from("lowerdir=");
    option.push(layers.join(":"));
    option.push(",upperdir=upper,workdir=work");
    let output = place
        .command()
        .arg("-o")
        .arg(option)
        .arg("merged")
        .output()
        .unwrap();
    let guard = Guard::at(&place.merged);
    let said = Said::from(output);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_eq!(fs::read_dir(&place.merged).unwrap().count(), odd.len());
    drop(guard);
    // As arguments they need no escape.
    let mut command = place.command();
    command.arg("mount");
    for name in odd {
        command.arg("--lower").arg(name);
    }
    let said = Said::from(command.arg("merged").output().unwrap());
    let _guard = Guard::at(&place.merged);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_eq!(fs::read_dir(&place.merged).unwrap().count(), odd.len());
}

#[test]
fn layers_added_one_by_one() {
    require!(skip::privileged());
    let place = Place::new("plus");
    mounts_in_silence(
        &place,
        "-o lowerdir+=top,lowerdir+=bottom,upperdir=upper,workdir=work merged",
    );
}

#[test]
fn ordinary_options_are_taken_in_silence() {
    require!(skip::privileged());
    let place = Place::new("ordinary");
    for options in [
        "rw",
        "defaults",
        "relatime,lazytime",
        "noatime,nodiratime",
        "strictatime",
        "dev,suid,exec",
        "async",
        "auto,nofail,_netdev",
        "x-systemd.requires=a,x-initrd.mount",
        "allow_other,default_permissions",
        "fsname=name",
        "redirect_dir=on",
        "redirect_dir=off",
        "redirect_dir=follow",
        "redirect_dir=nofollow",
        "metacopy=off",
        "index=on",
        "index=off",
        "xino=auto",
        "xino=on",
        "xino=off",
        "volatile",
        "userxattr",
        "noacl",
        "static_nlink",
        "fsync=0",
        "fsync=1",
        "timeout=0",
        "timeout=1.5",
        "threaded=1",
        "clone_fd",
        "max_write=131072",
        "max_idle_threads=10",
        "fast_ino_check=1",
        "writeback=0",
        "writeback=1",
        "noxattrs=1",
        "nfs_export=off",
        "uuid=null",
        "verity=off",
        "passthrough_lower=always",
        "passthrough=off",
    ] {
        let place_work = format!("-o {LAYERS},{options} merged");
        mounts_in_silence(&place, &place_work);
    }
}

#[test]
fn flags_of_the_mount_have_their_meaning() {
    require!(skip::privileged());
    let place = Place::new("flags");
    place.ok(&format!(
        "-o {LAYERS},nodev,nosuid,noexec,noatime,fsname=mine merged"
    ));
    let guard = Guard::at(&place.merged);
    let mount = mounted_at(&place.merged).unwrap();
    for flag in ["nodev", "nosuid", "noexec", "noatime"] {
        assert!(
            mount.options.split(',').any(|o| o == flag),
            "{flag}: {}",
            mount.options
        );
    }
    assert_eq!(mount.source, "mine");
    drop(guard);
    place.ok(&format!("-o {LAYERS} merged"));
    let _guard = Guard::at(&place.merged);
    let mount = mounted_at(&place.merged).unwrap();
    for flag in ["nodev", "nosuid", "noexec"] {
        assert!(
            !mount.options.split(',').any(|o| o == flag),
            "{flag}: {}",
            mount.options
        );
    }
    // Root's mount is everybody's, as a container's users need it.
    let other = place
        .program("setpriv")
        .args(["--reuid", "2000", "--clear-groups", "cat", "merged/kept"])
        .output();
    assert_eq!(Said::from(other.unwrap()).out, "kept of the bottom");
}
