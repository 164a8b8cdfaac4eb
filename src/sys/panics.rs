//! A panic ends the work it happens in, and nothing else: the thread that did it goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does the work. The error is what a panic in it said, which may be nothing.
///
/// Whatever the work shares with others has to be sound at each point where it can panic: our locks are not poisoned.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_what_it_said() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(caught(|| panic!("plain")), Err::<(), _>("plain".into()));
        let number = 3;
        assert_eq!(
            caught(|| panic!("with a {number}")),
            Err::<(), _>("with a 3".into())
        );
        let other = caught(|| std::panic::panic_any(number));
        assert_eq!(other, Err::<(), _>(String::new()));
    }
}
