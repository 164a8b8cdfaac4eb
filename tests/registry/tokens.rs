//! Registries whose doors are opened by tokens and by certificates.

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;

use crate::build::Packing;
use crate::common::skip;
use crate::gate::{Gate, Guests};
use crate::login::{certificates, login, signed};
use crate::proxy::{Listening, head, value};
use crate::require;
use crate::server::{self, Server, Setup};
use crate::stand::{Stand, layers};

const GUESTS: Guests = Guests {
    user: "ann",
    password: "pass:word with spaces",
    identity: "an-identity-token",
    repository: "team/app",
};

fn asked(who: &str, scope: &str) -> (String, String) {
    (who.to_owned(), scope.to_owned())
}

#[test]
fn tokens_are_fetched_for_what_is_done_and_again_when_they_run_out() {
    require!(server::available());
    let stand = Stand::new("tokens");
    let server = Server::start(stand.path());
    let gate = Gate::start(server.address(), GUESTS);
    let host = gate.host();
    let name = format!("{host}/team/app:1");
    let (pull, push) = ("repository:team/app:pull", "repository:team/app:pull,push");
    let image = stand.load("a", &layers(41, 3, 200_000), Packing::Gzip, &name);

    // Nobody gets a token, but one that is not good for this.
    let text = stand.fails("a", &["push", &name]);
    assert!(
        text.contains("push access denied") && text.contains(&format!("acetate login {host}")),
        "{text}"
    );
    assert!(gate.asked().contains(&asked("nobody", push)));
    let (done, text) = login(&stand, &host, "wrong");
    assert!(!done && text.contains("wrong user or password"), "{text}");
    let (done, text) = login(&stand, &host, GUESTS.password);
    assert!(done && text.contains("Login Succeeded"), "{text}");
    gate.asked();

    // One at a time: a request is sent twice, not three times.
    let kinds = ["POST uploads", "PUT uploads", "PUT manifests"];
    for (seed, kind) in (43..).zip(kinds) {
        let tag = format!("{host}/team/app:{seed}");
        stand.load("a", &layers(seed, 3, 10_000), Packing::Gzip, &tag);
        gate.expire_at(&[kind]);
        stand.ok("a", &["push", &tag]);
        assert_eq!(gate.expiring(), [""; 0]);
        let fetched = gate.asked();
        assert!(fetched.len() > 1, "{kind}: {fetched:?}");
        assert!(
            fetched.iter().all(|a| *a == asked("user", push)),
            "{fetched:?}"
        );
    }
    stand.ok("a", &["push", &name]);
    gate.asked();

    // Who is not logged in may read.
    stand.ok("a", &["logout", &host]);
    gate.expire_at(&["GET manifests", "GET blobs"]);
    stand.ok("b", &["pull", &name]);
    assert_eq!(gate.expiring(), [""; 0]);
    assert_eq!(stand.image("b", &name), Some(image));
    stand.assert_whole("b");
    let fetched = gate.asked();
    assert!(
        fetched.iter().all(|a| *a == asked("nobody", pull)),
        "{fetched:?}"
    );

    // What docker keeps where a registry gives identity tokens.
    let file = stand.scratch.join("home/.docker/config.json");
    let kept = format!(
        r#"{{"auths":{{"{host}":{{"identitytoken":"{}"}}}}}}"#,
        GUESTS.identity
    );
    std::fs::write(&file, kept).unwrap();
    stand.ok("b", &["push", &name]);
    let fetched = gate.asked();
    assert!(!fetched.is_empty());
    assert!(
        fetched.iter().all(|a| *a == asked("identity", push)),
        "{fetched:?}"
    );

    let other = format!("{host}/other/app:1");
    stand.ok("b", &["image", "tag", &name, &other]);
    let text = stand.fails("b", &["push", &other]);
    assert!(text.contains("push access denied"), "{text}");
    // The password went to the token server alone.
    let shown = gate.shown();
    assert!(
        shown
            .iter()
            .all(|scheme| scheme == "Bearer" || scheme == "nothing"),
        "{shown:?}"
    );
}

/// What a server was asked: path and credentials of each request.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A server that gives every request to `answer`, which gets its path, and that keeps what it was asked.
fn listening(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> (Listening, Asked) {
    let asked = Asked::default();
    let keep = Arc::clone(&asked);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let serve = move |client: &TcpStream| {
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut reader = BufReader::new(client);
        let Some((first, headers)) = head(&mut reader)? else {
            return Ok(());
        };
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let shown = value(&headers, "authorization").unwrap_or_default();
        keep.lock().unwrap().push((path.clone(), shown.to_owned()));
        let text = answer(&path);
        write!(
            &mut &*client,
            "{text}Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    (Listening::start(listener, Arc::default(), serve), asked)
}

/// CVE-2020-15157's class: content may lie with others, whose challenges are not the registry's.
#[test]
fn a_stranger_whom_the_registry_sends_us_to_gets_no_credentials() {
    let stand = Stand::new("stranger");
    let challenge = Arc::new(Mutex::new(String::new()));
    let wanted = Arc::clone(&challenge);
    let (stranger, strangers) = listening(move |_| {
        let challenge = wanted.lock().unwrap();
        format!("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\n")
    });
    let elsewhere = format!("http://{}", stranger.address);
    let to = elsewhere.clone();
    let (registry, registrys) = listening(move |path| match path {
        "/v2/" => "HTTP/1.1 200 OK\r\n".to_owned(),
        path => format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}{path}\r\n"),
    });
    let host = registry.address.to_string();
    let docker = stand.scratch.dir("home/.docker");
    let user = base64::engine::general_purpose::STANDARD.encode("ann:secret");
    let logins = [
        format!(r#"{{"auth":"{user}"}}"#),
        r#"{"identitytoken":"secret"}"#.to_owned(),
    ];
    for login in &logins {
        let kept = format!(r#"{{"auths":{{"{host}":{login}}}}}"#);
        std::fs::write(docker.join("config.json"), kept).unwrap();
        for wanted in [
            format!("Bearer realm=\"{elsewhere}/token\",service=\"s\""),
            "Basic realm=\"s\"".to_owned(),
        ] {
            challenge.lock().unwrap().clone_from(&wanted);
            let text = stand.fails("a", &["pull", &format!("{host}/team/app:1")]);
            assert!(text.contains("pull access denied"), "{wanted}: {text}");
        }
    }
    let (strangers, registrys) = (strangers.lock().unwrap(), registrys.lock().unwrap());
    assert!(!strangers.is_empty());
    for (path, shown) in strangers.iter().chain(registrys.iter()) {
        assert!(shown.is_empty(), "{path} was shown {shown}");
        assert!(!path.starts_with("/token"), "{path}");
    }
}

fn copied(from: &Path, files: &[(&str, &str)], to: &Path) {
    for (file, name) in files {
        std::fs::copy(from.join(file), to.join(name)).unwrap();
    }
}

#[test]
fn a_certificate_is_shown_where_docker_keeps_it() {
    require!(server::available());
    require!(skip::program("openssl"));
    let stand = Stand::new("certificates");
    let (authority, certificate, key) = certificates(&stand);
    // The client's own, of the same authority.
    signed(&stand, "client", "ann", "extendedKeyUsage=clientAuth\n");
    let setup = Setup {
        tls: Some((certificate, key)),
        client_authority: Some(authority),
        ..Setup::default()
    };
    let server = Server::with(stand.path(), &setup);
    let name = format!("{}/app:1", server.host());
    let image = stand.load("a", &layers(42, 2, 50_000), Packing::Gzip, &name);

    let certs = stand
        .scratch
        .dir(format!("home/.config/containers/certs.d/{}", server.host()));
    copied(stand.path(), &[("ca.crt", "ca.crt")], &certs);
    let text = stand.fails("a", &["push", "--tls-verify", &name]);
    assert!(text.contains("cannot reach the registry"), "{text}");
    // A certificate without its key is not passed over.
    copied(stand.path(), &[("client.crt", "client.cert")], &certs);
    let text = stand.fails("a", &["push", "--tls-verify", &name]);
    assert!(text.contains("client.key"), "{text}");
    copied(stand.path(), &[("client.key", "client.key")], &certs);
    stand.ok("a", &["push", "--tls-verify", &name]);
    stand.ok("b", &["pull", "--tls-verify", &name]);
    assert_eq!(stand.image("b", &name), Some(image.clone()));
    // The same by a flag, with nothing in the usual places.
    let named = stand.scratch.join("named");
    std::fs::rename(&certs, &named).unwrap();
    let named = named.to_str().unwrap();
    stand.ok("c", &["pull", "--tls-verify", "--cert-dir", named, &name]);
    assert_eq!(stand.image("c", &name), Some(image));
    stand.fails("d", &["pull", "--tls-verify", &name]);
}
