//! Terminals: size, keys to let go, and being joined again.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::program::find;
use crate::require;
use crate::rig::{Rig, able};

/// Types into `acetate WORDS` on a terminal of 33 rows and 99 columns; gives its exit code and what it showed.
fn on_terminal(rig: &Rig, words: &str, typed: &[&[u8]]) -> (Option<i32>, String) {
    let binary = rig.command(&[]).get_program().to_owned();
    let line = format!(
        "stty rows 33 cols 99; exec timeout --foreground 30 {} {words}",
        binary.to_str().unwrap()
    );
    let mut child = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .env("ACETATE_ROOT", &rig.root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let typing: Vec<Vec<u8>> = typed.iter().map(|t| t.to_vec()).collect();
    let typist = thread::spawn(move || {
        for keys in typing {
            thread::sleep(Duration::from_millis(1500));
            if stdin.write_all(&keys).is_err() {
                break;
            }
        }
        // As a terminal, it stays open until the program ends.
        thread::sleep(Duration::from_millis(1500));
    });
    let output = child.wait_with_output().unwrap();
    typist.join().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn a_terminal_has_a_size_and_can_be_left_and_joined() {
    require!(able());
    require!(find("script").map(drop));
    let rig = Rig::new("terminal");
    let (code, shown) = on_terminal(&rig, "run --rm -it bb sh -c 'stty size; tty; exit 5'", &[]);
    assert_eq!(code, Some(5), "{shown}");
    assert!(
        shown.contains("33 99") && shown.contains("/dev/pts/0"),
        "{shown}"
    );
    let (code, shown) = on_terminal(
        &rig,
        "run -it --name tt bb",
        &[b"A=kept; echo $((40+2))\n", b"\x10\x11"],
    );
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("42"), "{shown}");
    assert_eq!(rig.status("tt"), "running");
    let (code, shown) = on_terminal(&rig, "attach tt", &[b"echo is $A\n", b"exit 9\n"]);
    assert_eq!(code, Some(9), "{shown}");
    assert!(shown.contains("is kept"), "{shown}");
    assert_eq!(rig.status("tt"), "exited");
    let (code, shown) = on_terminal(
        &rig,
        "run --rm -it bb sh -c 'trap \"echo int\" INT; sleep 3; exit 4'",
        &[b"\x03"],
    );
    assert_eq!(code, Some(4), "{shown}");
    rig.must(&["rm", "tt"]);
    rig.nothing_is_left();
}
