//! Tasks and threads that cannot be missing: a panic in one is the end of the process, with the task's name.
//!
//! A task that is gone leaves a queue that nobody reads, and a process that looks well. To end is safe at any moment, and
//! whoever started the process starts it again. Where the state allows to go on, the work itself is [`caught`] and fails
//! as an error, which is reported and tried again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError};

use futures::FutureExt as _;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::Tasks;
use crate::error::{Error, Kind, Result};

/// Runs `work`; a panic in it is an error.
pub(crate) fn caught<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the work has changed is given up with it.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(what, &*panic)))
}

fn panicked(what: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::new(Kind::Internal, format!("{what} has panicked: {}", text.unwrap_or("no reason was given"))).hint(
        "this is a fault of tidelog: nothing is lost; report the message and where the log says that it came from",
    )
}

impl Tasks {
    /// Runs a task of the runtime that this is called on.
    pub fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.spawn_on(&Handle::current(), name, work)
    }

    /// Runs a task of `runtime`.
    pub(crate) fn spawn_on<T: Send + 'static>(
        self: &Arc<Self>,
        runtime: &Handle,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let tasks = Arc::clone(self);
        runtime.spawn(async move {
            match AssertUnwindSafe(work).catch_unwind().await {
                Ok(result) => result,
                Err(panic) => tasks.end_with(name, panic),
            }
        })
    }

    /// Runs a thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn thread(self: &Arc<Self>, name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let tasks = Arc::clone(self);
        let guarded = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                tasks.end_with(name, panic)
            }
        };
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(guarded);
        spawned.map(drop).map_err(|source| Error::io(source, format!("cannot start the thread {name}")))
    }

    fn end_with(&self, name: &str, panic: Box<dyn Any + Send>) -> ! {
        let error = panicked(&format!("the task {name}"), &*panic);
        self.panicked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.has_panicked.notify_one();
        resume_unwind(panic)
    }

    /// Waits until a task has panicked.
    pub(crate) async fn panicked(&self) -> Error {
        loop {
            if let Some(error) = self.panicked.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return error;
            }
            self.has_panicked.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_task_or_a_thread_is_told_with_its_name() {
        let tasks = Arc::<Tasks>::default();
        let fine = tasks.spawn("resolver", async { 7 });
        assert_eq!(fine.await.expect("it ends well"), 7);
        assert!(tasks.panicked().now_or_never().is_none());
        let task = tasks.spawn("committer", async { panic!("no {}", "luck") });
        let error = tasks.panicked().await;
        assert_eq!((error.kind(), error.exit_code()), (Kind::Internal, 1));
        assert!(error.to_string().contains("the task committer has panicked: no luck"), "{error}");
        assert!(task.await.is_err_and(|error| error.is_panic()), "whoever waits for it sees the panic, too");
        tasks.thread("collector", || panic!("out of luck")).expect("a thread");
        assert!(tasks.panicked().await.to_string().contains("the task collector has panicked: out of luck"));
    }

    #[test]
    fn work_that_is_caught_fails_as_an_error() {
        assert_eq!(caught("encoding", || Ok(7)).expect("it is done"), 7);
        let error = caught("encoding", || -> Result<()> { panic!("a row too many") }).expect_err("it panicked");
        assert_eq!(error.to_string(), "encoding has panicked: a row too many");
    }
}
