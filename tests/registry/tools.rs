//! What we push others read, and what they push we read.

use std::collections::BTreeMap;
use std::process::Command;

use crate::build::{OciImage, Packing, folder_of, oci_image, oci_index};
use crate::common::{program, skip};
use crate::require;
use crate::server::{self, Server};
use crate::stand::{LIMIT, Stand, layers};

fn skopeo(stand: &Stand, arguments: &[&str]) -> String {
    let policy = stand.scratch.join("policy.json");
    std::fs::write(
        &policy,
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    let mut command = Command::new("skopeo");
    command.arg("--policy").arg(policy).args(arguments);
    stand.surround(&mut command);
    program::must(&mut command, LIMIT)
}

#[test]
fn skopeo_reads_what_we_push_and_writes_what_we_pull() {
    require!(server::available());
    require!(skip::program("skopeo"));
    let stand = Stand::new("skopeo");
    let server = Server::start(stand.path());
    let host = server.host();
    for packing in [Packing::Zstd, Packing::Gzip] {
        let name = format!("{host}/ours:1");
        let image = stand.load("a", &layers(41, 2, 20_000), packing, &name);
        stand.ok("a", &["push", &name]);
        let text = skopeo(
            &stand,
            &[
                "inspect",
                "--tls-verify=false",
                "--format={{.Digest}}",
                &format!("docker://{name}"),
            ],
        );
        assert_eq!(text.trim(), image.0);
        // Every blob, with its digest checked, and back under another name.
        let folder = stand.scratch.join(format!("out-{packing:?}"));
        skopeo(
            &stand,
            &[
                "copy",
                "--src-tls-verify=false",
                "--preserve-digests",
                &format!("docker://{name}"),
                &format!("oci:{}:x", folder.display()),
            ],
        );
        let theirs = format!("{host}/theirs:1");
        skopeo(
            &stand,
            &[
                "copy",
                "--dest-tls-verify=false",
                "--preserve-digests",
                &format!("oci:{}:x", folder.display()),
                &format!("docker://{theirs}"),
            ],
        );
        stand.ok("b", &["pull", &theirs]);
        assert_eq!(stand.image("b", &theirs), Some(image), "{packing:?}");
        stand.assert_whole("b");
    }
    // Docker's own manifest, whose digests are other ones.
    let docker = format!("{host}/docker:1");
    skopeo(
        &stand,
        &[
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--format=v2s2",
            &format!("docker://{host}/ours:1"),
            &format!("docker://{docker}"),
        ],
    );
    let text = skopeo(
        &stand,
        &[
            "inspect",
            "--tls-verify=false",
            "--format={{.Digest}}",
            &format!("docker://{docker}"),
        ],
    );
    stand.ok("c", &["pull", &docker]);
    assert_eq!(stand.image("c", &docker).unwrap().0, text.trim());
    // And as it came, it goes.
    stand.ok("c", &["push", &docker, &format!("{host}/again:1")]);
    let again = skopeo(
        &stand,
        &[
            "inspect",
            "--tls-verify=false",
            "--format={{.Digest}}",
            &format!("docker://{host}/again:1"),
        ],
    );
    assert_eq!(again, text);
}

#[test]
fn an_index_gives_the_platform_that_is_wanted() {
    require!(server::available());
    require!(skip::program("skopeo"));
    let stand = Stand::new("platforms");
    let server = Server::start(stand.path());
    let name = format!("{}/multi:1", server.host());
    let mut files = BTreeMap::new();
    let manifests: Vec<serde_json::Value> = [(51, "amd64"), (52, "arm64"), (53, "s390x")]
        .map(|(seed, arch)| {
            let image = OciImage {
                layers: layers(seed, 1, 1000),
                packing: Packing::Gzip,
                arch: arch.into(),
                tag: None,
            };
            oci_image(&mut files, &image)
        })
        .to_vec();
    // The index of an index: a layout's outermost one is never sent.
    let inner = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    });
    let mut entry = crate::build::blob(
        &mut files,
        "application/vnd.oci.image.index.v1+json",
        inner.to_string().as_bytes(),
    );
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "all"});
    oci_index(&mut files, vec![entry.clone()]);
    let folder = stand.scratch.join("multi");
    folder_of(&files, &folder);
    skopeo(
        &stand,
        &[
            "copy",
            "--all",
            "--dest-tls-verify=false",
            "--preserve-digests",
            &format!("oci:{}:all", folder.display()),
            &format!("docker://{name}"),
        ],
    );
    for (at, platform) in [(1, "linux/arm64"), (2, "linux/s390x"), (0, "linux/amd64")] {
        let text = stand.ok("a", &["pull", "--platform", platform, &name]);
        let index = entry["digest"].as_str().unwrap();
        assert!(text.contains(&format!("Digest: {index}")), "{text}");
        let (digest, _) = stand.image("a", &name).unwrap();
        assert_eq!(digest, manifests[at]["digest"].as_str().unwrap());
    }
    let text = stand.fails("a", &["pull", "--platform", "linux/riscv64", &name]);
    assert!(
        text.contains(
            "has no image for linux/riscv64: it has linux/amd64, linux/arm64, linux/s390x"
        ),
        "{text}"
    );
    // By the digest of the index, and of a manifest in it.
    let by_index = format!(
        "{}/multi@{}",
        server.host(),
        entry["digest"].as_str().unwrap()
    );
    stand.ok("b", &["pull", "--platform", "linux/arm64", &by_index]);
    assert_eq!(
        stand.image("b", &by_index).unwrap().0,
        manifests[1]["digest"].as_str().unwrap()
    );
    stand.assert_whole("b");
}

#[test]
fn podman_runs_what_we_push() {
    require!(skip::privileged());
    require!(server::available());
    require!(skip::program("podman"));
    let stand = Stand::new("podman");
    let server = Server::start(stand.path());
    let name = format!("{}/app:1", server.host());
    let image = stand.load("a", &layers(61, 2, 20_000), Packing::Gzip, &name);
    stand.ok("a", &["push", &name]);
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command
            .args(["--root", stand.scratch.dir("graph").to_str().unwrap()])
            .args(["--runroot", stand.scratch.dir("run").to_str().unwrap()])
            .args([
                "--storage-driver=vfs",
                "--cgroup-manager=cgroupfs",
                "--events-backend=none",
            ])
            .args(arguments);
        stand.surround(&mut command);
        let policy = stand
            .scratch
            .dir("home/.config/containers")
            .join("policy.json");
        std::fs::write(policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
        program::must(&mut command, LIMIT)
    };
    podman(&["pull", "--quiet", "--tls-verify=false", &name]);
    let id = podman(&["image", "inspect", "--format={{.Id}}", &name]);
    assert_eq!(format!("sha256:{}", id.trim()), image.1);
    let other = format!("{}/theirs:1", server.host());
    podman(&["tag", &name, &other]);
    podman(&["push", "--quiet", "--tls-verify=false", &other]);
    stand.ok("b", &["pull", &other]);
    assert_eq!(stand.image("b", &other).unwrap().1, image.1);
    stand.assert_whole("b");
    podman(&["rmi", "--all", "--force"]);
}
