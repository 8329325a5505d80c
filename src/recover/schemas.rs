//! The archived subjects of a schema registry, registered in another one, or in one that has lost them.
//!
//! ```text
//!   archived document ─► order: what is referred to first, versions ascending ─► each: there already? with its id? with a new one?
//!                        ─► soft deletions, compatibility, modes ─► read back, compared ─► ids that are others now, differences
//! ```
//!
//! The whole may be killed at any point and begun again: what is there already is taken. A subject that holds what the archive does not know
//! keeps it. Soft deletions come last: Confluent's registry removes a soft-deleted version for good when a later one of its subject is
//! registered with the same id, and what refers to it breaks (confluentinc/schema-registry#4277).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::escape;
use crate::source::rest::Registrar;
use crate::source::rest::registrar::Answer;
use crate::source::rest::subjects::{Document, Subject, Version};

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// Versions that were registered.
    pub registered: u64,
    /// Versions that were there.
    pub there: u64,
    /// Ids that are others now: by the archived one.
    pub ids: BTreeMap<i64, i64>,
    /// What is not as it was.
    pub differences: Vec<String>,
}

/// The archived versions in an order in which each can be registered: after those before it in its subject, and after what it refers to.
///
/// # Errors
/// [`Kind::Corrupt`] for schemas that refer to each other in a circle, which no registry holds.
pub fn order(archived: &Document) -> Result<Vec<(&str, i64)>> {
    let mut order = Order { archived, done: BTreeSet::new(), begun: BTreeSet::new(), sorted: Vec::new() };
    for (name, subject) in &archived.subjects {
        if let Some(last) = subject.versions.keys().next_back() {
            order.visit(name, *last)?;
        }
    }
    Ok(order.sorted)
}

struct Order<'a> {
    archived: &'a Document,
    done: BTreeSet<(&'a str, i64)>,
    begun: BTreeSet<(&'a str, i64)>,
    sorted: Vec<(&'a str, i64)>,
}

impl<'a> Order<'a> {
    /// Puts a version behind all that it needs. No recursion: how deep references go is said by what is archived.
    fn visit(&mut self, name: &'a str, number: i64) -> Result<()> {
        let mut open = vec![(name, number)];
        while let Some(&at) = open.last() {
            if self.done.contains(&at) {
                open.pop();
                continue;
            }
            let missing = self.needs(at).find(|needed| !self.done.contains(needed));
            let Some(needed) = missing else {
                self.done.insert(at);
                self.sorted.push(at);
                open.pop();
                continue;
            };
            self.begun.insert(at);
            if self.begun.contains(&needed) {
                let message = format!(
                    "schemas refer to each other in a circle, by {} version {}",
                    escape::name(needed.0),
                    needed.1
                );
                return Err(Error::new(Kind::Corrupt, message));
            }
            open.push(needed);
        }
        Ok(())
    }

    /// The version before it, and what it refers to, as far as it is archived.
    fn needs(&self, (name, number): (&'a str, i64)) -> impl Iterator<Item = (&'a str, i64)> {
        let subjects = &self.archived.subjects;
        let versions = subjects.get(name).map(|subject| &subject.versions);
        let before =
            versions.and_then(|versions| versions.range(..number).next_back()).map(|(before, _)| (name, *before));
        let references =
            versions.and_then(|versions| versions.get(&number)).map(|version| version.references.as_slice());
        let references = references.unwrap_or_default().iter().filter_map(move |reference| {
            let (name, subject) = subjects.get_key_value(reference.get("subject")?.as_str()?)?;
            let (number, _) = subject.versions.get_key_value(&reference.get("version")?.as_i64()?)?;
            Some((name.as_str(), *number))
        });
        before.into_iter().chain(references)
    }
}

/// Whether two versions are the same schema, and refer to the same.
fn is_same(one: &Version, other: &Version) -> bool {
    one.references == other.references && is_same_text(one, other)
}

/// Whether two versions are the same schema. Registries write a text again in their own way.
fn is_same_text(one: &Version, other: &Version) -> bool {
    let parsed = |version: &Version| serde_json::from_str::<Value>(&version.schema).ok();
    let text = || match (parsed(one), parsed(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one.schema.split_whitespace().eq(other.schema.split_whitespace()),
    };
    one.kind == other.kind && text()
}

/// Registers the archived subjects.
///
/// # Errors
/// A registry that is away, does not let in, or is read-only; it may be begun again.
pub async fn bring(archived: &Document, registrar: &Registrar) -> Result<Brought> {
    let before = registrar.holds().await?;
    if before.mode.as_deref() == Some("READONLY") {
        let message = format!("{} is read-only: its mode is READONLY", registrar.shown());
        return Err(Error::new(Kind::Unsupported, message)
            .hint("let it be written: PUT /mode {\"mode\": \"READWRITE\"}; the archived mode is set at the end"));
    }
    let mut at_work = AtWork::new(archived, registrar, before);
    for (name, number) in order(archived)? {
        at_work.version(name, number).await?;
    }
    at_work.delete().await?;
    at_work.settle().await?;
    at_work.compare().await
}

/// How versions of a subject are registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// With their own numbers, and their own ids where they are free.
    Own,
    /// With new ones, whatever their subject asks for: it held nothing else.
    New,
    /// With new ones, as its compatibility allows: it holds what the archive does not know.
    Beside,
}

struct AtWork<'a> {
    archived: &'a Document,
    registrar: &'a Registrar,
    before: Document,
    prepared: BTreeMap<&'a str, How>,
    refused: BTreeSet<(&'a str, i64)>,
    /// Versions that have another number now.
    numbers: BTreeMap<(&'a str, i64), i64>,
    /// An id that nobody has: those that the registry gives out itself may be archived ones of schemas that are still to come.
    free: i64,
    /// The compatibility and the mode of all are the archived ones: nothing else was there.
    settles_all: bool,
    brought: Brought,
}

impl<'a> AtWork<'a> {
    fn new(archived: &'a Document, registrar: &'a Registrar, before: Document) -> Self {
        let of = |document: &Document| {
            document.subjects.values().flat_map(|subject| subject.versions.values().map(|one| one.id)).max()
        };
        let free = of(archived).max(of(&before)).unwrap_or(0) + 1;
        // What is there of a subject that goes on belongs to somebody: its settings and what is deleted of it, too.
        let is_beside = |(name, own): &(&'a String, &'a Subject)| {
            before.subjects.get(*name).is_some_and(|held| {
                held.versions.values().any(|held| !own.versions.values().any(|own| is_same_text(held, own)))
            })
        };
        let beside = archived.subjects.iter().filter(is_beside);
        let prepared = beside.map(|(name, _)| (name.as_str(), How::Beside)).collect();
        Self {
            archived,
            registrar,
            before,
            prepared,
            refused: BTreeSet::new(),
            numbers: BTreeMap::new(),
            free,
            settles_all: false,
            brought: Brought::default(),
        }
    }

    fn subject(&self, name: &str) -> &'a Subject {
        &self.archived.subjects[name]
    }

    /// A version as it is at the target: what it refers to may have another number there.
    fn there(&self, version: &Version) -> Version {
        let mut version = version.clone();
        for reference in &mut version.references {
            let name = reference.get("subject").and_then(Value::as_str).unwrap_or_default();
            let number = reference.get("version").and_then(Value::as_i64);
            let now = number.and_then(|number| self.numbers.get(&(name, number)).copied());
            if let (Some(now), Some(reference)) = (now, reference.as_object_mut()) {
                reference.insert("version".to_owned(), now.into());
            }
        }
        version
    }

    async fn version(&mut self, name: &'a str, number: i64) -> Result<()> {
        let archived = &self.subject(name).versions[&number];
        let version = self.there(archived);
        let held = self.before.subjects.get(name).map(|subject| &subject.versions);
        let own = held.and_then(|held| held.get(&number)).filter(|held| is_same(held, &version));
        if let Some(id) = own.map(|own| own.id) {
            return self.is_there(archived.id, id);
        }
        let how = self.prepare(name).await?;
        let held = self.before.subjects.get(name).map(|subject| &subject.versions);
        let other = held.into_iter().flatten().find(|(_, held)| is_same(held, &version));
        let other = other.filter(|_| how != How::Own).map(|(number, held)| (*number, held.id));
        if let Some((now, id)) = other {
            self.numbers.insert((name, number), now);
            return self.is_there(archived.id, id);
        }
        match self.register(how, (name, number), &version).await? {
            Answer::Done(id) => {
                self.brought.registered += 1;
                self.is_under(archived.id, id);
            }
            Answer::Refused(why) => {
                let way_out = match (how, version.deleted) {
                    (How::Beside, _) => {
                        "the registry holds other versions of this subject: delete them, or set its compatibility to NONE, and begin again"
                    }
                    (_, true) => "it was deleted, and what it refers to is not in the archive any more",
                    _ => "register it there by hand; records with its id cannot be read until then",
                };
                self.refused.insert((name, number));
                let name = escape::name(name);
                self.brought.differences.push(format!("schema {name} version {number} is refused: {why} ({way_out})"));
            }
        }
        Ok(())
    }

    async fn register(&mut self, how: How, at: (&'a str, i64), version: &Version) -> Result<Answer<i64>> {
        let (name, number) = at;
        let answer = match how {
            How::Own => self.with_id(at, version).await?,
            How::New | How::Beside => self.registrar.register(name, version, None).await?,
        };
        // A number is no more heeded than an id is.
        if matches!(answer, Answer::Done(_)) && !self.registrar.has(name, number).await? {
            let now = self.registrar.number(name, version).await?;
            self.numbers.extend(now.map(|now| (at, now)));
        }
        Ok(answer)
    }

    async fn with_id(&mut self, (name, number): (&'a str, i64), version: &Version) -> Result<Answer<i64>> {
        let own = self.registrar.register(name, version, Some((number, version.id))).await?;
        let Answer::Refused(_) = own else { return Ok(own) };
        // Its id is another schema's, or this is refused as well.
        let free = self.registrar.register(name, version, Some((number, self.free))).await?;
        if free == Answer::Done(self.free) {
            self.free += 1;
        }
        Ok(free)
    }

    fn is_there(&mut self, archived: i64, id: i64) -> Result<()> {
        self.brought.there += 1;
        self.is_under(archived, id);
        Ok(())
    }

    fn is_under(&mut self, archived: i64, id: i64) {
        if archived == id {
            return;
        }
        let known = *self.brought.ids.entry(archived).or_insert(id);
        if known != id {
            let both =
                format!("schema id {archived} is {known} in one subject and {id} in another; records get {known}");
            self.brought.differences.push(both);
        }
    }

    /// Makes a subject ready for its first version, once.
    async fn prepare(&mut self, name: &'a str) -> Result<How> {
        if let Some(how) = self.prepared.get(name) {
            return Ok(*how);
        }
        let held = self.before.subjects.get(name);
        let how = match held {
            // It was begun before, with ids.
            Some(held) if held.mode.as_deref() == Some("IMPORT") => How::Own,
            // Confluent's registry would let go for good what is soft-deleted of it as its mode becomes IMPORT.
            Some(held) if !held.versions.is_empty() => return self.without_ids(name).await,
            _ => match self.registrar.import(name).await? {
                Answer::Done(()) => How::Own,
                Answer::Refused(_) => return self.without_ids(name).await,
            },
        };
        self.prepared.insert(name, how);
        Ok(how)
    }

    /// Registers versions of a subject without ids from now on.
    async fn without_ids(&mut self, name: &'a str) -> Result<How> {
        // Whatever is refused here shows when the version is registered, or read back.
        if self.before.mode.is_some() {
            drop(self.registrar.set_mode(Some(name), Some("READWRITE")).await?);
        }
        drop(self.registrar.set_compatibility(Some(name), Some("NONE")).await?);
        self.prepared.insert(name, How::New);
        Ok(How::New)
    }

    /// Deletes softly what was deleted.
    async fn delete(&mut self) -> Result<()> {
        let now = self.registrar.holds().await?;
        for (name, subject) in &self.archived.subjects {
            if self.prepared.get(name.as_str()) == Some(&How::Beside) {
                continue;
            }
            let held = now.subjects.get(name);
            for (number, version) in subject.versions.iter().filter(|(_, version)| version.deleted) {
                let version = self.there(version);
                let found = held.and_then(|held| held.versions.get(number)).filter(|held| is_same(held, &version));
                if found.is_some_and(|held| !held.deleted) {
                    let name_shown = escape::name(name);
                    let done = self.registrar.delete(name, *number).await?;
                    if let Answer::Refused(why) = done {
                        let text = format!("schema {name_shown} version {number} was deleted, and is not: {why}");
                        self.brought.differences.push(text);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets compatibilities and modes as they were. Those of all only where nothing else was there.
    async fn settle(&mut self) -> Result<()> {
        let own: Vec<_> = self
            .archived
            .subjects
            .iter()
            .filter(|(name, _)| self.prepared.get(name.as_str()) != Some(&How::Beside))
            .collect();
        for (name, subject) in own {
            let said = self.registrar.set_compatibility(Some(name), subject.compatibility.as_deref()).await?;
            self.unless_done(said, || format!("the compatibility of {}", escape::name(name)));
            if self.before.mode.is_some() {
                let said = self.registrar.set_mode(Some(name), subject.mode.as_deref()).await?;
                self.unless_done(said, || format!("the mode of {}", escape::name(name)));
            }
        }
        let is_beside = |name: &String| self.prepared.get(name.as_str()) == Some(&How::Beside);
        let is_all =
            self.before.subjects.keys().all(|name| self.archived.subjects.contains_key(name) && !is_beside(name));
        if !is_all {
            return Ok(());
        }
        self.settles_all = true;
        if let Some(level) = &self.archived.compatibility {
            let said = self.registrar.set_compatibility(None, Some(level)).await?;
            self.unless_done(said, || "the compatibility of all".to_owned());
        }
        if let (Some(mode), Some(_)) = (&self.archived.mode, &self.before.mode) {
            let said = self.registrar.set_mode(None, Some(mode)).await?;
            self.unless_done(said, || "the mode of all".to_owned());
        }
        Ok(())
    }

    fn unless_done(&mut self, answer: Answer<()>, what: impl FnOnce() -> String) {
        if let Answer::Refused(why) = answer {
            self.brought.differences.push(format!("{} is not as it was: {why}", what()));
        }
    }

    /// Compares what counts for all subjects, where that was set.
    fn compare_all(&mut self, now: &Document) {
        let of_all = [
            ("compatibility", &self.archived.compatibility, &now.compatibility),
            // A registry without modes has none.
            ("mode", &self.archived.mode, if self.before.mode.is_some() { &now.mode } else { &self.archived.mode }),
        ];
        for (what, was, is) in of_all.into_iter().filter(|(_, was, is)| self.settles_all && was.is_some() && was != is)
        {
            self.brought.differences.push(format!("the {what} of all is not as it was ({was:?}): {is:?} now"));
        }
    }

    /// Reads all of it back.
    async fn compare(mut self) -> Result<Brought> {
        let now = self.registrar.holds().await?;
        self.compare_all(&now);
        for (name, subject) in &self.archived.subjects {
            let shown = escape::name(name);
            let held = now.subjects.get(name);
            let settings = held.map(|held| (&held.compatibility, &held.mode));
            let is_beside = self.prepared.get(name.as_str()) == Some(&How::Beside);
            if !is_beside && settings.is_some_and(|now| now != (&subject.compatibility, &subject.mode)) {
                let text = format!("the compatibility or the mode of {shown} is not as it was: {settings:?} now");
                self.brought.differences.push(text);
            }
            for (number, version) in &subject.versions {
                if self.refused.contains(&(name.as_str(), *number)) {
                    continue;
                }
                let version = self.there(version);
                let under = held.and_then(|held| held.versions.get(number)).filter(|held| is_same(held, &version));
                let elsewhere = held.and_then(|held| held.versions.iter().find(|(_, held)| is_same(held, &version)));
                let text = match (under, elsewhere) {
                    (Some(held), _) if held.deleted != version.deleted => {
                        let was = if version.deleted { "was deleted, and is not" } else { "is deleted, and was not" };
                        format!("schema {shown} version {number} {was}")
                    }
                    (Some(_), _) => continue,
                    (None, Some((other, _))) => format!("schema {shown} version {number} is version {other} now"),
                    (None, None) => format!("schema {shown} version {number} is not there"),
                };
                self.brought.differences.push(text);
            }
        }
        Ok(self.brought)
    }
}
