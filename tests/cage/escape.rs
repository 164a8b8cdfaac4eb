//! What is tried from within the sandbox.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use acetate::sys::sandbox::Walls;
use acetate::sys::xattr::{self, Target};
use nix::unistd::getppid;
use rustix::fs::{Mode, OFlags, openat, renameat};

use super::attempts::{handle_of, map_code, open_handle, refused_calls};
use super::inside::{Ground, inside};
use crate::common::{Watchdog, skip};
use crate::require;

/// One line for each attempt that worked.
fn escaped<T>(said: &mut Vec<String>, what: &str, tried: io::Result<T>) {
    if tried.is_ok() {
        said.push(format!("{what} worked"));
    }
}

/// One line for each thing that has to work and did not.
fn works<T>(said: &mut Vec<String>, what: &str, tried: io::Result<T>) {
    if let Err(e) = tried {
        said.push(format!("{what}: {e}"));
    }
}

/// All that is tried with the ground's descriptors, which were opened before.
fn tries(ground: &Ground, root: bool) -> Box<dyn FnOnce(Walls) -> Vec<String>> {
    let dir = |path: &Path| File::open(path).unwrap();
    let (lower, upper, work) = (dir(&ground.lower), dir(&ground.upper), dir(&ground.work));
    let secret = ground.outside.join("secret");
    let mut handle = handle_of(&secret);
    Box::new(move |walls| {
        let mut said = Vec::new();
        let say = &mut said;
        let expected = Walls {
            root,
            paths: true,
            calls: true,
        };
        if walls != expected {
            say.push(format!("{walls:?}"));
        }
        // By every path that leads there.
        let parent = getppid();
        let mut paths = vec![
            "/etc/passwd".to_owned(),
            "/etc/shadow".to_owned(),
            secret.display().to_string(),
            "/proc/sys/kernel/../../../etc/passwd".to_owned(),
        ];
        for process in [parent.as_raw(), 1] {
            paths.push(format!("/proc/{process}/root{}", secret.display()));
            paths.push(format!("/proc/{process}/cwd/Cargo.toml"));
            paths.push(format!("/proc/{process}/mem"));
            for name in ["environ", "maps", "status", "cmdline"] {
                paths.push(format!("/proc/{process}/{name}"));
            }
        }
        for path in &paths {
            escaped(say, path, File::open(path));
        }
        escaped(say, "listing the root of the host", fs::read_dir("/etc"));
        for (what, fd) in [("lower", &lower), ("upper", &upper)] {
            for name in ["../outside/secret", "../../../../etc/passwd"] {
                escaped(
                    say,
                    &format!("{name} from {what}"),
                    openat(fd, name, OFlags::RDONLY, Mode::empty()).map_err(Into::into),
                );
            }
        }
        // By a symlink that somebody put into a layer.
        escaped(
            say,
            "following a symlink",
            std::os::unix::fs::symlink(&secret, format!("/proc/self/fd/{}/out", fd_of(&upper)))
                .and_then(|()| Ok(openat(&upper, "out", OFlags::RDONLY, Mode::empty())?)),
        );
        for flags in [libc::O_RDONLY, libc::O_PATH] {
            if let Some(handle) = &mut handle {
                escaped(
                    say,
                    "open_by_handle_at",
                    open_handle(upper.as_fd(), handle, flags),
                );
            }
        }
        for path in [
            "/proc/sys/kernel/core_pattern",
            "/proc/sysrq-trigger",
            "/proc/self/oom_score_adj",
        ] {
            escaped(say, path, OpenOptions::new().write(true).open(path));
        }
        escaped(
            say,
            "writing to a lower layer",
            openat(&lower, "file", OFlags::WRONLY, Mode::empty()).map_err(Into::into),
        );
        escaped(
            say,
            "making a file in a lower layer",
            openat(
                &lower,
                "new",
                OFlags::CREATE | OFlags::WRONLY,
                Mode::from_raw_mode(0o644),
            )
            .map_err(Into::into),
        );
        escaped(say, "mapping code", map_code());
        escaped(
            say,
            "a program",
            std::process::Command::new("/bin/true").status(),
        );
        escaped(
            say,
            "a connection",
            std::os::unix::net::UnixStream::pair()
                .and_then(|_| std::net::TcpStream::connect("127.0.0.1:9")),
        );
        for (call, result) in refused_calls(parent.as_raw()) {
            match result {
                Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
                other => say.push(format!("{call}: {other:?}")),
            }
        }
        let sets = rustix::thread::capabilities(None).unwrap();
        let mut more = sets;
        more.permitted |= rustix::thread::CapabilitySet::SYS_PTRACE;
        more.effective |= rustix::thread::CapabilitySet::SYS_PTRACE;
        escaped(
            say,
            "taking a capability back",
            rustix::thread::set_capabilities(None, more).map_err(Into::into),
        );

        // And what a mount is there for.
        let lower_file = openat(&lower, "file", OFlags::RDONLY, Mode::empty());
        works(
            say,
            "reading a lower file",
            lower_file
                .map_err(Into::into)
                .and_then(|fd| io::read_to_string(File::from(fd))),
        );
        let make = |name| {
            openat(
                &work,
                name,
                OFlags::CREATE | OFlags::RDWR,
                Mode::from_raw_mode(0o600),
            )
        };
        works(say, "staging", make("staged").map_err(Into::into));
        works(
            say,
            "publishing",
            renameat(&work, "staged", &upper, "published").map_err(Into::into),
        );
        let again = openat(&upper, "published", OFlags::PATH, Mode::empty()).unwrap();
        works(
            say,
            "reopening",
            acetate::sys::path_fd::reopen(&again, OFlags::RDWR),
        );
        works(say, "a mode", acetate::sys::path_fd::chmod(&again, 0o640));
        let name = if root {
            "trusted.overlay.opaque"
        } else {
            "user.overlay.opaque"
        };
        works(
            say,
            "an xattr",
            xattr::set(Target::Fd(again.as_fd()), name.as_ref(), b"y", 0),
        );
        works(
            say,
            "a fifo",
            rustix::fs::mknodat(
                &upper,
                "fifo",
                rustix::fs::FileType::Fifo,
                Mode::from_raw_mode(0o600),
                0,
            )
            .map_err(Into::into),
        );
        works(
            say,
            "a whiteout",
            rustix::fs::mknodat(
                &upper,
                "gone",
                rustix::fs::FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .map_err(Into::into),
        );
        works(
            say,
            "a thread",
            std::thread::Builder::new().spawn(|| ()).map(|t| t.join()),
        );
        said
    })
}

fn fd_of(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
}

#[test]
fn a_daemon_that_was_taken_over_reaches_nothing_but_its_layers() {
    require!(skip::privileged());
    let _limit = Watchdog::new("escape", Duration::from_secs(60));
    let ground = Ground::new("escape");
    // Without the sandbox each of the ways leads there.
    File::open(ground.upper.join("../outside/secret")).unwrap();
    let said = inside(&ground, false, || tries(&ground, true));
    assert_eq!(said, Vec::<String>::new());
    assert_eq!(fs::read(ground.lower.join("file")).unwrap(), b"lower");
    assert!(!ground.lower.join("new").exists());
    assert!(ground.upper.join("published").exists());
}

#[test]
fn so_does_that_of_a_plain_user() {
    require!(skip::privileged());
    let _limit = Watchdog::new("escape of a plain user", Duration::from_secs(60));
    let ground = Ground::new("escape-plain");
    for dir in [&ground.upper, &ground.work, &ground.outside] {
        std::os::unix::fs::chown(dir, Some(65534), Some(65534)).unwrap();
    }
    let said = inside(&ground, true, || tries(&ground, false));
    assert_eq!(said, Vec::<String>::new());
    assert_eq!(fs::read(ground.lower.join("file")).unwrap(), b"lower");
}

/// What is opened with the flags of a program that is run, by passthrough, is not denied to the programs on the mount.
#[test]
fn a_descriptor_of_before_stays_good() {
    require!(skip::privileged());
    let _limit = Watchdog::new("descriptors of before", Duration::from_secs(60));
    let ground = Ground::new("descriptors");
    let secret = ground.outside.join("secret");
    let said = inside(&ground, false, || {
        let mut log = OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(&secret)
            .unwrap();
        Box::new(move |_| {
            let mut said = Vec::new();
            works(
                &mut said,
                "the log",
                io::Write::write_all(&mut log, b", and more"),
            );
            said
        })
    });
    assert_eq!(said, Vec::<String>::new());
    assert_eq!(fs::read(&secret).unwrap(), b"secret, and more");
}
