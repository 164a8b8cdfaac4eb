//! References are read as docker reads them: tables, and a comparison with docker's grammar as it is published.

use std::sync::LazyLock;

use acetate::image::Reference;
use proptest::prelude::*;
use regex::Regex;

const COMPONENT: &str = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const LABEL: &str = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
const TAG: &str = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
const DIGEST: &str = "(?:sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128})";

/// The grammar of a reference whose registry is written out, as groups: registry, path, tag, digest.
static GRAMMAR: LazyLock<Regex> = LazyLock::new(|| {
    let host = format!("(?:{LABEL}(?:\\.{LABEL})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?");
    let text =
        format!("^(?:({host})/)?({COMPONENT}(?:/{COMPONENT})*)(?::({TAG}))?(?:@({DIGEST}))?$");
    Regex::new(&text).unwrap()
});

/// What docker makes of a reference: registry, path, tag and digest; `None` where it refuses.
fn docker(text: &str) -> Option<(String, String, Option<String>, Option<String>)> {
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    // The first component is a registry if it could be nothing else; then the default is put before it.
    let registry = text
        .split_once('/')
        .map(|(first, _)| first)
        .filter(|first| {
            first.contains(['.', ':']) || *first == "localhost" || first.to_lowercase() != **first
        });
    let whole = match registry {
        Some("index.docker.io") => text.replacen("index.docker.io", "docker.io", 1),
        Some(_) => text.to_owned(),
        None => format!("docker.io/{text}"),
    };
    let whole = match whole.strip_prefix("docker.io/") {
        Some(rest) if !rest.split(['@']).next()?.contains('/') => {
            format!("docker.io/library/{rest}")
        }
        _ => whole,
    };
    let parts = GRAMMAR.captures(&whole)?;
    let part = |i| parts.get(i).map(|m| m.as_str().to_owned());
    let (registry, path) = (part(1)?, part(2)?);
    if registry.len() + 1 + path.len() > 255 {
        return None;
    }
    let (tag, digest) = (part(3), part(4));
    let tag = match (&tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        _ => tag,
    };
    Some((registry, path, tag, digest))
}

fn ours(text: &str) -> Option<(String, String, Option<String>, Option<String>)> {
    let reference = Reference::parse(text).ok()?;
    Some((
        reference.registry().to_owned(),
        reference.repository().to_owned(),
        reference.tag().map(str::to_owned),
        reference.digest().map(str::to_owned),
    ))
}

#[test]
fn the_table_of_docker() {
    let long = "a/".repeat(128);
    let hex = "a".repeat(64);
    let digest = format!("sha256:{hex}");
    for (text, expected) in [
        ("test_com", Some("docker.io/library/test_com:latest")),
        ("test.com:tag", Some("docker.io/library/test.com:tag")),
        ("test.com:5000", Some("docker.io/library/test.com:5000")),
        ("test.com/repo:tag", Some("test.com/repo:tag")),
        ("test:5000/repo", Some("test:5000/repo:latest")),
        ("test:5000/repo:tag", Some("test:5000/repo:tag")),
        ("localhost", Some("docker.io/library/localhost:latest")),
        ("localhost/a", Some("localhost/a:latest")),
        ("LOCALHOST/a", Some("LOCALHOST/a:latest")),
        ("Uppercase.io/a", Some("Uppercase.io/a:latest")),
        ("docker.io/a", Some("docker.io/library/a:latest")),
        ("docker/a", Some("docker.io/docker/a:latest")),
        ("a-b--c/d", Some("docker.io/a-b--c/d:latest")),
        (
            "xn--n3h.com/myimage:xn--n3h.com",
            Some("xn--n3h.com/myimage:xn--n3h.com"),
        ),
        (
            "[2001:db8::1]:5000/repo",
            Some("[2001:db8::1]:5000/repo:latest"),
        ),
        ("foo_bar.com:8080/a", None),
        ("", None),
        (":justtag", None),
        ("@sha256:aaaa", None),
        ("repo@sha256:ffff", None),
        ("validname@invalid:aaaa", None),
        ("Uppercase:tag", None),
        ("a/Uppercase", None),
        ("test:5000/Uppercase/lowercase:tag", None),
        ("lowercase:Upper", Some("docker.io/library/lowercase:Upper")),
        ("aa/asdf$$^/aa", None),
        ("a//b", None),
        ("-foo/bar", None),
        ("foo/_bar", None),
        ("-test.com/a", None),
        (&long, None),
        (&hex, None),
        // Odd, but a name and a tag.
        (&digest, Some(&format!("docker.io/library/{digest}")[..])),
    ] {
        let read = Reference::parse(text).ok().map(|r| r.to_string());
        assert_eq!(read.as_deref(), expected, "{text:?}");
    }
    // Such a name is only an id when nothing is beside it.
    assert!(Reference::parse(&format!("{hex}:tag")).is_ok());
    assert!(Reference::parse(&format!("h.example/{hex}")).is_ok());
    let both = format!("h:5000/a/b:tag@{digest}");
    assert_eq!(Reference::parse(&both).unwrap().to_string(), both);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever the grammar makes is read, and means the same.
    #[test]
    fn what_docker_reads_we_read(
        text in "((([a-zA-Z0-9]([a-zA-Z0-9-]{0,3}[a-zA-Z0-9])?\\.){0,2}[a-zA-Z0-9]{1,4}(:[0-9]{1,5})?|localhost|index\\.docker\\.io|docker\\.io)/)?[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,4}){0,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9})?(@sha256:[a-f0-9]{64})?"
    ) {
        prop_assert_eq!(ours(&text), docker(&text), "{:?}", text);
    }

    /// Whatever comes near it is read or refused alike.
    #[test]
    fn what_docker_refuses_we_refuse(
        text in "[a-zA-Z0-9./:@_\\[\\]-]{0,24}|[a-c./:@_A-]{0,8}(@sha256:[a-fA-F0-9]{63,65})?"
    ) {
        prop_assert_eq!(ours(&text), docker(&text), "{:?}", text);
    }

    /// What is shown can be read again.
    #[test]
    fn a_reference_survives_being_written(text in "[a-z0-9./:@-]{1,20}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(Reference::parse(&reference.to_string()).ok(), Some(reference));
        }
    }
}
