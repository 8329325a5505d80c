//! Opening a socket: TCP or Unix, with or without TLS.

use std::net::SocketAddr;

use bytes::BytesMut;
use postgres_protocol::message::frontend::ssl_request;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::target::{Host, Keepalive, SslMode, Target, socket};
use super::tls::{Tls, end_point};
use crate::error::{Error, Kind, Result};

/// Whatever carries the protocol.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A way to try it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Plain,
    /// TLS if the server has it.
    Offered,
    Tls,
}

impl Attempt {
    /// Returns what `sslmode` tries one after the other. A Unix socket has no TLS, as in libpq.
    pub(super) fn in_order(host: &Host, mode: SslMode) -> &'static [Self] {
        match (host, mode) {
            (Host::Unix { .. }, _) | (_, SslMode::Disable) => &[Self::Plain],
            (_, SslMode::Allow) => &[Self::Plain, Self::Tls],
            (_, SslMode::Prefer) => &[Self::Offered, Self::Plain],
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Self::Tls],
        }
    }
}

/// An open socket.
pub(super) struct Opened {
    pub(super) socket: Box<dyn Socket>,
    pub(super) is_tls: bool,
    /// What SCRAM's channel binding binds to.
    pub(super) end_point: Option<Vec<u8>>,
}

/// Opens a socket to `host`.
pub(super) async fn open(host: &Host, target: &Target, tls: &Tls, attempt: Attempt) -> Result<Opened> {
    let plain = |socket| Opened { socket, is_tls: false, end_point: None };
    match host {
        Host::Unix { folder, port } => match UnixStream::connect(socket(folder, *port)).await {
            Ok(stream) => Ok(plain(Box::new(stream))),
            Err(source) => Err(unreachable(host, source)),
        },
        Host::Tcp { name, .. } => {
            let mut stream = tcp(host, target.keepalive).await?;
            let wants_tls = match attempt {
                Attempt::Plain => false,
                Attempt::Tls if target.ssl.is_direct => true,
                Attempt::Tls | Attempt::Offered => offers_tls(&mut stream, host).await?,
            };
            match attempt {
                Attempt::Tls if !wants_tls => {
                    Err(Error::new(Kind::Unsupported, format!("{} has no TLS", host.shown()))
                        .hint("switch it on (ssl = on), or allow connections without: sslmode=prefer in postgres.url"))
                }
                _ if !wants_tls => Ok(plain(Box::new(stream))),
                _ => {
                    let stream = tls.connect(stream, name).await?;
                    let end_point = end_point(&stream);
                    Ok(Opened { socket: Box::new(stream), is_tls: true, end_point })
                }
            }
        }
    }
}

async fn tcp(host: &Host, keepalive: Keepalive) -> Result<TcpStream> {
    let Host::Tcp { name, address, port } = host else {
        return Err(Error::new(Kind::Internal, "a Unix socket is not reached by TCP"));
    };
    let addresses: Vec<SocketAddr> = match address {
        Some(address) => vec![(*address, *port).into()],
        None => lookup_host((name.as_str(), *port)).await.map_err(|source| unreachable(host, source))?.collect(),
    };
    let mut failure = std::io::Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await.and_then(|stream| set(stream, keepalive)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(unreachable(host, failure))
}

fn set(stream: TcpStream, keepalive: Keepalive) -> std::io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    if keepalive.is_on {
        let mut probes = TcpKeepalive::new();
        if let Some(idle) = keepalive.idle {
            probes = probes.with_time(idle);
        }
        if let Some(interval) = keepalive.interval {
            probes = probes.with_interval(interval);
        }
        if let Some(count) = keepalive.count {
            probes = probes.with_retries(count);
        }
        socket.set_keepalive(true)?;
        socket.set_tcp_keepalive(&probes)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(keepalive.user_timeout)?;
    Ok(stream)
}

/// Asks for TLS. One byte is read and no more: what somebody slips in after it must not count as the server's
/// (CVE-2021-23222).
async fn offers_tls(stream: &mut TcpStream, host: &Host) -> Result<bool> {
    let mut request = BytesMut::new();
    ssl_request(&mut request);
    let mut answer = [0];
    let asked = async {
        stream.write_all(&request).await?;
        stream.read_exact(&mut answer).await
    };
    asked.await.map_err(|source| unreachable(host, source))?;
    match answer {
        [b'S'] => Ok(true),
        [b'N'] => Ok(false),
        _ => Err(Error::new(Kind::Unavailable, format!("{} does not answer as PostgreSQL does", host.shown()))
            .hint("check the port in postgres.url; a server that has no room for another connection answers so, too")),
    }
}

fn unreachable(host: &Host, source: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("cannot reach {}", host.shown()))
        .source(source)
        .hint("check host and port of postgres.url and that the server runs there")
}
