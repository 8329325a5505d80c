//! What sections of the configuration have in common.

/// How a key's secret or another program's value finds an environment variable.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn zstd_level(text: &str) -> Result<i32, String> {
    let level = match text.strip_prefix("zstd") {
        Some("") => Some(3),
        Some(rest) => rest.strip_prefix(':').and_then(|level| level.parse().ok()),
        None => None,
    };
    level
        .filter(|level| (1..=19).contains(level))
        .ok_or_else(|| format!("{text:?} is not a compression; use \"zstd:1\" (fast) to \"zstd:19\" (small)"))
}
