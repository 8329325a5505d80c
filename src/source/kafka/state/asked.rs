//! The archiver's side of the child that asks: started when it is needed, killed when it does not answer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Answer, Question};
use crate::error::{Error, Kind, Result, ResultExt as _};

/// The longest answer that is taken. Each part is kept up to [`crate::store::bounds::STATE_UNPACKED`].
const LONGEST_ANSWER: u64 = 256 << 20;

/// How long an answer is waited for: each part's requests have time-outs of their own, which come before.
const ANSWER: Duration = Duration::from_secs(120);

/// This program, also after its file was replaced by another version.
const SELF: &str = "/proc/self/exe";

/// The child. Dropping it kills it.
pub struct Asked {
    running: Arc<Mutex<Option<Running>>>,
    wait: Duration,
}

struct Running {
    child: Child,
    pipes: Option<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is only waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self { running: Arc::default(), wait: ANSWER }
    }
}

impl Asked {
    /// Asks; starts the child if there is none.
    ///
    /// # Errors
    /// A child that cannot be started, ends or does not answer: the next call starts another one.
    pub async fn ask(&self, question: &Question) -> Result<Answer> {
        let mut line =
            serde_json::to_vec(question).or_err(Kind::Internal, || "cannot write the question".to_owned())?;
        line.push(b'\n');
        let pipes = self.pipes()?;
        let asked = tokio::task::spawn_blocking(move || exchange(pipes, &line));
        let answer = match tokio::time::timeout(self.wait, asked).await {
            Ok(joined) => joined.or_err(Kind::Internal, || "the question was given up".to_owned())?,
            Err(_) => Err(Error::new(
                Kind::Unavailable,
                format!("the process that asks for the state of Kafka has not answered for {:?}", self.wait),
            )),
        };
        match answer {
            Ok((pipes, answer)) => {
                if let Some(running) = self.lock().as_mut() {
                    running.pipes = Some(pipes);
                }
                Ok(answer)
            }
            Err(error) => {
                let ended = self.lock().take().and_then(|mut running| running.child.try_wait().ok().flatten());
                Err(match ended {
                    Some(status) => error.hint(format!(
                        "it ended: {status}; what it said stands in the log before. It is started again, and archiving goes on"
                    )),
                    None => error.hint("it is killed and started again, and archiving goes on"),
                })
            }
        }
    }

    /// The pipes of the child, which runs then.
    fn pipes(&self) -> Result<(ChildStdin, BufReader<ChildStdout>)> {
        let mut running = self.lock();
        if let Some(pipes) = running.as_mut().and_then(|running| running.pipes.take()) {
            return Ok(pipes);
        }
        // Whoever has its pipes was given up: nobody will read what it says.
        *running = None;
        let mut child = start()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        *running = Some(Running { child, pipes: None });
        let (input, output) = pipes.ok_or_else(|| Error::new(Kind::Internal, "the child has no pipes"))?;
        Ok((input, BufReader::new(output)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start() -> Result<Child> {
    let program = Path::new(SELF);
    let program = if program.exists() {
        program.to_owned()
    } else {
        std::env::current_exe().map_err(|error| Error::io(error, "cannot tell which program this is"))?
    };
    let mut command = Command::new(program);
    command.arg("state-of-kafka").stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().map_err(|error| Error::io(error, "cannot start the process that asks for the state of Kafka"))
}

type Pipes = (ChildStdin, BufReader<ChildStdout>);

fn exchange((mut input, mut output): Pipes, line: &[u8]) -> Result<(Pipes, Answer)> {
    let gone = "the process that asks for the state of Kafka has ended";
    let asked = input.write_all(line).and_then(|()| input.flush());
    asked.map_err(|source| Error::new(Kind::Unavailable, gone).source(source))?;
    let mut text = Vec::new();
    let read = (&mut output).take(LONGEST_ANSWER).read_until(b'\n', &mut text);
    read.map_err(|source| Error::new(Kind::Unavailable, gone).source(source))?;
    if text.last() != Some(&b'\n') {
        return Err(Error::new(Kind::Unavailable, gone));
    }
    let answer = serde_json::from_slice(&text).or_err(Kind::Unavailable, || "its answer cannot be read".to_owned())?;
    Ok(((input, output), answer))
}
