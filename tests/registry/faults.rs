//! Registries and networks that fail: refused or tried again, and never a broken image.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::build::Packing;
use crate::proxy::{Fault, Proxy, Record};
use crate::require;
use crate::server::{self, Server};
use crate::stand::{Stand, layers};

/// The size of a layer.
const SIZE: usize = 400_000;

/// A registry with the image `app:1`.
struct Origin {
    stand: Stand,
    server: Server,
    image: (String, String),
}

impl Origin {
    fn new(name: &str) -> Origin {
        let stand = Stand::new(name);
        let server = Server::start(stand.path());
        let name = format!("{}/app:1", server.host());
        let image = stand.load("a", &layers(11, 3, SIZE), Packing::Gzip, &name);
        stand.ok("a", &["push", &name]);
        Origin {
            stand,
            server,
            image,
        }
    }

    fn proxy(
        &self,
        rule: impl Fn(&Record, usize) -> Fault + Send + Sync + 'static,
    ) -> (Proxy, String) {
        let proxy = Proxy::start(self.server.address(), rule);
        let name = format!("{}/app:1", proxy.host());
        (proxy, name)
    }

    /// The paths of the layers' blobs, base first.
    fn blobs(&self) -> Vec<String> {
        let name = format!("{}/app:1", self.server.host());
        self.stand
            .layers("a", &name)
            .iter()
            .map(|(digest, _)| format!("/v2/app/blobs/{digest}"))
            .collect()
    }

    /// A pull that must fail, leave nothing wrong, and not stand in the way of the next one.
    fn refused(
        &self,
        what: &str,
        part: &str,
        rule: impl Fn(&Record, usize) -> Fault + Send + Sync + 'static,
    ) {
        let (proxy, name) = self.proxy(rule);
        let text = self.stand.fails("b", &["pull", &name]);
        assert!(text.contains(part), "{what}: {text}");
        assert_eq!(self.stand.image("b", &name), None, "{what}");
        self.stand.assert_whole("b");
        drop(proxy);
        self.good(what);
    }

    /// A pull that must come right in spite of it all.
    fn survived(
        &self,
        what: &str,
        rule: impl Fn(&Record, usize) -> Fault + Send + Sync + 'static,
    ) -> Proxy {
        let (proxy, name) = self.proxy(rule);
        self.stand.ok("b", &["pull", &name]);
        assert_eq!(
            self.stand.image("b", &name),
            Some(self.image.clone()),
            "{what}"
        );
        self.stand.assert_whole("b");
        self.clear();
        proxy
    }

    fn good(&self, what: &str) {
        let name = format!("{}/app:1", self.server.host());
        self.stand.ok("b", &["pull", &name]);
        assert_eq!(
            self.stand.image("b", &name),
            Some(self.image.clone()),
            "{what}"
        );
        self.stand.assert_whole("b");
        self.clear();
    }

    fn clear(&self) {
        assert_eq!(
            self.stand.partial("b").0,
            0,
            "nothing is left of a pull that is done"
        );
        std::fs::remove_dir_all(self.stand.root("b")).unwrap();
    }
}

#[test]
fn wrong_bytes_are_refused() {
    require!(server::available());
    let origin = Origin::new("wrong-bytes");
    let blobs = origin.blobs();
    for offset in [0, 5, SIZE as u64 / 2, SIZE as u64] {
        let path = blobs[1].clone();
        origin.refused(
            &format!("a layer's byte {offset}"),
            "wrong digest of layer",
            move |r, _| {
                if r.path == path {
                    Fault::Flip(offset)
                } else {
                    Fault::None
                }
            },
        );
    }
    let layers = blobs.clone();
    origin.refused("the config", "wrong digest of the config", move |r, _| {
        if r.is_blob() && !layers.contains(&r.path) {
            Fault::Flip(40)
        } else {
            Fault::None
        }
    });
    origin.refused("the manifest", "wrong digest of the manifest", |r, _| {
        if r.method == "GET" && r.path.contains("/manifests/") {
            Fault::Flip(100)
        } else {
            Fault::None
        }
    });
    let path = blobs[0].clone();
    origin.refused("a longer layer", "bytes instead of", move |r, _| {
        if r.path == path {
            Fault::Long(10)
        } else {
            Fault::None
        }
    });
}

#[test]
fn what_breaks_off_is_fetched_on() {
    require!(server::available());
    let origin = Origin::new("breaks-off");
    let blobs = origin.blobs();
    let sizes: u64 = origin
        .stand
        .layers("a", &format!("{}/app:1", origin.server.host()))
        .iter()
        .map(|l| l.1)
        .sum();
    let layers = blobs.clone();
    // The first connections bring a fifth of a layer each.
    let fifth = SIZE as u64 / 5;
    let path = layers.clone();
    let proxy = origin.survived("cut", move |r, before| {
        if path.contains(&r.path) && before < 4 {
            Fault::Cut(fifth)
        } else {
            Fault::None
        }
    });
    let records = proxy.records();
    let of_layers = records.iter().filter(|r| layers.contains(&r.path));
    let (asked, brought) = of_layers.fold((0, 0), |(n, b), r| (n + 1, b + r.sent));
    assert_eq!(asked, 3 * 5);
    assert_eq!(brought, sizes, "each byte comes once");
    // One that says that less is all of it is not believed: of the answer to a range, the rest is asked for; of the
    // answer to a whole, nothing is taken.
    let path = layers.clone();
    origin.survived("short ranges", move |r, before| match before {
        _ if !path.contains(&r.path) => Fault::None,
        0 => Fault::Cut(1000),
        1 => Fault::Short(fifth),
        _ => Fault::None,
    });
    let path = blobs[1].clone();
    origin.refused("a short layer", "bytes instead of", move |r, _| {
        if r.path == path {
            Fault::Short(fifth)
        } else {
            Fault::None
        }
    });
    // A registry without ranges sends the beginning again, which is skipped.
    let path = blobs[2].clone();
    let proxy = origin.survived("no ranges", move |r, before| match before {
        _ if r.path != path => Fault::None,
        0 => Fault::Cut(100_000),
        _ => Fault::NoRange,
    });
    let again = proxy.records();
    let again = again.iter().rfind(|r| r.path == blobs[2]).unwrap();
    assert!(
        again.sent > 300_000 && again.range.as_deref() == Some("bytes=100000-"),
        "{again:?}"
    );
    // One that never brings anything is given up.
    let path = blobs[0].clone();
    origin.refused("cut at once", "broke off", move |r, _| {
        if r.path == path {
            Fault::Cut(0)
        } else {
            Fault::None
        }
    });
}

#[test]
fn a_busy_registry_is_asked_again() {
    require!(server::available());
    let origin = Origin::new("busy");
    for status in [429, 500, 503] {
        let proxy = origin.survived(&status.to_string(), move |_, before| {
            if before < 2 {
                Fault::Status(status)
            } else {
                Fault::None
            }
        });
        // Two refusals of the ping, the tag, the manifest and each of four blobs.
        assert!(proxy.records().len() >= 3 * 7, "{status}");
    }
    let name = format!("{}/app:1", origin.server.host());
    origin.stand.ok("b", &["pull", &name]);
    // Two of the first questions of each kind; the address of an upload is new each time.
    let (posts, puts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (proxy, other) = origin.proxy(move |r, _| {
        let before = match r.method.as_str() {
            "POST" => posts.fetch_add(1, Ordering::Relaxed),
            "PUT" => puts.fetch_add(1, Ordering::Relaxed),
            _ => 9,
        };
        if before < 2 {
            Fault::Status(503)
        } else {
            Fault::None
        }
    });
    let copy = other.replace("app:1", "copy:1");
    origin.stand.ok("b", &["push", &name, &copy]);
    assert!(proxy.records().len() > 10);
    let (_proxy, always) = origin.proxy(|r, _| {
        if r.path.contains("/manifests/") {
            Fault::Status(500)
        } else {
            Fault::None
        }
    });
    let text = origin.stand.fails("b", &["pull", &always]);
    assert!(text.contains("answers 500 for manifest for"), "{text}");
    origin.stand.assert_whole("b");
}

#[test]
fn an_upload_that_breaks_off_begins_anew() {
    require!(server::available());
    let origin = Origin::new("upload");
    let name = format!("{}/app:1", origin.server.host());
    let cuts = AtomicUsize::new(0);
    let (proxy, other) = origin.proxy(move |r, _| {
        if r.method == "PUT"
            && r.path.contains("/blobs/")
            && cuts.fetch_add(1, Ordering::Relaxed) < 2
        {
            return Fault::Cut(50);
        }
        Fault::None
    });
    // Another registry, as far as anybody can tell: nothing is mounted from the first repository.
    let copy = other.replace("app:1", "new/copy:1");
    let text = origin.stand.ok("a", &["push", &name, &copy]);
    assert!(text.contains("Retrying"), "{text}");
    drop(proxy);
    let direct = format!("{}/new/copy:1", origin.server.host());
    origin.stand.ok("b", &["pull", &direct]);
    assert_eq!(origin.stand.image("b", &direct), Some(origin.image.clone()));
    origin.stand.assert_whole("b");
}

#[test]
fn what_an_interrupted_pull_left_is_not_trusted() {
    require!(server::available());
    let origin = Origin::new("left-over");
    let name = format!("{}/app:1", origin.server.host());
    let blobs = origin.stand.layers("a", &name);
    let path = |digest: &str| {
        origin
            .stand
            .root("b")
            .join("partial")
            .join(digest.replace(':', "-"))
    };
    origin.stand.ok("b", &["image", "ls"]);
    // Zeros, as after a power cut; all of it, wrong; too much; and a beginning that is right.
    let right = std::fs::read(origin.server.blob(&blobs[2].0)).unwrap();
    std::fs::write(path(&blobs[0].0), vec![0; 10_000]).unwrap();
    std::fs::write(
        path(&blobs[1].0),
        vec![7; usize::try_from(blobs[1].1).unwrap()],
    )
    .unwrap();
    std::fs::write(path(&blobs[2].0), &right[..1000]).unwrap();
    let text = origin.stand.ok("b", &["pull", &name]);
    assert!(text.contains("is fetched again"), "{text}");
    origin.good("left-over");
    origin.stand.ok("b", &["image", "ls"]);
    std::fs::write(path(&blobs[0].0), vec![0; 1_000_000]).unwrap();
    origin.good("too much");
    // What nobody comes back for goes with the next prune.
    origin.stand.ok("b", &["image", "ls"]);
    std::fs::write(path(&blobs[0].0), vec![0; 5000]).unwrap();
    let text = origin.stand.ok("b", &["image", "prune"]);
    assert!(text.contains("reclaimed space: 5.00kB"), "{text}");
    assert_eq!(origin.stand.partial("b").0, 0);
}

#[test]
fn a_push_of_a_damaged_blob_is_refused() {
    require!(server::available());
    let origin = Origin::new("damaged-push");
    let name = format!("{}/app:1", origin.server.host());
    let (digest, size) = origin.stand.layers("a", &name).remove(0);
    let blob = origin
        .stand
        .root("a")
        .join("blobs/sha256")
        .join(digest.strip_prefix("sha256:").unwrap());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[usize::try_from(size / 2).unwrap()] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    let fresh = Server::start(origin.stand.path());
    let text = origin
        .stand
        .fails("a", &["push", &name, &format!("{}/app:1", fresh.host())]);
    assert!(
        text.contains("damaged") && text.contains("verify"),
        "{text}"
    );
    let text = origin
        .stand
        .fails("b", &["pull", &format!("{}/app:1", fresh.host())]);
    assert!(text.contains("not found"), "{text}");
}
