//! Numbers as people read them: in tables, plans and progress bars. Machines get `--json`.

use std::time::Duration;

/// Every digit, in groups of three: `182,440`.
pub(super) fn exact(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The leading digits: `4.1 M`, `880 k`, `512`.
pub(super) fn rough(number: u64) -> String {
    scaled(number, 1000, &["", " k", " M", " G", " T", " P", " E"])
}

/// Bytes: `312 MiB`, `2.3 GiB`, `17 B`.
pub(super) fn bytes(number: u64) -> String {
    scaled(number, 1024, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
}

fn scaled(number: u64, step: u64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    // What rounds up to the next unit is written in it: 999.96 k is 1.0 M.
    while unit + 1 < units.len() && value >= step as f64 - 0.5 {
        value /= step as f64;
        unit += 1;
    }
    if unit > 0 && value < 9.95 { format!("{value:.1}{}", units[unit]) } else { format!("{value:.0}{}", units[unit]) }
}

/// A span of time by its largest unit: `2 s`, `5 min`, `3 h`, `12 d`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Returns how many of something: `1 topic`, `2 topics`.
pub(super) fn many(number: u64, one: &str) -> String {
    format!("{} {one}{}", exact(number), if number == 1 { "" } else { "s" })
}

/// Rows under their headings, the columns that are numbers to the right.
pub(super) fn table<const N: usize>(headings: [&str; N], right: [bool; N], rows: &[[String; N]]) -> String {
    let headings = headings.map(str::to_owned);
    let width = |column: usize| {
        std::iter::once(&headings).chain(rows).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let blank = " ".repeat(widths[column] - cell.chars().count());
            let (before, after) = if right[column] { (blank.as_str(), "") } else { ("", blank.as_str()) };
            line.extend([before, cell, after, "  "]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([0, 999, 1_000, 182_440, 1_234_567].map(exact), ["0", "999", "1,000", "182,440", "1,234,567"]);
        assert_eq!(
            [0, 999, 1_000, 9_949, 9_960, 880_000, 999_999, 4_100_000].map(rough),
            ["0", "999", "1.0 k", "9.9 k", "10 k", "880 k", "1.0 M", "4.1 M"]
        );
        assert_eq!(rough(u64::MAX), "18 E");
        assert_eq!([17, 1_023, 1_024, 327_155_712].map(bytes), ["17 B", "1023 B", "1.0 KiB", "312 MiB"]);
        assert_eq!(
            [2, 119, 300, 7_200, 200_000].map(|s| span(Duration::from_secs(s))),
            ["2 s", "119 s", "5 min", "2 h", "2 d"]
        );
        assert_eq!([1, 2].map(|n| many(n, "topic")), ["1 topic", "2 topics"]);
    }
}
