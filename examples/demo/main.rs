//! A container image in layers, mounted, changed and thrown away: `cargo run --release --example demo`.
//!
//! It needs nothing but `/dev/fuse`: the image is made of this machine's own shell and libraries. As root, and in a
//! user namespace, a shell runs with the mount as its root; where neither can be had it works beside the mount.

mod image;
mod show;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot, getgid, getuid};

use show::Hashes;

/// This program under these names is the `acetate` command, and a shell in the mount.
const ACETATE: &str = "acetate";
const INSIDE: &str = "inside";

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let result = if name == ACETATE {
        return acetate::cli::run(std::env::args_os());
    } else if name == INSIDE {
        inside(&words.collect::<Vec<_>>())
    } else {
        demo_or_image(&words.collect::<Vec<_>>())
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole show, or with `image DIR` the image alone.
fn demo_or_image(words: &[OsString]) -> Result<()> {
    match words {
        [] => demo(),
        [word, dir] if word == "image" => image::build(Path::new(dir)).map(drop),
        _ => bail!("usage: demo [image DIR]"),
    }
}

/// Becomes a shell whose root directory is the first argument, or whose working directory it is when no right to
/// `chroot` was found.
fn inside(words: &[OsString]) -> Result<()> {
    let [root, how, script] = words else {
        bail!("expected a directory, a way and a script");
    };
    let root = Path::new(root);
    let mut shell = if how == "chroot" {
        chroot(root).context("chroot")?;
        chdir("/")?;
        Command::new("/bin/sh")
    } else {
        chdir(root)?;
        Command::new("sh")
    };
    shell
        .args(["-e", "-c"])
        .arg(script)
        .env("PATH", "/bin:/usr/bin:/sbin:/usr/sbin");
    Err(shell.exec()).context("sh")
}

/// How a process can be given the mount as its root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Chroot,
    Beside,
}

/// Root as it is; a plain user becomes root of a namespace of its own where the machine allows it.
fn rights() -> Result<(Way, &'static str)> {
    if getuid().is_root() {
        return Ok((Way::Chroot, "as root"));
    }
    let (uid, gid) = (getuid(), getgid());
    if fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok()
        && unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).is_ok()
    {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        return Ok((Way::Chroot, "as a plain user, in a user namespace"));
    }
    Ok((Way::Beside, "as a plain user, by fusermount3"))
}

/// The `acetate` command on the demo's own store.
struct Acetate {
    store: PathBuf,
}

impl Acetate {
    fn command(&self, words: &[&OsStr]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg0(ACETATE)
            .args(words)
            .env("ACETATE_ROOT", &self.store)
            .stdin(Stdio::null());
        Ok(command)
    }

    fn output(&self, words: &[&OsStr]) -> Result<String> {
        let output = self.command(words)?.output()?;
        if !output.status.success() {
            let words: Vec<_> = words.iter().map(|w| w.to_string_lossy()).collect();
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("`acetate {}`: {}", words.join(" "), error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A mount that does not outlive the demo.
struct Mounted<'a> {
    acetate: &'a Acetate,
    dir: &'a Path,
    live: bool,
}

impl Mounted<'_> {
    fn unmount(&mut self) -> Result<String> {
        self.live = false;
        self.acetate
            .output(&["umount".as_ref(), self.dir.as_os_str()])
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.live
            && let Err(e) = self.unmount()
        {
            eprintln!("demo: {e:#}");
        }
    }
}

/// What the shell does with the mount as its root; the paths are relative, so that it also works beside it.
const SCRIPT: &str = "\
cat etc/motd
ls var/cache
echo 'drawn over' > etc/motd
echo 'new' > home-made
mkdir etc/conf.d
echo 'a=1' > etc/conf.d/app
rm usr/share/app/notes
mv opt/tool opt/renamed";

fn demo() -> Result<()> {
    let (way, by) = rights()?;
    let scratch = tempfile::Builder::new().prefix("acetate-demo-").tempdir()?;
    let at = |name: &str| scratch.path().join(name);
    let (image, root) = (at("image"), at("root"));
    fs::create_dir(&root)?;
    let acetate = Acetate { store: at("store") };

    show::title(&format!("An image in layers, mounted {by}"));
    show::step("build an image from this machine's own shell and libraries");
    for layer in image::build(&image)? {
        show::line(&layer);
    }

    show::command("acetate mount image root");
    acetate.output(&["mount".as_ref(), image.as_os_str(), root.as_os_str()])?;
    let mut mounted = Mounted {
        acetate: &acetate,
        dir: &root,
        live: true,
    };
    let layers = layers(&acetate, &root)?;
    let before = Hashes::of(&layers)?;
    show::line(&format!(
        "{} layers below, an empty sheet on top",
        layers.len()
    ));

    show::step("which layer shows a path, and what hides the others?");
    for (path, why) in image::PATHS {
        show::command(&format!("acetate explain root/{path}    # {why}"));
        let text = acetate.output(&["explain".as_ref(), root.join(path).as_os_str()])?;
        show::output(&named(&text, &layers));
    }

    match way {
        Way::Chroot => show::step("a shell whose root directory is the mount changes files"),
        Way::Beside => show::step("a shell in the mount changes files"),
    }
    show::script(SCRIPT);
    let output = Command::new(std::env::current_exe()?)
        .arg0(INSIDE)
        .arg(&root)
        .arg(if way == Way::Chroot {
            "chroot"
        } else {
            "beside"
        })
        .arg(SCRIPT)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!(
            "the shell: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    show::output(&String::from_utf8_lossy(&output.stdout));

    show::command("acetate diff root");
    let diff = acetate.output(&["diff".as_ref(), root.as_os_str()])?;
    show::output(&diff);
    for change in [
        "C /etc/motd",
        "A /home-made",
        "A /etc/conf.d/app",
        "D /usr/share/app/notes",
        "A /opt/renamed",
    ] {
        if !diff.lines().any(|l| l == change) {
            bail!("the diff lacks `{change}`");
        }
    }

    show::step("the layers are what they were");
    for line in Hashes::of(&layers)?.compare(&before)? {
        show::line(&line);
    }

    show::command("acetate umount root");
    mounted.unmount()?;
    drop(mounted);
    let private = acetate.store.join("private");
    let left = fs::read_dir(&private)
        .into_iter()
        .flatten()
        .filter(|entry| entry.as_ref().is_ok_and(|e| e.path().is_dir()))
        .count();
    if left != 0 {
        bail!("{left} discarded uppers are still in {}", private.display());
    }
    show::line("the sheet is thrown away, the layers stay for the next mount");

    show::command("acetate mount image root && cat root/etc/motd");
    acetate.output(&["mount".as_ref(), image.as_os_str(), root.as_os_str()])?;
    let mut again = Mounted {
        acetate: &acetate,
        dir: &root,
        live: true,
    };
    let motd = fs::read_to_string(root.join("etc/motd"))?;
    show::output(&motd);
    if motd.contains("drawn over") {
        bail!("a change outlived its upper");
    }
    again.unmount()?;
    Ok(())
}

/// Puts the layers' names in the place of where they lie.
fn named(text: &str, layers: &[PathBuf]) -> String {
    let mut text = text.to_owned();
    for (layer, name) in layers.iter().zip(image::LAYERS) {
        text = text.replace(&*layer.to_string_lossy(), name);
    }
    text
}

/// Where the layers of the mount lie, as `acetate mounts` says.
fn layers(acetate: &Acetate, root: &Path) -> Result<Vec<PathBuf>> {
    let text = acetate.output(&["mounts".as_ref(), "--json".as_ref()])?;
    let mounts: serde_json::Value = serde_json::from_str(&text)?;
    let root = fs::canonicalize(root)?;
    let mount = mounts
        .as_array()
        .and_then(|all| {
            all.iter()
                .find(|m| m["mountpoint"].as_str().map(Path::new) == Some(&root))
        })
        .context("`acetate mounts` does not list the mount")?;
    let layers: Vec<PathBuf> = mount["layers"]
        .as_array()
        .context("`acetate mounts` names no layers")?
        .iter()
        .filter_map(|l| l.as_str().map(PathBuf::from))
        .collect();
    if layers.len() < 3 {
        bail!("expected three layers, found {}", layers.len());
    }
    Ok(layers)
}
