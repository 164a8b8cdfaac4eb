//! What a mount needs done outside of the sandbox in which it is served: unmounting, other flags for the mount, and what is
//! taken away at the end. All of it is settled before the first request; of the process that serves come one-byte orders
//! to do it now, and no path.
//!
//! Another process does it, also where there is no sandbox: it was forked from the one that serves, holds nothing of the mount
//! open, and ends with it. So nobody who serves a mount ever waits for that very mount, and could not be ended then.
//!
//! Several processes may serve a mount one after the other (see `supervise`), and give their orders by the same socket. One that
//! died left an answer there that the next one did not ask for: each order has a number, which comes back with its answer.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::unistd::Pid;
use parking_lot::Mutex;
use rustix::io::retry_on_intr;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown,
    SocketFlags, SocketType, recv, recvmsg, send, shutdown, socketpair,
};
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::set_name;

use super::log::Log;
use super::{control, private, runtime, state};
use crate::sys::daemon::{Beside, close_all_but, detach_stdio, fork_beside};
use crate::sys::elsewhere;
use crate::sys::memory;
use crate::sys::mount as sys_mount;
use crate::sys::panics::caught;
use crate::sys::worker;

/// The kernel reads ahead as far as on a disk that is striped; FUSE's own limit is 128 KiB.
const READ_AHEAD_KIB: u32 = 1024;

/// Longer than any text of an error that is passed on.
const LONGEST: usize = 4096;

/// What an order and its answer begin with: see [`number_of`].
const NUMBER: usize = 8;

/// All that it takes. Immutable.
#[derive(Debug)]
pub(super) struct Scene {
    /// Names the mount among the others.
    pub(super) id: String,
    pub(super) mountpoint: PathBuf,
    /// The device number of what is mounted, once it has answered.
    pub(super) device: OnceLock<String>,
    /// Where the record, the socket and the log lie.
    pub(super) runtime: Option<PathBuf>,
    pub(super) log: Log,
    /// Holds an upper that is thrown away.
    pub(super) private: Option<PathBuf>,
    /// Standard input, output and error are somebody else's.
    pub(super) detached: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Order {
    Touch = 1,
    Unmount,
    Detach,
    ReadOnly,
    Writable,
    SweepLogs,
    Discard,
    Rest,
    Finish,
    /// The one who gives it is the daemon from now on.
    Alone,
    /// The mount answers: to be told the supervisor.
    Ready,
}

impl Order {
    const ALL: [Order; 11] = [
        Order::Touch,
        Order::Unmount,
        Order::Detach,
        Order::ReadOnly,
        Order::Writable,
        Order::SweepLogs,
        Order::Discard,
        Order::Rest,
        Order::Finish,
        Order::Alone,
        Order::Ready,
    ];

    fn from_byte(byte: u8) -> Option<Order> {
        Order::ALL.into_iter().find(|order| *order as u8 == byte)
    }
}

/// The device number of the mount that another program serves until now, who may not be kept waiting by a look at it.
pub(super) fn device_in_table(mountpoint: &Path) -> OnceLock<String> {
    let found = sys_mount::mount_table().map(|table| {
        table
            .into_iter()
            .rfind(|entry| entry.mountpoint == mountpoint && entry.fs_type == sys_mount::FS_TYPE)
    });
    match found {
        Ok(Some(entry)) => OnceLock::from(entry.device),
        Ok(None) => OnceLock::new(),
        Err(e) => {
            log::debug!("the mount table cannot be read: {e}");
            OnceLock::new()
        }
    }
}

impl Scene {
    /// `from`: the process that gave the order.
    fn follow(&self, order: Order, from: Option<u32>) -> io::Result<()> {
        match order {
            Order::Touch => self.touch()?,
            Order::Unmount => self.unmount(false)?,
            Order::Detach => self.unmount(true)?,
            Order::ReadOnly => control::set_own_read_only(&self.mountpoint, true)?,
            Order::Writable => control::set_own_read_only(&self.mountpoint, false)?,
            Order::SweepLogs => self.runtime.iter().for_each(|dir| runtime::sweep_logs(dir)),
            Order::Rest => rest()?,
            Order::Discard => self.private.iter().for_each(|dir| private::discard(dir)),
            Order::Finish => self.finish(),
            Order::Alone => self.now_served_by(from)?,
            Order::Ready => worker::say_ready()?,
        }
        Ok(())
    }

    fn touch(&self) -> io::Result<()> {
        std::fs::metadata(&self.mountpoint)?;
        let device = sys_mount::device_of(&self.mountpoint)?;
        if let Err(e) = sys_mount::set_read_ahead(&device, READ_AHEAD_KIB) {
            log::debug!("the readahead stays as it is: {e}");
        }
        // A second daemon finds the same.
        self.device.get_or_init(|| device);
        Ok(())
    }

    fn unmount(&self, lazy: bool) -> io::Result<()> {
        match self.device.get() {
            Some(device) => sys_mount::unmount_device(device, &self.mountpoint, lazy),
            // It never answered.
            None => sys_mount::unmount(&self.mountpoint, lazy),
        }
    }

    fn now_served_by(&self, from: Option<u32>) -> io::Result<()> {
        let (Some(dir), Some(from)) = (&self.runtime, from) else {
            return Ok(());
        };
        state::set_daemon(dir, &self.id, from)
    }

    /// The record goes last: who waits for the mount to be gone waits for that.
    fn finish(&self) {
        if let Some(dir) = &self.runtime {
            state::remove(&state::socket_path(dir, &self.id));
        }
        self.log.end();
        if let Some(dir) = &self.runtime {
            state::remove(&state::record_path(dir, &self.id));
        }
    }
}

/// For as long as the mount lives there is hardly anything to do: the memory of the start is given back.
fn rest() -> io::Result<()> {
    memory::give_back();
    memory::Code::find()?.let_go()
}

/// The process outside.
#[derive(Debug)]
pub(super) struct Outside {
    /// Held from an order until its answer.
    socket: Mutex<OwnedFd>,
    /// Of the last order. Atomic.
    orders: AtomicU32,
    /// Immutable.
    process: Pid,
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

impl Outside {
    /// Starts the process. Must be called while this one has no other thread.
    pub(super) fn beside(scene: Scene) -> io::Result<Outside> {
        let (orders, their_orders) = pair()?;
        let (questions, their_questions) = pair()?;
        match fork_beside()? {
            Beside::Old(process) => {
                // It has closed its copies of all that this process holds: locks among them, and the connection.
                let mut ready = [0];
                drop(their_orders);
                if retry_on_intr(|| recv(&orders, &mut ready, RecvFlags::empty()))?.0 == 0 {
                    return Err(io::Error::other("the process outside does not start"));
                }
                elsewhere::ask_at(questions);
                Ok(Outside {
                    socket: Mutex::new(orders),
                    orders: AtomicU32::new(0),
                    process,
                })
            }
            Beside::New => {
                let code = match attend(&scene, &their_orders, their_questions) {
                    Ok(()) => 0,
                    Err(e) => {
                        log::error!("outside of the sandbox: {e}");
                        1
                    }
                };
                // Never back into what the other process goes on with.
                std::process::exit(code)
            }
        }
    }

    /// The number of the process outside, which is in the mount namespace in which the mount was made.
    pub(super) fn process(&self) -> Option<u32> {
        u32::try_from(self.process.as_raw()).ok()
    }

    /// Waits until the mount answers.
    pub(super) fn touch(&self) -> io::Result<()> {
        self.order(Order::Touch)
    }

    /// `lazy`: also where it is busy.
    pub(super) fn unmount(&self, lazy: bool) -> io::Result<()> {
        self.order(if lazy { Order::Detach } else { Order::Unmount })
    }

    /// Takes the right to write away from the filesystem, or gives it back.
    pub(super) fn set_read_only(&self, wanted: bool) -> io::Result<()> {
        self.order(if wanted {
            Order::ReadOnly
        } else {
            Order::Writable
        })
    }

    /// Takes away old logs of other mounts. Best effort.
    pub(super) fn sweep_logs(&self) {
        self.attempt(Order::SweepLogs);
        self.attempt(Order::Rest);
    }

    /// Throws the private upper away. Best effort: the next command sweeps what is left.
    pub(super) fn discard(&self) {
        self.attempt(Order::Discard);
    }

    /// Takes away the socket, an empty log, and the record last; then the process outside ends. Best effort: what stays
    /// is swept by the next command.
    pub(super) fn finish(&self) {
        self.attempt(Order::Finish);
        if let Err(e) = shutdown(&*self.socket.lock(), Shutdown::Both) {
            log::debug!("the process outside: {e}");
        }
        // Nobody else would take its remains away where there is no init.
        let pid = rustix::process::Pid::from_raw(self.process.as_raw());
        if let Err(e) = retry_on_intr(|| waitpid(pid, WaitOptions::empty())) {
            log::debug!("the process outside: {e}");
        }
    }

    /// This process is the daemon from now on, which the record says of its supervisor. Best effort.
    pub(super) fn serve_alone(&self) {
        self.attempt(Order::Alone);
    }

    /// Tells the supervisor, which this process may send no signal, that the mount answers.
    pub(super) fn say_ready(&self) -> io::Result<()> {
        self.order(Order::Ready)
    }

    fn attempt(&self, order: Order) {
        if let Err(e) = self.order(order) {
            log::warn!("{order:?}: {e}");
        }
    }
}

/// Names an order among those that were given by the same socket, also by processes that have died.
fn number_of(process: u32, order: u32) -> [u8; NUMBER] {
    (u64::from(process) << 32 | u64::from(order)).to_ne_bytes()
}

impl Outside {
    fn order(&self, order: Order) -> io::Result<()> {
        let socket = self.socket.lock();
        let count = self.orders.fetch_add(1, Ordering::Relaxed);
        let number = number_of(std::process::id(), count);
        let mut message = number.to_vec();
        message.push(order as u8);
        retry_on_intr(|| send(&*socket, &message, SendFlags::NOSIGNAL))?;
        loop {
            let mut answer = [0; NUMBER + LONGEST];
            let (got, _) = retry_on_intr(|| recv(&*socket, &mut answer, RecvFlags::empty()))?;
            let ended = || io::Error::other("the process outside has ended");
            let (to, answer) = answer[..got].split_at_checked(NUMBER).ok_or_else(ended)?;
            if to != number {
                // What a process before asked for, and did not live to hear.
                continue;
            }
            let (error, text) = answer.split_first_chunk().ok_or_else(ended)?;
            return match (i32::from_ne_bytes(*error), text) {
                (0, []) => Ok(()),
                (0, text) => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
                (error, _) => Err(io::Error::from_raw_os_error(error)),
            };
        }
    }
}

/// An order, or what else came, with the process that sent it; nothing when there is nobody any more.
fn next_order(orders: &OwnedFd) -> io::Result<Option<(Vec<u8>, Option<u32>)>> {
    // Room for one byte more, so that what is no order is not taken for one.
    let mut message = [0; NUMBER + 2];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = retry_on_intr(|| {
        recvmsg(
            orders,
            &mut [IoSliceMut::new(&mut message)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?
    .bytes;
    let from = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => {
            u32::try_from(sender.pid.as_raw_nonzero().get()).ok()
        }
        _ => None,
    });
    Ok((got > 0).then(|| (message[..got].to_vec(), from)))
}

/// The life of the process outside: it ends when the other one has.
fn attend(scene: &Scene, orders: &OwnedFd, questions: OwnedFd) -> io::Result<()> {
    let mut kept = vec![orders.as_raw_fd(), questions.as_raw_fd()];
    kept.extend(Log::descriptor());
    close_all_but(&kept)?;
    if scene.detached {
        detach_stdio()?;
    }
    std::env::set_current_dir("/")?;
    thread::Builder::new()
        .name("questions".into())
        .spawn(move || {
            if let Err(e) = elsewhere::answer(&questions) {
                log::debug!("questions: {e}");
            }
        })?;
    // Who looks at the processes of a mount has to tell this one from the one that serves it.
    set_name(c"acetate-outside")?;
    // Of whichever process it is that serves the mount at the time.
    set_socket_passcred(orders, true)?;
    retry_on_intr(|| send(orders, &[0], SendFlags::NOSIGNAL))?;
    while let Some((message, from)) = next_order(orders)? {
        let Some((number, order)) = message.split_at_checked(NUMBER) else {
            continue;
        };
        let done = match order {
            [order] => Order::from_byte(*order),
            _ => None,
        };
        let done = match done {
            Some(order) => caught(|| scene.follow(order, from))
                .unwrap_or_else(|text| Err(io::Error::other(text))),
            None => Err(io::ErrorKind::InvalidInput.into()),
        };
        let answer = [number, &encode(done)].concat();
        match retry_on_intr(|| send(orders, &answer, SendFlags::NOSIGNAL)) {
            Ok(_) => {}
            Err(rustix::io::Errno::PIPE) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The number of an error, or 0 and its text where it has none.
fn encode(done: io::Result<()>) -> Vec<u8> {
    let Err(e) = done else {
        return 0i32.to_ne_bytes().to_vec();
    };
    let mut bytes = e.raw_os_error().unwrap_or(0).to_ne_bytes().to_vec();
    if e.raw_os_error().is_none() {
        bytes.extend_from_slice(e.to_string().as_bytes());
        bytes.truncate(LONGEST);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_are_read_as_they_were_written() {
        for order in Order::ALL {
            assert_eq!(Order::from_byte(order as u8), Some(order));
        }
        assert_eq!(Order::from_byte(0), None);
        assert_eq!(Order::from_byte(12), None);
        assert_eq!(encode(Ok(())), [0; 4]);
        let text = encode(Err(io::Error::other("busy")));
        assert_eq!(&text[4..], b"busy");
        let number = encode(Err(io::Error::from_raw_os_error(libc::EBUSY)));
        assert_eq!(number, libc::EBUSY.to_ne_bytes());
    }
}
