//! Terminals: size, keys to let go, and being joined again.

use std::process::Command;

use crate::common::program::find;
use crate::common::terminal::type_at;
use crate::require;
use crate::rig::{Rig, able};

/// Types into `acetate WORDS` on a terminal of 33 rows and 99 columns; gives its exit code and what it showed.
fn on_terminal(
    rig: &Rig,
    words: &str,
    rouse: Option<&[u8]>,
    answers: &[(&str, &[u8])],
) -> (Option<i32>, String) {
    let binary = rig.command(&[]).get_program().to_owned();
    let line = format!(
        "stty rows 33 cols 99; exec timeout --foreground 60 {} {words}",
        binary.to_str().unwrap()
    );
    let mut command = Command::new("script");
    command.env("ACETATE_ROOT", &rig.root);
    let shown = type_at(command, &line, rouse, answers);
    (shown.status.code(), shown.text)
}

#[test]
fn a_terminal_has_a_size_and_can_be_left_and_joined() {
    const PROMPT: &str = "/ # ";
    require!(able());
    require!(find("script").map(drop));
    let rig = Rig::new("terminal");
    let (code, shown) = on_terminal(
        &rig,
        "run --rm -it bb sh -c 'stty size; tty; exit 5'",
        None,
        &[],
    );
    assert_eq!(code, Some(5), "{shown}");
    assert!(
        shown.contains("33 99") && shown.contains("/dev/pts/0"),
        "{shown}"
    );
    let (code, shown) = on_terminal(
        &rig,
        "run -it --name tt bb",
        None,
        &[(PROMPT, b"A=kept; echo $((40+2))\n"), ("42", b"\x10\x11")],
    );
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(rig.status("tt"), "running");
    // One shell more is left in the same way, and goes on.
    let (code, shown) = on_terminal(
        &rig,
        "exec -it tt sh -c 'stty size; while [ ! -e /end ]; do sleep 0.1; done; echo gone > /told'",
        None,
        &[("33 99", b"\x10\x11")],
    );
    assert_eq!(code, Some(0), "{shown}");
    rig.must(&["exec", "tt", "touch", "/end"]);
    rig.until("the shell that was left has gone on", || {
        rig.acetate(&["exec", "tt", "cat", "/told"]).text.trim() == "gone"
    });
    let (code, shown) = on_terminal(
        &rig,
        "exec -it tt sh -c 'echo at $((6*7)); exit 6'",
        None,
        &[],
    );
    assert_eq!(code, Some(6), "{shown}");
    assert!(shown.contains("at 42"), "{shown}");
    let (code, shown) = on_terminal(&rig, "exec -it tt no-such-program", None, &[]);
    assert_eq!(code, Some(127), "{shown}");
    // Who joins a shell sees its prompt after the next line.
    let (code, shown) = on_terminal(
        &rig,
        "attach tt",
        Some(b"\n"),
        &[(PROMPT, b"echo is $A\n"), ("is kept", b"exit 9\n")],
    );
    assert_eq!(code, Some(9), "{shown}");
    assert_eq!(rig.status("tt"), "exited");
    let (code, shown) = on_terminal(
        &rig,
        "run --rm -it bb sh -c 'trap \"exit 4\" INT; echo re\"\"ady; while :; do sleep 0.1; done'",
        None,
        &[("ready", b"\x03")],
    );
    assert_eq!(code, Some(4), "{shown}");
    rig.must(&["rm", "tt"]);
    rig.nothing_is_left();
}
