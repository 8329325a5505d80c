//! Who may do what with the topics: the archived access control lists at the target, before anything is sent to it.
//!
//! ```text
//!   state/acls at the moment ─► topics by their names at the target ─► what is not there yet: DENY first, then ALLOW ─► read back
//! ```
//!
//! Nothing of the target is ever removed. What it has besides, over a resource that the archived lists are about, is told: it lets in, or
//! keeps out, somebody whom the archived cluster did not.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::archived;
use super::journal::{Journal, Proof};
use super::prepare::{Asked, connection, rename};
use super::words::many;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::replay::Rename;
use crate::replay::kafka::Connection;
use crate::source::kafka::Cluster;
use crate::source::kafka::acls::{Acl, Acls, no_authorizer, not_told};
use crate::store::Store;

/// How long brokers may take until they tell what their controller has taken.
const COMES: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_millis(200);

/// So many are named.
const MOST_NAMED: usize = 5;

/// Refuses a target that takes none, before anything is done.
///
/// # Errors
/// [`Kind::Config`] without an authorizer, [`Kind::Denied`] where they are not told.
pub(super) async fn may_be_made(to: &Connection) -> Result<()> {
    told(&to.cluster()?).await.map(drop)
}

async fn told(cluster: &Cluster) -> Result<Acls> {
    match cluster.acls().await? {
        Some(acls) if acls.authorizer == Some(false) => Err(no_authorizer()),
        Some(acls) => Ok(acls),
        None => Err(not_told()),
    }
}

/// Makes those of the archived lists that are not there.
///
/// # Errors
/// A target that takes none, and lists that it has not although it has taken them.
pub(super) async fn bring(store: &Store, config: &Config, asked: &Asked, journal: &Journal) -> Result<Proof> {
    let kafka = asked.pipeline.kafka.as_ref().ok_or_else(|| Error::new(Kind::Internal, "no target of topics"))?;
    let archived = archived::acls(store, config, journal.moment()).await?;
    if archived.authorizer == Some(false) {
        let words = "there are none: the archived cluster had no authorizer, and everybody could do everything";
        return Ok(words.to_owned().into());
    }
    let topics = archived::topics(store, config).await?;
    let Wanted { acls, mut differences } = wanted(archived.acls, &rename(kafka)?, &topics)?;
    let cluster = connection(config, &asked.pipeline)?.cluster()?;
    let there: BTreeSet<Acl> = told(&cluster).await?.acls.into_iter().collect();
    let mut missing: Vec<Acl> = acls.difference(&there).cloned().collect();
    // Nobody gets in for a moment whom a list keeps out.
    missing.sort_by_key(|acl| acl.permission != "DENY");
    cluster.create_acls(&missing).await?;
    let begun = Instant::now();
    let now = loop {
        let now: BTreeSet<Acl> = told(&cluster).await?.acls.into_iter().collect();
        match acls.difference(&now).next() {
            None => break now,
            Some(first) if begun.elapsed() > COMES => {
                let message = format!("the target has taken an access control list, and does not tell it: {first}");
                return Err(Error::new(Kind::Unavailable, message).hint("the same command looks again"));
            }
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    };
    differences.extend(besides(&acls, &now));
    let words =
        format!("{} made, {} were there, all read back", many(missing.len(), "list"), acls.len() - missing.len());
    Ok(Proof { words, differences, notes: Vec::new() })
}

/// What the target is to have.
#[derive(Debug, Default)]
struct Wanted {
    acls: BTreeSet<Acl>,
    differences: Vec<String>,
}

/// The archived lists, about the topics by the names that they have at the target.
fn wanted(archived: Vec<Acl>, rename: &Rename, topics: &BTreeSet<String>) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let mut unknown = Vec::new();
    for mut acl in archived {
        if !acl.is_known() {
            unknown.push(acl.to_string());
            continue;
        }
        if acl.resource == "TOPIC" && acl.name != "*" {
            let was = std::mem::take(&mut acl.name);
            acl.name = rename.target(&was)?;
            let is_of =
                |topic: &&String| if acl.pattern == "PREFIXED" { topic.starts_with(&was) } else { **topic == was };
            for topic in topics.iter().filter(is_of) {
                let target = rename.target(topic)?;
                if !(target == acl.name || acl.pattern == "PREFIXED" && target.starts_with(&acl.name)) {
                    acl.name.clone_from(&was);
                    wanted
                        .differences
                        .push(format!("{acl}: it was about {topic}, which is {target} now: add it by hand"));
                    break;
                }
            }
        }
        wanted.acls.insert(acl);
    }
    if !unknown.is_empty() {
        let words =
            format!("{} of a kind that this version does not know: {}", many(unknown.len(), "list"), few(&unknown));
        wanted.differences.push(format!("not made: {words}"));
    }
    Ok(wanted)
}

/// What the target has besides, over the resources that the lists are about.
fn besides(wanted: &BTreeSet<Acl>, there: &BTreeSet<Acl>) -> Option<String> {
    let of = |acl: &Acl| (acl.resource.clone(), acl.pattern.clone(), acl.name.clone());
    let resources: BTreeSet<_> = wanted.iter().map(of).collect();
    let more = there.difference(wanted).filter(|acl| resources.contains(&of(acl)));
    let more: Vec<String> = more.map(Acl::to_string).collect();
    (!more.is_empty()).then(|| {
        format!(
            "the target has {} that the archived cluster had not, which stay: {}",
            many(more.len(), "access control list"),
            few(&more)
        )
    })
}

fn few(all: &[String]) -> String {
    let more = if all.len() > MOST_NAMED { ", …" } else { "" };
    format!("{}{more}", all[..all.len().min(MOST_NAMED)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(resource: &str, (pattern, name): (&str, &str), operation: &str) -> Acl {
        let text = str::to_owned;
        Acl {
            resource: text(resource),
            name: text(name),
            pattern: text(pattern),
            principal: text("User:a"),
            host: text("*"),
            operation: text(operation),
            permission: text("ALLOW"),
        }
    }

    #[test]
    fn lists_follow_their_topics_and_what_cannot_is_told() {
        let topics = ["cdc.a", "cdc.b", "other"].map(str::to_owned).into();
        let names = |rename: &str| {
            let archived = vec![
                acl("TOPIC", ("LITERAL", "cdc.a"), "READ"),
                acl("TOPIC", ("PREFIXED", "cdc"), "READ"),
                acl("TOPIC", ("LITERAL", "*"), "DESCRIBE"),
                acl("GROUP", ("LITERAL", "cdc.a"), "READ"),
                acl("UNKNOWN", ("LITERAL", "x"), "READ"),
            ];
            let wanted = wanted(archived, &Rename::parse(rename).expect("a rule"), &topics).expect("names");
            let of = |acl: &Acl| format!("{} {} {}", acl.resource, acl.pattern, acl.name);
            (wanted.acls.iter().map(of).collect::<Vec<_>>(), wanted.differences)
        };
        let (acls, differences) = names("^cdc=new.cdc");
        assert_eq!(
            acls,
            ["GROUP LITERAL cdc.a", "TOPIC LITERAL *", "TOPIC PREFIXED new.cdc", "TOPIC LITERAL new.cdc.a"]
        );
        assert_eq!((differences.len(), differences[0].contains("does not know")), (1, true), "{differences:?}");
        // A part of the topics goes elsewhere: what begins with the old name is not said of them.
        let (acls, differences) = names("^cdc[.]b$=moved");
        assert!(acls.contains(&"TOPIC PREFIXED cdc".to_owned()), "{acls:?}");
        assert!(differences[0].contains("cdc.b, which is moved now"), "{differences:?}");
    }

    #[test]
    fn only_what_is_over_the_same_resources_is_besides() {
        let wanted = [acl("TOPIC", ("LITERAL", "a"), "READ")].into();
        let mut there: BTreeSet<Acl> =
            [acl("TOPIC", ("LITERAL", "a"), "READ"), acl("TOPIC", ("LITERAL", "b"), "READ")].into();
        assert_eq!(besides(&wanted, &there), None);
        there.insert(acl("TOPIC", ("LITERAL", "a"), "WRITE"));
        assert!(besides(&wanted, &there).expect("one more").contains("WRITE on TOPIC a"));
    }
}
