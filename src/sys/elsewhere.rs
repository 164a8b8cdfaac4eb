//! Two questions about the host that a process in a sandbox may not answer by itself: what a file handle names, and the state of
//! a task. It asks another process, which tells numbers and lines of text, and opens nothing for it.
//!
//! The socket between them is of type `SOCK_SEQPACKET`: one message for each question and for each answer. Both begin with a
//! number, as the answer to a question of a process that died before it heard it is still there for the next one to read.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use rustix::fs::Stat;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, send, sendmsg,
};

use super::handle::{self, MAX_HANDLE};
use super::panics::caught;
use super::task;

/// The other end, once it is to be asked. Held from a question until its answer.
static ASKED: OnceLock<Mutex<OwnedFd>> = OnceLock::new();

/// First byte of a question: a number of 4 bytes and a file handle follow, and a descriptor comes with it.
const HANDLE: u8 = b'h';
/// First byte of a question: the number of a task follows, of 4 bytes.
const TASK: u8 = b't';

/// Longer than any answer.
const LONGEST: usize = 64 << 10;

/// How long the number is that a question and its answer begin with.
const NUMBER: usize = 8;

/// Of the last question of this process. Atomic.
static QUESTIONS: AtomicU32 = AtomicU32::new(0);

/// From now on the other end of `socket` is asked, where [`answer`] runs.
pub fn ask_at(socket: OwnedFd) {
    if ASKED.set(Mutex::new(socket)).is_err() {
        log::error!("another process is asked already");
    }
}

/// Attributes of what a file handle names in the filesystem of `mount`. `None`: there is nobody to be asked.
pub(super) fn stat_by_handle(
    mount: BorrowedFd<'_>,
    kind: i32,
    data: &[u8],
) -> Option<io::Result<Stat>> {
    let question = [&[HANDLE], kind.to_ne_bytes().as_slice(), data].concat();
    Some(match ask(ASKED.get()?, &question, Some(mount)) {
        Ok(answer) => read_stat(&answer),
        // Whoever was asked has died: the privilege is gone.
        Err(e) => {
            log::warn!("file handles are not looked up any more: {e}");
            Err(io::Error::from_raw_os_error(libc::EPERM))
        }
    })
}

/// What is to be known of a task, as in `/proc/PID/status`; nothing where it cannot be told. `None`: there is nobody to be
/// asked.
pub(super) fn task_status(number: u32) -> Option<String> {
    let question = [&[TASK], number.to_ne_bytes().as_slice()].concat();
    let answer = ask(ASKED.get()?, &question, None).unwrap_or_else(|e| {
        log::warn!("tasks are not looked at any more: {e}");
        Vec::new()
    });
    Some(String::from_utf8_lossy(&answer).into_owned())
}

fn ask(
    socket: &Mutex<OwnedFd>,
    question: &[u8],
    sent: Option<BorrowedFd<'_>>,
) -> io::Result<Vec<u8>> {
    let socket = socket.lock();
    let count = QUESTIONS.fetch_add(1, Ordering::Relaxed);
    let number = (u64::from(std::process::id()) << 32 | u64::from(count)).to_ne_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(sent) = &sent {
        ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(sent)));
    }
    retry_on_intr(|| {
        sendmsg(
            &*socket,
            &[IoSlice::new(&number), IoSlice::new(question)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    })?;
    loop {
        let mut answer = vec![0; NUMBER + LONGEST];
        // Answers are never empty.
        let (got, _) = retry_on_intr(|| recv(&*socket, &mut answer[..], RecvFlags::empty()))?;
        if got <= NUMBER {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.truncate(got);
        let text = answer.split_off(NUMBER);
        if answer == number {
            return Ok(text);
        }
    }
}

/// Answers questions until the other end is closed.
pub fn answer(socket: &OwnedFd) -> io::Result<()> {
    loop {
        let mut question = [0; NUMBER + 5 + MAX_HANDLE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = retry_on_intr(|| {
            recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut question)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?
        .bytes;
        if got == 0 {
            return Ok(());
        }
        let sent = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let question = question.get(..got).unwrap_or_default();
        let (number, question) = question.split_at_checked(NUMBER).unwrap_or_default();
        // As for a question that is none.
        let found = caught(|| answer_to(question, sent)).unwrap_or_else(|_| vec![0]);
        let answer = [number, &found].concat();
        retry_on_intr(|| send(socket, &answer, SendFlags::NOSIGNAL))?;
    }
}

fn answer_to(question: &[u8], sent: Option<OwnedFd>) -> Vec<u8> {
    let Some((which, rest)) = question.split_first() else {
        return vec![0];
    };
    match (*which, rest.split_first_chunk(), sent) {
        (HANDLE, Some((kind, data)), Some(mount)) => write_stat(handle::stat_here(
            mount.as_fd(),
            i32::from_ne_bytes(*kind),
            data,
        )),
        (TASK, Some((number, [])), None) => {
            let mut text = task::status_here(u32::from_ne_bytes(*number));
            text.push('\n');
            text.into_bytes()
        }
        _ => vec![0],
    }
}

/// The number of an error, 0 for none, and what was found, as it lies in memory.
fn write_stat(found: io::Result<Stat>) -> Vec<u8> {
    let (error, stat) = match found {
        Ok(stat) => (0, Some(stat)),
        Err(e) => (e.raw_os_error().unwrap_or(libc::EINVAL), None),
    };
    let mut bytes = i32::to_ne_bytes(error).to_vec();
    if let Some(stat) = stat {
        let mut place = [0u8; size_of::<Stat>()];
        // SAFETY: the place is as large as what is written there, which is made of numbers alone.
        unsafe { std::ptr::write_unaligned(place.as_mut_ptr().cast(), stat) };
        bytes.extend_from_slice(&place);
    }
    bytes
}

fn read_stat(bytes: &[u8]) -> io::Result<Stat> {
    let Some((error, stat)) = bytes.split_first_chunk() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    match i32::from_ne_bytes(*error) {
        0 if stat.len() == size_of::<Stat>() => {
            // SAFETY: there are as many bytes as it has, and it is made of numbers, of which all values are valid.
            Ok(unsafe { std::ptr::read_unaligned(stat.as_ptr().cast()) })
        }
        0 => Err(io::ErrorKind::InvalidData.into()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn asked(act: impl FnOnce(&Mutex<OwnedFd>)) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let other = std::thread::spawn(move || answer(&theirs));
        let ours = Mutex::new(ours);
        act(&ours);
        drop(ours);
        other.join().unwrap().unwrap();
    }

    #[test]
    fn a_handle_names_what_it_would_here() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "four").unwrap();
        let mount = std::fs::File::open(dir.path()).unwrap();
        let Some(found) = handle::name_to_handle(mount.as_fd(), "file".as_ref()).unwrap() else {
            eprintln!("SKIPPED: no handles here");
            return;
        };
        let question =
            |kind: i32, data: &[u8]| [&[HANDLE], kind.to_ne_bytes().as_slice(), data].concat();
        let own = handle::stat_here(mount.as_fd(), found.kind, &found.data);
        asked(|socket| {
            let answer = ask(
                socket,
                &question(found.kind, &found.data),
                Some(mount.as_fd()),
            );
            match (own, read_stat(&answer.unwrap())) {
                (Ok(own), Ok(there)) => assert_eq!(
                    (there.st_ino, there.st_nlink, there.st_size),
                    (own.st_ino, own.st_nlink, 4)
                ),
                (Err(own), Err(there)) => assert_eq!(own.raw_os_error(), there.raw_os_error()),
                (own, there) => panic!("{own:?}, but {there:?}"),
            }
            let forged = question(0x7777, &[0; MAX_HANDLE]);
            let answer = ask(socket, &forged, Some(mount.as_fd())).unwrap();
            assert!(read_stat(&answer).unwrap_err().raw_os_error().is_some());
        });
    }

    #[test]
    fn a_task_is_described_and_what_is_no_question_is_answered_too() {
        asked(|socket| {
            let own = [&[TASK], std::process::id().to_ne_bytes().as_slice()].concat();
            let text = String::from_utf8(ask(socket, &own, None).unwrap()).unwrap();
            assert!(text.contains("Groups:"), "{text}");
            for wrong in [&[TASK][..], &[HANDLE, 0, 0, 0, 0], &[0; 5 + MAX_HANDLE]] {
                assert_eq!(ask(socket, wrong, None).unwrap(), [0]);
            }
        });
    }
}
