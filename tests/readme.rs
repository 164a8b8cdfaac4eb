//! What the README tells people to type works, in the order in which it stands there.
//!
//! Blocks that begin with ```` ```sh run ```` are run by one shell, in an empty folder with `acetate` on the search
//! path and the small image that the README says how to make. The first block's commands are the project's own build
//! and test runs, which `.ci/run` executes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[path = "../examples/demo/image.rs"]
#[allow(dead_code)]
mod image;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Scratch, Watchdog, skip};

fn repository(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The code blocks of a Markdown text: what follows the fence, and the lines.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, body)), None) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block of the README does not end");
    blocks
}

#[test]
fn the_first_two_commands_are_what_ci_runs() {
    let readme = repository("README.md");
    let first = &blocks(&readme)[0].1;
    let commands: Vec<&str> = first
        .lines()
        .map(|l| l.split('#').next().unwrap().trim())
        .filter(|l| !l.is_empty())
        .collect();
    assert_eq!(commands.len(), 2, "{first}");
    let ci = repository(".ci/run");
    for command in commands {
        assert!(
            ci.lines().any(|l| l.trim() == command),
            ".ci/run does not run `{command}`"
        );
    }
}

#[test]
fn every_command_works_as_it_stands() {
    require!(skip::privileged());
    let _limit = Watchdog::new("readme", Duration::from_secs(120));
    let readme = repository("README.md");
    let script: String = blocks(&readme)
        .into_iter()
        .filter(|(info, _)| info == "sh run")
        .map(|(_, body)| body)
        .collect();
    assert!(
        script.lines().count() > 10,
        "the README shows hardly a command"
    );
    let scratch = Scratch::new("readme");
    let bin = scratch.dir("bin");
    symlink(env!("CARGO_BIN_EXE_acetate"), bin.join("acetate")).unwrap();
    let home = scratch.dir("home");
    image::build(&scratch.dir("home/image")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &script])
        .current_dir(&home)
        .env("PATH", path)
        .env("ACETATE_ROOT", scratch.join("store"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let left: Vec<_> = common::connection::mounts()
        .into_iter()
        .filter(|m| m.target.starts_with(scratch.path()))
        .collect();
    assert!(left.is_empty(), "the README leaves mounts behind: {left:?}");
}

#[test]
fn the_paths_it_names_exist() {
    let readme = repository("README.md");
    for link in readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        if !link.starts_with("http") && !link.starts_with('#') {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(link.split('#').next().unwrap());
            assert!(path.exists(), "the README links to {link}");
        }
    }
}
