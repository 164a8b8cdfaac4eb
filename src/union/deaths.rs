//! Dying at a chosen record of the journal, for tests: by a panic, as everything that a process holds in memory is lost with
//! the union that is not used again.

use std::cell::Cell;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What the panic carries.
pub(crate) struct Death;

/// This thread dies when it has passed so many places: there is one before and one after each write to a journal.
pub(crate) fn after(places: usize) {
    LEFT.set(places);
}

/// This thread does not die.
pub(crate) fn never() {
    LEFT.set(usize::MAX);
}

/// Such panics are not reported.
pub(crate) fn quietly() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<Death>() {
            before(info);
        }
    }));
}

pub(super) fn place() {
    match LEFT.get() {
        usize::MAX => {}
        0 => std::panic::panic_any(Death),
        left => LEFT.set(left - 1),
    }
}
