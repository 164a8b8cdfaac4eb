//! The image: debootstrap, then four real `apt-get install` steps, each a layer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::common::{Scratch, program};

const CONTAINERFILE: &str = r#"
FROM scratch
ADD base.tar /
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends python3
RUN apt-get install -y --no-install-recommends gcc libc6-dev
RUN apt-get install -y --no-install-recommends git
RUN apt-get install -y --no-install-recommends sqlite3 \
 && mkdir -p /srv/debs && cd /srv/debs && apt-get download hello tree bc less \
 && apt-get clean && rm -rf /var/lib/apt/lists/* /usr/share/doc/gcc*
"#;

/// The archive that this machine's apt sources come from, and its release.
fn mirror() -> Result<(String, String), String> {
    if let Some(found) = listed_mirror() {
        return Ok(found);
    }
    // Who has installed nothing yet has no lists.
    let update = program::run(
        Command::new("apt-get").args(["update", "-q"]),
        Duration::from_secs(120),
    );
    listed_mirror().ok_or_else(|| format!("apt lists no Debian source: {}", update.tail(3)))
}

fn listed_mirror() -> Option<(String, String)> {
    let text = program::run(
        Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(CODENAME) $(REPO_URI)",
            "Created-By: Packages",
        ]),
        Duration::from_secs(20),
    )
    .text;
    text.lines().find_map(|line| {
        let (codename, uri) = line.strip_prefix("Debian Debian ")?.split_once(' ')?;
        (!codename.contains('-')).then(|| (uri.to_owned(), codename.to_owned()))
    })
}

/// The docker archive. It is kept under the target directory for the next run.
pub(crate) fn archive() -> Result<PathBuf, String> {
    let (uri, codename) = mirror()?;
    let key = Sha256::digest(format!("{codename}{CONTAINERFILE}"));
    let key: String = key.iter().take(8).map(|b| format!("{b:02x}")).collect();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debian-{key}.tar"));
    if !kept.is_file() {
        let scratch = Scratch::new("debian-image");
        build(&scratch, &uri, &codename, &kept);
    }
    Ok(kept)
}

fn build(scratch: &Scratch, uri: &str, codename: &str, kept: &Path) {
    let limit = Duration::from_secs(600);
    let base = scratch.join("base");
    program::must(
        Command::new("debootstrap")
            .args(["--variant=minbase", codename])
            .arg(&base)
            .arg(uri)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        limit,
    );
    let context = scratch.dir("context");
    program::must(
        Command::new("tar")
            .args(["--numeric-owner", "--xattrs", "--one-file-system", "-cf"])
            .arg(context.join("base.tar"))
            .arg("-C")
            .arg(&base)
            .arg("."),
        limit,
    );
    fs::write(context.join("Containerfile"), CONTAINERFILE).unwrap();
    let buildah = || {
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", "overlay", "--root"]);
        command.arg(scratch.join("storage")).arg("--runroot");
        command.arg(scratch.join("runroot"));
        command
    };
    program::must(
        buildah()
            .args(["bud", "--isolation", "chroot", "--network", "host"])
            .args(["--layers", "-t", "acetate-debian:1"])
            .arg(&context),
        limit,
    );
    let unfinished = kept.with_extension("unfinished");
    if let Err(e) = fs::remove_file(&unfinished) {
        assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "{e}");
    }
    program::must(
        buildah()
            .args(["push", "-q", "acetate-debian:1"])
            .arg(format!(
                "docker-archive:{}:acetate-debian:1",
                unfinished.display()
            )),
        limit,
    );
    fs::rename(unfinished, kept).unwrap();
}
