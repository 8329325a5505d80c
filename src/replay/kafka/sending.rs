//! The sending itself, until all is sent: again with less effort where a transaction came to no end in time.
//!
//! ```text
//! effort ─► open (fences) ─► progress ─► send … commit … ─┬─► all sent
//!    ▲                                                    └─► time-out ─► nobody else has come? ─┐
//!    └──────────────────────── a smaller window, a longer transaction ◄──────────────────────────┘
//! ```
//!
//! While records go out, the target is asked whether its topics are those into which the replay was begun. A topic that is gone
//! refuses nothing: librdkafka asks for another while until records or transaction time out (`rdkafka_txnmgr.c`: a partition that
//! is unknown is added again, and its position committed again), and one that was created again takes whatever comes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::blocking::blocking;
use super::effort::Effort;
use super::late::Late;
use super::mapping::Mapping;
use super::marks::Identity;
use super::preflight::Findings;
use super::sink::{Done, Sent, Sink, Unended};
use super::standing::{Standing, same_target, standing};
use super::target::{ANSWER, Earlier, Progress, Target};
use crate::error::{Error, Kind, Result};
use crate::replay::journal::{Begun, Journal};
use crate::replay::offset_map::{At, Note};
use crate::replay::plan::{Marks, Plan};
use crate::replay::running::run;
use crate::replay::{Counters, Tally, Tempo};
use crate::store::Store;

/// How often the target is asked whether its topics are still the same: one small request for all of them.
const LOOK: Duration = Duration::from_secs(5);
/// How long the open transaction may take to end once they are not.
const LAST: Duration = Duration::from_secs(10);

/// A replay that is begun, and how it is sent.
pub(super) struct Sending<'a> {
    pub(super) store: &'a Store,
    pub(super) target: &'a Arc<Target>,
    pub(super) journal: &'a Journal,
    pub(super) recorded: bool,
    pub(super) findings: Arc<Findings>,
    pub(super) tempo: Tempo,
}

impl Sending<'_> {
    /// Sends `whole` as far as it is not sent yet, or until `stop` is done. Says what was left to do, and what was sent.
    pub(super) async fn to_its_end(
        &self,
        whole: &Plan,
        anew: bool,
        counters: &Arc<Counters>,
        stop: impl Future<Output = ()>,
    ) -> Result<(Arc<Plan>, Tally, Option<Mapping>)> {
        let stop = stop.shared();
        let mut effort = Effort::first(self.findings.longest_transaction);
        let (sink, marks, mapping) = self.open(effort, anew).await?;
        let left = Arc::new(whole.after(&marks));
        let mut next = (sink, Done { marks, ..Done::default() }, mapping);
        loop {
            let (sink, done, mapping) = next;
            let before = done.marks.clone();
            // Parts keep their numbers, by which the tally counts them.
            let rest = Arc::new(left.rest(&before));
            let late = Late::new(self.recorded.then(|| self.store.clone()), Arc::clone(self.target), &before, mapping);
            let (for_sink, counters) = (Arc::clone(&rest), Arc::clone(counters));
            let drain = move |steps| sink.drain(&for_sink, steps, &counters, (done, late));
            let sending = |stop| run(self.store, &rest, self.tempo, drain, stop);
            let Sent { done, unended, mapping } = self.while_topics_are_the_same(sending, stop.clone()).await?;
            let Some(unended) = unended else { return Ok((left, done.tally, mapping)) };
            effort = match effort.after(done.marks != before) {
                Some(next) => next,
                None => return Err(unended.error),
            };
            self.nobody_else(&done, &unended).await?;
            let (seconds, kib) = (effort.transaction.as_secs(), effort.window / 1024);
            tracing::warn!(
                error = %unended.error,
                "a transaction did not end in time: going on with {kib} KiB at once and {seconds} s for each transaction"
            );
            let (sink, marks, mapping) = self.open(effort, false).await?;
            // The broker may have committed what it had no time to say.
            let tally = if marks == unended.wanted.marks { unended.wanted.tally } else { done.tally };
            next = (sink, Done { tally, marks }, mapping);
        }
    }

    /// Sends until all is sent or `stop` is done, or until a topic of the target is another one. That is then the reason for
    /// whatever fails, and `sending` is stopped and has [`LAST`] to end.
    async fn while_topics_are_the_same<'s, T, F: Future<Output = Result<T>>>(
        &self,
        sending: impl FnOnce(LocalBoxFuture<'s, ()>) -> F,
        stop: impl Future<Output = ()> + 's,
    ) -> Result<T> {
        let (replaced, is_replaced) = oneshot::channel::<()>();
        let stop = async move {
            tokio::select! {
                () = stop => {}
                _dropped = is_replaced => {}
            }
        };
        let mut sending = std::pin::pin!(sending(stop.boxed_local()));
        let failed = tokio::select! {
            sent = &mut sending => match sent {
                Ok(sent) => return Ok(sent),
                Err(error) => error,
            },
            error = self.replaced() => {
                drop(replaced);
                if timeout(LAST, sending).await.is_err() {
                    tracing::debug!("the last transaction is left to the target's timeout");
                }
                return Err(error);
            }
        };
        match timeout(ANSWER, self.same_target()).await {
            Ok(Err(error)) if error.kind() == Kind::Config => Err(error),
            _ => Err(failed),
        }
    }

    /// Done once the target has said twice in a row that a topic is another one: a single broker may lag.
    async fn replaced(&self) -> Error {
        let mut was_said = false;
        loop {
            sleep(LOOK).await;
            match self.same_target().await {
                Err(error) if error.kind() == Kind::Config && was_said => return error,
                Err(error) if error.kind() == Kind::Config => was_said = true,
                // Who does not answer says nothing.
                Err(error) => tracing::debug!(%error, "whether the target is the same is not known"),
                Ok(()) => was_said = false,
            }
        }
    }

    async fn same_target(&self) -> Result<()> {
        let Some(begun) = &self.journal.begun else { return Ok(()) };
        same_target(self.target, begun).await
    }

    /// Fences an earlier run, and gives where every target partition stands, which the group then knows.
    async fn open(&self, effort: Effort, anew: bool) -> Result<(Sink, Marks, Option<Mapping>)> {
        let Some(begun) = &self.journal.begun else {
            return Err(Error::new(Kind::Internal, "a replay without a plan cannot be sent"));
        };
        let identity = Identity::of(begun)?;
        let (target, findings) = (Arc::clone(self.target), Arc::clone(&self.findings));
        let maps = begun.maps;
        let sink = blocking(move || Sink::open(&target, identity, &findings, effort, maps)).await?;
        let mut marks: Marks = begun.ends()?.into_iter().map(|(at, (start, _))| (at, start)).collect();
        let (known, notes) = if anew {
            self.begun_by_another(begun).await?
        } else {
            let Standing { marks, notes, .. } = standing(self.target, self.journal, Progress::Settled).await?;
            (marks, notes)
        };
        marks.extend(known);
        let mut mapping = Mapping::open(self.store, self.journal, &marks, notes).await?;
        blocking(move || sink.mark_all(&marks, mapping.as_mut()).map(|()| (sink, marks, mapping))).await
    }

    /// What the group holds of a replay that is not written down, or was not until now.
    async fn begun_by_another(&self, begun: &Begun) -> Result<(Marks, BTreeMap<At, Note>)> {
        let partitions = begun.ends()?.into_keys().collect::<Vec<_>>();
        let Earlier { marks, notes, .. } = self.target.earlier(&partitions, Progress::Settled).await?;
        Ok((marks, notes))
    }

    /// A producer that lasted too long and one that another has fenced look alike. Where the progress is not ours, it was
    /// another run with this id.
    async fn nobody_else(&self, done: &Done, unended: &Unended) -> Result<()> {
        let now = standing(self.target, self.journal, Progress::Known).await?.marks;
        if now == done.marks || now == unended.wanted.marks {
            return Ok(());
        }
        let message = format!("another run of the replay {} has taken over", self.target.id);
        Err(Error::new(Kind::Fenced, message).hint("only one can go on"))
    }
}
