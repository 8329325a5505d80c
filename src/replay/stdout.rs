//! The sink that writes JSON lines.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::feed::Step;
use super::json::Line;
use super::plan::Plan;
use super::tally::{Counters, Tally};
use crate::error::{Error, Result};
use crate::record::Record;

/// Lines are handed to the system in pieces of this size, or as soon as no more records wait.
const PIECE: usize = 256 * 1024;

/// Which of the records are printed.
#[derive(Debug, Clone, Default)]
pub struct Only {
    /// At most so many.
    pub limit: Option<u64>,
    /// Those with this key.
    pub key: Option<Arc<[u8]>>,
}

/// Writes every record that comes and is wanted as one line, until the channel closes or as many lines are written as are wanted. A reader that has
/// seen enough (`| head`) is no error.
pub(super) fn write(
    mut steps: Receiver<Step>,
    plan: &Arc<Plan>,
    only: &Only,
    out: &mut dyn Write,
    counters: &Counters,
) -> Result<Tally> {
    let lines: Vec<Line> = plan.parts.iter().map(|part| Line::of_topic(&part.stream.topic)).collect();
    let mut left = only.limit.unwrap_or(u64::MAX);
    let mut tally = Tally::default();
    let mut text = Vec::with_capacity(PIECE + 64 * 1024);
    while left > 0 {
        let step = match steps.try_recv() {
            Err(TryRecvError::Empty) => {
                if !hand_over(out, &mut text)? {
                    return Ok(tally);
                }
                steps.blocking_recv()
            }
            step => step.ok(),
        };
        let run = match step {
            Some(Step::Send(run)) => run,
            Some(Step::Complete(ended)) => {
                (tally.stops, tally.read_whole) = (ended.stops, ended.read_whole);
                break;
            }
            None => break,
        };
        let partition = run.block.partition();
        let is_wanted = |record: &Record<'_>| only.key.as_deref().is_none_or(|key| record.key == Some(key));
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        for record in run.records().filter(is_wanted).take(most) {
            left -= 1;
            lines[run.part].write(partition, &record, &mut text);
            tally.add(run.part, partition, record.offset, record.size());
            if text.len() >= PIECE && !hand_over(out, &mut text)? {
                return Ok(tally);
            }
        }
        counters.show(&tally);
    }
    hand_over(out, &mut text)?;
    Ok(tally)
}

/// Writes what waits; false if nobody reads any more.
fn hand_over(out: &mut dyn Write, text: &mut Vec<u8>) -> Result<bool> {
    let written = out.write_all(text).and_then(|()| out.flush());
    text.clear();
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io(error, "cannot write to the standard output")),
    }
}
