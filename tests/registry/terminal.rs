//! What is seen at a terminal: a prompt that shows no password, and bars.

use std::process::Command;

use crate::build::Packing;
use crate::common::terminal::type_at;
use crate::common::{program, skip};
use crate::require;
use crate::server::{self, Server, Setup};
use crate::stand::{LIMIT, Stand, layers};

/// Runs a command of the program at a terminal. Each answer is typed when its question is there. Gives what was shown.
fn at_terminal(stand: &Stand, arguments: &[&str], answers: &[(&str, &[u8])]) -> String {
    let inner = stand.command("a", arguments);
    let words: Vec<&str> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    let line = format!(
        "stty cols 100; exec timeout {} {}",
        LIMIT.as_secs(),
        words.join(" ")
    );
    let mut command = Command::new("script");
    stand.surround(&mut command);
    command
        .env("ACETATE_ROOT", stand.root("a"))
        .env("TERM", "xterm");
    let shown = type_at(command, &line, None, answers);
    assert!(shown.status.success(), "{arguments:?}: {shown:?}");
    shown.text
}

#[test]
fn a_terminal_shows_bars_and_no_password() {
    require!(server::available());
    require!(skip::program("htpasswd"));
    require!(program::find("script").map(drop));
    let stand = Stand::new("terminal");
    let setup = Setup {
        login: Some(("ann", "se-cret")),
        ..Setup::default()
    };
    let server = Server::with(stand.path(), &setup);
    let host = server.host();
    let name = format!("{host}/app:1");
    let image = stand.load("a", &layers(51, 2, 300_000), Packing::Gzip, &name);
    let answers = [("Username: ", &b"ann\n"[..]), ("Password: ", b"se-cret\n")];
    let shown = at_terminal(&stand, &["login", &host], &answers);
    assert!(shown.contains("Login Succeeded"), "{shown}");
    assert!(shown.contains("Username: ann"), "{shown}");
    assert!(!shown.contains("se-cret"), "{shown}");
    // Bars are drawn over and over, by sequences that move the cursor.
    let sizes = stand.layers("a", &name);
    let shown = at_terminal(&stand, &["push", &name], &[]);
    assert!(
        shown.contains("\x1b[") && shown.contains("Pushed"),
        "{shown:?}"
    );
    stand.remove("a", &name);
    let shown = at_terminal(&stand, &["pull", &name], &[]);
    for (digest, _) in sizes {
        let line = format!("{}: Pull complete", &digest["sha256:".len()..][..12]);
        assert!(shown.contains(&line), "{shown:?}");
    }
    assert!(shown.contains("\x1b["), "{shown:?}");
    assert_eq!(stand.image("a", &name), Some(image));
    // Where nobody looks, there is a line for each step and no sequence.
    stand.remove("a", &name);
    let text = stand.ok("a", &["pull", &name]);
    assert!(
        text.contains("Pull complete") && !text.contains('\x1b'),
        "{text:?}"
    );
}
