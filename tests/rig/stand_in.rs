//! A server that answers as a test says: what no real one can be brought to say at the moment that a test needs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// The path and the query, as they were sent.
    pub(crate) path: String,
    /// The header `Authorization`.
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A status and a body.
    Says(u16, String),
    /// The head of an answer of more bytes than come, and then the end of the connection.
    Half(String),
}

type Answers = Box<dyn FnMut(&Asked) -> Reply + Send>;

/// A running server. It ends with the test's process.
pub(crate) struct StandIn {
    /// `host:port`
    pub(crate) address: String,
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl StandIn {
    /// Starts one.
    pub(crate) fn start(answers: impl FnMut(&Asked) -> Reply + Send + 'static) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let answers: Arc<Mutex<Answers>> = Arc::new(Mutex::new(Box::new(answers)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = (Arc::clone(&answers), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&shared.0), Arc::clone(&shared.1));
                // Whoever asks may go away in the middle.
                std::thread::spawn(move || drop(serve(stream, &answers, &asked)));
            }
        });
        StandIn { address, answers, asked }
    }

    /// Answers otherwise from now on.
    pub(crate) fn answers(&self, answers: impl FnMut(&Asked) -> Reply + Send + 'static) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(answers);
    }

    /// What was asked since the last look.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(stream: TcpStream, answers: &Mutex<Answers>, asked: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.by_ref().take(64 << 10).read_line(&mut first)?;
    let (mut authorization, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        reader.by_ref().take(64 << 10).read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = Some(value.trim().to_owned());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or_default();
            }
            Some(_) => {}
        }
    }
    let mut body = String::new();
    reader.by_ref().take(length).read_to_string(&mut body)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let asked_now = Asked { method, path, authorization, body };
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked_now.clone());
    let reply = (answers.lock().unwrap_or_else(PoisonError::into_inner))(&asked_now);
    let mut stream = stream;
    let head = |status: u16, length: usize, more: &str| {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
    };
    match reply {
        Reply::Says(status, body) => stream.write_all(format!("{}{body}", head(status, body.len(), "")).as_bytes()),
        Reply::Half(body) => stream.write_all(format!("{}{body}", head(200, body.len() * 2, "")).as_bytes()),
    }
}
