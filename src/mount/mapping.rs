//! Id maps as mount options spell them: `DISK:SHOWN:COUNT`, several of them joined by colons.

use super::error::OptionError;
use crate::union::idmap::IdRange;

/// Parses the value of `uidmapping` or `gidmapping`.
pub(super) fn parse(name: &str, value: &str) -> Result<Vec<IdRange>, OptionError> {
    let wrong = || OptionError::Value {
        name: name.to_owned(),
        value: value.to_owned(),
        expected: "DISK:SHOWN:COUNT, or several of them joined by colons,",
    };
    // containers/storage writes `uidmapping=:0:1000:1`.
    let numbers: Vec<u32> = value
        .strip_prefix(':')
        .unwrap_or(value)
        .split(':')
        .map(|number| number.parse().map_err(|_| wrong()))
        .collect::<Result<_, _>>()?;
    let mut ranges = Vec::new();
    for triple in numbers.chunks(3) {
        let [outside, inside, count] = *triple else {
            return Err(wrong());
        };
        if outside.checked_add(count).is_none() || inside.checked_add(count).is_none() {
            return Err(wrong());
        }
        ranges.push(IdRange {
            inside,
            outside,
            count,
        });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let ranges = parse("uidmapping", "0:1000:1:1:100000:65536").unwrap();
        assert_eq!(
            ranges,
            [
                IdRange {
                    inside: 1000,
                    outside: 0,
                    count: 1
                },
                IdRange {
                    inside: 100_000,
                    outside: 1,
                    count: 65_536
                },
            ]
        );
        assert_eq!(parse("uidmapping", ":0:1000:1").unwrap().len(), 1);
        for wrong in [
            "",
            ":",
            "::0:1000:1",
            "0",
            "0:1",
            "0:0:1:2",
            "a:b:c",
            "0:4294967295:2",
        ] {
            assert!(parse("uidmapping", wrong).is_err(), "{wrong}");
        }
    }
}
