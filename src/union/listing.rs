//! The merged entries of one directory, kept in memory.
//!
//! Cookies are given once and never reused while the listing lives, so a reading goes on at the right place
//! while entries come and go: a new entry gets the next cookie, a removed one leaves a gap. A name that was removed a moment
//! ago and comes back gets its own again, so that renaming it away and back does not list it twice.
//!
//! The entries lie in a row by their cookies, found by name through a table of their positions. What is removed leaves its
//! place behind; when half of the places are such, the row is made anew.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;

use hashbrown::HashTable;

use crate::layer::{EntryKind, SharedName};

/// The cookies of `.` and `..`; entries follow.
pub(crate) const COOKIE_DOT: u64 = 1;
/// See [`COOKIE_DOT`].
pub(crate) const COOKIE_DOTDOT: u64 = 2;

/// How many removed names keep their cookies.
const FORMER: usize = 16;

/// A row with so few places is not made anew.
const COMPACT_ABOVE: usize = 64;

/// The position in no lower part.
const NOT_LOWER: u16 = u16::MAX;

/// The bits of a mode below those of the type (`S_IFMT`).
const KIND_SHIFT: u32 = 12;

/// What is known of one name without asking a layer.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub name: SharedName,
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

/// An [`Item`] as it is kept: there is one for each name that is known.
#[derive(Debug)]
struct Place {
    cookie: u64,
    ino: u64,
    /// `None`: removed.
    name: Option<SharedName>,
    /// Or [`NOT_LOWER`].
    lower: u16,
    /// The type bits, shifted.
    kind: u8,
    upper: bool,
}

impl Place {
    fn item(&self) -> Option<Item> {
        Some(Item {
            name: self.name.clone()?,
            file_type: self.file_type(),
            ino: self.ino,
            upper: self.upper,
            lower: (self.lower != NOT_LOWER).then_some(self.lower),
        })
    }

    fn file_type(&self) -> u32 {
        u32::from(self.kind) << KIND_SHIFT
    }

    fn set_file_type(&mut self, file_type: u32) {
        self.kind = (file_type >> KIND_SHIFT) as u8;
    }

    fn is_named(&self, name: &OsStr) -> bool {
        self.name.as_deref() == Some(name)
    }

    fn subdirs(&self) -> u32 {
        u32::from(self.file_type() == libc::S_IFDIR)
    }
}

/// The merged entries of one directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// By ascending cookies.
    places: Vec<Place>,
    /// Positions in `places`, by name; as many as there are entries.
    by_name: HashTable<u32>,
    hasher: RandomState,
    /// Names that the upper whites out.
    whiteouts: HashSet<SharedName>,
    /// Names that were removed last, with their cookies; the oldest first.
    former: VecDeque<(SharedName, u64)>,
    next_cookie: u64,
    /// The cookies below this one are written down (see [`Listing::written_down`]).
    noted: u64,
    /// How many names what is written down has, those that are gone by now included.
    noted_names: usize,
    subdirs: u32,
}

/// The cookies of a listing, as another process goes on with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cookies {
    /// Those below it were told before; 0 where none were that still count.
    pub from: u64,
    /// The first that was not given.
    pub next: u64,
    /// Where a name has several, the last one counts.
    pub names: Vec<(u64, Vec<u8>)>,
}

impl Cookies {
    /// Adds what was told later.
    pub(crate) fn add(&mut self, more: Cookies) {
        if more.from == 0 {
            *self = more;
            return;
        }
        self.next = self.next.max(more.next);
        self.names.extend(more.names);
    }
}

impl Listing {
    pub(crate) fn new() -> Listing {
        Listing {
            next_cookie: COOKIE_DOTDOT + 1,
            ..Listing::default()
        }
    }

    fn position(&self, name: &OsStr) -> Option<usize> {
        let places = &self.places;
        let is_it = |&at: &u32| places[at as usize].is_named(name);
        let at = self.by_name.find(self.hasher.hash_one(name), is_it)?;
        Some(*at as usize)
    }

    fn place_mut(&mut self, name: &OsStr) -> Option<&mut Place> {
        let at = self.position(name)?;
        self.places.get_mut(at)
    }

    pub(crate) fn get(&self, name: &OsStr) -> Known {
        match self.position(name).and_then(|at| self.places[at].item()) {
            Some(item) => Known::Item(item),
            None => Known::Absent {
                whiteout: self.whiteouts.contains(name),
            },
        }
    }

    /// The name as it is kept here, to be shared.
    pub(crate) fn shared_name(&self, name: &OsStr) -> Option<SharedName> {
        self.places[self.position(name)?].name.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// How many of the entries are directories.
    pub(crate) fn subdirs(&self) -> u32 {
        self.subdirs
    }

    /// Up to `max` entries after a cookie.
    pub(crate) fn batch_after(&self, cookie: u64, max: usize) -> Vec<(u64, Item)> {
        let from = self.places.partition_point(|place| place.cookie <= cookie);
        self.places[from..]
            .iter()
            .filter_map(|place| Some((place.cookie, place.item()?)))
            .take(max)
            .collect()
    }

    /// All that there is has been loaded: takes no more room than that.
    pub(crate) fn loaded(&mut self) {
        self.places.shrink_to_fit();
    }

    /// The cookies that were given since this was called last, to be written down: a reading stops before the end, and may go on
    /// in another process. `None` when there are none.
    pub(crate) fn written_down(&mut self) -> Option<Cookies> {
        let mut from = std::mem::replace(&mut self.noted, self.next_cookie);
        if from == self.next_cookie {
            return None;
        }
        if self.noted_names > 2 * (self.by_name.len() + FORMER) {
            // Most of it is out of date, and would be kept for as long as the directory is known.
            from = 0;
            self.noted_names = 0;
        }
        let first = self.places.partition_point(|place| place.cookie < from);
        let present = self.places[first..].iter().filter_map(|place| {
            let name = place.name.as_deref()?.as_bytes().to_vec();
            Some((place.cookie, name))
        });
        // They may come back with the cookies that they had.
        let former = self.former.iter().filter(|(_, cookie)| *cookie >= from);
        let former = former.map(|(name, cookie)| (*cookie, name.as_bytes().to_vec()));
        let names: Vec<_> = present.chain(former).collect();
        self.noted_names += names.len();
        Some(Cookies {
            from,
            next: self.next_cookie,
            names,
        })
    }

    /// Takes over the cookies of another process, once all that there is has been loaded.
    pub(crate) fn take_cookies(&mut self, cookies: &Cookies) {
        let before: HashMap<&[u8], u64> = cookies
            .names
            .iter()
            .map(|(cookie, name)| (name.as_slice(), *cookie))
            .collect();
        self.next_cookie = self.next_cookie.max(cookies.next);
        self.former.clear();
        self.places.retain(|place| place.name.is_some());
        for place in &mut self.places {
            let known = place
                .name
                .as_deref()
                .and_then(|name| before.get(name.as_bytes()));
            place.cookie = match known {
                Some(cookie) => *cookie,
                None => {
                    self.next_cookie += 1;
                    self.next_cookie - 1
                }
            };
        }
        self.places.sort_by_key(|place| place.cookie);
        // Those of names that were new are not.
        self.noted = cookies.next;
        self.noted_names = cookies.names.len();
        self.compact();
    }

    /// Merges an entry of the upper (while loading: before the lowers).
    /// `ino` is 0 where only a lookup can tell it.
    pub(crate) fn load_upper(&mut self, name: &OsStr, kind: EntryKind, ino: u64) {
        match kind {
            EntryKind::Whiteout => {
                self.whiteouts.insert(SharedName::from(name));
            }
            EntryKind::Node(file_type) => self.insert_upper(name, file_type, ino),
        }
    }

    /// The upper now has an entry of this name, new or in place of what was there.
    pub(crate) fn insert_upper(&mut self, name: &OsStr, file_type: u32, ino: u64) {
        self.whiteouts.remove(name);
        if let Some(place) = self.place_mut(name) {
            let before = place.subdirs();
            place.set_file_type(file_type);
            place.ino = ino;
            place.upper = true;
            let after = place.subdirs();
            self.subdirs = self.subdirs - before + after;
            return;
        }
        self.push(Item {
            name: SharedName::from(name),
            file_type,
            ino,
            upper: true,
            lower: None,
        });
    }

    fn push(&mut self, item: Item) {
        let former = self.former.iter().position(|(name, _)| *name == item.name);
        let former = former.and_then(|at| self.former.remove(at));
        // The place of a name that comes back is still there: those of former names are kept.
        let kept = former.and_then(|(_, cookie)| {
            let at = self.places.binary_search_by_key(&cookie, |p| p.cookie);
            at.ok()
        });
        let hash = self.hasher.hash_one(&*item.name);
        let mut place = Place {
            cookie: self.next_cookie,
            ino: item.ino,
            name: Some(item.name),
            lower: item.lower.unwrap_or(NOT_LOWER),
            kind: 0,
            upper: item.upper,
        };
        place.set_file_type(item.file_type);
        self.subdirs += place.subdirs();
        let at = match kept {
            Some(at) => {
                place.cookie = self.places[at].cookie;
                self.places[at] = place;
                at
            }
            None => {
                self.next_cookie += 1;
                self.places.push(place);
                self.places.len() - 1
            }
        };
        self.index(hash, at);
    }

    fn index(&mut self, hash: u64, at: usize) {
        let (places, hasher) = (&self.places, &self.hasher);
        self.by_name.insert_unique(hash, at as u32, |&at| {
            places[at as usize]
                .name
                .as_deref()
                .map_or(0, |name| hasher.hash_one(name))
        });
    }

    /// Merges a node of the lower part at position `at` (while loading: topmost first).
    pub(crate) fn load_lower(&mut self, name: &OsStr, file_type: u32, ino: u64, at: u16) {
        if self.whiteouts.contains(name) {
            return;
        }
        if let Some(place) = self.place_mut(name) {
            if place.lower == NOT_LOWER {
                place.lower = at;
                if place.upper && place.file_type() == libc::S_IFDIR {
                    // A merged directory has its lower's number, unless something ends the merge.
                    place.ino = 0;
                }
            }
            return;
        }
        self.push(Item {
            name: SharedName::from(name),
            file_type,
            ino,
            upper: false,
            lower: Some(at),
        });
    }

    /// The entry is gone; `whiteout`: the upper now hides what the lowers have.
    pub(crate) fn remove(&mut self, name: &OsStr, whiteout: bool) {
        self.take_out(name);
        if whiteout {
            self.whiteouts.insert(SharedName::from(name));
        } else {
            self.whiteouts.remove(name);
        }
    }

    fn take_out(&mut self, name: &OsStr) {
        let (places, hash) = (&mut self.places, self.hasher.hash_one(name));
        let found = (self.by_name).find_entry(hash, |&at| places[at as usize].is_named(name));
        let Ok(entry) = found else {
            return;
        };
        let (at, _) = entry.remove();
        let place = &mut places[at as usize];
        self.subdirs -= place.subdirs();
        let cookie = place.cookie;
        if let Some(name) = place.name.take() {
            if self.former.len() == FORMER {
                self.former.pop_front();
            }
            self.former.push_back((name, cookie));
        }
        if self.places.len() > COMPACT_ABOVE && self.by_name.len() < self.places.len() / 2 {
            self.compact();
        }
    }

    /// Drops the places of names that are gone and not remembered.
    fn compact(&mut self) {
        let former = &self.former;
        self.places.retain(|place| {
            place.name.is_some() || former.iter().any(|&(_, cookie)| cookie == place.cookie)
        });
        self.places.shrink_to(2 * self.places.len());
        self.by_name = HashTable::with_capacity(self.by_name.len());
        for at in 0..self.places.len() {
            let name = self.places[at].name.as_deref();
            if let Some(hash) = name.map(|name| self.hasher.hash_one(name)) {
                self.index(hash, at);
            }
        }
    }

    /// The `d_ino` of a name has become known.
    pub(crate) fn set_ino(&mut self, name: &OsStr, ino: u64) {
        if let Some(place) = self.place_mut(name) {
            place.ino = ino;
        }
    }

    /// A copy-up made an upper entry of a lower one; its identity stays.
    pub(crate) fn mark_upper(&mut self, name: &OsStr) {
        if let Some(place) = self.place_mut(name) {
            place.upper = true;
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
    fn what_is_written_down_of_a_spool_directory_stays_small() {
        let mut l = Listing::new();
        l.insert_upper(name("stays"), libc::S_IFREG, 1);
        let mut told = Cookies::default();
        for round in 0..1000 {
            for file in 0..30 {
                l.insert_upper(name(&format!("{round}-{file}")), libc::S_IFREG, 1);
            }
            told.add(l.written_down().unwrap());
            assert!(told.names.len() < 300, "{}", told.names.len());
            for file in 0..30 {
                l.remove(name(&format!("{round}-{file}")), false);
            }
        }
        l.insert_upper(name("last"), libc::S_IFREG, 1);
        told.add(l.written_down().unwrap());
        let mut other = Listing::new();
        for entry in ["last", "stays"] {
            other.insert_upper(name(entry), libc::S_IFREG, 1);
        }
        other.take_cookies(&told);
        let cookies = |l: &Listing| -> Vec<u64> {
            let batch = l.batch_after(COOKIE_DOTDOT, 10);
            batch.into_iter().map(|(cookie, _)| cookie).collect()
        };
        assert_eq!(cookies(&other), cookies(&l));
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
        assert_eq!(
            rest,
            [SharedName::from(name("c")), SharedName::from(name("d"))]
        );
    }

    #[test]
    fn another_process_goes_on_with_the_cookies() {
        let mut one = Listing::new();
        for n in ["a", "b", "c", "d"] {
            one.insert_upper(name(n), libc::S_IFREG, 1);
        }
        let cookies = one.written_down().unwrap();
        assert!(one.written_down().is_none());
        let after_b = one.batch_after(COOKIE_DOTDOT, 2)[1].0;
        let mut other = Listing::new();
        for n in ["new", "d", "c", "b"] {
            other.insert_upper(name(n), libc::S_IFREG, 1);
        }
        other.take_cookies(&cookies);
        let names = |l: &Listing, after| -> Vec<SharedName> {
            let rest = l.batch_after(after, 10);
            rest.into_iter().map(|(_, item)| item.name).collect()
        };
        assert_eq!(
            names(&other, after_b),
            ["c", "d", "new"].map(|n| SharedName::from(name(n)))
        );
        other.remove(name("c"), false);
        other.insert_upper(name("e"), libc::S_IFREG, 1);
        assert_eq!(
            names(&other, after_b),
            ["d", "new", "e"].map(|n| SharedName::from(name(n)))
        );
        assert!(matches!(other.get(name("b")), Known::Item(_)));
    }

    #[test]
    fn another_process_goes_on_with_all_cookies_that_were_given() {
        let mut first = Listing::new();
        for n in ["a", "b", "c", "former"] {
            first.insert_upper(name(n), libc::S_IFREG, 1);
        }
        first.remove(name("former"), false);
        let mut told = first.written_down().unwrap();
        assert_eq!(first.written_down(), None);
        first.insert_upper(name("former"), libc::S_IFREG, 1);
        assert_eq!(first.written_down(), None);
        first.insert_upper(name("x"), libc::S_IFREG, 1);
        first.insert_upper(name("d"), libc::S_IFREG, 1);
        first.remove(name("x"), false);
        first.remove(name("b"), false);
        told.add(first.written_down().unwrap());
        let cookies = |l: &Listing| -> Vec<(u64, SharedName)> {
            let all = l.batch_after(0, usize::MAX).into_iter();
            all.map(|(cookie, item)| (cookie, item.name)).collect()
        };
        // On disk they lie in another order, and one has come that was not told.
        let mut second = Listing::new();
        for n in ["new", "d", "former", "c", "a"] {
            second.load_upper(name(n), EntryKind::Node(libc::S_IFREG), 1);
        }
        second.take_cookies(&told);
        let (before, mut after) = (cookies(&first), cookies(&second));
        let (last, new) = after.pop().unwrap();
        assert_eq!(after, before);
        assert!(*new == *name("new") && last > before.last().unwrap().0);
        // What the second gave itself is told as well.
        told.add(second.written_down().unwrap());
        let mut third = Listing::new();
        for n in ["c", "new", "a", "d", "former"] {
            third.load_upper(name(n), EntryKind::Node(libc::S_IFREG), 1);
        }
        third.take_cookies(&told);
        assert_eq!(cookies(&third), cookies(&second));
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

    #[test]
    fn a_row_of_gaps_is_made_anew() {
        let mut l = Listing::new();
        let names: Vec<String> = (0..1000).map(|i| format!("n{i}")).collect();
        for n in &names {
            l.insert_upper(name(n), libc::S_IFDIR, 1);
        }
        let (middle, _) = l.batch_after(COOKIE_DOTDOT, 500)[499];
        for (i, n) in names.iter().enumerate() {
            if i % 10 != 0 {
                l.remove(name(n), false);
            }
        }
        assert!(l.places.len() < 300, "{} places", l.places.len());
        assert_eq!(l.subdirs(), 100);
        for (i, n) in names.iter().enumerate() {
            let found = matches!(l.get(name(n)), Known::Item(item) if *item.name == *name(n));
            assert_eq!(found, i % 10 == 0, "{n}");
        }
        // A reading that was under way goes on where it was.
        let rest = l.batch_after(middle, 1000);
        assert_eq!(rest.len(), 50);
        assert_eq!(*rest[0].1.name, *name("n500"));
        // The last ones that were removed come back to their places.
        l.insert_upper(name("n999"), libc::S_IFREG, 7);
        l.insert_upper(name("n997"), libc::S_IFREG, 7);
        let rest: Vec<_> = l.batch_after(rest[49].0, 10);
        let rest: Vec<_> = rest.iter().map(|(_, item)| &*item.name).collect();
        assert_eq!(rest, [name("n997"), name("n999")]);
    }
}
