//! The one progress bar: on the error stream, and only if that is a terminal. Logs and pipes get none.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

/// How often the bar looks at the work.
const LOOK: Duration = Duration::from_millis(150);

/// What a bar counts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unit {
    Records,
    Bytes,
    Topics,
}

/// A bar that follows work on other threads until it is dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    follower: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows `doing` and follows `look`, which says how much is done of how much.
    pub(super) fn follow(
        doing: &'static str,
        unit: Unit,
        look: impl Fn() -> (u64, u64) + Send + Sync + 'static,
    ) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), follower: None };
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
        bar.set_style(style(unit));
        bar.set_message(doing);
        let (look, followed) = (Arc::new(look), bar.clone());
        let follower = tokio::spawn(async move {
            loop {
                let (done, total) = look();
                followed.set_length(total);
                followed.set_position(done);
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { bar, follower: Some(follower) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
        self.bar.finish_and_clear();
    }
}

fn style(unit: Unit) -> ProgressStyle {
    let template = match unit {
        Unit::Records => "{msg} {wide_bar} {human_pos}/{human_len} records  {per_sec}  {eta}",
        Unit::Topics => "{msg} {wide_bar} {human_pos}/{human_len} topics  {eta}",
        Unit::Bytes => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
