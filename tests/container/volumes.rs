//! Volumes: what they begin with, who sees them, and when they go.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use crate::require;
use crate::rig::{Rig, able};

/// Makes the image `vv`, which has something in `/data`, owned by another, and names it as a volume.
fn image_with_volume(rig: &Rig) {
    let tree = rig.scratch.join("tree");
    fs::write(tree.join("data/given"), "of the image\n").unwrap();
    std::os::unix::fs::chown(tree.join("data"), Some(33), Some(33)).unwrap();
    // Whoever follows it outside of the image meets the host.
    symlink(rig.scratch.path(), tree.join("out")).unwrap();
    let words = [
        "image",
        "import",
        "--change",
        "VOLUME /data",
        "--change",
        "CMD [\"/bin/sh\"]",
        tree.to_str().unwrap(),
        "vv",
    ];
    rig.must(&words);
}

#[test]
fn a_named_volume_begins_with_the_images_files_and_outlives_its_containers() {
    require!(able());
    let rig = Rig::new("named");
    image_with_volume(&rig);
    let script = "cat /data/given; echo mine > /data/made";
    let run = |options: &[&str], script: &str| {
        rig.must(&[&["run", "--rm"], options, &["vv", "sh", "-c", script]].concat())
    };
    assert_eq!(run(&["-v", "keep:/data"], script), "of the image\n");
    // Another image, another place, and what the image has there stays hidden.
    assert_eq!(run(&["-v", "keep:/etc"], "ls /etc | cat; cat /etc/made"), {
        "given\nhostname\nhosts\nmade\nresolv.conf\nmine\n"
    });
    run(
        &["-v", "keep:/data:ro"],
        "touch /data/new && exit 1; rm -f /data/given && exit 1; exit 0",
    );
    let listed = rig.must(&["volume", "ls", "--quiet"]);
    assert_eq!(listed, "keep\n");
    let inspected: serde_json::Value =
        serde_json::from_str(&rig.must(&["volume", "inspect", "keep"])).unwrap();
    let data = std::path::PathBuf::from(inspected[0]["Mountpoint"].as_str().unwrap());
    assert_eq!(fs::read(data.join("made")).unwrap(), b"mine\n");
    assert_eq!(fs::metadata(&data).unwrap().uid(), 33);
    // What was removed does not come back as long as there is something else.
    run(&["-v", "keep:/data"], "rm /data/given");
    assert_eq!(
        run(&["-v", "keep:/data"], "ls /data | cat"),
        "hostname\nhosts\nmade\nresolv.conf\n"
    );
    rig.must(&["create", "--name", "user", "-v", "keep:/data", "vv"]);
    assert!(
        rig.fails(1, &["volume", "rm", "keep"])
            .contains("container user")
    );
    assert_eq!(rig.inspect("user")["Mounts"][0]["Name"], "keep");
    rig.must(&["rm", "-v", "user"]);
    assert_eq!(rig.must(&["volume", "prune"]), "");
    assert_eq!(rig.must(&["volume", "rm", "keep"]), "keep\n");
    assert!(
        rig.fails(1, &["volume", "rm", "keep"])
            .contains("no such volume")
    );
    rig.must(&["volume", "rm", "--force", "keep"]);
    rig.nothing_is_left();
    assert!(!data.exists());
}

#[test]
fn what_an_image_names_as_a_volume_is_kept_until_it_is_asked_away() {
    require!(able());
    let rig = Rig::new("anonymous");
    image_with_volume(&rig);
    let volumes = || rig.must(&["volume", "ls", "--quiet"]).lines().count();
    rig.must(&[
        "run",
        "--rm",
        "-v",
        "/scratch",
        "vv",
        "sh",
        "-c",
        "echo x > /scratch/f; ls /data/given",
    ]);
    rig.until("those of --rm are gone", || volumes() == 0);
    let script = "cat /data/given >> /data/log; cat /data/log";
    rig.must(&["create", "--name", "cc", "vv", "sh", "-c", script]);
    assert_eq!(rig.must(&["start", "-a", "cc"]), "of the image\n");
    assert_eq!(
        rig.must(&["start", "-a", "cc"]),
        "of the image\nof the image\n"
    );
    // It is in no layer of the container.
    assert!(!rig.must(&["diff", "cc"]).contains("log"));
    rig.must(&["rm", "cc"]);
    assert_eq!(volumes(), 1);
    rig.must(&["volume", "prune"]);
    assert_eq!(volumes(), 0);
    rig.must(&["create", "--name", "dd", "vv"]);
    rig.must(&["rm", "--volumes", "dd"]);
    rig.until("those of rm -v are gone", || volumes() == 0);
    rig.nothing_is_left();
}

#[test]
fn memory_and_mounts_are_shown_as_they_were_asked_for() {
    require!(able());
    let rig = Rig::new("mounts");
    image_with_volume(&rig);
    let of_host = rig.scratch.dir("of-host");
    fs::write(of_host.join("file"), "of the host\n").unwrap();
    let bind = format!("type=bind,source={},target=/h,readonly", of_host.display());
    let script = "cat /h/file; touch /h/new 2>/dev/null && exit 1; ls /data /mem; echo x > /mem/x; cat /mem/x; \
                  grep ' /mem ' /proc/self/mountinfo";
    let said = rig.must(&[
        "run",
        "--name",
        "mm",
        "--read-only",
        "--mount",
        &bind,
        "--mount",
        "source=bare,target=/data,volume-nocopy",
        "--tmpfs",
        "/mem:size=64k,mode=1770",
        "vv",
        "sh",
        "-c",
        script,
    ]);
    let said: Vec<&str> = said.lines().collect();
    let (last, first) = said.split_last().unwrap();
    assert!(
        first.starts_with(&["of the host"]) && first.ends_with(&["/data:", "", "/mem:", "x"]),
        "{said:?}"
    );
    for option in ["nosuid", "nodev", "noexec", "size=64k", "mode=1770"] {
        assert!(
            last.split([' ', ',']).any(|word| word == option),
            "{option}: {last}"
        );
    }
    let mounts = rig.inspect("mm")["Mounts"].clone();
    let kinds: Vec<&str> = mounts
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["Type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["bind", "volume", "tmpfs"]);
    // What was in memory is gone with the run.
    let again = rig.acetate(&["start", "--attach", "mm"]);
    assert_eq!(
        again.text.matches("\n/mem:\nx\n").count(),
        1,
        "{}",
        again.text
    );
    rig.must(&["rm", "mm"]);
    rig.must(&["volume", "rm", "bare"]);
    rig.nothing_is_left();
}

#[test]
fn a_symlink_of_the_image_does_not_fill_a_volume_with_the_hosts_files() {
    require!(able());
    let rig = Rig::new("symlink");
    image_with_volume(&rig);
    fs::create_dir(rig.scratch.join("secret")).unwrap();
    fs::write(rig.scratch.join("secret/key"), "of the host").unwrap();
    // Neither is the runtime led out: it makes the directory inside, or refuses.
    let finished = rig.acetate(&[
        "run",
        "--rm",
        "-v",
        "caught:/out/secret",
        "vv",
        "ls",
        "/out/secret",
    ]);
    assert!(!finished.text.contains("key"), "{}", finished.text);
    let inspected: serde_json::Value =
        serde_json::from_str(&rig.must(&["volume", "inspect", "caught"])).unwrap();
    let data = inspected[0]["Mountpoint"].as_str().unwrap();
    assert_eq!(fs::read_dir(data).unwrap().count(), 0);
    rig.must(&["volume", "rm", "caught"]);
    rig.nothing_is_left();
}
