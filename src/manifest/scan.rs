//! Every entry and page of a chain, in order and checked: what `verify` stands on.
//!
//! The chain's folder is listed, so that a missing entry is found as missing and not taken for the end. Damage does not
//! stop the scan: it is told, and the entries after it are checked by themselves until the next snapshot says again
//! what all entries before add up to. A page is opened once, at the first snapshot that lists it.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use object_store::path::Path;

use super::chain::{Chain, pages_are_sound};
use super::entry::{self, Entry};
use super::live::Live;
use super::{page, stored};
use crate::error::{Error, Result};
use crate::store::{Store, layout};
use crate::stream::invariants::{self, Checked, SNAPSHOT_EVERY};
use crate::stream::{Begin, Body, Checkpoint, PageRef, Progress, Snapshot, StreamId};

/// How many entries are read ahead.
const PREFETCHED: usize = 16;

/// What a [`ChainScan`] comes across.
#[derive(Debug)]
pub enum ScanStep {
    /// An entry that can be read, in the order of the numbers.
    Entry {
        /// Its object.
        object: Path,
        /// The sha256 of its bytes.
        sha256: String,
        /// What it says.
        checkpoint: Box<Checkpoint>,
    },
    /// A page of a snapshot, which lists what it should. It comes before the snapshot's entry.
    Page {
        /// Its object.
        object: Path,
        /// Where it stands.
        reference: PageRef,
    },
    /// An entry or a page that is missing, damaged or against a rule. An entry that can be read although it breaks a
    /// rule follows as [`ScanStep::Entry`].
    Damaged {
        /// The object.
        object: Path,
        /// The number of the entry, or of the snapshot that lists the page.
        number: u64,
        /// What is wrong with it.
        error: Error,
    },
}

/// A scan through one chain.
pub struct ChainScan<'a> {
    store: &'a Store,
    stream: StreamId,
    entries: u64,
    bytes: BoxStream<'a, (Place, Result<Option<Bytes>>)>,
    steps: VecDeque<ScanStep>,
    known: Known,
    /// The pages that were opened, by their sha256.
    opened: BTreeSet<String>,
}

/// What is to be looked at next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The entry with this number.
    Entry(u64),
    /// All of these, the first and the last included: no listing names them, and nobody asks for each.
    Hole(u64, u64),
}

impl Place {
    /// The last number.
    fn end(self) -> u64 {
        match self {
            Self::Entry(number) | Self::Hole(_, number) => number,
        }
    }
}

/// How many entries of a hole are asked for one by one: a listing may lag. A hole may be as wide as numbers are: one object with
/// the greatest of them is enough.
const ASKED_FOR: u64 = 64;

/// Returns what is looked at of a chain of which these entries are listed.
fn places(mut numbers: Vec<u64>) -> Vec<Place> {
    numbers.sort_unstable();
    let (mut places, mut next) = (Vec::with_capacity(numbers.len().max(1)), Some(0));
    for number in if numbers.is_empty() { vec![0] } else { numbers } {
        let Some(first) = next.filter(|next| *next <= number) else { continue };
        let asked = (number - first).min(ASKED_FOR);
        places.extend((first..first + asked).map(Place::Entry));
        if first + asked < number {
            places.push(Place::Hole(first + asked, number - 1));
        }
        places.push(Place::Entry(number));
        next = number.checked_add(1);
    }
    places
}

/// What the entries so far add up to, as far as they could be read.
struct Known {
    stream: StreamId,
    begin: Option<Begin>,
    link: Link,
    /// None after damage, until a snapshot says it again.
    progress: Option<Progress>,
    /// The entries since the last snapshot; none if one of them is damaged.
    tail: Option<Vec<Body>>,
    /// The segments that are needed, of a stream that is no topic; none after damage.
    live: Option<Live>,
}

/// Whether something of a topic was merged. Most topics have more segments than are to be kept in memory, and nothing was. Of a chain
/// that cannot be opened, what its merges say is believed.
async fn is_merged(store: &Store, stream: &StreamId) -> bool {
    Chain::open(store, stream).await.is_ok_and(|chain| chain.is_some_and(|chain| chain.has_merges()))
}

/// What the next entry must name as the entry before it.
enum Link {
    Nothing,
    Sha256(String),
    /// The entry before cannot be read.
    Unknown,
}

impl<'a> ChainScan<'a> {
    /// Starts at a chain's first entry.
    pub async fn new(store: &'a Store, stream: &StreamId) -> Result<Self> {
        let chain = layout::chain(stream);
        let objects = store.list(&chain).await?;
        let numbers = stored::numbers(stream, objects.iter().map(|object| &object.location));
        // Where only pages are left, the first entry is missing.
        let places = if objects.is_empty() { Vec::new() } else { places(numbers) };
        let entries = places.last().map_or(0, |last| last.end().saturating_add(1));
        let of = stream.clone();
        let read = move |place: Place| {
            let of = of.clone();
            async move {
                match place {
                    Place::Entry(number) => (place, stored::bytes(store, &of, number).await),
                    Place::Hole(..) => (place, Ok(None)),
                }
            }
        };
        let bytes = stream::iter(places).map(read).buffered(PREFETCHED).boxed();
        let known = Known {
            stream: stream.clone(),
            begin: None,
            link: Link::Nothing,
            progress: Some(Progress::default()),
            tail: Some(Vec::new()),
            live: match stream.topic() {
                None => Some(Live::default()),
                Some(_) => is_merged(store, stream).await.then(Live::of_records),
            },
        };
        let (steps, opened) = (VecDeque::new(), BTreeSet::new());
        Ok(Self { store, stream: stream.clone(), entries, bytes, steps, known, opened })
    }

    /// Returns how many entries the chain should have: one more than the highest number that exists.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The next step; none at the end.
    ///
    /// # Errors
    /// Only what keeps the scan from going on, such as a store that does not answer. Damage is a [`ScanStep::Damaged`].
    pub async fn next(&mut self) -> Result<Option<ScanStep>> {
        while self.steps.is_empty() {
            let Some((place, bytes)) = self.bytes.next().await else { return Ok(None) };
            let number = place.end();
            let object = layout::entry(&self.stream, number);
            let decoded = match bytes {
                Err(error) if super::streams::is_of_one_object(&error) => Err(error),
                Err(error) => return Err(error),
                Ok(None) => Err(match place {
                    Place::Entry(_) => entry::missing(&self.stream, number),
                    Place::Hole(first, last) => entry::missing_all(&self.stream, (first, last)),
                }),
                Ok(Some(bytes)) => entry::decode(&self.stream, number, object.clone(), &bytes),
            };
            match decoded {
                Ok(entry) => self.entry(entry).await?,
                Err(error) => {
                    self.known.lose(number);
                    self.steps.push_back(ScanStep::Damaged { object, number, error });
                }
            }
        }
        Ok(self.steps.pop_front())
    }

    async fn entry(&mut self, entry: Entry) -> Result<()> {
        let Entry { object, sha256, checkpoint } = entry;
        let checked = self.known.check(&checkpoint);
        let sound = checked.is_ok();
        if let Err(violation) = checked {
            let (number, error) = (checkpoint.number, violation.in_object(&object));
            self.steps.push_back(ScanStep::Damaged { object: object.clone(), number, error });
        }
        if let Body::Snapshot(snapshot) = &checkpoint.body {
            self.pages(checkpoint.number, snapshot).await?;
        }
        self.known.take_in(&checkpoint, sha256.clone(), sound);
        self.steps.push_back(ScanStep::Entry { object, sha256, checkpoint: Box::new(checkpoint) });
        Ok(())
    }

    /// Opens the pages that no snapshot before listed, from the top down.
    async fn pages(&mut self, number: u64, snapshot: &Snapshot) -> Result<()> {
        let mut to_open: VecDeque<PageRef> = snapshot.pages.iter().cloned().collect();
        while let Some(reference) = to_open.pop_front() {
            if !self.opened.insert(reference.sha256.clone()) {
                continue;
            }
            let object = layout::page(&self.stream, &reference.sha256);
            let read = page::read(self.store, &self.stream, &reference).await;
            let checked = read.and_then(|page| {
                let newest = reference.level == 0 && reference.last.checked_add(1) == Some(number);
                let tail = self.known.tail.as_deref().filter(|_| newest);
                page.lists(tail).map_err(|violation| violation.in_object(&object))?;
                Ok(page)
            });
            match checked {
                Ok(page) => {
                    to_open.extend(page.pages);
                    self.steps.push_back(ScanStep::Page { object, reference });
                }
                Err(error) if super::streams::is_of_one_object(&error) => {
                    self.steps.push_back(ScanStep::Damaged { object, number, error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Known {
    /// Every rule between an entry and what is known of those before it.
    fn check(&self, checkpoint: &Checkpoint) -> Checked {
        let link = checkpoint.previous.as_deref();
        match &self.link {
            Link::Nothing => invariants::links_to_previous(None, link)?,
            Link::Sha256(before) => invariants::links_to_previous(Some(before), link)?,
            Link::Unknown => {}
        }
        invariants::begins_first(checkpoint.number, &checkpoint.body)?;
        invariants::snapshot_at_multiple(checkpoint.number, &checkpoint.body)?;
        invariants::body_fits_stream(&self.stream, &checkpoint.body)?;
        match (&checkpoint.body, &self.progress) {
            (Body::Snapshot(snapshot), progress) => {
                self.begin.iter().try_for_each(|begin| invariants::snapshot_repeats_begin(begin, snapshot))?;
                progress.iter().try_for_each(|sum| invariants::snapshot_repeats_progress(sum, snapshot))?;
                invariants::packs_are_whole(checkpoint.number, 0, snapshot)?;
                pages_are_sound(checkpoint.number, snapshot)
            }
            (body, Some(progress)) => {
                progress.accepts(body)?;
                self.live.as_ref().map_or(Ok(()), |live| live.allows(body))
            }
            (body, None) => invariants::body_is_sound(body),
        }
    }

    /// Takes an entry in that could be read; `sound` says whether it kept the rules.
    fn take_in(&mut self, checkpoint: &Checkpoint, sha256: String, sound: bool) {
        self.link = Link::Sha256(sha256);
        match &checkpoint.body {
            Body::Begin(begin) => self.begin = Some(begin.clone()),
            Body::Snapshot(snapshot) => {
                self.progress = Some(Progress::from_snapshot(snapshot));
                self.tail = Some(Vec::new());
            }
            body => {
                match &mut self.live {
                    Some(live) if sound => live.take_in(body),
                    live => *live = None,
                }
                match &mut self.progress {
                    Some(progress) if sound => progress.add(body),
                    progress => *progress = None,
                }
                self.tail.iter_mut().for_each(|tail| tail.push(body.clone()));
            }
        }
    }

    /// Entry `number` cannot be read: what comes after cannot be compared with what came before.
    fn lose(&mut self, number: u64) {
        self.link = Link::Unknown;
        self.progress = None;
        if !number.is_multiple_of(SNAPSHOT_EVERY) {
            self.live = None;
        }
        // A lost snapshot holds nothing of its own that the next page would list.
        self.tail = number.is_multiple_of(SNAPSHOT_EVERY).then(Vec::new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_named_whatever_its_width() {
        let entries = |numbers: std::ops::Range<u64>| numbers.map(Place::Entry).collect::<Vec<_>>();
        assert_eq!(places(vec![]), entries(0..1));
        assert_eq!(
            places(vec![2, 0, 1, 70]),
            entries(0..67).into_iter().chain([Place::Hole(67, 69), Place::Entry(70)]).collect::<Vec<_>>()
        );
        let greatest = places(vec![0, u64::MAX - 1, u64::MAX]);
        let last = [Place::Hole(65, u64::MAX - 2), Place::Entry(u64::MAX - 1), Place::Entry(u64::MAX)];
        assert_eq!(greatest, [entries(0..65), last.to_vec()].concat());
        assert_eq!(
            places(vec![66]),
            entries(0..64).into_iter().chain([Place::Hole(64, 65), Place::Entry(66)]).collect::<Vec<_>>()
        );
    }
}
