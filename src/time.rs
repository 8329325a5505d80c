//! Times as people write them and as the archive keeps them: milliseconds since 1970, as Kafka does.
//!
//! In come RFC 3339, `now` and a distance back from now (`-90m`, `-2h`, `-7d`); out goes RFC 3339 in UTC with
//! milliseconds. A year that RFC 3339 cannot write (records can carry any) is written, and read, with a sign and six digits or more, as
//! ISO 8601 has it. "Now" is passed in: only the edge of the program asks the clock.

use chrono::{DateTime, SecondsFormat, Utc};

use crate::error::{Error, Kind, Result};

const DAY_MS: i64 = 86_400_000;

/// The bounds of what RFC 3339 can write: years 0000 to 9999.
const RFC3339_MS: std::ops::Range<i64> = -62_167_219_200_000..253_402_300_800_000;

/// Returns the present time. This is the one place that asks the clock: whoever decides something takes the time as a parameter, and
/// only what runs at the edge (a task of the service, a command) calls this.
#[allow(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// The time that `text` names, in ms since 1970.
///
/// Times compare as `from <= t < to` with whole milliseconds; a finer time is rounded up, for then both comparisons
/// come out as with the finer time itself.
///
/// # Errors
/// `Kind::Config` where `text` is none of the three forms or lies out of range.
pub fn parse(text: &str, now: DateTime<Utc>) -> Result<i64> {
    if text == "now" {
        return Ok(now.timestamp_millis());
    }
    if let Some(time) = parse_far(text) {
        return time.ok_or_else(|| wrong(text));
    }
    if let Some(distance) = text.strip_prefix('-') {
        let distance = humantime::parse_duration(distance).map_err(|source| wrong(text).source(source))?;
        let distance = i64::try_from(distance.as_millis()).map_err(|_| wrong(text))?;
        return now.timestamp_millis().checked_sub(distance).ok_or_else(|| wrong(text));
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|source| wrong(text).source(source))?;
    let finer = i64::from(time.timestamp_subsec_nanos() % 1_000_000 != 0);
    Ok(time.timestamp_millis() + finer)
}

/// The time that `text` names, in microseconds since 1970, as Postgres has its commits. A finer time is rounded down, or up
/// with `up`: a commit with whole microseconds is at or before the finer time just when it is at or before the lower one,
/// and before it just when it is before the upper one.
///
/// # Errors
/// As [`parse`].
pub fn parse_micros(text: &str, now: DateTime<Utc>, up: bool) -> Result<i64> {
    let Ok(time) = DateTime::parse_from_rfc3339(text) else {
        return parse(text, now).map(|ms| ms.saturating_mul(1_000));
    };
    let finer = i64::from(up && !time.timestamp_subsec_nanos().is_multiple_of(1_000));
    Ok(time.timestamp_micros().saturating_add(finer))
}

/// Microseconds since 1970 as RFC 3339 in UTC: with milliseconds, or with microseconds where they are needed.
pub fn rfc3339_micros(us: i64) -> String {
    match DateTime::from_timestamp_micros(us) {
        Some(time) if us % 1_000 != 0 => time.to_rfc3339_opts(SecondsFormat::Micros, true),
        _ => rfc3339(us.div_euclid(1_000)),
    }
}

/// A time as [`rfc3339`] writes those that RFC 3339 cannot: `+010000-01-01T00:00:00.000Z`. The outer none: it is no such time;
/// the inner one: it looks like one and is none.
fn parse_far(text: &str) -> Option<Option<i64>> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let (year, rest) = rest.split_once('-').filter(|_| text.contains('T'))?;
    let days = || {
        let year =
            sign * year.parse::<i64>().ok().filter(|_| year.len() >= 5 && year.bytes().all(|b| b.is_ascii_digit()))?;
        // Days and leap years repeat every 400 years: the rest is read in one of them, and counted from there.
        let eras = (year - 2000).div_euclid(400);
        let near = DateTime::parse_from_rfc3339(&format!("{}-{rest}", year - eras * 400)).ok()?;
        let finer = i64::from(near.timestamp_subsec_nanos() % 1_000_000 != 0);
        let era_ms = i128::from(eras) * 146_097 * i128::from(DAY_MS);
        i64::try_from(i128::from(near.timestamp_millis() + finer) + era_ms).ok()
    };
    Some(days())
}

fn wrong(text: &str) -> Error {
    Error::new(Kind::Config, format!("{text:?} is not a time"))
        .hint("write RFC 3339 with a zone (2026-11-22T08:05:12Z), `now`, or a distance back from now (-90m, -2h, -7d)")
}

/// Returns whether `text` names a time that moves with the clock.
pub fn is_relative(text: &str) -> bool {
    text == "now" || (text.starts_with('-') && parse_far(text).is_none())
}

/// `ms` since 1970 as RFC 3339 in UTC with milliseconds. A time that RFC 3339 cannot write (records can carry any
/// number) has its year written with a sign and as many digits as it needs, as ISO 8601 has it.
pub fn rfc3339(ms: i64) -> String {
    let mut text = Vec::with_capacity(24);
    write_rfc3339(ms, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// As [`rfc3339`], appended to `out`: a replay to JSON lines writes millions of them.
pub fn write_rfc3339(ms: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil(ms.div_euclid(DAY_MS));
    let of_day = ms.rem_euclid(DAY_MS).unsigned_abs();
    if RFC3339_MS.contains(&ms) {
        digits(out, year.unsigned_abs(), 4);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        digits(out, year.unsigned_abs(), 6);
    }
    out.push(b'-');
    digits(out, month, 2);
    out.push(b'-');
    digits(out, day, 2);
    out.push(b'T');
    digits(out, of_day / 3_600_000, 2);
    out.push(b':');
    digits(out, of_day / 60_000 % 60, 2);
    out.push(b':');
    digits(out, of_day / 1_000 % 60, 2);
    out.push(b'.');
    digits(out, of_day % 1_000, 3);
    out.push(b'Z');
}

/// `ms` since 1970 for a table: UTC, to the second, without letters.
pub fn short(ms: i64) -> String {
    let mut text = rfc3339(ms);
    text.truncate(text.len() - ".000Z".len());
    text.replace('T', " ")
}

/// A time of the program's own as RFC 3339 in UTC with milliseconds.
pub fn utc(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// At least `width` digits of `number`, zeros before.
fn digits(out: &mut Vec<u8>, number: u64, width: usize) {
    let mut text = [b'0'; 20];
    let mut at = text.len();
    let mut rest = number;
    while rest > 0 || at > text.len() - width {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&text[at..]);
}

/// Year, month and day of a day since 1970 in the proleptic Gregorian calendar, by whole 400-year eras that begin on
/// 1 March, so that the leap day is the last of its year (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn civil(day: i64) -> (i64, u64, u64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097).unsigned_abs();
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era.cast_signed() + i64::from(month <= 2);
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_795_334_712_345).expect("in range")
    }

    #[test]
    fn the_three_forms_are_read() {
        let now_ms = now().timestamp_millis();
        assert_eq!(parse("now", now()).expect("now"), now_ms);
        assert_eq!(parse("-90m", now()).expect("minutes"), now_ms - 90 * 60_000);
        assert_eq!(parse("-2h", now()).expect("hours"), now_ms - 2 * 3_600_000);
        assert_eq!(parse("-7d", now()).expect("days"), now_ms - 7 * DAY_MS);
        assert_eq!(parse("1970-01-01T00:00:01.5Z", now()).expect("UTC"), 1_500);
        assert_eq!(parse("1970-01-01T02:00:01+02:00", now()).expect("zone"), 1_000);
    }

    #[test]
    fn a_finer_time_than_milliseconds_is_rounded_up() {
        assert_eq!(parse("1970-01-01T00:00:00.0000001Z", now()).expect("finer"), 1);
        assert_eq!(parse("1969-12-31T23:59:59.9995Z", now()).expect("before 1970"), 0);
    }

    #[test]
    fn a_commit_has_microseconds() {
        let micros = |text: &str, up| parse_micros(text, now(), up).expect("a time");
        assert_eq!(
            (micros("1970-01-01T00:00:01.000999Z", false), micros("1970-01-01T00:00:01.000999Z", true)),
            (1_000_999, 1_000_999)
        );
        assert_eq!(
            (micros("1970-01-01T00:00:00.0000015Z", false), micros("1970-01-01T00:00:00.0000015Z", true)),
            (1, 2)
        );
        assert_eq!(micros("1969-12-31T23:59:59.9999995Z", false), -1);
        assert_eq!(micros("-2h", false), (now().timestamp_millis() - 2 * 3_600_000) * 1_000);
        assert_eq!(rfc3339_micros(1_000_999), "1970-01-01T00:00:01.000999Z");
        assert_eq!(rfc3339_micros(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(rfc3339_micros(1_500_000), "1970-01-01T00:00:01.500Z");
        assert!(parse_micros("2026-11-22", now(), false).is_err());
    }

    #[test]
    fn anything_else_is_refused_with_the_way_out() {
        for text in
            ["", "-", "-3", "yesterday", "2026-11-22", "2026-11-22T08:00:00", "2h", "--2h", "-99999999999999999999d"]
        {
            let error = parse(text, now()).expect_err(text);
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("-90m")), "{text}");
        }
    }

    #[test]
    fn times_beyond_rfc3339_are_read_as_they_are_written() {
        for ms in [i64::MIN, -62_167_219_200_001, 253_402_300_800_000, 253_402_300_800_001, i64::MAX] {
            assert_eq!(parse(&rfc3339(ms), now()).expect("own output"), ms);
            assert!(!is_relative(&rfc3339(ms)));
        }
        assert_eq!(
            parse("-000001-03-01T02:00:00+02:00", now()).expect("a zone"),
            parse("-000001-03-01T00:00:00Z", now()).expect("UTC")
        );
        for wrong in [
            "+10000-13-01T00:00:00Z",
            "+010000-01-01T00:00:00",
            "-999999999999-01-01T00:00:00Z",
            "+2026-01-01T00:00:00Z",
        ] {
            assert_eq!(parse(wrong, now()).expect_err(wrong).exit_code(), 2);
        }
        assert!(is_relative("-90m") && parse("10000-01-01T00:00:00Z", now()).is_err());
    }

    #[test]
    fn times_beyond_rfc3339_are_still_written() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(253_402_300_800_000), "+010000-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(i64::MAX), "+292278994-08-17T07:12:55.807Z");
        assert_eq!(rfc3339(i64::MIN), "-292275055-05-16T16:47:04.192Z");
        assert_eq!(short(1_795_334_712_345), "2026-11-22 08:05:12");
    }

    proptest! {
        #[test]
        fn any_time_is_read_back(ms in any::<i64>()) {
            prop_assert_eq!(parse(&rfc3339(ms), now()).expect("own output"), ms);
        }

        #[test]
        fn what_is_written_is_what_chrono_writes_and_is_read_back(ms in -62_167_219_200_000i64..253_402_300_800_000) {
            let text = rfc3339(ms);
            let chrono = DateTime::from_timestamp_millis(ms).expect("in range");
            prop_assert_eq!(&text, &utc(chrono));
            prop_assert_eq!(parse(&text, now()).expect("own output"), ms);
        }
    }
}
