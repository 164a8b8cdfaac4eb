//! A home, stores in it, and images to send.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use acetate::image::Store;

use crate::build::{Packing, Tar, folder_of, oci_files};
use crate::common::program::{self, Finished};
use crate::common::{Scratch, Watchdog};

/// What no command here takes.
pub const LIMIT: Duration = Duration::from_secs(90);

/// A machine with nothing but what a test puts there.
pub struct Stand {
    pub scratch: Scratch,
    _watchdog: Watchdog,
}

impl Stand {
    pub fn new(name: &str) -> Stand {
        let scratch = Scratch::new(name);
        scratch.dir("home");
        Stand {
            scratch,
            _watchdog: Watchdog::new(name, Duration::from_secs(240)),
        }
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// A command of the program on the store of this name.
    pub fn command(&self, store: &str, arguments: &[&str]) -> Command {
        let binary = std::env::var_os("ACETATE_BINARY")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_acetate").into());
        let mut command = Command::new(binary);
        command.args(arguments);
        self.surround(&mut command);
        command.env("ACETATE_ROOT", self.root(store));
        command
    }

    /// Gives a command this machine's home instead of the user's.
    pub fn surround(&self, command: &mut Command) {
        for name in [
            "XDG_CONFIG_HOME",
            "XDG_RUNTIME_DIR",
            "XDG_DATA_HOME",
            "DOCKER_CONFIG",
            "REGISTRY_AUTH_FILE",
            "ACETATE_CONFIG",
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command.env("HOME", self.scratch.join("home"));
        command.current_dir(self.path());
    }

    pub fn root(&self, store: &str) -> PathBuf {
        self.scratch.join(store)
    }

    /// Runs a command to its end.
    pub fn run(&self, store: &str, arguments: &[&str]) -> Finished {
        program::run(&mut self.command(store, arguments), LIMIT)
    }

    /// Runs a command that must succeed, and gives what it printed.
    #[track_caller]
    pub fn ok(&self, store: &str, arguments: &[&str]) -> String {
        program::must(&mut self.command(store, arguments), LIMIT)
    }

    /// Runs a command that must fail, and gives what it printed.
    #[track_caller]
    pub fn fails(&self, store: &str, arguments: &[&str]) -> String {
        let finished = self.run(store, arguments);
        assert_eq!(finished.code(), Some(1), "{arguments:?}: {}", finished.text);
        finished.text
    }

    /// Removes an image. A process of another test, between its fork and its exec, may hold this one's locks for a moment.
    pub fn remove(&self, store: &str, image: &str) {
        for _ in 0..100 {
            let finished = self.run(store, &["image", "rm", image]);
            if finished.success() {
                return;
            }
            assert!(finished.text.contains("in use"), "{}", finished.text);
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{image} stays in use");
    }

    /// Begins a command, whose words nobody reads.
    pub fn begin(&self, store: &str, arguments: &[&str]) -> Child {
        self.command(store, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Nothing in the store is damaged, and nothing is left of what was under way.
    #[track_caller]
    pub fn assert_whole(&self, store: &str) {
        let opened = Store::open(&self.root(store)).unwrap();
        assert_eq!(opened.verify().unwrap().damages, []);
        let left = std::fs::read_dir(self.root(store).join("tmp"))
            .unwrap()
            .count();
        assert_eq!(left, 0, "left in tmp");
    }

    /// Files of interrupted pulls, and their bytes.
    pub fn partial(&self, store: &str) -> (usize, u64) {
        let Ok(entries) = std::fs::read_dir(self.root(store).join("partial")) else {
            return (0, 0);
        };
        let sizes: Vec<u64> = entries
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        (sizes.len(), sizes.iter().sum())
    }

    /// Loads an image of these layers under a name, and gives the manifest's digest and the image's id.
    pub fn load(
        &self,
        store: &str,
        layers: &[Vec<u8>],
        packing: Packing,
        name: &str,
    ) -> (String, String) {
        let folder = self
            .scratch
            .join(format!("layout-{store}-{}", name.replace(['/', ':'], "_")));
        folder_of(&oci_files(layers, packing), &folder);
        let opened = Store::open(&self.root(store)).unwrap();
        let loaded = opened.load(folder.as_os_str(), None).unwrap();
        // Images that differ in their compression alone have one id.
        opened.tag(loaded[0].digest.as_ref(), name).unwrap();
        opened.remove("localhost/1.0", true).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        (loaded[0].digest.to_string(), loaded[0].id.to_string())
    }

    /// The manifest's digest and the id of an image; `None` where the store has it not.
    pub fn image(&self, store: &str, name: &str) -> Option<(String, String)> {
        let opened = Store::open(&self.root(store)).unwrap();
        let image = opened.image(name).ok()?;
        Some((image.digest.to_string(), image.id.to_string()))
    }

    /// Digests and sizes of an image's layers, base first.
    pub fn layers(&self, store: &str, name: &str) -> Vec<(String, u64)> {
        let opened = Store::open(&self.root(store)).unwrap();
        let image = opened.image(name).unwrap();
        let layers = image.manifest.layers().iter();
        layers
            .map(|layer| (layer.digest().to_string(), layer.size()))
            .collect()
    }
}

/// Bytes that no compression shortens, the same in every run.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Layers with a large file and some small ones each, of about `size` bytes. The seed makes them other layers.
pub fn layers(seed: u64, count: u64, size: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|l| {
            let seed = seed * 100 + l;
            let mut tar = Tar::new()
                .dir("usr/", 0o755)
                .file(&format!("usr/large{seed}"), &noise(seed, size))
                .file("usr/program", format!("layer {seed}").as_bytes())
                .symlink(&format!("usr/link{l}"), "program");
            for i in 0..20 {
                tar = tar.file(&format!("small{l}-{i}"), &noise(seed + i, 100));
            }
            tar.finish()
        })
        .collect()
}
