//! Connections: the only room that sees a socket.
//!
//! ```text
//!   postgres.url, service file, PG* ─► parameters ─► target ─┐
//!   sslrootcert, sslcert, sslkey ────────────────────► tls ──┴─► Server::connect ─► login ─► Connection
//!                                                                 host by host      password, SCRAM
//!   Connection::next    socket ─► one buffer ─► a message that borrows from it
//!   Connection::queue, flush    messages ─► socket
//! ```
//!
//! Bytes are copied once, from the socket into the buffer. [`Connection::next`] and [`Connection::flush`] may be
//! dropped half way: what was read or not yet written stays where it is.

mod connection;
mod login;
mod parameters;
mod password;
mod server;
mod socket;
mod target;
mod tls;

pub(super) use self::connection::{Connection, Purpose};
pub use self::server::Server;

#[cfg(test)]
mod tests;
