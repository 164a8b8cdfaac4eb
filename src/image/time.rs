//! Times as images write them: RFC 3339, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the epoch as a date and time, in UTC.
pub fn format(seconds: u64) -> String {
    let rest = seconds % 86_400;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", date(seconds))
}

/// The day of a time in seconds since the epoch, in UTC.
pub fn date(seconds: u64) -> String {
    // The calendar of Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last.
    let shifted = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Seconds since the epoch of `YYYY-MM-DDTHH:MM:SS[.fraction](Z|±HH:MM)`.
pub fn parse(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let zone = text
        .get(19..)?
        .trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone {
        "Z" | "z" | "" => 0,
        zone => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let (h, m) = (
                zone.get(1..3)?.parse::<i64>(),
                zone.get(4..6)?.parse::<i64>(),
            );
            sign * (h.ok()? * 3600 + m.ok()? * 60)
        }
    };
    // Days since the epoch, in a year that begins in March so that the leap day is its last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day
            - 1
            - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

/// The time now, with its nanoseconds.
pub(crate) fn now() -> String {
    let passed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let whole = format(passed.as_secs());
    let whole = whole.trim_end_matches('Z');
    format!("{whole}.{:09}Z", passed.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(format(seconds), text);
            assert_eq!(parse(text), Some(seconds as i64));
        }
    }

    #[test]
    fn times_of_images_are_understood() {
        assert_eq!(parse("2000-02-29T12:00:00.123456789Z"), Some(951_825_600));
        assert_eq!(parse("2000-02-29T13:00:00+01:00"), Some(951_825_600));
        assert_eq!(parse("2026-13-01T00:00:00Z"), None);
        assert_eq!(parse("soon"), None);
        assert!(parse(&now()).is_some_and(|now| now > 1_700_000_000));
    }
}
