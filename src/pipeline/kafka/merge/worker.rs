//! The one thread on which segments are encoded that others are merged into.
//!
//! glibc gives each thread an arena of its own, which keeps some of what was once taken: on whatever thread is free, each of them would come
//! to hold a row group.

use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use crate::error::{Kind, Result, ResultExt as _};

type Job = Box<dyn FnOnce() + Send>;

/// A thread that ends with it.
pub(super) struct Worker(mpsc::Sender<Job>);

impl Worker {
    pub(super) fn start() -> Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let started = thread::Builder::new().name("merge".to_owned()).spawn(move || jobs.iter().for_each(|job| job()));
        started.map(|_| Self(sender)).or_err(Kind::Internal, || "cannot start a thread to merge on".to_owned())
    }

    /// Does what takes CPU or waits for a disk.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let (done, result) = oneshot::channel();
        // Where the thread has gone, nobody answers.
        drop(self.0.send(Box::new(move || drop(done.send(work())))));
        result.await.or_err(Kind::Internal, || "a merge broke off".to_owned())?
    }
}
