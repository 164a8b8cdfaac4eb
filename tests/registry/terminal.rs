//! What is seen at a terminal: a prompt that shows no password, and bars.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::build::Packing;
use crate::common::{program, skip};
use crate::require;
use crate::server::{self, Server, Setup};
use crate::stand::{LIMIT, Stand, layers};

/// Runs a command of the program at a terminal. Each answer is typed when its question is there. Gives what was shown.
fn at_terminal(stand: &Stand, arguments: &[&str], answers: &[(&str, &str)]) -> String {
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
    command.args(["-qefc", &line, "/dev/null"]);
    stand.surround(&mut command);
    command
        .env("ACETATE_ROOT", stand.root("a"))
        .env("TERM", "xterm");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It stays open until the end, as a terminal does.
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = Vec::new();
    let mut piece = [0; 4096];
    let mut answers = answers.iter();
    let mut next = answers.next();
    let mut from = 0;
    loop {
        let n = stdout.read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        shown.extend_from_slice(&piece[..n]);
        while let Some((question, answer)) = next {
            let text = &shown[from..];
            let found = text
                .windows(question.len())
                .position(|part| part == question.as_bytes());
            let Some(at) = found else { break };
            from += at + question.len();
            writeln!(stdin, "{answer}").unwrap();
            next = answers.next();
        }
    }
    let status = child.wait().unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(status.success(), "{arguments:?}: {status}: {shown}");
    assert!(next.is_none(), "not asked for {next:?}: {shown}");
    shown
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
    let answers = [("Username: ", "ann"), ("Password: ", "se-cret")];
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
