//! Registries whose doors are opened by tokens and by certificates.

use std::path::Path;

use crate::build::Packing;
use crate::common::skip;
use crate::gate::{Gate, Guests};
use crate::login::{certificates, login, signed};
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
