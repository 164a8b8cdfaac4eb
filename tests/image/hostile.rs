//! Images that are broken or mean harm: each is refused with one line that names the culprit, and leaves nothing.

use std::collections::BTreeMap;
use std::path::Path;

use acetate::image::{Limits, Store};

use super::build::*;
use super::layers::One;
use super::tree::tree;

/// Expects that a source is refused with these words, and that the store is as before.
pub fn refused(store: &Store, source: &Path, platform: Option<&str>, words: &[&str]) {
    let before = tree(store.root());
    let error = match store.prepare(source.as_os_str(), platform) {
        Ok(image) => panic!("{} was accepted: {image:?}", source.display()),
        Err(e) => e.to_string(),
    };
    for word in words {
        assert!(error.contains(word), "{error:?} lacks {word:?}");
    }
    assert!(!error.contains('\n'), "{error:?}");
    let strip = |tree: BTreeMap<String, String>| -> Vec<String> {
        tree.into_keys()
            .filter(|k| !k.starts_with("/locks/"))
            .collect()
    };
    assert_eq!(
        strip(tree(store.root())),
        strip(before),
        "something was left"
    );
}

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Bench { dir, store }
    }
    pub fn limited(limits: Limits) -> Bench {
        let mut bench = Bench::new();
        bench.store = bench.store.with_limits(limits);
        bench
    }
    pub fn bytes(&self, bytes: &[u8], words: &[&str]) {
        let path = self.dir.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        refused(&self.store, &path, None, words);
    }
    pub fn files(&self, files: &BTreeMap<String, Vec<u8>>, words: &[&str]) {
        self.bytes(&tar_of(files), words);
        let folder = self.dir.path().join("folder");
        folder_of(files, &folder);
        refused(&self.store, &folder, None, words);
        std::fs::remove_dir_all(folder).unwrap();
    }
    pub fn layer(&self, layer: Vec<u8>, words: &[&str]) {
        self.files(&docker_files(std::slice::from_ref(&layer), &[]), words);
        self.files(&oci_files(&[layer], Packing::Gzip), words);
    }
}

#[test]
fn paths_that_lead_outside_are_refused() {
    let bench = Bench::new();
    let canary = bench.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    let target = canary.to_str().unwrap();
    let plain = |name: &[u8]| {
        Tar::new()
            .entry(
                name,
                tar::EntryType::Regular,
                b"",
                b"evil",
                &Attr::default(),
            )
            .finish()
    };
    bench.layer(plain(b"../evil"), &["../evil", "'..'"]);
    bench.layer(plain(b"a/../../evil"), &["'..'"]);
    bench.layer(plain(b"/../evil"), &["'..'"]);
    let through = Tar::new()
        .symlink("link", target)
        .file("link/evil", b"evil")
        .finish();
    bench.layer(through, &["symlink", "\"link\"", "link/evil"]);
    let inside = Tar::new().symlink("a", ".").symlink("a/b", target).finish();
    bench.layer(inside, &["symlink"]);
    let dir = Tar::new()
        .symlink("link", target)
        .dir("link/sub/", 0o755)
        .finish();
    bench.layer(dir, &["symlink"]);
    let whiteout = Tar::new()
        .symlink("link", target)
        .file("link/.wh.x", b"")
        .finish();
    bench.layer(whiteout, &["symlink", "link/.wh.x"]);
    bench.layer(
        Tar::new().hard_link("x", "../../../etc/passwd").finish(),
        &["hard link", "'..'"],
    );
    bench.layer(
        Tar::new().hard_link("x", "/etc/passwd").finish(),
        &["hard link", "etc/passwd"],
    );
    let linked = Tar::new()
        .symlink("link", target)
        .hard_link("x", "link/y")
        .finish();
    bench.layer(linked, &["\"x\""]);
    let file = Tar::new().file("f", b"").file("f/below", b"").finish();
    bench.layer(file, &["\"f\" is no directory", "f/below"]);
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0);
    assert!(!bench.dir.path().join("evil").exists());
}

#[test]
fn an_absolute_path_and_a_replaced_symlink_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let one = One::new(
        Tar::new()
            .entry(
                b"/abs/file",
                tar::EntryType::Regular,
                b"",
                b"in",
                &Attr::default(),
            )
            .symlink("link", target)
            .file("link", b"replaced")
            .symlink("dir", target)
            .dir("dir/", 0o777)
            .file("dir/x", b"in")
            .finish(),
    );
    let root = one.result.as_ref().unwrap().layers[0].clone();
    assert_eq!(std::fs::read(root.join("abs/file")).unwrap(), b"in");
    assert_eq!(std::fs::read(root.join("dir/x")).unwrap(), b"in");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(one.dir.path().join("store").exists() && one.store.root().exists());
}

#[test]
fn whiteouts_that_mean_no_name_are_refused() {
    let bench = Bench::new();
    for name in [".wh.", ".wh..", ".wh...", "a/.wh...", ".wh.a/b"] {
        bench.layer(Tar::new().file(name, b"").finish(), &["whiteout", name]);
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let bench = Bench::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("f").unwrap();
    header.set_size(1 << 63);
    header.set_mode(0o644);
    header.set_cksum();
    let mut huge = header.as_bytes().to_vec();
    huge.extend_from_slice(&[0; 1024]);
    bench.layer(huge, &["content of 9223372036854775808 bytes"]);

    let mut broken = Tar::new().file("a", b"").file("b", b"").finish();
    broken[700] ^= 0x55;
    bench.layer(broken, &["bad header"]);
    bench.layer(
        Tar::new()
            .pax(&[("uid", b"99999999999")])
            .file("a", b"")
            .finish(),
        &["uid"],
    );
    bench.layer(
        Tar::new().pax(&[("size", b"-1")]).file("a", b"").finish(),
        &["size"],
    );
    bench.layer(
        Tar::new()
            .pax(&[("mtime", b"soon")])
            .file("a", b"")
            .finish(),
        &["soon"],
    );
    let long = vec![b'x'; 5000];
    bench.layer(
        Tar::new().pax(&[("path", &long)]).file("a", b"").finish(),
        &["path"],
    );
    bench.layer(
        Tar::new()
            .pax(&[("path", &long[..300])])
            .file("a", b"")
            .finish(),
        &["300 bytes"],
    );
    let big = vec![b'x'; 3 << 20];
    bench.layer(
        Tar::new().pax(&[("comment", &big)]).file("a", b"").finish(),
        &["metadata"],
    );
    let unknown = Tar::new().entry(b"x", tar::EntryType::new(b'Q'), b"", b"", &Attr::default());
    bench.layer(unknown.finish(), &["unknown type 'Q'"]);
    let sparse = [
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"1000"),
        ("GNU.sparse.map", b"900,200"),
    ];
    bench.layer(
        Tar::new().pax(&sparse).file("s", &[b'x'; 200]).finish(),
        &["sparse"],
    );
}

#[test]
fn what_ends_early_is_refused() {
    let bench = Bench::new();
    let layer = Tar::new().file("a", &[7; 5000]).finish();
    bench.layer(layer[..2000].to_vec(), &["truncated"]);
    bench.layer(layer[..300].to_vec(), &["truncated"]);
    let docker = tar_of(&docker_files(std::slice::from_ref(&layer), &[]));
    bench.bytes(&docker[..docker.len() / 2], &["image is truncated"]);
    let packed = pack(&docker, Packing::Gzip);
    bench.bytes(&packed[..packed.len() / 2], &["image is truncated"]);
    let packed = pack(&docker, Packing::Zstd);
    bench.bytes(&packed[..packed.len() / 2], &["image is truncated"]);
    // A blob that was cut, its descriptor too: only the decoder can tell.
    for packing in [Packing::Gzip, Packing::Zstd] {
        let mut files = BTreeMap::new();
        let config = blob(
            &mut files,
            "application/vnd.oci.image.config.v1+json",
            &config(std::slice::from_ref(&layer), arch()),
        );
        let whole = pack(&layer, packing);
        let cut = blob(
            &mut files,
            "application/vnd.oci.image.layer.v1.tar",
            &whole[..whole.len() - 9],
        );
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [cut]});
        let manifest = blob(
            &mut files,
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        oci_index(&mut files, vec![manifest]);
        bench.files(&files, &["truncated", "compressed data"]);
    }
}

#[test]
fn wrong_digests_and_sizes_are_named() {
    let bench = Bench::new();
    let layer = Tar::new().file("a", b"right").finish();
    let evil = Tar::new().file("a", b"wrong").finish();
    let layers = [layer.clone()];

    let mut files = docker_files(&layers, &[]);
    let name = files
        .keys()
        .find(|k| k.ends_with("layer.tar"))
        .unwrap()
        .clone();
    files.insert(name.clone(), evil.clone());
    let (right, wrong) = (sha256(&layer), sha256(&evil));
    bench.files(&files, &["wrong digest", &name, &right, &wrong]);
    // Bytes that are no tar at all are called wrong too, not malformed.
    files.insert(name.clone(), vec![b'?'; layer.len()]);
    bench.files(&files, &["wrong digest", &name]);

    let mut files = docker_files(&layers, &[]);
    let name = files
        .keys()
        .find(|k| k.ends_with(".json") && k.len() > 64)
        .unwrap()
        .clone();
    files.get_mut(&name).unwrap().push(b' ');
    bench.files(&files, &["wrong digest", "config"]);

    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let files = oci_files(&layers, packing);
        let hex = sha256(&pack(&layer, packing));
        let name = format!("blobs/sha256/{hex}");
        let mut flipped = files.clone();
        let bytes = flipped.get_mut(&name).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bench.files(&flipped, &["wrong digest", &hex]);
        let mut longer = files.clone();
        longer.get_mut(&name).unwrap().push(0);
        bench.files(&longer, &["wrong size", &hex]);
        let mut without = files.clone();
        without.remove(&name);
        bench.files(&without, &["lacks", &hex]);
    }
    let files = oci_files(&layers, Packing::Plain);
    for kind in ["config", "manifest"] {
        let name = files
            .iter()
            .find(|(k, v)| {
                let marker: &[u8] = if kind == "config" {
                    b"diff_ids"
                } else {
                    b"\"layers\":[{"
                };
                k.starts_with("blobs/") && v.windows(marker.len()).any(|w| w == marker)
            })
            .unwrap()
            .0
            .clone();
        let mut changed = files.clone();
        let bytes = changed.get_mut(&name).unwrap();
        let last = bytes.len() - 1;
        bytes[last] = b' ';
        bench.files(&changed, &["wrong digest", kind]);
        let mut without = files.clone();
        without.remove(&name);
        bench.files(&without, &["lacks", &name[13..]]);
    }
    let mut files = docker_files(&layers, &[]);
    files.retain(|k, _| !k.ends_with("layer.tar"));
    bench.files(&files, &["lacks", "manifest"]);
}

#[test]
fn a_diff_id_is_checked_beside_the_blob() {
    let bench = Bench::new();
    let layer = Tar::new().file("a", b"right").finish();
    let evil = Tar::new().file("a", b"wrong").finish();
    let mut files = BTreeMap::new();
    let config = blob(
        &mut files,
        "application/vnd.oci.image.config.v1+json",
        &config(std::slice::from_ref(&layer), arch()),
    );
    let wrong = blob(
        &mut files,
        "application/vnd.oci.image.layer.v1.tar+gzip",
        &pack(&evil, Packing::Gzip),
    );
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [wrong]});
    let manifest = blob(
        &mut files,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    oci_index(&mut files, vec![manifest]);
    bench.files(
        &files,
        &[
            "wrong digest",
            "uncompressed",
            &sha256(&layer),
            &sha256(&evil),
        ],
    );
}

#[test]
fn what_is_no_image_is_called_so() {
    let bench = Bench::new();
    bench.bytes(b"", &["image is no image", "empty"]);
    bench.bytes(b"hello", &["no image", "neither"]);
    bench.bytes(&[b'x'; 4096], &["no image", "neither"]);
    bench.bytes(&[0; 4096], &["no image", "neither an index.json"]);
    bench.bytes(&[0xfd, b'7', b'z', b'X', b'Z', 0, 1, 2], &["xz"]);
    bench.bytes(b"BZh91AY&SY", &["bzip2"]);
    bench.bytes(
        &Tar::new().file("etc/passwd", b"").finish(),
        &["no image", "index.json"],
    );
    let empty = bench.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(
        &bench.store,
        &empty,
        None,
        &["empty is no image", "index.json"],
    );
    refused(
        &bench.store,
        &bench.dir.path().join("missing"),
        None,
        &["missing"],
    );
    refused(
        &bench.store,
        Path::new("no/such:image"),
        None,
        &["no such image", "no/such:image"],
    );
    refused(
        &bench.store,
        Path::new("Upper"),
        None,
        &["invalid reference format"],
    );
    let one = |name: &str, text: &str| BTreeMap::from([(name.to_owned(), text.into())]);
    bench.files(&one("index.json", "{"), &["index.json"]);
    bench.files(
        &one("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
        &["index is empty"],
    );
    bench.files(&one("manifest.json", "[]"), &["lists no image"]);
    bench.files(&one("manifest.json", "{}"), &["manifest.json"]);
    bench.files(
        &one("manifest.json", &"[".repeat(100_000)),
        &["manifest.json"],
    );
    bench.files(&one("repositories", "{}"), &["older than 1.10"]);
    let escape = r#"[{"Config":"../../../etc/passwd","RepoTags":null,"Layers":[]}]"#;
    let path = bench.dir.path().join("escape");
    folder_of(&one("manifest.json", escape), &path);
    assert!(bench.store.prepare(path.as_os_str(), None).is_err());
    // An index that is also a manifest could be two images to two readers.
    let mut files = BTreeMap::new();
    let both = blob(
        &mut files,
        "application/vnd.oci.image.manifest.v1+json",
        br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
    );
    oci_index(&mut files, vec![both]);
    bench.files(&files, &["index and a manifest at once"]);
    let mut files = BTreeMap::new();
    let artifact = blob(
        &mut files,
        "application/vnd.cncf.helm.config.v1+json",
        b"{}",
    );
    let manifest = serde_json::json!({"schemaVersion": 2, "config": artifact, "layers": []});
    let manifest = blob(
        &mut files,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    oci_index(&mut files, vec![manifest]);
    bench.files(&files, &["artifact", "helm"]);
}

#[test]
fn platforms_are_chosen_and_named() {
    let bench = Bench::new();
    let mut files = BTreeMap::new();
    let image = |files: &mut BTreeMap<_, _>, arch: &str, tag: Option<&str>| {
        let layer = Tar::new().file("arch", arch.as_bytes()).finish();
        let image = OciImage {
            layers: vec![layer],
            packing: Packing::Gzip,
            arch: arch.into(),
            tag: tag.map(str::to_owned),
        };
        oci_image(files, &image)
    };
    let (s390x, here) = (
        image(&mut files, "s390x", None),
        image(&mut files, arch(), None),
    );
    let riscv = image(&mut files, "riscv64", None);
    let inner = serde_json::json!({"schemaVersion": 2, "manifests": [s390x, here]});
    let mut index = blob(
        &mut files,
        "application/vnd.oci.image.index.v1+json",
        inner.to_string().as_bytes(),
    );
    index["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "multi"});
    let mut single = riscv.clone();
    single["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "single"});
    oci_index(&mut files, vec![index, single]);
    let folder = bench.dir.path().join("layout");
    folder_of(&files, &folder);
    let prepare = |name: &str, platform: Option<&str>| {
        let mut source = folder.clone().into_os_string();
        source.push(name);
        bench.store.prepare(&source, platform).map(|image| {
            let bytes = std::fs::read(image.layers[0].join("arch")).unwrap();
            String::from_utf8(bytes).unwrap()
        })
    };
    assert_eq!(prepare(":multi", None).unwrap(), arch());
    assert_eq!(prepare(":multi", Some("linux/s390x")).unwrap(), "s390x");
    let error = prepare(":multi", Some("linux/mips"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no image for linux/mips") && error.contains("linux/s390x"),
        "{error}"
    );
    // The only image under its name, and nobody asked for another platform.
    assert_eq!(prepare(":single", None).unwrap(), "riscv64");
    let error = prepare(":single", Some("linux/amd64"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("riscv64"), "{error}");
    let error = prepare("", None).unwrap_err().to_string();
    assert!(
        error.contains("several images") && error.contains("multi") && error.contains("single"),
        "{error}"
    );
    let error = prepare(":other", None).unwrap_err().to_string();
    assert!(
        error.contains("no image named other") && error.contains("multi"),
        "{error}"
    );
    assert!(
        prepare(":multi", Some("nonsense"))
            .unwrap_err()
            .to_string()
            .contains("invalid platform")
    );
}
