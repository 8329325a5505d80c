//! Three places for archivers of one group, each with a listener of its own: killed, stopped, frozen, started again, and asked
//! every second whether they are ready.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::world::World;
use crate::rig::kafka::free_port;
use crate::rig::process::tail;
use crate::rig::program::Program;
use crate::site::{STOP, Site};

/// A process that answers later is not ready.
const ANSWER: Duration = Duration::from_secs(3);

/// How many archivers there are.
pub(super) const PLACES: usize = 3;

#[derive(Default)]
struct Place {
    program: Option<Program>,
    frozen: bool,
    /// What programs said that were here before.
    said: String,
    /// The last answer of `/readyz`.
    answer: String,
}

pub(super) struct Archivers {
    places: [Mutex<Place>; PLACES],
    addresses: [SocketAddr; PLACES],
    /// When one was last not ready, or none ran.
    unready: Mutex<Instant>,
}

impl Archivers {
    /// Writes a configuration for each. The topics `avro` are archived in that format.
    pub(super) fn new(site: &Site, avro: &[&str]) -> Archivers {
        let addresses: [SocketAddr; PLACES] = std::array::from_fn(|_| ([127, 0, 0, 1], free_port()).into());
        let config = std::fs::read_to_string(site.home().path().join("tidelog.toml")).expect("the configuration");
        let formats: String = avro
            .iter()
            .map(|topic| format!("[[kafka.topic]]\nmatch = {topic:?}\nformat = \"avro\"\nmax_age = \"1500ms\"\n"))
            .collect();
        for (at, address) in addresses.iter().enumerate() {
            let listener = format!("[http]\nlisten = \"{address}\"\n");
            site.home().write(&configuration(at), &format!("{listener}{config}{formats}"));
        }
        Archivers { places: Default::default(), addresses, unready: Mutex::new(Instant::now()) }
    }

    fn place(&self, at: usize) -> MutexGuard<'_, Place> {
        self.places[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start_all(&self, world: &World) {
        (0..PLACES).for_each(|at| self.start(world, at));
    }

    /// Starts the archiver of a place, or lets it go on.
    pub(super) fn start(&self, world: &World, at: usize) {
        let mut place = self.place(at);
        if std::mem::take(&mut place.frozen) {
            place.program.as_mut().expect("what is frozen runs").thaw();
            world.journal.note(format!("archiver {at} goes on"));
        } else if place.program.is_none() {
            place.program = Some(world.site.home().start(&["-c", &configuration(at), "run"]));
            world.journal.note(format!("archiver {at} started"));
        }
    }

    /// SIGKILL. Whether there was one.
    pub(super) fn kill(&self, at: usize) -> bool {
        let mut place = self.place(at);
        let Some(program) = place.take() else { return false };
        program.kill();
        true
    }

    /// SIGTERM, and a clean end. One that has hardly begun does not know of signals yet, and is left alone.
    pub(super) fn stop(&self, at: usize) -> bool {
        let program = {
            let mut place = self.place(at);
            let listens = place.program.as_ref().is_some_and(|program| program.output().contains("archiving"));
            if place.frozen || !listens { None } else { place.take() }
        };
        program.map(|program| program.terminate(STOP)).is_some()
    }

    /// SIGSTOP.
    pub(super) fn freeze(&self, at: usize) -> bool {
        let mut place = self.place(at);
        if place.frozen || place.program.is_none() {
            return false;
        }
        place.frozen = true;
        place.program.as_mut().expect("it was looked at").freeze();
        true
    }

    /// Whether the archiver of a place runs, and is not frozen.
    pub(super) fn works(&self, at: usize) -> bool {
        let place = self.place(at);
        place.program.is_some() && !place.frozen
    }

    /// Since when all that run have said that they are ready.
    pub(super) fn ready_since(&self) -> Instant {
        *self.unready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each archiver has said, those before it included.
    pub(super) fn outputs(&self) -> Vec<String> {
        (0..PLACES).map(|at| self.place(at).output()).collect()
    }

    /// What each said of its readiness at last.
    pub(super) fn answers(&self) -> Vec<String> {
        (0..PLACES).map(|at| format!("archiver {at}: {}", self.place(at).answer)).collect()
    }

    fn look(&self, world: &World) {
        let mut all_ready = (0..PLACES).any(|at| self.works(at));
        for (at, address) in self.addresses.iter().enumerate() {
            {
                let mut place = self.place(at);
                let Some(program) = &mut place.program else { continue };
                if !program.is_running() {
                    let said = tail(&place.output(), 40);
                    world.journal.fault(format!("archiver {at} ended by itself; it said:\n{said}"));
                    return;
                }
            }
            // Asked without the lock: one that is frozen is waited for, and may be let go meanwhile.
            let answer = readyz(*address).unwrap_or_else(|error| format!("no answer: {error}"));
            all_ready &= answer.split(' ').nth(1) == Some("200");
            let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
            self.place(at).answer = body.to_owned();
        }
        if !all_ready {
            *self.unready.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}

impl Place {
    fn output(&self) -> String {
        self.said.clone() + &self.program.as_ref().map(Program::output).unwrap_or_default()
    }

    /// Takes the program out, and keeps what it said.
    fn take(&mut self) -> Option<Program> {
        self.said = self.output();
        self.frozen = false;
        self.program.take()
    }
}

fn configuration(at: usize) -> String {
    format!("archiver-{at}.toml")
}

fn readyz(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks all of them every second until the run is over.
pub(super) fn poll(world: &World) {
    while !world.is_over() {
        world.archivers.look(world);
        world.rest(Duration::from_secs(1));
    }
}
