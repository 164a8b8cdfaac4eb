//! Names and ids of containers.

use std::fs::File;
use std::io::{self, Read};

/// What a person is like.
const ADJECTIVES: &[&str] = &[
    "agile", "amber", "bold", "brave", "bright", "calm", "candid", "clever", "cosmic", "crisp",
    "curious", "daring", "deft", "eager", "earnest", "fair", "fearless", "fluent", "gentle",
    "glad", "graceful", "happy", "hardy", "honest", "jolly", "keen", "kind", "lively", "lucid",
    "merry", "mellow", "modest", "nimble", "noble", "patient", "placid", "polite", "proud",
    "quick", "quiet", "radiant", "ready", "serene", "sharp", "silent", "sincere", "steady",
    "sunny", "tender", "tidy", "upbeat", "valiant", "vivid", "warm", "wise", "witty", "zealous",
];

/// Who drew, animated or computed something that mattered.
const SURNAMES: &[&str] = &[
    "avery",
    "babbage",
    "bauchau",
    "blackton",
    "blair",
    "boole",
    "catmull",
    "cohl",
    "curie",
    "dijkstra",
    "disney",
    "emmer",
    "engelbart",
    "euler",
    "fleischer",
    "gauss",
    "godel",
    "hamilton",
    "hamming",
    "hertz",
    "hopper",
    "hurd",
    "iwerks",
    "jones",
    "kahn",
    "kepler",
    "knuth",
    "lamport",
    "lasseter",
    "liskov",
    "lovelace",
    "mccay",
    "mclaren",
    "meitner",
    "miyazaki",
    "moore",
    "noether",
    "norstein",
    "oshii",
    "pascal",
    "perlman",
    "reiniger",
    "reynaud",
    "ritchie",
    "shannon",
    "starevich",
    "svankmajer",
    "takahata",
    "tezuka",
    "thompson",
    "torvalds",
    "trnka",
    "turing",
    "williams",
    "wirth",
    "zeman",
];

/// Whether `name` may be a container's: a letter or digit, and at least one more character of `[a-zA-Z0-9_.-]`.
pub fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    first
        && (2..=128).contains(&name.len())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A new id: 64 hexadecimal digits.
pub(super) fn new_id() -> io::Result<String> {
    let bytes: [u8; 32] = random()?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A name as docker makes them that `taken` does not know.
pub(super) fn invent(taken: impl Fn(&str) -> bool) -> io::Result<String> {
    for round in 0u32.. {
        let [a, b, c, d] = random::<4>()?;
        let at = |list: &[&'static str], high: u8, low: u8| {
            list[usize::from(u16::from_be_bytes([high, low])) % list.len()]
        };
        let mut name = format!("{}_{}", at(ADJECTIVES, a, b), at(SURNAMES, c, d));
        if round > 3 {
            name.push_str(&round.to_string());
        }
        if !taken(&name) {
            return Ok(name);
        }
    }
    Err(io::Error::other("all names are taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_names() {
        for good in ["ab", "a_b", "0.x-Y", &"a".repeat(128)] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "-a",
            "_a",
            "a/b",
            "a b",
            "../x",
            "ä2",
            "a\n",
            &"a".repeat(129),
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
        assert!(ADJECTIVES.iter().chain(SURNAMES).all(|word| is_valid(word)));
    }

    #[test]
    fn an_invented_name_is_free() {
        let name = invent(|name| !name.ends_with("10")).unwrap();
        assert!(is_valid(&name) && name.ends_with("10"), "{name}");
        assert_eq!(new_id().unwrap().len(), 64);
    }
}
