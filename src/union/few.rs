//! A list that nearly always has one element, in the room of that element.

use std::ops::{Deref, DerefMut};

/// Any number of elements; one lies here, more on the heap.
#[derive(Clone, Debug)]
pub(crate) enum Few<T> {
    One(T),
    /// None, or several. The box keeps the list as small as one pointer.
    #[allow(clippy::box_collection)]
    Many(Option<Box<Vec<T>>>),
}

impl<T> Few<T> {
    pub(crate) const fn new() -> Few<T> {
        Few::Many(None)
    }

    pub(crate) fn push(&mut self, element: T) {
        *self = match std::mem::take(self) {
            Few::Many(None) => Few::One(element),
            Few::One(first) => Few::Many(Some(Box::new(vec![first, element]))),
            Few::Many(Some(mut all)) => {
                all.push(element);
                Few::Many(Some(all))
            }
        };
    }

    pub(crate) fn clear(&mut self) {
        *self = Few::new();
    }

    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Few::One(only) => vec![only],
            Few::Many(None) => Vec::new(),
            Few::Many(Some(all)) => *all,
        }
    }

    /// Keeps those of which `kept` is true, in their order.
    pub(crate) fn retain(&mut self, kept: impl FnMut(&T) -> bool) {
        let mut all = std::mem::take(self).into_vec();
        all.retain(kept);
        *self = all.into_iter().collect();
    }
}

impl<T> Default for Few<T> {
    fn default() -> Few<T> {
        Few::new()
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Few::One(only) => std::slice::from_ref(only),
            Few::Many(None) => &[],
            Few::Many(Some(all)) => all,
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Few::One(only) => std::slice::from_mut(only),
            Few::Many(None) => &mut [],
            Few::Many(Some(all)) => all,
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Few<T> {
        let mut few = Few::new();
        for element in elements {
            few.push(element);
        }
        few
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_list() {
        let mut few = Few::new();
        assert!(few.is_empty());
        for n in 0..4 {
            few.push(n);
            assert_eq!(few.last(), Some(&n));
            assert_eq!(few.len(), n + 1);
        }
        few.retain(|n| n % 2 == 1);
        assert_eq!(*few, [1, 3]);
        few.retain(|n| *n == 3);
        assert!(matches!(few, Few::One(3)));
        few.push(4);
        assert_eq!(few.clone().into_vec(), [3, 4]);
        few.clear();
        assert_eq!(few.first(), None);
    }

    #[test]
    fn one_element_takes_no_more_room_than_itself() {
        assert_eq!(size_of::<Few<(Box<u8>, Box<u8>)>>(), 16);
    }
}
