//! Images that stay in the store: names, ids, removal, damage, and what other tools make of it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use acetate::image::{SaveFormat, Store};

use super::build::*;
use super::common::skip;
use super::formats::layers;
use super::tree::tree;
use crate::{require, skip};

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Bench { dir, store }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }
    /// Loads an image of these layers as a docker archive with these names.
    fn load(&self, layers: &[Vec<u8>], tags: &[&str]) -> String {
        let path = self.path("load.tar");
        std::fs::write(&path, tar_of(&docker_files(layers, tags))).unwrap();
        let images = self.store.load(path.as_os_str(), None).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(images.len(), 1);
        images[0].id.to_string()
    }
    fn names(&self) -> Vec<String> {
        let images = self.store.images().unwrap();
        images.into_iter().flat_map(|i| i.references).collect()
    }
    fn clean(&self) {
        let report = self.store.verify().unwrap();
        assert_eq!(report.damages, []);
        assert_eq!(
            std::fs::read_dir(self.path("store/tmp")).unwrap().count(),
            0
        );
    }
    fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.path("store").join(folder))
            .unwrap()
            .count()
    }
}

fn one(text: &str) -> Vec<Vec<u8>> {
    vec![Tar::new().file("file", text.as_bytes()).finish()]
}

#[test]
fn who_may_enter_the_root_may_not_enter_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    // One that was there before, as some directory of the system's, and as an older store.
    for name in ["", "layers", "containers", "volumes"] {
        std::fs::create_dir(root.join(name)).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(root.join(name), open).unwrap();
    }
    let mode = |name: &str| root.join(name).metadata().unwrap().mode() & 0o7777;
    for _ in 0..2 {
        drop(Store::open(&root).unwrap());
        assert_eq!(mode(""), 0o755);
        for entry in std::fs::read_dir(&root).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                let name = entry.file_name().into_string().unwrap();
                assert_eq!(mode(&name), 0o700, "{name}");
            }
        }
    }
    for name in ["layers", "blobs", "tmp", "partial", "locks"] {
        assert!(root.join(name).is_dir(), "{name}");
    }
}

#[test]
fn a_manifest_cannot_join_a_blob_with_another_layers_diff_id() {
    let bench = Bench::new();
    let [one, other] = [b"one", b"two"].map(|data| Tar::new().file("a", data).finish());
    let image = |layer: &Vec<u8>| oci_files(std::slice::from_ref(layer), Packing::Gzip);
    let load = |files: &BTreeMap<String, Vec<u8>>| {
        let path = bench.path("image.tar");
        std::fs::write(&path, tar_of(files)).unwrap();
        bench.store.load(path.as_os_str(), None)
    };
    load(&image(&one)).unwrap();
    load(&image(&other)).unwrap();
    // The store has both layers, and both blobs; but these do not belong together.
    let mut files = BTreeMap::new();
    let parts = [
        blob(
            &mut files,
            "application/vnd.oci.image.config.v1+json",
            &config(std::slice::from_ref(&one), arch()),
        ),
        blob(
            &mut files,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &pack(&other, Packing::Gzip),
        ),
    ];
    let manifest =
        serde_json::json!({"schemaVersion": 2, "config": parts[0], "layers": [parts[1]]});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = blob(&mut files, media_type, manifest.to_string().as_bytes());
    oci_index(&mut files, vec![manifest]);
    let names = || {
        let all = tree(bench.store.root()).into_keys();
        all.filter(|name| !name.starts_with("/locks/"))
            .collect::<Vec<_>>()
    };
    let before = names();
    let error = load(&files).unwrap_err().to_string();
    assert!(
        error.contains("wrong digest of the uncompressed"),
        "{error}"
    );
    assert_eq!(names(), before);
    // Another blob of a layer that the store has is taken, also where no record tells that it is one.
    let zstd = oci_files(std::slice::from_ref(&one), Packing::Zstd);
    load(&zstd).unwrap();
    for layer in std::fs::read_dir(bench.path("store/layers/sha256")).unwrap() {
        std::fs::remove_dir_all(layer.unwrap().path().join("blobs")).unwrap();
    }
    load(&files).unwrap_err();
    load(&zstd).unwrap();
    bench.clean();
}

/// One tree in two blobs of one image, as where it was pushed by programs that compress in different ways.
#[test]
fn each_blob_of_one_diff_id_is_kept_and_checked() {
    let bench = Bench::new();
    let [one, other] = [b"one", b"two"].map(|data| Tar::new().file("a", data).finish());
    let image = |second: &[u8]| {
        let mut files = BTreeMap::new();
        let config = config(&[one.clone(), one.clone()], arch());
        let config = blob(
            &mut files,
            "application/vnd.oci.image.config.v1+json",
            &config,
        );
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers = [pack(&one, Packing::Gzip), second.to_vec()]
            .map(|bytes| blob(&mut files, gzip, &bytes));
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = blob(&mut files, media_type, manifest.to_string().as_bytes());
        oci_index(&mut files, vec![manifest]);
        let path = bench.path("image.tar");
        std::fs::write(&path, tar_of(&files)).unwrap();
        bench.store.load(path.as_os_str(), None)
    };
    // In a store that has neither, and in one that has the tree.
    for _ in 0..2 {
        let error = image(&pack(&other, Packing::Gzip)).unwrap_err().to_string();
        assert!(
            error.contains("wrong digest of the uncompressed"),
            "{error}"
        );
        assert_eq!(bench.store.images().unwrap().len(), 0);
    }
    let loaded = image(&pack(&one, Packing::GzipMembers)).unwrap();
    assert_eq!(loaded[0].manifest.layers().len(), 2);
    for layer in loaded[0].manifest.layers() {
        let place = format!("store/blobs/sha256/{}", layer.digest().digest());
        assert!(bench.path(&place).exists(), "{place}");
    }
    bench.clean();
}

#[test]
fn names_are_like_hard_links() {
    let bench = Bench::new();
    let id = bench.load(&one("1"), &["a:1", "b/c:2"]);
    assert_eq!(bench.names(), ["docker.io/b/c:2", "docker.io/library/a:1"]);
    let hex = id.strip_prefix("sha256:").unwrap();
    for name in [
        "a:1",
        "docker.io/library/a:1",
        "b/c:2",
        &id,
        hex,
        &hex[..12],
        &hex[..3],
    ] {
        assert_eq!(
            bench.store.image(name).unwrap().id.to_string(),
            id,
            "{name}"
        );
    }
    for name in ["a:9", "c:2", "ffffffffffffffffffff", "a:2"] {
        let error = bench.store.image(name).unwrap_err().to_string();
        assert!(error.contains("no such image"), "{name}: {error}");
    }
    bench.store.tag("a:1", "h:5000/x").unwrap();
    assert!(
        bench
            .store
            .tag("a:1", "Upper")
            .unwrap_err()
            .to_string()
            .contains("lowercase")
    );
    assert_eq!(bench.names().len(), 3);
    bench.store.remove("a:1", false).unwrap();
    bench.store.remove("b/c:2", false).unwrap();
    assert_eq!(bench.names(), ["h:5000/x:latest"]);
    assert_eq!(bench.count("layers/sha256"), 1);
    let removed = bench.store.remove("h:5000/x", false).unwrap();
    assert_eq!(removed.images, [id]);
    assert_eq!(removed.layers.len(), 1);
    assert_eq!(
        bench.count("layers/sha256") + bench.count("blobs/sha256"),
        0
    );
    bench.clean();
}

#[test]
fn a_name_moves_to_the_image_that_is_loaded_last() {
    let bench = Bench::new();
    let first = bench.load(&one("1"), &["a:1"]);
    let second = bench.load(&one("2"), &["a:1"]);
    assert_eq!(bench.store.image("a:1").unwrap().id.to_string(), second);
    assert!(bench.store.image(&first).unwrap().references.is_empty());
    // The one without a name goes with a prune, the other stays.
    let removed = bench.store.prune(false).unwrap();
    assert_eq!(removed.images, std::slice::from_ref(&first));
    assert!(bench.store.image(&first).is_err());
    assert_eq!(bench.store.image("a:1").unwrap().id.to_string(), second);
    bench.clean();
    // Loading it again finds what is there.
    assert_eq!(bench.load(&one("2"), &["a:1"]), second);
    assert_eq!(bench.count("blobs/sha256"), 3);
    bench.clean();
}

#[test]
fn an_image_with_several_names_is_not_removed_by_its_id() {
    let bench = Bench::new();
    let id = bench.load(&one("1"), &["a:1", "a:2"]);
    let error = bench.store.remove(&id, false).unwrap_err().to_string();
    assert!(
        error.contains("several names") && error.contains("a:2"),
        "{error}"
    );
    bench.store.remove(&id, true).unwrap();
    assert!(bench.store.images().unwrap().is_empty());
    bench.clean();
}

#[test]
fn an_id_means_the_image_in_all_its_forms() {
    let bench = Bench::new();
    let folders = [Packing::Gzip, Packing::Zstd].map(|packing| {
        let folder = bench.path(&format!("{packing:?}"));
        folder_of(&oci_files(&one("1"), packing), &folder);
        folder
    });
    let images = folders.map(|folder| {
        let image = bench
            .store
            .load(folder.as_os_str(), None)
            .unwrap()
            .remove(0);
        bench
            .store
            .tag(
                image.digest.as_ref(),
                &format!("form/{}", &image.digest.digest()[..8]),
            )
            .unwrap();
        image
    });
    bench.store.remove("localhost/1.0", true).unwrap();
    let id = images[0].id.to_string();
    assert_eq!(images[1].id.to_string(), id);
    assert_eq!(bench.names().len(), 2);
    // A single character is enough where only one id begins with it.
    let short = &images[0].id.digest()[..1];
    assert_eq!(bench.store.image(short).unwrap().id, images[0].id);
    let error = bench.store.remove(short, false).unwrap_err().to_string();
    assert!(error.contains("several names"), "{error}");
    // A manifest's digest means one of them.
    bench.store.remove(images[0].digest.as_ref(), true).unwrap();
    assert_eq!(bench.store.images().unwrap().len(), 1);
    let folder = bench.path(&format!("{:?}", Packing::Gzip));
    bench.store.load(folder.as_os_str(), None).unwrap();
    assert_eq!(bench.store.images().unwrap().len(), 2);
    let removed = bench.store.remove(short, true).unwrap();
    assert_eq!(removed.untagged.len(), 2);
    assert!(bench.store.images().unwrap().is_empty());
    assert_eq!(
        bench.count("layers/sha256") + bench.count("blobs/sha256"),
        0
    );
    bench.clean();
}

#[test]
fn what_is_in_use_stays() {
    let bench = Bench::new();
    let (base, mut both) = (one("base"), one("base"));
    both.extend(one("top"));
    bench.load(&base, &["base:1"]);
    bench.load(&both, &["both:1"]);
    let held = bench.store.prepare("both:1".as_ref(), None).unwrap();
    let error = bench.store.remove("both:1", false).unwrap_err().to_string();
    assert!(
        error.contains("in use") && error.contains("both"),
        "{error}"
    );
    let id = bench.store.image("both:1").unwrap().id.to_string();
    let removed = bench.store.remove("both:1", true).unwrap();
    assert_eq!(removed.layers, [] as [String; 0]);
    assert_eq!(removed.untagged, ["docker.io/library/both:1"]);
    assert_eq!(removed.kept, std::slice::from_ref(&id));
    assert_eq!(std::fs::read(held.layers[0].join("file")).unwrap(), b"top");
    // It stays without a name, also for a prune, and cannot be forced away.
    for _ in 0..2 {
        assert!(bench.store.image(&id).unwrap().references.is_empty());
        assert!(bench.store.remove(&id, true).is_err());
        bench.store.prune(true).unwrap();
    }
    assert!(held.layers.iter().all(|l| l.join("file").exists()));
    bench.clean();
    drop(held);
    let removed = bench.store.prune(true).unwrap();
    assert!(removed.images.contains(&id), "{removed:?}");
    assert_eq!(removed.layers.len(), 2, "{removed:?}");
    assert_eq!(
        bench.count("layers/sha256") + bench.count("blobs/sha256"),
        0
    );
    bench.clean();
}

#[test]
fn a_stored_image_is_prepared_by_its_name() {
    let bench = Bench::new();
    let id = bench.load(&layers(), &["localhost/x:1"]);
    let first = bench.store.prepare("x:1".as_ref(), None).unwrap();
    assert_eq!(first.name, "localhost/x:1");
    let again = bench.store.prepare(id.as_ref(), None).unwrap();
    assert_eq!(again.layers, first.layers);
    assert_eq!(again.diff_ids.len(), 3);
    // A tree that is gone is made again from its blob.
    let expected = tree(&first.layers[2]);
    drop((first, again));
    std::fs::remove_dir_all(bench.path("store/layers/sha256")).unwrap();
    let store = Store::open(&bench.path("store")).unwrap();
    let image = store.prepare("x:1".as_ref(), None).unwrap();
    assert_eq!(tree(&image.layers[2]), expected);
}

#[test]
fn damage_is_found_and_named() {
    let bench = Bench::new();
    bench.load(&layers(), &["a:1"]);
    let image = bench.store.prepare("a:1".as_ref(), None).unwrap();
    bench.clean();
    let told = |part: &str| {
        let report = bench.store.verify().unwrap();
        let found = report.damages.iter().any(|d| {
            format!("{} {}", d.what, d.why).contains(part) && d.images == ["docker.io/library/a:1"]
        });
        assert!(found, "{part}: {:?}", report.damages);
    };
    let file = image.layers[2].join("etc/a");
    let meta = file.metadata().unwrap();
    std::fs::write(&file, "BASE").unwrap();
    let touch = |path: &Path| {
        let time = rustix::fs::Timespec {
            tv_sec: meta.mtime(),
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    };
    touch(&file);
    told("/etc/a: has other data");
    std::fs::write(&file, "base").unwrap();
    touch(&file);
    bench.clean();
    let extra = image.layers[0].join("opt/extra");
    std::fs::write(&extra, "").unwrap();
    told("/opt");
    std::fs::remove_file(&extra).unwrap();
    touch(&image.layers[0].join("opt"));
    bench.clean();
    let blob = bench.path("store/blobs/sha256").join(sha256(&layers()[1]));
    let bytes = std::fs::read(&blob).unwrap();
    let mut changed = bytes.clone();
    changed[600] ^= 1;
    std::fs::write(&blob, changed).unwrap();
    told("wrong digest");
    std::fs::remove_file(&blob).unwrap();
    told("missing");
    std::fs::write(&blob, bytes).unwrap();
    bench.clean();
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    output
}

#[test]
fn digests_survive_save_and_load_in_every_form() {
    let bench = Bench::new();
    for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
        folder_of(&oci_files(&layers(), packing), &bench.path("in"));
        let loaded = bench
            .store
            .load(bench.path("in").as_os_str(), None)
            .unwrap()
            .remove(0);
        bench.store.tag(loaded.id.as_ref(), "a/b:1").unwrap();
        let names = ["a/b:1".to_owned()];
        for format in [
            SaveFormat::DockerArchive,
            SaveFormat::OciArchive,
            SaveFormat::OciDir,
        ] {
            let out = bench.path("out");
            match format {
                SaveFormat::OciDir => bench.store.save_dir(&names, &out).unwrap(),
                _ => bench.store.save_file(&names, format, &out).unwrap(),
            }
            let other = Store::open(&bench.path("other")).unwrap();
            let image = other.load(out.as_os_str(), None).unwrap().remove(0);
            assert_eq!(image.id, loaded.id, "{packing:?} {format:?}");
            assert_eq!(image.references, ["docker.io/a/b:1"]);
            if format != SaveFormat::DockerArchive {
                assert_eq!(image.digest, loaded.digest, "{packing:?} {format:?}");
            }
            assert_eq!(other.verify().unwrap().damages, []);
            std::fs::remove_dir_all(bench.path("other")).unwrap();
            if out.is_dir() {
                std::fs::remove_dir_all(out).unwrap();
            } else {
                std::fs::remove_file(out).unwrap();
            }
        }
        std::fs::remove_dir_all(bench.path("in")).unwrap();
        bench.store.remove(loaded.id.as_ref(), true).unwrap();
    }
    bench.clean();
}

#[test]
fn skopeo_and_umoci_read_what_we_save_and_the_store_itself() {
    require!(skip::program("skopeo"));
    require!(skip::program("umoci"));
    let bench = Bench::new();
    folder_of(&oci_files(&layers(), Packing::Gzip), &bench.path("in"));
    let source = format!("{}:1.0", bench.text("in"));
    let loaded = bench.store.load(source.as_ref(), None).unwrap().remove(0);
    assert_eq!(loaded.references, ["localhost/1.0:latest"]);
    bench.store.tag("1.0", "a/b:1").unwrap();
    let names = ["a/b:1".to_owned()];
    bench
        .store
        .save_file(&names, SaveFormat::DockerArchive, &bench.path("docker.tar"))
        .unwrap();
    bench
        .store
        .save_file(&names, SaveFormat::OciArchive, &bench.path("oci.tar"))
        .unwrap();
    bench.store.save_dir(&names, &bench.path("oci")).unwrap();
    let name = "docker.io/a/b:1";
    let inspect = |source: &str| -> serde_json::Value {
        let output = run(Command::new("skopeo").arg("inspect").arg(source));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let digest = loaded.digest.to_string();
    for source in [
        format!("oci:{}:{name}", bench.text("store")),
        format!("oci:{}:{name}", bench.text("oci")),
        format!("oci-archive:{}:{name}", bench.text("oci.tar")),
    ] {
        assert_eq!(inspect(&source)["Digest"], digest, "{source}");
    }
    let docker = inspect(&format!(
        "docker-archive:{}:{name}",
        bench.text("docker.tar")
    ));
    assert_eq!(docker["Layers"].as_array().unwrap().len(), 3);
    let policy = bench.path("policy.json");
    std::fs::write(
        &policy,
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    // Copying reads and checks every layer.
    run(Command::new("skopeo")
        .arg("--policy")
        .arg(&policy)
        .arg("copy")
        .arg(format!(
            "docker-archive:{}:{name}",
            bench.text("docker.tar")
        ))
        .arg(format!("oci:{}:x", bench.text("copied"))));
    if nix::unistd::geteuid().is_root() {
        let unpacked = bench.path("unpacked");
        run(Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:x", bench.text("copied")))
            .arg(&unpacked));
        assert_eq!(
            std::fs::read(unpacked.join("rootfs/etc/a")).unwrap(),
            b"override"
        );
        assert!(!unpacked.join("rootfs/etc/b").exists());
        assert!(!unpacked.join("rootfs/opt/x").exists());
    }
}

/// A kernel overlay over layers, unmounted in the end.
struct Overlay(PathBuf);

impl Overlay {
    fn new(layers: &[PathBuf], at: &Path) -> Overlay {
        std::fs::create_dir_all(at).unwrap();
        let lower: Vec<_> = layers.iter().map(|l| l.to_str().unwrap()).collect();
        run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(format!("ro,lowerdir={}", lower.join(":")))
            .arg(at));
        Overlay(at.to_owned())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(
            status.unwrap().success(),
            "{} is still mounted",
            self.0.display()
        );
    }
}

#[test]
fn podman_shows_the_same_tree() {
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root");
    }
    require!(skip::program("podman"));
    let bench = Bench::new();
    let base = Tar::new()
        .dir("./", 0o755)
        .dir("etc/", 0o751)
        .entry(
            b"etc/owned",
            tar::EntryType::Regular,
            b"",
            b"x",
            &Attr {
                mode: 0o4711,
                uid: 12,
                gid: 34,
                mtime: 1_234_567_890,
            },
        )
        .pax(&[
            ("SCHILY.xattr.user.n", b"v\nw"),
            ("mtime", b"1500000000.123456789"),
        ])
        .file("etc/xattr", b"x")
        .pax(&[(
            "SCHILY.xattr.security.capability",
            b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        )])
        .file("etc/ping", b"x")
        .hard_link("etc/linked", "etc/owned")
        .symlink("lib", "usr/lib")
        .device("null", tar::EntryType::Char, 1, 3)
        .device("fifo", tar::EntryType::Fifo, 0, 0)
        .dir("gone/", 0o755)
        .file("gone/a", b"")
        .dir("opaque/", 0o755)
        .file("opaque/hidden", b"")
        .finish();
    let top = Tar::new()
        .dir("etc/", 0o755)
        .file("etc/.wh.xattr", b"")
        .file(".wh.gone", b"")
        .dir("opaque/", 0o700)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/shown", b"")
        .finish();
    bench.load(&[base, top], &["localhost/t:1"]);
    let archive = bench.path("t.tar");
    bench
        .store
        .save_file(&["t:1".into()], SaveFormat::DockerArchive, &archive)
        .unwrap();
    let root = bench.text("podman");
    let podman = || {
        let mut command = Command::new("timeout");
        command
            .args(["120", "podman", "--root"])
            .arg(format!("{root}/s"))
            .arg("--runroot")
            .arg(format!("{root}/r"))
            .arg("--tmpdir")
            .arg(format!("{root}/t"))
            .args(["--storage-driver", "overlay"]);
        command
    };
    run(podman().arg("load").arg("-i").arg(&archive));
    let mounted = run(podman().args(["image", "mount", "localhost/t:1"]));
    let mounted = String::from_utf8(mounted.stdout).unwrap();
    let theirs = tree(Path::new(mounted.trim()));
    run(podman().args(["image", "unmount", "--all"]));
    run(podman().args(["rmi", "--all", "--force"]));
    let image = bench.store.prepare("t:1".as_ref(), None).unwrap();
    let at = bench.path("merged");
    let overlay = Overlay::new(&image.layers, &at);
    let ours = tree(&at);
    drop(overlay);
    let strip = |tree: BTreeMap<String, String>| -> BTreeMap<String, String> {
        // The times of the root are those of the unpacking there.
        tree.into_iter().filter(|(path, _)| path != "/").collect()
    };
    assert_eq!(strip(ours), strip(theirs));
}

fn acetate(store: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_acetate"))
        .arg("--root")
        .arg(store)
        .arg("image")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_commands_print_what_docker_users_expect() {
    let bench = Bench::new();
    let archive = bench.path("a.tar");
    std::fs::write(&archive, tar_of(&docker_files(&layers(), &["a:1"]))).unwrap();
    let store = bench.path("store");
    let ok = |arguments: &[&str]| {
        let output = acetate(&store, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = ok(&["load", "-i", archive.to_str().unwrap()]);
    assert_eq!(text, "Loaded image: docker.io/library/a:1\n");
    let listing = ok(&["ls"]);
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(lines.len(), 2, "{listing}");
    assert!(lines[0].starts_with("REPOSITORY"));
    assert!(lines[1].starts_with("a "), "{listing}");
    let json: serde_json::Value = serde_json::from_str(&ok(&["ls", "--json"])).unwrap();
    assert_eq!(json[0]["reference"], "docker.io/library/a:1");
    assert_eq!(json[0]["layers"], 3);
    let sizes: u64 = layers().iter().map(|l| l.len() as u64).sum();
    assert_eq!(json[0]["size"], sizes);
    assert_eq!(ok(&["inspect", "-f", "/Config/Env/0", "a:1"]), "A=b\n");
    let inspected: serde_json::Value = serde_json::from_str(&ok(&["inspect", "a:1"])).unwrap();
    assert_eq!(inspected[0]["Id"], json[0]["id"]);
    assert_eq!(ok(&["history", "a:1"]).lines().count(), 4);
    assert_eq!(ok(&["tag", "a:1", "b"]), "");
    assert!(ok(&["rm", "b"]).contains("Untagged: docker.io/library/b:latest"));
    assert_eq!(ok(&["verify", "--json"]), "[]\n");
    // Through a pipe in both directions.
    let saved = acetate(&store, &["save", "a:1"]).stdout;
    let mut child = Command::new(env!("CARGO_BIN_EXE_acetate"))
        .arg("--root")
        .arg(bench.path("piped"))
        .args(["image", "load", "-q"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &saved).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        json[0]["id"]
    );
    assert!(ok(&["rm", "a:1"]).contains("Deleted: sha256:"));
    assert_eq!(ok(&["ls", "-q"]), "");

    let output = acetate(&store, &["inspect", "a:1"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("acetate: no such image: a:1") && text.lines().count() == 1,
        "{text}"
    );
}
