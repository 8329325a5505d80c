//! What the last drill has found, told to `tidelog run`, which shows it as a metric.
//!
//! ```text
//! drills/<name>.json           written at the end of each drill of that name, over the one before
//! drills/made/<name>.json      what a drill makes on servers that are not its own, written before, and over at its end
//! ```
//!
//! A drill that did not pass keeps when the last one passed: that is what an alert looks at. What a drill that was killed has left on
//! other servers is told by the second object alone: its own machine may be gone.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::{Store, layout};
use crate::stream::{FORMAT_VERSION, lean};

/// The drills that there are. The names are values of a metric's label.
pub const NAMES: [&str; 4] = ["corruption", "schema", "slot", "pipeline"];

/// How a drill has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing is wrong.
    Passed,
    /// The archive, or what was restored of it, is not as it should be.
    Found,
    /// It could not be carried out: nothing is known.
    Failed,
}

/// The last drill of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    /// The version of the format.
    pub format: u32,
    /// Which drill.
    pub drill: String,
    /// How it ended.
    pub outcome: Outcome,
    /// When it began.
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// What repeats it.
    pub seed: u64,
    /// How much is not as it should be.
    pub findings: u64,
    /// When one of this name ended last that passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<DateTime<Utc>>,
}

impl Drilled {
    /// Writes it over the one before.
    ///
    /// # Errors
    /// The store's: [`Kind::Denied`] where nothing may be written below `drills/`.
    pub async fn write(mut self, store: &Store) -> Result<()> {
        self.last_success = match self.outcome {
            Outcome::Passed => Some(self.finished),
            // What cannot be read tells nothing, and is written over.
            Outcome::Found | Outcome::Failed => {
                read(store, &self.drill).await.ok().flatten().and_then(|old| old.last_success)
            }
        };
        let bytes =
            serde_json::to_vec(&self).or_err(Kind::Internal, || "cannot write the result of a drill".to_owned())?;
        store.put(&layout::drill(&self.drill), Bytes::from(bytes)).await
    }
}

/// Reads the last drill of a name; none if there was none.
///
/// # Errors
/// The store's, and [`Kind::Corrupt`] for what no drill has written.
pub async fn read(store: &Store, name: &str) -> Result<Option<Drilled>> {
    let Some(bytes) = store.get(&layout::drill(name)).await? else { return Ok(None) };
    let drilled: Drilled =
        lean::parse(&bytes).or_err(Kind::Corrupt, || format!("the result of the last drill {name} cannot be read"))?;
    match drilled.format {
        1..=FORMAT_VERSION if drilled.drill == name => Ok(Some(drilled)),
        1..=FORMAT_VERSION => {
            Err(Error::new(Kind::Corrupt, format!("the result of the drill {name} is of another one")))
        }
        newer => {
            Err(Error::new(Kind::Unsupported, format!("the result of the drill {name} has format version {newer}"))
                .hint("use the newer tidelog that wrote it"))
        }
    }
}

/// What a drill has made, and who drills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made<T> {
    /// The version of the format.
    pub format: u32,
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// When it was written.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
    /// What it makes; none: it has removed all of it.
    pub made: Option<T>,
}

impl<T: Serialize> Made<T> {
    /// Writes it over the one before.
    ///
    /// # Errors
    /// The store's: [`Kind::Denied`] where nothing may be written below `drills/`.
    pub async fn write(&self, store: &Store, name: &str) -> Result<()> {
        let bytes = serde_json::to_vec(self).or_err(Kind::Internal, || "cannot write what a drill makes".to_owned())?;
        store.put(&layout::drill_made(name), Bytes::from(bytes)).await
    }
}

/// Reads what a drill of a name has made, if it has not removed it.
///
/// # Errors
/// The store's, and [`Kind::Corrupt`] for what no drill has written.
pub async fn made<T: DeserializeOwned>(store: &Store, name: &str) -> Result<Option<Made<T>>> {
    let Some(bytes) = store.get(&layout::drill_made(name)).await? else { return Ok(None) };
    let made: Made<T> = lean::parse(&bytes)
        .or_err(Kind::Corrupt, || format!("{} does not tell what a drill has made", layout::drill_made(name)))?;
    if made.format > FORMAT_VERSION {
        let message = format!("{} has format version {}", layout::drill_made(name), made.format);
        return Err(Error::new(Kind::Unsupported, message).hint("use the newer tidelog that wrote it"));
    }
    Ok(Some(made).filter(|made| made.made.is_some()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time")
    }

    fn drilled(outcome: Outcome, ended: i64) -> Drilled {
        let (format, drill) = (FORMAT_VERSION, "corruption".to_owned());
        Drilled {
            format,
            drill,
            outcome,
            started: at(0),
            finished: at(ended),
            seed: 7,
            findings: 0,
            last_success: None,
        }
    }

    #[tokio::test]
    async fn a_drill_that_did_not_pass_keeps_when_the_last_one_did() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        assert_eq!(read(&store, "corruption").await.expect("the store answers"), None);
        let mut last = Vec::new();
        for (outcome, ended) in [(Outcome::Failed, 1), (Outcome::Passed, 2), (Outcome::Found, 3), (Outcome::Failed, 4)]
        {
            drilled(outcome, ended).write(&store).await.expect("stored");
            let found = read(&store, "corruption").await.expect("sound").expect("there");
            assert_eq!((found.outcome, found.finished), (outcome, at(ended)));
            last.push(found.last_success);
        }
        assert_eq!(last, [None, Some(at(2)), Some(at(2)), Some(at(2))]);
    }

    #[tokio::test]
    async fn what_no_drill_has_written_is_refused_and_written_over() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        for (text, kind) in [
            ("nonsense".to_owned(), Kind::Corrupt),
            (
                serde_json::to_string(&Drilled { drill: "slot".to_owned(), ..drilled(Outcome::Passed, 1) })
                    .expect("JSON"),
                Kind::Corrupt,
            ),
            (
                serde_json::to_string(&Drilled { format: 2, ..drilled(Outcome::Passed, 1) }).expect("JSON"),
                Kind::Unsupported,
            ),
        ] {
            store.put(&layout::drill("corruption"), text.into_bytes().into()).await.expect("stored");
            assert_eq!(read(&store, "corruption").await.expect_err("refused").kind(), kind);
            drilled(Outcome::Found, 2).write(&store).await.expect("written over");
            assert_eq!(read(&store, "corruption").await.expect("sound").expect("there").last_success, None);
        }
    }
}
