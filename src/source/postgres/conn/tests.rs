//! Connecting to scripted servers: what a real one does not do on demand.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::connection::{BUFFER, Purpose, version};
use super::server::Server;
use crate::config::Config;
use crate::error::Kind;
use crate::source::postgres::codec::Backend;

fn server(url: &str, more: &str) -> Server {
    let text = format!("[archive]\nurl = \"memory://\"\n[postgres]\nurl = {url:?}\n{more}");
    let config = Config::parse(&text, "test", &BTreeMap::new()).expect("the configuration is valid");
    Server::with(&config.postgres.expect("[postgres] is there"), &|_| None).expect("the url is valid")
}

/// Serves one connection: reads the start-up, then says `script`, answer by answer.
async fn serve(listener: TcpListener, script: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let (mut stream, _) = listener.accept().await.expect("a client");
    let mut heard = Vec::new();
    for part in script {
        heard.push(hear(&mut stream).await);
        stream.write_all(&part).await.expect("the client listens");
    }
    heard
}

async fn hear(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).await.expect("the client speaks");
    bytes.truncate(count);
    bytes
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn authentication(number: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&number.to_be_bytes(), rest].concat())
}

fn ready() -> Vec<u8> {
    [authentication(0, b""), message(b'S', b"server_version\x0017.1\0"), message(b'Z', b"I")].concat()
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    (listener, port)
}

#[tokio::test]
async fn passwords_are_not_given_to_who_asks_wrongly() {
    for (asked, more, expected) in [
        (authentication(3, b""), "", "clear text"),
        (authentication(5, b"salt"), "", "md5"),
        (authentication(7, b""), "", "method 7"),
        (authentication(10, b"OTHER\0\0"), "", "offers only OTHER"),
        (authentication(0, b""), "channel", "channel_binding is require"),
    ] {
        let (listener, port) = listen().await;
        let binding = if more.is_empty() { "" } else { "&channel_binding=require" };
        let server = server(&format!("postgres://u:s3cret@127.0.0.1:{port}/d?sslmode=disable{binding}"), "");
        let (heard, result) = tokio::join!(serve(listener, vec![asked]), server.connect(Purpose::Sql));
        let error = result.map(drop).expect_err("it must not get in");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(error.kind(), Kind::Denied | Kind::Unsupported), "{error:?}");
        assert!(!format!("{error:?}").contains("s3cret") && heard.len() == 1);
    }
}

#[tokio::test]
async fn md5_is_answered_where_it_is_allowed() {
    let (listener, port) = listen().await;
    let server = server(&format!("postgres://u:p@127.0.0.1:{port}/d?sslmode=disable"), "allow_md5 = true\n");
    let script = vec![authentication(5, b"salt"), ready()];
    let (heard, result) = tokio::join!(serve(listener, script), server.connect(Purpose::Sql));
    assert_eq!(result.expect("it gets in").version, 170_001);
    assert!(heard[1].starts_with(b"p") && heard[1][5..].starts_with(b"md5"), "{:?}", heard[1]);
    let startup = String::from_utf8_lossy(&heard[0]).into_owned();
    assert!(startup.contains("application_name\0tidelog\0"), "{startup:?}");
}

#[tokio::test]
async fn a_server_that_skips_its_proof_is_not_believed() {
    let (listener, port) = listen().await;
    let server = server(&format!("postgres://u:p@127.0.0.1:{port}/d?sslmode=disable"), "");
    let script = vec![authentication(10, b"SCRAM-SHA-256\0\0"), ready()];
    let (_, result) = tokio::join!(serve(listener, script), server.connect(Purpose::Sql));
    let error = result.map(drop).expect_err("it has proven nothing");
    assert!(error.kind() == Kind::Denied && error.to_string().contains("proven"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_silent_costs_the_timeout_and_the_next_host_is_asked() {
    let (silent, first) = listen().await;
    let (listener, second) = listen().await;
    let server =
        server(&format!("postgres://u@127.0.0.1:{first},127.0.0.1:{second}/d?sslmode=disable&connect_timeout=1"), "");
    let (heard, result) = tokio::join!(serve(listener, vec![ready()]), server.connect(Purpose::Replication));
    assert!(result.expect("the second one answers").shown.ends_with(&second.to_string()));
    assert!(String::from_utf8_lossy(&heard[0]).contains("replication\0true\0"));
    drop(silent);
}

#[tokio::test]
async fn a_refusal_ends_the_search_and_an_absence_names_all_hosts() {
    let (listener, port) = listen().await;
    let fatal = message(b'E', b"SFATAL\0VFATAL\0C28P01\0Mno\0\0");
    let one = server(&format!("postgres://u@127.0.0.1:{port},127.0.0.1:1/d?sslmode=disable"), "");
    let (_, result) = tokio::join!(serve(listener, vec![fatal]), one.connect(Purpose::Sql));
    assert_eq!(result.map(drop).expect_err("it is refused").kind(), Kind::Denied);

    let (listener, port) = listen().await;
    drop(listener);
    let two = server(&format!("postgres://u@127.0.0.1:{port},127.0.0.1:{port}/d?sslmode=disable"), "");
    let error = two.connect(Purpose::Sql).await.map(drop).expect_err("nobody is there");
    assert!(error.is_transient() && error.to_string().contains("none of "), "{error}");
}

#[tokio::test]
async fn messages_of_any_length_come_whole() {
    let (listener, port) = listen().await;
    let server = server(&format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable"), "");
    let sizes = [0usize, 1, BUFFER - 5, BUFFER, 3 * BUFFER, 7];
    let all: Vec<u8> = sizes.iter().flat_map(|size| message(b'd', &vec![7; *size])).collect();
    let serving = async {
        let (mut stream, _) = listener.accept().await.expect("a client");
        hear(&mut stream).await;
        stream.write_all(&ready()).await.expect("the client listens");
        for piece in all.chunks(1000) {
            stream.write_all(piece).await.expect("the client listens");
        }
        stream
    };
    let reading = async {
        let mut connection = server.connect(Purpose::Replication).await.expect("it gets in");
        for size in sizes {
            // A call that is given up half way loses nothing.
            let given_up = tokio::time::timeout(Duration::ZERO, connection.next()).await;
            let found = match given_up {
                Ok(found) => found,
                Err(_) => connection.next().await,
            };
            assert_eq!(found.expect("a message"), Backend::CopyData(&vec![7; size]));
        }
        connection
    };
    let (stream, mut connection) = tokio::join!(serving, reading);
    drop(stream);
    let error = connection.next().await.map(drop).expect_err("the server has gone");
    assert!(error.is_transient() && error.to_string().contains("closed the connection"), "{error}");
}

#[test]
fn versions_are_numbers() {
    for (text, number) in
        [("15.18 (Debian 15.18-0+deb12u1)", 150_018), ("13.23", 130_023), ("18beta1", 180_000), ("", 0), ("x", 0)]
    {
        assert_eq!(version(text), number, "{text}");
    }
}

#[test]
fn nothing_shows_a_password() {
    let server = server("postgres://u:s3cret@h/d", "");
    assert!(!format!("{server:?}").contains("s3cret"));
    assert_eq!(server.shown(), "h:5432");
}

/// Whoever answers at the address of a server decides how much it says.
#[tokio::test]
async fn a_server_that_reports_without_end_and_answers_without_end_takes_little() {
    let status = |name: &str, value: &str| message(b'S', format!("{name}\0{value}\0").as_bytes());
    let many: Vec<u8> = (0..5_000).flat_map(|at| status(&format!("p{at}"), "x")).collect();
    let login =
        [authentication(0, b""), status("long", &"x".repeat(100_000)), status("server_version", "17.1"), many].concat();
    let description = message(b'T', &[&[0, 1][..], b"a\0", &[0; 18]].concat());
    // Texts of nothing: 24 bytes of memory for four that are sent.
    let row = message(b'D', &[&10_000_u16.to_be_bytes()[..], &[0; 40_000]].concat());
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        hear(&mut stream).await;
        stream.write_all(&[login, message(b'Z', b"I")].concat()).await.expect("the client listens");
        hear(&mut stream).await;
        stream.write_all(&description).await.expect("the client listens");
        while stream.write_all(&row).await.is_ok() {}
    });
    let server = server(&format!("host=127.0.0.1 port={port} user=u sslmode=disable target_session_attrs=any"), "");
    let mut connection = server.connect(Purpose::Sql).await.expect("a login");
    assert!(connection.parameters.len() <= 256 && !connection.parameters.contains_key("long"));
    assert_eq!(connection.parameter("server_version"), "17.1");
    let error = connection.query("SELECT 1", "ask for one").await.expect_err("no end");
    assert!(error.to_string().contains("takes more than 67108864 bytes"), "{error}");
}
