//! Who a user of an image is: names are looked up in its `/etc/passwd` and `/etc/group`, opened so that no symlink of
//! the image leads out of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::error::ContainerError;

/// Larger files are nobody's list of users.
const LONGEST: u64 = 4 << 20;

/// A user of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Groups beside `gid`.
    pub(super) groups: Vec<u32>,
    /// Its home directory, where it is known.
    pub(super) home: Option<String>,
}

/// Opens a file of a root filesystem as a process in it would; a fifo or device is not waited for.
fn read_inside(rootfs: &Path, name: &str) -> io::Result<Vec<u8>> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())?;
    let opened = rustix::fs::openat2(
        &root,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn rows(text: &[u8]) -> Vec<Vec<String>> {
    String::from_utf8_lossy(text)
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect())
        .collect()
}

fn number(row: &[String], at: usize) -> Option<u32> {
    row.get(at)?.parse().ok()
}

/// Looks up `USER[:GROUP]` in a root filesystem; empty is root.
pub(super) fn find(rootfs: &Path, wanted: &str) -> Result<User, ContainerError> {
    let read = |name: &str| {
        read_inside(rootfs, name).map_err(ContainerError::io("read", rootfs.join(name)))
    };
    find_in(&read("etc/passwd")?, &read("etc/group")?, wanted)
}

fn find_in(passwd: &[u8], group: &[u8], wanted: &str) -> Result<User, ContainerError> {
    let (user, of_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let users = rows(passwd);
    let groups = rows(group);
    let by_number = user.parse::<u32>().ok();
    // As docker: a name first, also one of digits alone.
    let row = users
        .iter()
        .find(|row| row.first().is_some_and(|name| name == user))
        .or_else(|| {
            users
                .iter()
                .find(|row| by_number.is_some() && number(row, 2) == by_number)
        });
    let uid = match (row.and_then(|row| number(row, 2)), by_number) {
        (Some(uid), _) | (None, Some(uid)) => uid,
        (None, None) => {
            return Err(ContainerError::Usage(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let gid = match of_group {
        None => row.and_then(|row| number(row, 3)).unwrap_or(0),
        Some(name) => groups
            .iter()
            .find(|row| row.first().is_some_and(|n| n == name))
            .and_then(|row| number(row, 2))
            .or_else(|| name.parse().ok())
            .ok_or_else(|| {
                ContainerError::Usage(format!(
                    "unable to find group {name}: no matching entries in group file"
                ))
            })?,
    };
    let mut others = Vec::new();
    if of_group.is_none()
        && let Some(name) = row.and_then(|row| row.first())
    {
        let member = |row: &&Vec<String>| {
            row.get(3)
                .is_some_and(|list| list.split(',').any(|m| m == name))
        };
        others.extend(
            groups
                .iter()
                .filter(member)
                .filter_map(|row| number(row, 2)),
        );
        others.retain(|other| *other != gid);
    }
    Ok(User {
        uid,
        gid,
        groups: others,
        home: row
            .and_then(|row| row.get(5))
            .filter(|home| home.starts_with('/'))
            .cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n77:x:5:6::/five:\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:34:\naudio:x:29:web,x\nvideo:x:44:y,web\n";

    fn user(wanted: &str) -> Result<User, String> {
        find_in(PASSWD, GROUP, wanted).map_err(|e| e.to_string())
    }

    #[test]
    fn names_and_numbers() {
        let root = user("").unwrap();
        assert_eq!(
            (root.uid, root.gid, root.home.as_deref()),
            (0, 0, Some("/root"))
        );
        let web = user("web").unwrap();
        assert_eq!((web.uid, web.gid, web.groups), (33, 34, vec![29, 44]));
        let web = user("33:audio").unwrap();
        assert_eq!((web.uid, web.gid, web.groups), (33, 29, vec![]));
        let nobody = user("1000:1001").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home), (1000, 1001, None));
        assert_eq!(user("77").unwrap().uid, 5);
        assert!(
            user("nope")
                .unwrap_err()
                .contains("unable to find user nope")
        );
        assert!(
            user("web:nope")
                .unwrap_err()
                .contains("unable to find group nope")
        );
    }

    #[test]
    fn a_symlink_does_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        std::fs::write(dir.path().join("passwd"), "evil:x:0:0::/:\n").unwrap();
        std::os::unix::fs::symlink("../../passwd", dir.path().join("root/etc/passwd")).unwrap();
        let found = find(&dir.path().join("root"), "evil");
        assert!(matches!(found, Err(ContainerError::Usage(_))), "{found:?}");
    }
}
