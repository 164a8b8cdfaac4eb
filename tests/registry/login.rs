//! Registries that want to know who asks, and whom to trust.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::build::Packing;
use crate::common::{program, skip};
use crate::require;
use crate::server::{self, Server, Setup};
use crate::stand::{LIMIT, Stand, layers};

const USER: &str = "ann";
const PASSWORD: &str = "pass:word with spaces";

fn guarded(stand: &Stand) -> Server {
    let setup = Setup {
        login: Some((USER, PASSWORD)),
        ..Setup::default()
    };
    Server::with(stand.path(), &setup)
}

/// `login` with the password on standard input.
pub fn login(stand: &Stand, host: &str, password: &str) -> (bool, String) {
    let mut child = stand
        .command("a", &["login", "-u", USER, "--password-stdin", host])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{password}").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn who_is_not_logged_in_is_refused() {
    require!(server::available());
    require!(skip::program("htpasswd"));
    let stand = Stand::new("login");
    let server = guarded(&stand);
    let host = server.host();
    let name = format!("{host}/team/app:1");
    let image = stand.load("a", &layers(31, 2, 10_000), Packing::Gzip, &name);
    let hint = format!("run `acetate login {host}`");
    for (action, arguments) in [
        ("push", vec!["push", &name]),
        ("pull", vec!["pull", &name]),
        ("list", vec!["registry", "catalog", &host]),
    ] {
        let text = stand.fails("a", &arguments);
        let part = format!("{action} access denied for {host}");
        assert!(text.contains(&part) && text.contains(&hint), "{text}");
        assert!(
            text.contains("unauthorized: authentication required"),
            "{text}"
        );
    }
    let (done, text) = login(&stand, &host, "wrong");
    assert!(
        !done && text.contains(&format!("login to {host} failed: unauthorized")),
        "{text}"
    );
    let file = stand.scratch.join("home/.docker/config.json");
    assert!(!file.exists(), "a wrong password is not kept");
    let (done, text) = login(&stand, &host, PASSWORD);
    assert!(done && text.contains("Login Succeeded"), "{text}");
    let mode = file.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    stand.ok("a", &["push", &name]);
    stand.ok("b", &["pull", &name]);
    assert_eq!(stand.image("b", &name), Some(image));
    assert_eq!(stand.ok("a", &["registry", "catalog", &host]), "team/app\n");
    assert_eq!(
        stand.ok("a", &["logout", &host]),
        format!("Removing login credentials for {host}\n")
    );
    assert_eq!(
        stand.ok("a", &["logout", &host]),
        format!("Not logged in to {host}\n")
    );
    let text = stand.fails("c", &["pull", &name]);
    assert!(text.contains("pull access denied"), "{text}");
    // Wrong credentials that were kept are not taken for none.
    std::fs::write(
        &file,
        format!(r#"{{"auths":{{"{host}":{{"auth":"YTpi"}}}}}}"#),
    )
    .unwrap();
    let text = stand.fails("c", &["pull", &name]);
    assert!(
        text.contains("pull access denied") && !text.contains("run `acetate"),
        "{text}"
    );
}

#[test]
fn credentials_of_others_are_used_and_kept() {
    require!(server::available());
    require!(skip::program("htpasswd"));
    require!(skip::program("skopeo"));
    let stand = Stand::new("credentials");
    let server = guarded(&stand);
    let host = server.host();
    let name = format!("{host}/app:1");
    stand.load("a", &layers(32, 1, 1000), Packing::Gzip, &name);
    // skopeo logs in, we push.
    let file = stand.scratch.join("auth.json");
    let file = file.to_str().unwrap();
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "login",
        "--tls-verify=false",
        "-u",
        USER,
        "-p",
        PASSWORD,
        "--authfile",
        file,
        &host,
    ]);
    stand.surround(&mut skopeo);
    program::must(&mut skopeo, LIMIT);
    stand.ok("a", &["push", "--authfile", file, &name]);
    // We log in, skopeo reads.
    let ours = stand.scratch.join("ours.json");
    let ours = ours.to_str().unwrap();
    stand.ok(
        "a",
        &[
            "login",
            "-u",
            USER,
            "-p",
            PASSWORD,
            "--authfile",
            ours,
            &host,
        ],
    );
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--tls-verify=false", "--authfile", ours]);
    skopeo.arg(format!("docker://{name}"));
    stand.surround(&mut skopeo);
    program::must(&mut skopeo, LIMIT);
    // A helper keeps them, and gives them back.
    let bin = stand.scratch.dir("bin");
    let kept = stand.scratch.join("kept");
    let helper = bin.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat >{0} ;;\nget) read s; test -f {0} && cat {0} || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;\nerase) rm -f {0} ;;\nesac\n",
        kept.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    let config = stand.scratch.join("helped.json");
    std::fs::write(&config, r#"{"credsStore":"test"}"#).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let helped = |arguments: &[&str]| {
        let mut command = stand.command("b", arguments);
        command
            .env("PATH", &path)
            .env("REGISTRY_AUTH_FILE", &config);
        program::run(&mut command, LIMIT)
    };
    let finished = helped(&["pull", &name]);
    assert!(
        finished.text.contains("run `acetate login"),
        "{}",
        finished.text
    );
    let finished = helped(&["login", "-u", USER, "-p", PASSWORD, &host]);
    assert!(finished.success(), "{}", finished.text);
    assert_eq!(std::fs::read(&config).unwrap(), br#"{"credsStore":"test"}"#);
    let finished = helped(&["pull", &name]);
    assert!(finished.success(), "{}", finished.text);
    let finished = helped(&["logout", &host]);
    assert!(finished.success() && !kept.exists(), "{}", finished.text);
}

fn openssl(stand: &Stand, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(stand.path());
    program::must(&mut command, LIMIT);
}

/// A key `FILE.key` and, of the authority of [`certificates`], a certificate `FILE.crt` for it.
pub fn signed(stand: &Stand, file: &str, common_name: &str, extensions: &str) {
    let named = |end: &str| format!("{file}.{end}");
    let subject = format!("/CN={common_name}");
    std::fs::write(stand.scratch.join(named("ext")), extensions).unwrap();
    let (key, request, certificate) = (named("key"), named("csr"), named("crt"));
    #[rustfmt::skip]
    openssl(stand, &[
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", &key, "-out", &request,
        "-subj", &subject,
    ]);
    #[rustfmt::skip]
    openssl(stand, &[
        "x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", &named("ext"), "-out", &certificate,
    ]);
}

/// An authority, and a certificate of it for this machine.
pub fn certificates(stand: &Stand) -> (std::path::PathBuf, std::path::PathBuf, std::path::PathBuf) {
    let at = |name: &str| stand.scratch.join(name);
    openssl(
        stand,
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-subj",
            "/CN=Test authority",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ],
    );
    signed(
        stand,
        "server",
        "localhost",
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n",
    );
    (at("ca.crt"), at("server.crt"), at("server.key"))
}

#[test]
fn a_private_authority_is_trusted_where_it_is_named() {
    require!(server::available());
    require!(skip::program("openssl"));
    let stand = Stand::new("tls");
    let (authority, certificate, key) = certificates(&stand);
    let setup = Setup {
        tls: Some((certificate, key)),
        ..Setup::default()
    };
    let server = Server::with(stand.path(), &setup);
    let name = format!("{}/app:1", server.host());
    let image = stand.load("a", &layers(33, 2, 50_000), Packing::Gzip, &name);
    let text = stand.fails("a", &["push", "--tls-verify", &name]);
    assert!(
        text.contains("cannot reach the registry") && text.contains("certificate"),
        "{text}"
    );
    let dir = stand.scratch.dir("certs");
    std::fs::copy(&authority, dir.join("ca.crt")).unwrap();
    let dir = dir.to_str().unwrap();
    stand.ok("a", &["push", "--tls-verify", "--cert-dir", dir, &name]);
    stand.ok("b", &["pull", "--tls-verify", "--cert-dir", dir, &name]);
    assert_eq!(stand.image("b", &name), Some(image.clone()));
    // By the registry's name below a home.
    let usual = stand
        .scratch
        .dir(format!("home/.config/containers/certs.d/{}", server.host()));
    std::fs::copy(&authority, usual.join("own.crt")).unwrap();
    stand.ok("c", &["pull", "--tls-verify", &name]);
    std::fs::remove_dir_all(usual).unwrap();
    // Without a check: this machine's own addresses need not be told so.
    stand.ok("d", &["pull", &name]);
    stand.ok("e", &["pull", "--insecure", &name]);
    let text = stand.fails("f", &["pull", "--tls-verify", &name]);
    assert!(text.contains("certificate"), "{text}");
    // Plain http is refused where a check is wanted.
    let plain = Server::start(stand.path());
    let text = stand.fails(
        "f",
        &["pull", "--tls-verify", &format!("{}/app:1", plain.host())],
    );
    assert!(text.contains("cannot reach the registry"), "{text}");
}
