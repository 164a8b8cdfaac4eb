//! A plain user mounts: in a user namespace of their own, and by `fusermount3`.

use std::fs;

use crate::common::skip;
use crate::require;
use crate::run::{Place, Said, as_plain_user};

const SCRIPT: &str = r#"
set -e
acetate="$1"
"$acetate" mount --lower top --lower bottom --upper upper --work work merged
trap '"$acetate" umount merged' EXIT
test "$(cat merged/overridden)" = "overridden by the top"
echo changed > merged/kept
rm merged/deleted
rm -r merged/dir
mkdir merged/dir
mv merged/dir merged/moved
mkdir merged/sub
touch merged/sub/new
ln merged/kept merged/linked
ln -s kept merged/symbolic
chmod 600 merged/kept
test -z "$(ls merged/moved)"
test ! -e merged/deleted
test "$(stat -c %h merged/linked)" = 2
"$acetate" mounts | grep -q merged
"$acetate" diff merged
"#;

fn judge(place: &Place, output: std::process::Output) {
    let said = Said::from(output);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    for line in [
        "D /deleted",
        "D /dir",
        "C /kept",
        "A /linked",
        "A /moved",
        "A /sub/new",
    ] {
        assert!(
            said.out.lines().any(|l| l == line),
            "no `{line}` in {}",
            said.out
        );
    }
    assert_eq!(
        fs::read_to_string(place.upper.join("kept")).unwrap(),
        "changed\n"
    );
    assert_eq!(
        fs::read_to_string(place.bottom.join("kept")).unwrap(),
        "kept of the bottom"
    );
    assert!(place.bottom.join("deleted").exists());
}

#[test]
fn in_a_user_namespace() {
    require!(skip::privileged());
    let place = Place::new("namespace");
    place.give_to_plain_user();
    let binary = place.installed();
    let mut command = as_plain_user(&place, 0o666, "unshare");
    command
        .args(["-Urm", "sh", "-c", SCRIPT, "sh"])
        .arg(&binary);
    judge(&place, command.output().unwrap());
}

#[test]
fn by_fusermount() {
    require!(skip::privileged());
    require!(skip::program("fusermount3"));
    let place = Place::new("fusermount");
    place.give_to_plain_user();
    let binary = place.installed();
    let mut command = as_plain_user(&place, 0o666, "sh");
    command.args(["-c", SCRIPT, "sh"]).arg(&binary);
    judge(&place, command.output().unwrap());
}
