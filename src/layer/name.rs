//! Names that are kept once for all who know them.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;

use triomphe::ThinArc;

/// The name of a directory entry, shared. As small as one pointer: a name is kept for each file that the kernel knows.
#[derive(Clone)]
pub struct SharedName(ThinArc<(), u8>);

impl From<&OsStr> for SharedName {
    fn from(name: &OsStr) -> SharedName {
        SharedName(ThinArc::from_header_and_slice((), name.as_bytes()))
    }
}

impl Deref for SharedName {
    type Target = OsStr;

    fn deref(&self) -> &OsStr {
        OsStr::from_bytes(&self.0.slice)
    }
}

impl Borrow<OsStr> for SharedName {
    fn borrow(&self) -> &OsStr {
        self
    }
}

impl PartialEq for SharedName {
    fn eq(&self, other: &SharedName) -> bool {
        **self == **other
    }
}

impl Eq for SharedName {}

/// As the name itself, so that the one is found by the other.
impl Hash for SharedName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for SharedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn is_found_by_the_plain_name() {
        let names: HashSet<SharedName> = ["a", "", "b\u{fc}"]
            .iter()
            .map(|name| SharedName::from(OsStr::new(name)))
            .collect();
        assert!(names.contains(OsStr::new("b\u{fc}")));
        assert!(names.contains(OsStr::new("")));
        assert!(!names.contains(OsStr::new("c")));
        assert_eq!(size_of::<Option<SharedName>>(), size_of::<usize>());
    }
}
