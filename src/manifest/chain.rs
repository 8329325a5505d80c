//! One stream's chain of checkpoints: its end, and the commit that moves it.
//!
//! A [`Chain`] knows the chain up to its head. A commit tries to create the next entry. If the number is taken, it
//! reads what came: its own entry, whose answer was lost: done; something that leaves its partitions alone: the next
//! number; something that moved one of its partitions: [`Outcome::Moved`], and the caller yields it. No lock, no lease.
//! Before it creates an entry, it reads the one that the entry will link to: a bucket that was put back to an earlier
//! state gets no entry above the hole.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::entry::{self, Entry};
use super::{head, pack, page, stored};
use crate::error::{Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::store::{Created, Store, layout};
use crate::stream::invariants::{self, Checked};
use crate::stream::{
    Abandon, BackupRef, Begin, Body, Change, Checkpoint, Close, CountedBackup, CountedBackups, FORMAT_VERSION,
    LastRecord, Merge, MinimalWal, PageRef, PartitionRange, Progress, Retired, Snapshot, StreamId, Totals, sha256,
};

/// A stream's chain, known up to its head.
#[derive(Debug)]
pub struct Chain {
    pub(super) store: Store,
    pub(super) stream: StreamId,
    begin: Begin,
    pub(super) number: u64,
    sha256: String,
    pub(super) progress: Progress,
    /// What the last snapshot lists.
    pub(super) pages: Vec<PageRef>,
    /// The entries after the last snapshot.
    pub(super) tail: Vec<Body>,
    /// What the last snapshot says of it: the entries before this one may be in packs.
    pub(super) packed: u64,
    /// Partitions that other writers moved since this one last did, and those of which the caller was told that they had moved: what
    /// it sealed before it heard that begins behind a hole.
    foreign: BTreeSet<i32>,
    /// Who commits through this chain.
    pub(super) writer: Option<String>,
    /// Entries of that writer that were not answered and are in the chain all the same: the caller does not know yet.
    pub(super) landed: Vec<(u64, Body)>,
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The change is in the chain, durably.
    Committed {
        /// The number of the entry that holds it.
        number: u64,
    },
    /// Another writer moved these partitions; nothing was written. The caller no longer owns them: it drops what is
    /// covered and goes on with the rest. Segment objects are never deleted at this point: an earlier attempt to commit
    /// them may have succeeded.
    Moved(BTreeSet<i32>),
    /// The generation has ended; nothing was written, and nothing will be. What is not in the chain belongs into the next
    /// generation.
    Closed,
}

/// How one try to create the next entry ended.
pub(super) enum Tried {
    /// With this number.
    Created(u64),
    /// Somebody else was faster, or a snapshot was due first: the caller looks again whether its change still fits.
    Again,
    /// What was known of the chain is not there any more; this is the chain that is there now.
    WentBack,
}

impl Chain {
    /// Opens a stream's chain; none if it has not begun.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if an entry that matters is damaged or missing, [`Kind::Unsupported`] if a newer program wrote
    /// it, and the store's errors.
    pub async fn open(store: &Store, stream: &StreamId) -> Result<Option<Self>> {
        let base = head::last_snapshot(store, stream).await?;
        let mut first = stored::read(store, stream, base).await?;
        if first.is_none() && store.any_below(&layout::chain(stream)).await? {
            // Another writer may have begun the chain in between; else its beginning was deleted.
            first = Some(stored::read(store, stream, base).await?.ok_or_else(|| entry::missing(stream, base))?);
        }
        let Some(first) = first else { return Ok(None) };
        let mut chain = Self::from_first(store, stream, first)?;
        loop {
            chain.refresh().await?;
            if head::is_end(store, stream, chain.number).await? {
                chain.foreign.clear();
                return Ok(Some(chain));
            }
        }
    }

    /// Begins a stream's chain, or opens it if it has begun.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if it has begun for another topic id (the topic was created again, and a new generation is due)
    /// or for other facts of a Postgres system.
    pub async fn begin(
        store: &Store,
        stream: &StreamId,
        begin: Begin,
        writer: &str,
        now: DateTime<Utc>,
    ) -> Result<Self> {
        if layout::stream_of(&layout::chain(stream)).as_ref() != Some(stream) {
            let message = format!("{stream} cannot be the name of a stream in an archive");
            return Err(Error::new(Kind::Config, message)
                .hint("use letters, digits, dots, underscores and hyphens in kafka.cluster"));
        }
        loop {
            if let Some(chain) = Self::open(store, stream).await? {
                return chain.begun_for(&begin);
            }
            let checkpoint = Checkpoint {
                format: FORMAT_VERSION,
                stream: stream.to_string(),
                number: 0,
                previous: None,
                writer: writer.to_owned(),
                at: now,
                body: Body::Begin(begin.clone()),
            };
            let bytes = entry::encode(&checkpoint)?;
            let object = layout::entry(stream, 0);
            let sha256 = sha256(&bytes);
            match store.create(&object, bytes).await? {
                Created::Yes | Created::Same => {
                    return Self::from_first(store, stream, Entry { object, sha256, checkpoint });
                }
                // Somebody else was faster: what they began is opened.
                Created::Other(found) => drop(entry::decode(stream, 0, object, &found)?),
            }
        }
    }

    fn begun_for(self, begin: &Begin) -> Result<Self> {
        if let (Some(archived), Some(found)) = (self.begin.cluster_id(), begin.cluster_id())
            && archived != found
        {
            let message = format!("{} is of the Kafka cluster {archived}, and the brokers are of {found}", self.stream);
            return Err(Error::new(Kind::Fenced, message)
                .hint("two clusters are archived under one name: give one of them another kafka.cluster"));
        }
        match (self.begin.topic_id(), begin.topic_id()) {
            (Some(archived), Some(found)) if archived != found => Err(Error::new(
                Kind::Fenced,
                format!("{} holds the topic with the id {archived}, and the topic's id is {found}", self.stream),
            )
            .hint("the topic was deleted and created again: its new log is a new generation")),
            _ if self.begin.system() != begin.system() => Err(Error::new(
                Kind::Fenced,
                format!("{} was begun with {:?}, and the server says {:?}", self.stream, self.begin, begin),
            )
            .hint("a Postgres system keeps its WAL file size and major version: archive this server elsewhere")),
            _ => Ok(self),
        }
    }

    /// A chain that starts with its first entry or with a snapshot.
    fn from_first(store: &Store, stream: &StreamId, first: Entry) -> Result<Self> {
        let Entry { object, sha256, checkpoint } = first;
        let number = checkpoint.number;
        let sound = invariants::begins_first(number, &checkpoint.body)
            .and_then(|()| invariants::snapshot_at_multiple(number, &checkpoint.body))
            .and_then(|()| invariants::body_fits_stream(stream, &checkpoint.body));
        sound.map_err(|violation| violation.in_object(&object))?;
        let (begin, progress, pages, packed) = match checkpoint.body {
            Body::Begin(begin) => (begin, Progress::default(), Vec::new(), 0),
            Body::Snapshot(snapshot) => {
                pages_are_sound(number, &snapshot).map_err(|violation| violation.in_object(&object))?;
                let progress = Progress::from_snapshot(&snapshot);
                (snapshot.begin, progress, snapshot.pages, snapshot.packed)
            }
            _ => {
                return Err(Error::new(Kind::Internal, format!("{object} is no beginning of a chain")));
            }
        };
        Ok(Self {
            store: store.clone(),
            stream: stream.clone(),
            begin,
            number,
            sha256,
            progress,
            pages,
            tail: Vec::new(),
            packed,
            foreign: BTreeSet::new(),
            writer: None,
            landed: Vec::new(),
        })
    }

    /// Reads what others have committed since.
    pub async fn refresh(&mut self) -> Result<()> {
        let mut width = 1;
        loop {
            let ahead = head::prefetch(&self.store, &self.stream, self.number + 1, width).await?;
            for entry in ahead.entries {
                let entry = match Some(&entry.checkpoint.writer) == self.writer.as_ref() {
                    true => stored::settled(&self.store, &self.stream, entry).await?,
                    false => entry,
                };
                let Checkpoint { number, writer, body, .. } = &entry.checkpoint;
                let own = Some(writer) == self.writer.as_ref();
                let came = (*number, body.clone());
                self.follow(entry)?;
                self.foreign.extend(came.1.ranges().iter().map(|range| range.partition));
                self.landed.extend(own.then_some(came));
            }
            if !ahead.more {
                return Ok(());
            }
            width = (width * 4).min(head::WINDOW);
        }
    }

    /// Commits a change: all of it or nothing. When the answer is [`Outcome::Committed`], it is durable.
    ///
    /// An error leaves it open whether the change was committed. The same call, also with more added to the change,
    /// tells: what is in the chain already is recognised and not written again. Dropping the future is like an error.
    ///
    /// # Errors
    /// [`Kind::Internal`] if the change breaks a rule by itself or leaves a hole, [`Kind::Corrupt`] if the chain does,
    /// and the store's errors.
    pub async fn commit(&mut self, change: &Change, writer: &str, now: DateTime<Utc>) -> Result<Outcome> {
        self.writer = Some(writer.to_owned());
        loop {
            let rest = self.without_landed(change);
            if rest.is_empty() && !change.is_empty() {
                let number = self.acknowledge(change).unwrap_or(self.number);
                return Ok(Outcome::Committed { number });
            }
            if self.closed().is_some() {
                return Ok(Outcome::Closed);
            }
            let body = rest.into_body();
            let moved = self.moved(&body);
            if !moved.is_empty() {
                self.foreign.extend(&moved);
                return Ok(Outcome::Moved(moved));
            }
            let allowed = invariants::body_fits_stream(&self.stream, &body).and_then(|()| self.progress.accepts(&body));
            if let Err(violation) = allowed {
                // The caller may know more than this chain: it can have learned a partition's position from another
                // reader of the manifest, after somebody else had moved it.
                let known = self.number;
                self.refresh().await?;
                if known < self.number {
                    continue;
                }
                let message = format!("a change of {} must not be committed", self.stream);
                return Err(Error::new(Kind::Internal, message).source(violation));
            }
            match self.try_create(body, (writer, now)).await? {
                Tried::Created(number) => {
                    self.acknowledge(change);
                    return Ok(Outcome::Committed { number });
                }
                Tried::Again => {}
                // What the caller knows of these partitions is from a chain that is not there any more.
                Tried::WentBack => {
                    let ranges = change.clone().into_body().ranges();
                    return Ok(Outcome::Moved(ranges.iter().map(|range| range.partition).collect()));
                }
            }
        }
    }

    /// Ends the generation, unless somebody has ended it already: from then on nobody can append to it.
    ///
    /// # Errors
    /// [`Kind::Internal`] if `close` does not fit the chain, and the store's errors. The same call tells after an error
    /// whether it was done.
    pub async fn close(&mut self, close: &Close, writer: &str, now: DateTime<Utc>) -> Result<()> {
        while self.closed().is_none() {
            let body = Body::Close(close.clone());
            let allowed = invariants::body_fits_stream(&self.stream, &body).and_then(|()| self.progress.accepts(&body));
            allowed.map_err(|violation| {
                Error::new(Kind::Internal, format!("{} must not be ended so", self.stream)).source(violation)
            })?;
            // Whatever came of it, the chain tells at the next look.
            self.try_create(body, (writer, now)).await?;
        }
        Ok(())
    }

    /// Tries once to create the next entry with `body`.
    pub(super) async fn try_create(&mut self, body: Body, (writer, now): (&str, DateTime<Utc>)) -> Result<Tried> {
        // An entry above a hole would be read by nobody. It costs one small read a commit.
        if !entry::is_there(&self.store, &self.stream, self.number, &self.sha256).await? {
            // Packed, it is far behind: the chain has gone on, and all that came is read.
            let known = self.number;
            if stored::is_packed(&self.store, &self.stream, known, &self.sha256).await? {
                self.refresh().await?;
            }
            return if known < self.number { Ok(Tried::Again) } else { self.go_back().await.map(|()| Tried::WentBack) };
        }
        let number = self.number + 1;
        let snapshot = invariants::is_snapshot_number(number);
        let created = match snapshot {
            true => self.create_snapshot(writer, now).await?,
            false => self.create_next(body, writer, now).await?,
        };
        if created {
            return Ok(if snapshot { Tried::Again } else { Tried::Created(number) });
        }
        self.refresh().await?;
        if self.number < number {
            let object = layout::entry(&self.stream, number);
            return Err(Error::new(Kind::Unavailable, format!("{object} was read, and is not there any more"))
                .hint("the store contradicts itself: `tidelog check --connect` tries it"));
        }
        Ok(Tried::Again)
    }

    /// The last entry that this chain knows is not there any more, or is another one: the bucket went back in time. What is
    /// there now is the archive.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it has a hole, or is gone altogether.
    async fn go_back(&mut self) -> Result<()> {
        let lost = layout::entry(&self.stream, self.number);
        let Some(found) = Self::open(&self.store, &self.stream).await? else {
            let message = format!("{lost} was written, and the whole chain of {} is gone", self.stream);
            return Err(Error::new(Kind::Corrupt, message)
                .hint("bring the archive back; to begin it again in its place, restart tidelog"));
        };
        tracing::error!(
            stream = %self.stream,
            object = %lost,
            known = self.number,
            head = found.number,
            "the archive went back in time: an entry that was written is gone or is another one. What the archive lacks \
             now is read from the source again, as far as the source has it"
        );
        *self = Self { writer: self.writer.take(), ..found };
        Ok(())
    }

    /// What of `change` is not in the chain yet through an attempt that was not answered.
    fn without_landed(&self, change: &Change) -> Change {
        let mut rest = change.clone();
        for (_, landed) in &self.landed {
            rest.segments.retain(|segment| !landed.segments().contains(segment));
            rest.empty.retain(|range| !landed.empty().contains(range));
            rest.gaps.retain(|gap| !landed.gaps().contains(gap));
        }
        rest
    }

    /// The caller learns that `change` is in the chain, and so owns its partitions. Gives the last of the unanswered
    /// entries that held a part of it.
    fn acknowledge(&mut self, change: &Change) -> Option<u64> {
        let ranges = change.clone().into_body().ranges();
        self.foreign.retain(|partition| ranges.iter().all(|range| range.partition != *partition));
        let mut last = None;
        self.landed.retain(|(number, landed)| {
            let told = landed.ranges().iter().any(|range| ranges.contains(range));
            last = if told { Some(*number) } else { last };
            !told
        });
        last
    }

    /// The partitions that are no longer where the change found them, because someone else moved them.
    fn moved(&self, body: &Body) -> BTreeSet<i32> {
        let mut seen = BTreeSet::new();
        let ranges = body.ranges();
        let firsts = ranges.iter().filter(|range| seen.insert(range.partition));
        let moved = firsts.filter(|range| {
            self.position(range.partition).is_some_and(|position| {
                // What is covered already was covered by someone. A hole is an error of the caller, unless another
                // writer moved the partition and so changed what the caller knew.
                position.end > range.start || (position.end < range.start && self.foreign.contains(&range.partition))
            })
        });
        // A timeline that was abandoned meanwhile is not the one that the change is of.
        let stale = body.generations().filter(|(partition, generation)| self.generation(*partition) != *generation);
        moved.map(|range| range.partition).chain(stale.map(|(partition, _)| partition)).collect()
    }

    /// Tries to create the next entry, and follows it if that succeeds; false if another entry has the number.
    async fn create_next(&mut self, body: Body, writer: &str, now: DateTime<Utc>) -> Result<bool> {
        let checkpoint = Checkpoint {
            format: body.format(),
            stream: self.stream.to_string(),
            number: self.number + 1,
            previous: Some(self.sha256.clone()),
            writer: writer.to_owned(),
            at: now,
            body,
        };
        let bytes = entry::encode(&checkpoint)?;
        let object = layout::entry(&self.stream, checkpoint.number);
        let sha256 = sha256(&bytes);
        failpoint!(&format!("{}.entry", checkpoint.body.kind()));
        match self.store.create(&object, bytes).await? {
            Created::Yes | Created::Same => {}
            Created::Other(_) => return Ok(false),
        }
        let entry = Entry { object, sha256, checkpoint };
        if self.is_in_the_place_of_a_packed_one(&entry).await? {
            return Ok(false);
        }
        self.follow(entry).map(|()| true)
    }

    /// Whether an entry was created where there was one that has been packed, and deleted since: this process stood still that long
    /// between its look at the entry before and the create. A pack is made before anything of it goes, so it tells. Nobody is told
    /// that such an entry is in the chain, and it is removed.
    async fn is_in_the_place_of_a_packed_one(&self, entry: &Entry) -> Result<bool> {
        let number = entry.checkpoint.number;
        if !pack::exists(&self.store, &self.stream, number).await?
            || stored::is_packed(&self.store, &self.stream, number, &entry.sha256).await?
        {
            return Ok(false);
        }
        tracing::warn!(object = %entry.object, "this process stood still while its chain went on and old entries were packed: \
            what it was about to commit is looked at again");
        self.store.delete(&entry.object).await?;
        Ok(true)
    }

    /// Writes the pages that are new, then the snapshot that lists them.
    async fn create_snapshot(&mut self, writer: &str, now: DateTime<Utc>) -> Result<bool> {
        let number = self.number + 1;
        page::tend(&self.store, &self.stream, number, &self.pages).await;
        let (pages, new) = page::roll(&self.stream, number, &self.pages, &self.tail)?;
        for page in new {
            page::write(&self.store, &self.stream, page).await?;
        }
        let packed = stored::first_unpacked(&self.store, &self.stream, self.packed, number).await?;
        let snapshot = Snapshot {
            begin: self.begin.clone(),
            positions: self.progress.positions().copied().collect(),
            totals: *self.progress.totals(),
            pages,
            closed: self.closed().cloned(),
            last: self.progress.last_records().copied().collect(),
            abandoned: self.progress.abandoned().to_vec(),
            backups: self.progress.backups().map(|backups| backups.iter().map(backup_ref).collect()),
            minimal: self.progress.minimal().to_vec(),
            packed,
        };
        self.create_next(Body::Snapshot(snapshot), writer, now).await
    }

    /// Takes the next entry in.
    fn follow(&mut self, entry: Entry) -> Result<()> {
        let Entry { object, sha256, checkpoint } = entry;
        self.may_follow(&checkpoint).map_err(|violation| violation.in_object(&object))?;
        let Checkpoint { number, body, .. } = checkpoint;
        self.progress.add(&body);
        if let Body::Snapshot(snapshot) = body {
            (self.pages, self.packed) = (snapshot.pages, snapshot.packed);
            self.tail.clear();
        } else {
            self.tail.push(body);
        }
        self.number = number;
        self.sha256 = sha256;
        Ok(())
    }

    /// Every rule between an entry and the chain before it.
    fn may_follow(&self, checkpoint: &Checkpoint) -> Checked {
        invariants::number_follows(Some(self.number), checkpoint.number)?;
        invariants::links_to_previous(Some(&self.sha256), checkpoint.previous.as_deref())?;
        invariants::begins_first(checkpoint.number, &checkpoint.body)?;
        invariants::snapshot_at_multiple(checkpoint.number, &checkpoint.body)?;
        invariants::body_fits_stream(&self.stream, &checkpoint.body)?;
        match &checkpoint.body {
            Body::Snapshot(snapshot) => {
                invariants::snapshot_repeats_begin(&self.begin, snapshot)?;
                invariants::snapshot_repeats_progress(&self.progress, snapshot)?;
                invariants::packs_are_whole(checkpoint.number, self.packed, snapshot)?;
                pages_are_sound(checkpoint.number, snapshot)
            }
            body => self.progress.accepts(body),
        }
    }

    /// Whose chain it is.
    pub fn stream(&self) -> &StreamId {
        &self.stream
    }

    /// The last archived record of a partition, if its leader's epoch is known and nothing was lost behind it.
    pub fn last_record(&self, partition: i32) -> Option<LastRecord> {
        self.progress.last_record(partition)
    }

    /// The timelines that were abandoned, in the order of their entries.
    pub fn abandoned(&self) -> &[Abandon] {
        self.progress.abandoned()
    }

    /// Where the server went on with `wal_level = minimal` in what is archived.
    pub fn minimal(&self) -> &[MinimalWal] {
        self.progress.minimal()
    }

    /// The base backups that count. None before the first one was entered: then all that are there count.
    pub fn backups(&self) -> Option<&CountedBackups> {
        self.progress.backups()
    }

    /// Which generation of a timeline is archived now, from 0.
    pub fn generation(&self, partition: i32) -> u32 {
        self.progress.generation(partition)
    }

    /// That the generation has ended, if it has.
    pub fn closed(&self) -> Option<&Close> {
        self.progress.closed()
    }

    /// What its first entry says.
    pub fn begin_facts(&self) -> &Begin {
        &self.begin
    }

    /// The number of its last known entry.
    pub fn head(&self) -> u64 {
        self.number
    }

    /// What is archived of a partition: from its first offset to the next one to read.
    pub fn position(&self, partition: i32) -> Option<&PartitionRange> {
        self.progress.position(partition)
    }

    /// Where the archive of a partition stands: at the end of what it has, or where it begins, as far as that is known.
    pub fn reached(&self, partition: i32) -> Option<i64> {
        match self.position(partition) {
            Some(range) => Some(range.end),
            None => self.begin.start_of(partition),
        }
    }

    /// What is archived of each partition.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = &PartitionRange> {
        self.progress.positions()
    }

    /// Whether anything of records was merged.
    pub fn has_merges(&self) -> bool {
        let is_one = |body: &Body| body.merge().is_some_and(Merge::is_of_records);
        self.pages.iter().any(|page| page.merged.is_some()) || self.tail.iter().any(is_one)
    }

    /// Whether old entries are in packs.
    pub fn has_packs(&self) -> bool {
        self.packed > 0
    }

    /// Whether anything has expired, and was not merely merged.
    pub fn has_expired(&self) -> bool {
        let mut replaced = Retired::default();
        self.pages.iter().filter_map(|page| page.merged.as_ref()).for_each(|merged| replaced.add(&merged.retired));
        let merges = self.tail.iter().filter_map(Body::merge).filter(|merge| merge.is_of_records());
        merges.for_each(|merge| replaced.add(&merge.retired));
        self.totals().retired != replaced
    }

    /// What the chain adds up to.
    pub fn totals(&self) -> &Totals {
        self.progress.totals()
    }
}

fn backup_ref((name, counted): (&String, &CountedBackup)) -> BackupRef {
    BackupRef { name: name.clone(), sha256: counted.sha256.clone(), parent: counted.parent.clone() }
}

/// A snapshot's pages cover all entries before it and add up to what it says.
pub(super) fn pages_are_sound(number: u64, snapshot: &Snapshot) -> Checked {
    invariants::pages_cover_entries(number, &snapshot.pages)?;
    let mut totals = Totals::default();
    snapshot.pages.iter().for_each(|page| totals.add(&page.totals));
    invariants::totals_add_up("snapshot", &snapshot.totals, &totals)
}
