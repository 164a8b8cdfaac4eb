//! `acetate image` and its relatives, for people and with `--json`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::common::connection::mounted_at;
use crate::common::{Tree, TreeOptions, skip};
use crate::require;
use crate::run::{Guard, Place, Said};

/// A place with an image `base:1` and an empty directory `other`.
fn place(name: &str) -> Place {
    let place = Place::new(name);
    let root = place.scratch.dir("rootfs");
    for dir in ["etc", "d/sub", "bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("etc/motd"), "welcome").unwrap();
    fs::hard_link(root.join("etc/motd"), root.join("etc/again")).unwrap();
    fs::write(root.join("d/sub/file"), "data").unwrap();
    place.ok("import rootfs base:1 -c USER=7");
    place.scratch.dir("other");
    place
}

fn same(place: &Place, a: &str, b: &str) {
    let read = |name: &str| Tree::read(&place.scratch.join(name), TreeOptions::CONTENTS).unwrap();
    let lines = read(a).differences(&read(b));
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn a_mount_is_committed_and_mounted_again() {
    require!(skip::privileged());
    let place = place("commit");
    place.ok("mount base:1 merged");
    let _guard = Guard::at(&place.merged);
    let at = |name: &str| place.merged.join(name);
    fs::rename(at("d"), at("moved")).unwrap();
    fs::remove_dir(at("bin")).unwrap();
    fs::write(at("etc/again"), "changed by its other name").unwrap();
    fs::write(at("new"), "new").unwrap();
    let id = place.ok("commit merged new:1 -m why -a me");
    assert_eq!(
        place.ok("image ls -q new").trim(),
        &id["sha256:".len()..][..12]
    );
    place.ok("mount new:1 other");
    let _other = Guard::at(&place.scratch.join("other"));
    same(&place, "merged", "other");
    assert_eq!(place.ok("diff other"), "");
    // Both write on, apart from each other; the image above the image is made in the same way.
    fs::remove_file(place.scratch.join("other/new")).unwrap();
    assert!(at("new").exists());
    let nameless = place.ok("commit -q other");
    assert_eq!(nameless, "");
    let images = place.json("image ls --json --filter dangling=true");
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!(images[0]["layers"], 3);
    assert!(place.ok("image ls").contains("<none>"));
    let history = place.json("image history new:1 --json");
    assert_eq!(history[0]["comment"], "why");
    assert_eq!(place.ok("image inspect -f {{.Author}} new:1"), "me\n");
    assert_eq!(place.ok("image inspect -f {{.Config.User}} new:1"), "7\n");
    place.ok("export merged -o tree.tar");
    place.ok("export new:1 -o tree/");
    same(&place, "merged", "tree");
    // The image is in use.
    let refused = place.run("image rm new:1");
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("in use"), "{}", refused.err);
    place.ok("umount other");
    place.ok("umount merged");
    let verified = place.run("image verify");
    assert_eq!((verified.code, verified.out.as_str()), (Some(0), ""));
}

fn xattrs(path: &std::path::Path) -> Vec<(String, String)> {
    use rustix::buffer::spare_capacity;
    let mut list = Vec::with_capacity(4096);
    rustix::fs::llistxattr(path, spare_capacity(&mut list)).unwrap();
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = Vec::with_capacity(4096);
            rustix::fs::lgetxattr(path, name, spare_capacity(&mut value)).unwrap();
            (text(name), text(&value))
        })
        .filter(|(name, _)| name != "security.selinux")
        .collect();
    all.sort();
    all
}

/// What an overlay that a program nests in the mount keeps in `user.` xattrs is the program's, in a layer of the image and in
/// the upper, and no mark.
#[test]
fn marks_of_nested_overlays_are_content() {
    require!(skip::privileged());
    let place = place("nested");
    let set = |path: &std::path::Path, name: &str| {
        rustix::fs::lsetxattr(path, name, b"y", rustix::fs::XattrFlags::empty()).unwrap();
    };
    let root = place.scratch.join("rootfs");
    for dir in ["old", "new"] {
        fs::create_dir(root.join(dir)).unwrap();
        fs::write(root.join(dir).join("below"), "of the image").unwrap();
    }
    for name in ["user.overlay.opaque", "user.overlay.x", "user.other"] {
        set(&root.join("old"), name);
        set(&root.join("old/below"), name);
    }
    let content = xattrs(&root.join("old"));
    assert_eq!(content.len(), 3);
    place.ok("import rootfs nested:1");
    let check = |at: &str| {
        let at = place.scratch.join(at);
        for path in ["old", "old/below"] {
            assert_eq!(xattrs(&at.join(path)), content, "{path} in {at:?}");
        }
        for path in ["old/below", "new/below"] {
            assert_eq!(fs::read_to_string(at.join(path)).unwrap(), "of the image");
        }
    };
    for options in ["", "-o layer_index=off ", "-o userxattr "] {
        place.ok(&format!("mount {options}nested:1 merged"));
        let _guard = Guard::at(&place.merged);
        check("merged");
        // Copied up, and with what a program adds.
        fs::write(place.merged.join("old/other"), "x").unwrap();
        fs::write(place.merged.join("new/other"), "x").unwrap();
        set(&place.merged.join("old/below"), "user.overlay.x");
        set(&place.merged.join("new"), "user.overlay.opaque");
        check("merged");
        place.ok("commit merged changed:1");
        place.ok("mount changed:1 other");
        let _other = Guard::at(&place.scratch.join("other"));
        check("other");
        assert_eq!(
            xattrs(&place.scratch.join("other/new")),
            [("user.overlay.opaque".to_owned(), "y".to_owned())]
        );
        same(&place, "merged", "other");
        place.ok("umount other");
        place.ok("umount merged");
        place.ok("image rm changed:1");
    }
}

/// A program of an image runs with its owner's rights for a user of the machine where root asked for it alone.
#[test]
fn a_suid_program_of_an_image_makes_nobody_root() {
    require!(skip::privileged());
    let place = place("suid");
    let program = place.scratch.join("rootfs/bin/id");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    place.ok("import rootfs suid:1");
    for (options, user) in [("", "2000"), ("-o suid ", "0"), ("-o dev ", "2000")] {
        place.ok(&format!("mount {options}suid:1 merged"));
        let guard = Guard::at(&place.merged);
        let mode = fs::metadata(place.merged.join("bin/id")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o4755);
        let mut run = place.program("setpriv");
        run.args(["--reuid", "2000", "--clear-groups", "merged/bin/id", "-u"]);
        let said = Said::from(run.output().unwrap());
        assert_eq!(said.out.trim(), user, "{options}: {}", said.err);
        let flags = mounted_at(&place.merged).unwrap().options;
        let nodev = flags.split(',').any(|flag| flag == "nodev");
        assert_eq!(nodev, !options.contains("dev"), "{flags}");
        drop(guard);
    }
}

#[test]
fn plain_directories_become_an_image_of_one_layer() {
    require!(skip::privileged());
    let place = place("plain");
    place.ok("mount --lower top --lower bottom --upper upper --work work merged");
    let _guard = Guard::at(&place.merged);
    place.ok("commit merged plain:1");
    place.ok("export plain:1 -o tree/");
    same(&place, "merged", "tree");
    let images = place.json("image ls plain --json");
    assert_eq!(images[0]["layers"], 1);
    place.ok("umount merged");
}

#[test]
fn an_archive_that_is_mounted_can_be_committed() {
    require!(skip::privileged());
    let place = place("archive");
    place.ok("image save -o base.tar base:1");
    place.ok("image rm base:1");
    place.ok("mount base.tar merged");
    let _guard = Guard::at(&place.merged);
    fs::write(place.merged.join("new"), "new").unwrap();
    place.ok("commit merged new:1");
    // Whole, without the archive.
    fs::rename(place.scratch.join("base.tar"), place.scratch.join("away")).unwrap();
    let verified = place.run("image verify");
    assert_eq!((verified.code, verified.out.as_str()), (Some(0), ""));
    place.ok("export new:1 -o tree/");
    same(&place, "merged", "tree");
    // The mount uses a layer of it.
    let removed = place.run("image rm -f new:1");
    assert_eq!(removed.code, Some(0), "{}", removed.err);
    assert!(removed.err.contains("is in use"), "{}", removed.err);
    let refused = place.run("commit merged again:1");
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("is gone") && refused.err.contains("base.tar"),
        "{}",
        refused.err
    );
    place.ok("umount merged");
}

#[test]
fn listings_are_filtered_and_sizes_told() {
    let place = place("filters");
    place.ok("import rootfs web/app:1 -c LABEL=tier=web");
    let names = |filter: &str| {
        let images = place.json(&format!("image ls --json --filter {filter}"));
        let names = images.as_array().unwrap().iter();
        names
            .map(|i| i["reference"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("label=tier=web"), ["docker.io/web/app:1"]);
    assert_eq!(names("label!=tier"), ["docker.io/library/base:1"]);
    assert_eq!(names("reference=web/*"), ["docker.io/web/app:1"]);
    assert_eq!(names("until=24h"), Vec::<String>::new());
    assert_eq!(names("dangling=false").len(), 2);
    assert!(place.ok("image ls --digests").contains("sha256:"));
    let usage = place.json("image df --json");
    assert_eq!(usage[0]["type"], "Images");
    assert_eq!(usage[0]["total"], 2);
    // The same folder is the same layer.
    assert_eq!(usage[2]["total"], 1);
    assert!(place.ok("image df").starts_with("TYPE"));
    let pruned = place.json("image prune --all --filter label=tier --json");
    assert_eq!(pruned["untagged"][0], "docker.io/web/app:1");
    assert_eq!(names("dangling=false"), ["docker.io/library/base:1"]);
}

#[test]
fn nonsense_is_refused_in_one_line() {
    let place = place("nonsense");
    for (words, part) in [
        ("commit merged", "is not an acetate mount"),
        ("commit nowhere x:1", "nowhere"),
        ("import nowhere x:1", "nowhere"),
        ("import rootfs Upper:1", "invalid reference format"),
        ("import rootfs x:1 -c RUN=make", "RUN is no instruction"),
        ("import rootfs x:1 --platform linux", "invalid platform"),
        ("import rootfs/etc/motd x:1", "neither a folder nor a tar"),
        ("export nothing:1 -o out.tar", "nothing:1"),
        ("export base:1 -o rootfs/", "rootfs"),
        ("image ls --filter what=1", "invalid filter what=1"),
        ("image ls --filter dangling=maybe", "dangling"),
        ("image prune --filter until=soon", "until=soon"),
        ("image inspect -f {{.Nope}} base:1", "{{.Nope}}"),
        ("image inspect -f /Nope base:1", "/Nope"),
        ("image inspect 00", "00"),
        ("completions what", "what"),
    ] {
        let said = place.run(words);
        assert!(matches!(said.code, Some(1 | 2)), "{words}: {said:?}");
        assert!(said.err.contains(part), "{words}: {}", said.err);
        assert_eq!(said.err.lines().count(), 1, "{words}: {}", said.err);
        assert_eq!(said.out, "", "{words}");
    }
    assert_eq!(place.json("image ls --json").as_array().unwrap().len(), 1);
    assert!(!place.scratch.join("out.tar").exists());
}

#[test]
fn the_program_writes_its_own_manual() {
    let place = Place::new("manual");
    for shell in ["bash", "zsh", "fish"] {
        let text = place.ok(&format!("completions {shell}"));
        assert!(
            text.contains("acetate") && text.contains("commit"),
            "{shell}"
        );
    }
    place.ok("man pages/man1");
    let page = |name: &str| fs::read_to_string(place.scratch.join(format!("pages/man1/{name}")));
    assert!(page("acetate.1").unwrap().contains(".TH"));
    assert!(
        page("acetate-image-commit.1")
            .unwrap()
            .contains("Makes an image of what a mount or a container changes")
    );
    place.refused("man top/overridden", &["top/overridden"]);
}
