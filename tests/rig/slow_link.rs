//! A link to a server that lets only so many bytes a second through, in one direction: what a client sends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What is passed on at once.
const PIECE: usize = 1_024;

/// Passes connections to port `from` on to port `to`, each with `rate` bytes a second at most from the client's side, for as
/// long as the process lasts.
pub(crate) fn slow_link(from: u16, to: u16, rate: u32) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, from)).expect("the port is free");
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { continue };
            let (mut back_from, mut back_to) =
                (server.try_clone().expect("a handle"), client.try_clone().expect("a handle"));
            std::thread::spawn(move || {
                // Whoever closes first ends both ways.
                drop(std::io::copy(&mut back_from, &mut back_to));
                drop(back_to.shutdown(Shutdown::Both));
            });
            std::thread::spawn(move || pass_on(client, server, rate));
        }
    });
}

fn pass_on(mut client: TcpStream, mut server: TcpStream, rate: u32) {
    let mut piece = [0; PIECE];
    let mut due = Instant::now();
    while let Ok(length @ 1..) = client.read(&mut piece) {
        if server.write_all(&piece[..length]).is_err() {
            break;
        }
        let share = Duration::from_secs(1) * u32::try_from(length).expect("small") / rate;
        due = due.max(Instant::now()) + share;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    drop(server.shutdown(Shutdown::Both));
}
