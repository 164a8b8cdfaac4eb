//! The tests again as a plain user, and as root of a user namespace.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;

const INNER: &str = "ACETATE_TEST_INNER";

/// Runs this test program's tests of the upper again by way of `wrapper`.
fn again(wrapper: &[&str]) {
    if std::env::var_os(INNER).is_some() {
        return;
    }
    // The program may lie where a plain user may not go.
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = temp.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let scratch = temp.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o1777)).unwrap();
    let output = Command::new("timeout")
        .arg("120")
        .args(wrapper)
        .arg(&program)
        .args(["layer::", "--test-threads=2"])
        .env(INNER, "1")
        .env("TMPDIR", &scratch)
        .env_remove("CI")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() && text.is_empty() {
        return skip(&String::from_utf8_lossy(&output.stderr));
    }
    assert!(output.status.success(), "{text}");
    assert!(text.contains("operations::rename_over_everything ... ok"));
}

#[test]
fn as_a_plain_user() {
    if is_root() {
        again(&["setpriv", "--reuid=2000", "--regid=2000", "--clear-groups"]);
    }
}

#[test]
fn as_root_of_a_user_namespace() {
    if is_root() {
        again(&[
            "setpriv",
            "--reuid=2000",
            "--regid=2000",
            "--clear-groups",
            "unshare",
            "-Urm",
        ]);
    } else {
        again(&["unshare", "-Urm"]);
    }
}

/// What an owner's mode forbids him, the upper does all the same.
#[test]
fn modes_that_keep_the_owner_out() {
    let fixture = Fixture::new(Namespace::User);
    let (upper, root) = (&fixture.upper, fixture.root());
    for mode in [0o444, 0o200, 0] {
        let file = format!("f{mode:o}");
        let node = fixture.file(&root, &file, Replace::Nothing);
        upper.chmod(&node, mode).unwrap();
        upper
            .set_mark(&node, &Mark::Nlink(Some("U+1".into())))
            .unwrap();
        upper.set_xattr(&node, name("user.k"), b"v", 0).unwrap();
        upper.remove_xattr(&node, name("user.k")).unwrap();
        upper.truncate(&node, 3).unwrap();
        let open = upper.open(&node, Access::Write).unwrap();
        rustix::io::pwrite(open.as_fd().unwrap(), b"abc", 0).unwrap();
        let mut buf = [0; 3];
        let read = upper.open(&node, Access::Read).unwrap();
        assert_eq!(read.read_at(&mut buf, 0).unwrap(), 3);
        assert_eq!(&buf, b"abc");
        assert_eq!(upper.stat(&node).unwrap().mode & 0o7777, mode);
    }
}
