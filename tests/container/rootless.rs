//! Containers of a plain user.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;

use crate::common::program::{Finished, find, run};
use crate::require;
use crate::rig::{LIMIT, Rig, able, kill, succeeded};

const USER: u32 = 2777;
/// The first of the ids that the user may give away.
const FIRST: u32 = 2_770_000;

/// A user whom only the processes started here know of.
struct Plain<'a> {
    rig: &'a Rig,
}

impl Plain<'_> {
    fn new(rig: &Rig) -> Plain<'_> {
        for dir in ["home", "home/run"] {
            chown(rig.scratch.dir(dir), Some(USER), Some(USER)).unwrap();
        }
        // The build directory may lie where a plain user may not look.
        let binary = rig.scratch.join("home/acetate");
        fs::copy(rig.command(&[]).get_program(), binary).unwrap();
        let etc = rig.scratch.dir("etc");
        let passwd = format!("root:x:0:0::/root:/bin/sh\nplain:x:{USER}:{USER}::/:/bin/sh\n");
        fs::write(etc.join("passwd"), passwd).unwrap();
        for file in ["subuid", "subgid"] {
            fs::write(etc.join(file), format!("plain:{FIRST}:65536\n")).unwrap();
        }
        Plain { rig }
    }

    fn acetate(&self, words: &[&str]) -> Finished {
        let home = self.rig.scratch.join("home");
        let etc = self.rig.scratch.join("etc");
        let path = std::env::var("PATH").unwrap();
        // Where a system has no such user, and gives its FUSE device to root alone.
        let script = format!(
            "set -e; cd {etc}; for file in passwd subuid subgid; do touch /etc/$file; mount --bind $file /etc/$file; done
            [ -e fuse ] || mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
            cd {home}; exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"",
            etc = etc.display(),
            home = home.display()
        );
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
            ])
            .arg(home.join("acetate"))
            .args(words)
            .env_clear()
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .env("HOME", &home)
            .env("XDG_RUNTIME_DIR", home.join("run"));
        run(&mut command, LIMIT)
    }

    #[track_caller]
    fn must(&self, words: &[&str]) -> String {
        succeeded(self.acetate(words), words)
    }
}

impl Drop for Plain<'_> {
    /// Without the process that holds them the namespaces end.
    fn drop(&mut self) {
        self.acetate(&["container", "prune", "--force"]);
        let file = self.rig.scratch.join("home/run/acetate/namespaces");
        if let Ok(holder) = fs::read_to_string(file) {
            kill(holder.trim().parse().unwrap());
        }
    }
}

#[test]
fn a_plain_user_runs_and_keeps_containers() {
    require!(able());
    for program in ["unshare", "setpriv", "newuidmap", "newgidmap"] {
        require!(find(program).map(drop));
    }
    let rig = Rig::new("rootless");
    let user = Plain::new(&rig);
    let tree = rig.scratch.join("tree");
    user.must(&["import", tree.to_str().unwrap(), "bb"]);
    // The program is root, with other ids beside it, and the files of each are another's outside.
    let shown = user.must(&[
        "run", "--name", "kept", "bb", "sh", "-c",
        "id -u; touch /data/root /data/web; busybox chown web /data/web; ls /sys > /dev/null; ls -ln /data",
    ]);
    assert!(shown.starts_with("0\n"), "{shown}");
    let folder = fs::read_dir(rig.scratch.join("home/.local/share/acetate/containers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    let owner = |name: &str| {
        fs::metadata(folder.join("upper/data").join(name))
            .unwrap()
            .uid()
    };
    assert_eq!((owner("root"), owner("web")), (USER, FIRST + 32));
    let failed = user.acetate(&["run", "--rm", "bb", "sh", "-c", "exit 7"]);
    assert_eq!(failed.code(), Some(7), "{}", failed.text);
    let host = user.must(&[
        "run", "--rm", "--net", "host", "-v", "./:/here", "bb", "ls", "/sys", "/here",
    ]);
    assert!(
        host.contains("kernel") && host.contains("acetate"),
        "{host}"
    );

    // Other commands find what the first made.
    user.must(&["run", "-d", "--name", "dd", "bb", "sleep", "1000"]);
    assert!(user.must(&["ps"]).contains("dd"));
    user.must(&["exec", "dd", "touch", "/data/made"]);
    assert_eq!(user.must(&["exec", "-u", "web", "dd", "id", "-u"]), "33\n");
    assert!(user.must(&["diff", "dd"]).contains("A /data/made\n"));
    user.must(&["commit", "dd", "mine:1"]);
    assert!(
        user.must(&["run", "--rm", "mine:1", "ls", "/data"])
            .contains("made")
    );
    user.must(&["stop", "-t", "0", "dd"]);
    user.must(&["start", "dd"]);
    user.must(&["exec", "dd", "stat", "/data/made"]);
    user.must(&["start", "kept"]);
    user.must(&["wait", "kept"]);
    assert!(user.must(&["logs", "kept"]).matches("web").count() >= 2);
    user.must(&["rm", "--force", "dd", "kept"]);
    assert_eq!(user.must(&["ps", "-aq"]), "");
    user.must(&["image", "rm", "mine:1", "bb"]);
    let layers = rig.scratch.join("home/.local/share/acetate/layers/sha256");
    assert_eq!(fs::read_dir(layers).unwrap().count(), 0);
}
