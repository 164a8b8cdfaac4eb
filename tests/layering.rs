//! The modules depend on one another downwards only.
//!
//! Reads every `crate::` path of the sources (and `super::` chains that climb to the crate's root) and fails on
//! an arrow that goes up. The binary's `acetate::` paths count as `main`'s.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// What each module may use, itself aside.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("layer", &["sys"]),
    ("union", &["layer", "sys"]),
    ("image", &["layer", "sys"]),
    // Of `sys` it uses descriptors and sockets; layers are the union's business.
    ("fuse", &["union", "sys"]),
    ("mount", &["fuse", "image", "union", "layer", "sys"]),
    ("container", &["mount", "image", "union", "layer", "sys"]),
    ("bench", &["mount", "image", "union", "layer", "sys"]),
    ("snapshotter", &["mount", "image", "union", "layer", "sys"]),
    (
        "cli",
        &[
            "snapshotter",
            "bench",
            "container",
            "mount",
            "image",
            "union",
            "layer",
            "sys",
        ],
    ),
    ("main", &["cli"]),
];

/// The source without comments and without what stands in string and character literals.
fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    while i < bytes.len() {
        let rest = &source[i..];
        if rest.starts_with("//") {
            i += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            let mut depth = 0;
            while i < bytes.len() {
                if source.as_bytes()[i..].starts_with(b"/*") {
                    depth += 1;
                    i += 2;
                } else if source.as_bytes()[i..].starts_with(b"*/") {
                    depth -= 1;
                    i += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    i += 1;
                }
            }
        } else if let Some(hashes) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = i + rest.find('"').unwrap() + 1;
            i = source[body..]
                .find(&end)
                .map_or(source.len(), |at| body + at + end.len());
        } else if bytes[i] == b'"' {
            i += 1;
            while i < bytes.len() && bytes[i] != b'"' {
                i += if bytes[i] == b'\\' { 2 } else { 1 };
            }
            i += 1;
        } else if let Some(length) = char_literal(rest) {
            i += length;
        } else {
            let c = rest.chars().next().unwrap();
            out.push(c);
            i += c.len_utf8();
        }
    }
    out
}

/// The number of `#` of a raw string that begins here.
fn raw_string(rest: &str) -> Option<usize> {
    let rest = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// The length of a character literal that begins here; a lifetime is none.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if let Some(escaped) = inner.strip_prefix('\\') {
        return Some(2 + escaped[1..].find('\'')? + 2);
    }
    let c = inner.chars().next()?;
    inner[c.len_utf8()..]
        .starts_with('\'')
        .then_some(2 + c.len_utf8())
}

/// The first names after a `crate::`: one, or those of a `{a::b, c}` group.
fn heads(after: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let after = after.trim_start();
    let Some(group) = after.strip_prefix('{') else {
        return vec![name(after)];
    };
    let mut depth = 0usize;
    let mut item = String::new();
    let mut items = Vec::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(name(&item));
                item.clear();
                continue;
            }
            _ => {}
        }
        item.push(c);
    }
    items.push(name(&item));
    items.retain(|i| !i.is_empty());
    items
}

/// Top-level names that a source file in `depth` modules below the crate's root uses.
fn uses(source: &str, depth: usize) -> Vec<String> {
    let code = code_only(source);
    let mut found = Vec::new();
    for root in ["crate::", "acetate::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            // `acetate::` only at the start of a path: `x::acetate::` is something else.
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '$') {
                found.extend(heads(&code[at + root.len()..]));
            }
        }
    }
    let climb = "super::".repeat(depth.max(1));
    for (at, _) in code.match_indices(&climb) {
        let after = code[at + climb.len()..].trim_start_matches("super::");
        found.extend(
            heads(after)
                .into_iter()
                .filter(|n| ALLOWED.iter().any(|(module, _)| n == module)),
        );
    }
    found
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The arrows of one file that go up, as lines to print.
fn upward(relative: &Path, source: &str) -> Vec<String> {
    let parts: Vec<String> = relative
        .with_extension("")
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .filter(|p| p != "mod")
        .collect();
    let module = parts[0].as_str();
    // The crate's root declares the modules; it has nothing above or below it.
    if module == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == module) else {
        return vec![format!(
            "{}: `{module}` has no place in the order of modules",
            relative.display()
        )];
    };
    // A test may make whatever lies below, to have something to try its module on.
    let is_test = parts.last().is_some_and(|name| name.ends_with("tests"));
    let below = |used: &str| {
        let through =
            |(name, uses): &(&str, &[&str])| allowed.contains(name) && uses.contains(&used);
        allowed.contains(&used) || (is_test && ALLOWED.iter().any(through))
    };
    let mut lines: Vec<String> = uses(source, parts.len())
        .into_iter()
        .filter(|used| ALLOWED.iter().any(|(name, _)| name == used))
        .filter(|used| used != module && !below(used))
        .map(|used| format!("{}: {module} -> {used}", relative.display()))
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

#[test]
fn no_arrow_goes_up() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    let lines: Vec<String> = files
        .iter()
        .flat_map(|file| {
            upward(
                file.strip_prefix(&root).unwrap(),
                &fs::read_to_string(file).unwrap(),
            )
        })
        .collect();
    assert!(lines.is_empty(), "arrows that go up:\n{}", lines.join("\n"));
}

#[test]
fn an_arrow_that_goes_up_is_seen() {
    let cases: &[(&str, &str, bool)] = &[
        ("union/mod.rs", "use crate::layer::Layer;", false),
        ("union/mod.rs", "use crate::fuse::Adaptor;", true),
        ("union/mod.rs", "use crate::{layer, image::{Store}};", true),
        ("union/mod.rs", "// crate::fuse is above", false),
        (
            "union/mod.rs",
            "let a = \"crate::fuse\"; let b = r#\"crate::fuse\"#;",
            false,
        ),
        (
            "union/mod.rs",
            "fn f<'a>(x: &'a str) { crate::mount::f(x, '\"') }",
            true,
        ),
        ("union/file.rs", "use super::super::fuse::Adaptor;", true),
        ("union/file.rs", "use super::inode::Inode;", false),
        ("layer/upper/mod.rs", "use crate::union::Error;", true),
        ("fuse/adaptor.rs", "use crate::layer::Timestamp;", true),
        ("fuse/adaptor.rs", "use crate::sys::fd;", false),
        ("fuse/replay_tests.rs", "use crate::layer::Layer;", false),
        ("fuse/replay_tests.rs", "use crate::mount::list;", true),
        ("main.rs", "use acetate::union::Union;", true),
        ("main.rs", "acetate::cli::run()", false),
        ("surprise.rs", "", true),
    ];
    for (file, source, bad) in cases {
        let lines = upward(Path::new(file), source);
        assert_eq!(!lines.is_empty(), *bad, "{file}: {source}: {lines:?}");
    }
}
