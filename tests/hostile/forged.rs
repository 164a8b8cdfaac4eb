//! Marks in the xattrs of lower layers that no overlay has made.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::SFlag;

use super::view::{Layers, View, mark, special, view};
use crate::common::{Watchdog, skip};
use crate::require;

const REDIRECT: &str = "trusted.overlay.redirect";
const METACOPY: &str = "trusted.overlay.metacopy";
const ORIGIN: &str = "trusted.overlay.origin";
const OPAQUE: &str = "trusted.overlay.opaque";

/// The paths at which ours shows something that the kernel does not, other than that it cannot be read. To refuse more than the
/// kernel is allowed; to show more is not.
fn shown_too_much(ours: &View, kernel: &View) -> Vec<String> {
    let refused = |text: &str| text.contains("unreadable") || text.starts_with("part of");
    ours.iter()
        .filter(|(path, text)| !refused(text) && kernel.get(*path) != Some(text))
        .map(|(path, text)| format!("{}: {text}, kernel: {:?}", path.display(), kernel.get(path)))
        .collect()
}

/// A directory `dir` in both layers, and what a redirect could lead to in the lower one.
fn redirected(name: &str, value: &[u8]) -> Layers {
    let layers = Layers::new(name);
    for (layer, text) in [(&layers.top, "top"), (&layers.bottom, "bottom")] {
        fs::create_dir(layer.join("dir")).unwrap();
        fs::write(layer.join("dir").join(text), text).unwrap();
    }
    fs::create_dir_all(layers.bottom.join("other/deep")).unwrap();
    fs::write(layers.bottom.join("other/deep/file"), "deep").unwrap();
    fs::write(layers.bottom.join("plain"), "plain").unwrap();
    symlink(&layers.outside, layers.bottom.join("out")).unwrap();
    symlink("other", layers.bottom.join("in")).unwrap();
    special(&layers.bottom.join("fifo"), SFlag::S_IFIFO, 0);
    mark(&layers.top.join("dir"), REDIRECT, value);
    layers
}

#[test]
fn redirects_lead_nowhere_but_into_the_layers_below() {
    require!(skip::privileged());
    let _limit = Watchdog::new("forged redirects", Duration::from_secs(200));
    let long = [b'x'; 256];
    let deep = "/other".repeat(60);
    let values: [&[u8]; 24] = [
        b"",
        b"/",
        b"//",
        b".",
        b"..",
        b"/.",
        b"/..",
        b"/../outside",
        b"../outside",
        b"/other/../../outside",
        b"/out",
        b"/out/",
        b"out",
        b"/in/deep",
        b"/other/deep",
        b"other",
        b"other/deep",
        b"/other//deep",
        b"/dir",
        b"dir",
        b"/fifo",
        b"/plain",
        &long,
        deep.as_bytes(),
    ];
    for value in values {
        let shown = String::from_utf8_lossy(value).into_owned();
        let layers = redirected("forged-redirect", value);
        let (ours, kernel) = layers.both();
        let wrong = shown_too_much(&ours, &kernel);
        assert!(wrong.is_empty(), "{shown:?}: {wrong:#?}");
        // Whatever becomes of one directory, the others are there.
        assert_eq!(ours[Path::new("other/deep/file")], "\"deep\"", "{shown:?}");
    }
    for value in [&b"/o\0ther"[..], b"/other\0", b"\xff\xfe", b"/\n"] {
        let layers = redirected("forged-redirect-bytes", value);
        let mount = layers.acetate();
        let seen = view(mount.path());
        assert_eq!(seen[Path::new("other/deep/file")], "\"deep\"");
        drop(mount.unmount().unwrap());
    }
}

#[test]
fn redirects_in_circles_end() {
    require!(skip::privileged());
    let _limit = Watchdog::new("circular redirects", Duration::from_secs(100));
    let layers = Layers::new("circles");
    // Each of the two says that it was the other, and in one layer a directory says that it was its own child.
    for layer in [&layers.top, &layers.bottom] {
        for name in ["a", "b", "a/child"] {
            fs::create_dir(layer.join(name)).unwrap();
        }
        fs::write(layer.join("a/file"), "a").unwrap();
        fs::write(layer.join("b/file"), "b").unwrap();
        mark(&layer.join("a"), REDIRECT, b"/b");
        mark(&layer.join("b"), REDIRECT, b"/a");
        mark(&layer.join("a/child"), REDIRECT, b"/a");
    }
    let (ours, kernel) = layers.both();
    assert_eq!(shown_too_much(&ours, &kernel), Vec::<String>::new());
    let mount = layers.writable();
    fs::write(mount.join("new"), "x").unwrap();
    fs::rename(mount.join("new"), mount.join("newer")).unwrap();
    drop(mount.unmount().unwrap());
}

/// A file without data in the top layer, which a redirect says to lie at each of these in the lower one.
#[test]
fn data_is_read_from_files_alone() {
    require!(skip::privileged());
    let _limit = Watchdog::new("forged metacopies", Duration::from_secs(200));
    let targets: [Option<&[u8]>; 11] = [
        None,
        Some(b"/fifo"),
        Some(b"/device"),
        Some(b"/dir"),
        Some(b"/out"),
        Some(b"/out/secret"),
        Some(b"/link"),
        Some(b"/../outside/secret"),
        Some(b"/gone"),
        Some(b"/file"),
        Some(b"/file/file"),
    ];
    let values = [&b""[..], &[0, 4, 0, 0], &[0, 3, 0], &[1, 4, 0, 0], &[0; 64]];
    for (number, target) in targets.into_iter().enumerate() {
        // Each of them with one or two.
        for value in values.iter().skip(number % 3).step_by(3) {
            let layers = Layers::new("forged-metacopy");
            fs::write(layers.top.join("meta"), "").unwrap();
            fs::File::options()
                .write(true)
                .open(layers.top.join("meta"))
                .unwrap()
                .set_len(5)
                .unwrap();
            fs::write(layers.bottom.join("file"), "other").unwrap();
            fs::create_dir(layers.bottom.join("dir")).unwrap();
            special(&layers.bottom.join("fifo"), SFlag::S_IFIFO, 0);
            special(&layers.bottom.join("device"), SFlag::S_IFCHR, 0x105);
            symlink(&layers.outside, layers.bottom.join("out")).unwrap();
            symlink(layers.outside.join("secret"), layers.bottom.join("link")).unwrap();
            let meta = layers.top.join("meta");
            mark(&meta, METACOPY, value);
            if let Some(target) = target {
                mark(&meta, REDIRECT, target);
            }
            let (ours, kernel) = layers.both();
            let wrong = shown_too_much(&ours, &kernel);
            assert!(wrong.is_empty(), "{target:?} {value:?}: {wrong:#?}");
            // And what a copy-up makes of it is no more.
            let mount = layers.writable();
            let copied = fs::File::options()
                .append(true)
                .open(mount.join("meta"))
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"+"));
            if copied.is_ok() {
                let text = ours[Path::new("meta")].trim_matches('"').to_owned() + "+";
                assert_eq!(
                    fs::read_to_string(mount.join("meta")).unwrap(),
                    text,
                    "{target:?}"
                );
            }
            drop(mount.unmount().unwrap());
        }
    }
}

#[test]
fn only_the_known_values_make_a_directory_opaque() {
    require!(skip::privileged());
    let _limit = Watchdog::new("forged opaques", Duration::from_secs(100));
    for value in [
        &b""[..],
        b"n",
        b"Y",
        b"yy",
        b"y\0",
        b"y",
        b"x",
        b"1",
        &[b'y'; 300],
    ] {
        let layers = Layers::new("forged-opaque");
        for (layer, text) in [(&layers.top, "top"), (&layers.bottom, "bottom")] {
            fs::create_dir(layer.join("dir")).unwrap();
            fs::write(layer.join("dir").join(text), text).unwrap();
        }
        mark(&layers.top.join("dir"), OPAQUE, value);
        // On a file it means nothing.
        fs::write(layers.top.join("file"), "top").unwrap();
        fs::write(layers.bottom.join("file"), "bottom").unwrap();
        mark(&layers.top.join("file"), OPAQUE, value);
        let (ours, kernel) = layers.both();
        assert_eq!(ours, kernel, "{value:?}");
    }
}

/// Origins of every length: the header of the kernel's handles, then whatever; and true ones of files outside of the stack.
#[test]
fn origins_of_a_layer_are_not_believed() {
    require!(skip::privileged());
    let _limit = Watchdog::new("forged origins", Duration::from_secs(100));
    let layers = Layers::new("forged-origin");
    for length in 0..=140usize {
        let mut value = vec![0u8, 0xfb, length as u8, 0, 1];
        value.resize(length, 0x5a);
        value.truncate(length);
        let file = layers.top.join(format!("file{length}"));
        fs::write(&file, "top").unwrap();
        mark(&file, ORIGIN, &value);
        let dir = layers.top.join(format!("dir{length}"));
        fs::create_dir(&dir).unwrap();
        mark(&dir, ORIGIN, &value);
    }
    let (ours, kernel) = layers.both();
    assert_eq!(ours, kernel);

    // As an upper they are looked at: a number, a link count, no content.
    let stand = crate::common::Stand::new("forged-origin-upper");
    fs::write(stand.lower.join("lower"), "lower").unwrap();
    for length in 0..=140usize {
        let mut value = vec![0u8, 0xfb, length as u8, 0, 1];
        value.resize(length, 0x5a);
        value.truncate(length);
        let file = stand.upper.join(format!("file{length}"));
        fs::write(&file, "upper").unwrap();
        mark(&file, ORIGIN, &value);
    }
    let mount = stand.acetate("").mount();
    let seen = view(mount.path());
    let files: Vec<_> = seen
        .iter()
        .filter(|(path, _)| path.to_string_lossy().starts_with("file"))
        .collect();
    assert_eq!(files.len(), 141);
    assert!(
        files.iter().all(|(_, text)| *text == "\"upper\""),
        "{files:?}"
    );
    drop(mount.unmount().unwrap());
}
