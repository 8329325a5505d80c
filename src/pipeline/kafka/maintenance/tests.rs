use super::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
}

#[test]
fn a_clock_that_jumps_ahead_is_believed_after_an_hour() {
    let (begun, mut steady) = (Instant::now(), Steady::default());
    let mut is = |passed: u64, dated: i64| steady.is(at(dated), begun + Duration::from_secs(passed));
    assert!(is(0, 0) && is(600, 600) && is(1_200, 1_260), "it goes a little fast");
    assert!(is(1_800, -50_000), "behind: less is old by it");
    assert!(!is(2_400, 2_400), "and right again: what it dated meanwhile seems older than it is");
    assert!(!is(3_000, 9_000_000) && !is(3_600, 3_600), "ahead and back: nothing was expired by it");
    assert!(!is(3_000 + 3_599, 6_599) && is(3_000 + 3_600, 6_600));
    assert!(!is(90_000, i64::from(i32::MAX)), "far ahead");
}
