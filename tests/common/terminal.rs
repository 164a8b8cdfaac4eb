//! A program at a terminal, and somebody who types.

use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// How long nothing is shown before [`type_at`] rouses the program.
const SILENCE: Duration = Duration::from_millis(500);

/// What was seen of a program at a terminal.
#[derive(Debug)]
pub struct Shown {
    /// How it ended.
    pub status: ExitStatus,
    /// All that it showed.
    pub text: String,
}

/// Runs a shell's line at a terminal, with `script`, whose environment `command` is. Types each answer when its question was
/// shown after the one before; until then it types `rouse`, where that is given, whenever nothing happens. The line must end
/// by itself.
pub fn type_at(
    mut command: Command,
    line: &str,
    rouse: Option<&[u8]>,
    answers: &[(&str, &[u8])],
) -> Shown {
    let mut child = command
        .args(["-qefc", line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It stays open until the end, as a terminal does.
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (sender, pieces) = channel();
    let reader = thread::spawn(move || {
        let mut piece = [0; 4096];
        loop {
            let n = stdout.read(&mut piece).unwrap();
            if n == 0 || sender.send(piece[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut shown = Vec::new();
    let mut answers = answers.iter();
    let mut next = answers.next();
    let mut from = 0;
    loop {
        match pieces.recv_timeout(SILENCE) {
            Ok(piece) => shown.extend(piece),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if next.is_some()
                    && let Some(keys) = rouse
                {
                    stdin.write_all(keys).unwrap();
                }
            }
        }
        while let Some((question, answer)) = next {
            let found = shown[from..]
                .windows(question.len())
                .position(|part| part == question.as_bytes());
            let Some(at) = found else { break };
            from += at + question.len();
            stdin.write_all(answer).unwrap();
            next = answers.next();
        }
    }
    reader.join().unwrap();
    let status = child.wait().unwrap();
    let text = String::from_utf8_lossy(&shown).into_owned();
    assert!(next.is_none(), "{line}: never asked {next:?}: {text}");
    Shown { status, text }
}
