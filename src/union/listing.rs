//! The merged entries of one directory, kept in memory.
//!
//! Cookies are given once and never reused while the listing lives, so a reading goes on at the right place
//! while entries come and go: a new entry gets the next cookie, a removed one leaves a gap. A name that was removed a moment
//! ago and comes back gets its own again, so that renaming it away and back does not list it twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsStr;
use std::sync::Arc;

use crate::layer::EntryKind;

/// The cookies of `.` and `..`; entries follow.
pub(crate) const COOKIE_DOT: u64 = 1;
/// See [`COOKIE_DOT`].
pub(crate) const COOKIE_DOTDOT: u64 = 2;

/// How many removed names keep their cookies.
const FORMER: usize = 16;

/// What is known of one name without asking a layer.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub name: Arc<OsStr>,
    pub file_type: u32,
    /// `d_ino`, 0 until it is known.
    pub ino: u64,
    /// The upper has an entry of this name.
    pub upper: bool,
    /// Position, among the directory's lower parts, of the topmost that has the name.
    pub lower: Option<u16>,
}

/// What a listing says of a name.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// The name is in the union.
    Item(Item),
    /// It is not; the upper has a whiteout of that name or has none.
    Absent { whiteout: bool },
}

/// The merged entries of one directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    by_name: HashMap<Arc<OsStr>, u64>,
    by_cookie: BTreeMap<u64, Item>,
    /// Names that the upper whites out.
    whiteouts: HashMap<Arc<OsStr>, ()>,
    /// Names that were removed last, with their cookies; the oldest first.
    former: VecDeque<(Arc<OsStr>, u64)>,
    next_cookie: u64,
    subdirs: u32,
}

impl Listing {
    pub(crate) fn new() -> Listing {
        Listing {
            next_cookie: COOKIE_DOTDOT + 1,
            ..Listing::default()
        }
    }

    pub(crate) fn get(&self, name: &OsStr) -> Known {
        match self.by_name.get(name).and_then(|c| self.by_cookie.get(c)) {
            Some(item) => Known::Item(item.clone()),
            None => Known::Absent {
                whiteout: self.whiteouts.contains_key(name),
            },
        }
    }

    /// The name as it is kept here, to be shared.
    pub(crate) fn shared_name(&self, name: &OsStr) -> Option<Arc<OsStr>> {
        self.by_name
            .get_key_value(name)
            .map(|(kept, _)| kept.clone())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_cookie.is_empty()
    }

    /// How many of the entries are directories.
    pub(crate) fn subdirs(&self) -> u32 {
        self.subdirs
    }

    /// Up to `max` entries after a cookie.
    pub(crate) fn batch_after(&self, cookie: u64, max: usize) -> Vec<(u64, Item)> {
        self.by_cookie
            .range(cookie + 1..)
            .take(max)
            .map(|(&c, item)| (c, item.clone()))
            .collect()
    }

    /// Merges an entry of the upper (while loading: before the lowers).
    /// `ino` is 0 where only a lookup can tell it.
    pub(crate) fn load_upper(&mut self, name: &OsStr, kind: EntryKind, ino: u64) {
        match kind {
            EntryKind::Whiteout => {
                self.whiteouts.insert(Arc::from(name), ());
            }
            EntryKind::Node(file_type) => self.insert_upper(name, file_type, ino),
        }
    }

    /// The upper now has an entry of this name, new or in place of what was there.
    pub(crate) fn insert_upper(&mut self, name: &OsStr, file_type: u32, ino: u64) {
        self.whiteouts.remove(name);
        if let Some(item) = self
            .by_name
            .get(name)
            .and_then(|c| self.by_cookie.get_mut(c))
        {
            self.subdirs -= u32::from(item.file_type == libc::S_IFDIR);
            self.subdirs += u32::from(file_type == libc::S_IFDIR);
            item.file_type = file_type;
            item.ino = ino;
            item.upper = true;
            return;
        }
        self.push(Item {
            name: Arc::from(name),
            file_type,
            ino,
            upper: true,
            lower: None,
        });
    }

    fn push(&mut self, item: Item) {
        let former = self.former.iter().position(|(name, _)| *name == item.name);
        let cookie = match former.and_then(|at| self.former.remove(at)) {
            Some((_, cookie)) => cookie,
            None => {
                self.next_cookie += 1;
                self.next_cookie - 1
            }
        };
        self.subdirs += u32::from(item.file_type == libc::S_IFDIR);
        self.by_name.insert(item.name.clone(), cookie);
        self.by_cookie.insert(cookie, item);
    }

    /// Merges a node of the lower part at position `at` (while loading: topmost first).
    pub(crate) fn load_lower(&mut self, name: &OsStr, file_type: u32, ino: u64, at: u16) {
        if self.whiteouts.contains_key(name) {
            return;
        }
        match self
            .by_name
            .get(name)
            .and_then(|c| self.by_cookie.get_mut(c))
        {
            Some(item) => {
                if item.lower.is_none() {
                    item.lower = Some(at);
                    if item.upper && item.file_type == libc::S_IFDIR {
                        // A merged directory has its lower's number, unless something ends the merge.
                        item.ino = 0;
                    }
                }
            }
            None => self.push(Item {
                name: Arc::from(name),
                file_type,
                ino,
                upper: false,
                lower: Some(at),
            }),
        }
    }

    /// The entry is gone; `whiteout`: the upper now hides what the lowers have.
    pub(crate) fn remove(&mut self, name: &OsStr, whiteout: bool) {
        if let Some(cookie) = self.by_name.remove(name)
            && let Some(item) = self.by_cookie.remove(&cookie)
        {
            self.subdirs -= u32::from(item.file_type == libc::S_IFDIR);
            if self.former.len() == FORMER {
                self.former.pop_front();
            }
            self.former.push_back((item.name, cookie));
        }
        if whiteout {
            self.whiteouts.insert(Arc::from(name), ());
        } else {
            self.whiteouts.remove(name);
        }
    }

    /// The `d_ino` of a name has become known.
    pub(crate) fn set_ino(&mut self, name: &OsStr, ino: u64) {
        if let Some(item) = self
            .by_name
            .get(name)
            .and_then(|c| self.by_cookie.get_mut(c))
        {
            item.ino = ino;
        }
    }

    /// A copy-up made an upper entry of a lower one; its identity stays.
    pub(crate) fn mark_upper(&mut self, name: &OsStr) {
        if let Some(item) = self
            .by_name
            .get(name)
            .and_then(|c| self.by_cookie.get_mut(c))
        {
            item.upper = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> &OsStr {
        OsStr::new(s)
    }

    #[test]
    fn upper_wins_and_whiteouts_hide() {
        let mut l = Listing::new();
        l.load_upper(name("gone"), EntryKind::Whiteout, 0);
        l.load_upper(name("both"), EntryKind::Node(libc::S_IFREG), 9);
        l.load_lower(name("gone"), libc::S_IFREG, 5, 0);
        l.load_lower(name("both"), libc::S_IFDIR, 6, 1);
        l.load_lower(name("low"), libc::S_IFDIR, 7, 1);
        assert!(matches!(
            l.get(name("gone")),
            Known::Absent { whiteout: true }
        ));
        assert!(
            matches!(l.get(name("both")), Known::Item(i) if i.upper && i.lower == Some(1) && i.file_type == libc::S_IFREG)
        );
        assert_eq!(l.subdirs(), 1);
    }

    #[test]
    fn cookies_stay_while_entries_come_and_go() {
        let mut l = Listing::new();
        for n in ["a", "b", "c"] {
            l.insert_upper(name(n), libc::S_IFREG, 1);
        }
        let a = l.batch_after(COOKIE_DOTDOT, 1)[0].0;
        l.remove(name("b"), false);
        l.remove(name("a"), false);
        l.insert_upper(name("d"), libc::S_IFREG, 1);
        let rest: Vec<_> = l
            .batch_after(a, 10)
            .into_iter()
            .map(|(_, i)| i.name.to_os_string())
            .collect();
        assert_eq!(rest, [name("c"), name("d")]);
        // Renamed away and back, it is where it was.
        l.remove(name("c"), false);
        l.insert_upper(name("e"), libc::S_IFREG, 1);
        l.remove(name("e"), false);
        l.insert_upper(name("c"), libc::S_IFREG, 1);
        let rest: Vec<_> = l
            .batch_after(a, 10)
            .into_iter()
            .map(|(_, i)| i.name)
            .collect();
        assert_eq!(rest, [Arc::from(name("c")), Arc::from(name("d"))]);
    }

    #[test]
    fn few_removed_names_are_remembered() {
        let mut l = Listing::new();
        for i in 0..100 {
            let n = format!("{i}");
            l.insert_upper(name(&n), libc::S_IFREG, 1);
            l.remove(name(&n), false);
        }
        assert_eq!(l.former.len(), FORMER);
        assert!(l.is_empty());
    }
}
