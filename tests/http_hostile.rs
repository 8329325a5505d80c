//! The listener among clients that mean it no good: slow ones, browsers that were lured, guessers of tokens.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpSocket;

use crate::http::{Service, TOKEN};
use crate::rig::kafka::shared;
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings};

/// Kubernetes gives up a probe after five seconds, as the documentation sets it.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

fn service(name: &str) -> Service {
    let topic = unique(name);
    shared().create_topic(&topic, 1, &[]);
    Service::start(shared(), &Settings { topics: &[&topic], ..Settings::default() }, "")
}

/// A connection to `to` from another address of this machine, as another peer.
fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stream = runtime.block_on(async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).expect("all of 127/8 is this machine");
        socket.connect(to).await.expect("somebody listens").into_std().expect("a socket")
    });
    stream.set_nonblocking(false).expect("a socket that waits");
    stream
}

/// Sends as much as the connection takes at once, if it is still open.
fn send_what_fits(stream: &mut TcpStream, bytes: &[u8]) {
    stream.set_nonblocking(true).and_then(|()| stream.write_all(bytes)).ok();
}

/// Sends a request as it is written and returns the status and all that comes until the end.
fn raw(address: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the whole answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer)
}

#[test]
fn slow_clients_do_not_keep_a_probe_from_its_answer() {
    let mut service = service("http-slow");
    let address: SocketAddr = service.server.address.parse().expect("an address");
    let whole = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (name, sent, more) in [
        ("nothing is sent", &b""[..], &b""[..]),
        ("a header a byte at a time", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"x"),
        ("answers are not read", &whole.repeat(50), whole),
    ] {
        // Ten peers with as many connections as they get, a quarter more than there are places.
        let mut slow: Vec<TcpStream> = (0..160).map(|at| connect_from(2 + at % 10, address)).collect();
        for stream in &mut slow {
            send_what_fits(stream, sent);
        }
        for probe in 0..20 {
            // What was closed meanwhile comes again.
            for (at, stream) in slow.iter_mut().enumerate() {
                if stream.write_all(more).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock) {
                    *stream = connect_from(2 + at as u8 % 10, address);
                    send_what_fits(stream, sent);
                }
            }
            let start = Instant::now();
            let status = service.server.get("/healthz").status;
            assert!(
                status == 200 && start.elapsed() < PROBE_WITHIN,
                "{name}: probe {probe}: {status} after {:?}",
                start.elapsed()
            );
        }
        service.program.assert_running();
    }
    service.program.terminate(STOP);
}

#[test]
fn one_peer_gets_a_share_of_the_connections_and_a_request_ten_seconds() {
    let service = service("http-share");
    let address: SocketAddr = service.server.address.parse().expect("an address");
    let mut others: Vec<TcpStream> = (0..20).map(|_| connect_from(2, address)).collect();
    let mut greedy: Vec<TcpStream> = (0..40).map(|_| connect_from(3, address)).collect();
    let is_closed = |stream: &mut TcpStream| stream.read(&mut [0]).is_ok_and(|bytes| bytes == 0);
    // The first eight make room for the last eight; nobody else has to.
    for stream in &mut greedy[..8] {
        stream.set_read_timeout(Some(PROBE_WITHIN)).expect("a timeout");
        assert!(is_closed(stream));
    }
    for stream in greedy[8..].iter_mut().chain(&mut others) {
        stream.set_nonblocking(true).expect("a socket that does not wait");
        assert!(!is_closed(stream));
    }
    // And those who say nothing are closed, long before they would have been for their age.
    let start = Instant::now();
    let last = others.last_mut().expect("a connection");
    last.set_nonblocking(false).and_then(|()| last.set_read_timeout(Some(Duration::from_secs(60)))).expect("a timeout");
    assert!(is_closed(last) && start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    service.program.terminate(STOP);
}

#[test]
fn a_browser_that_was_lured_reads_nothing_and_changes_nothing() {
    let service = service("http-lured");
    let address = service.server.address.clone();
    let own = format!("Host: {address}\r\n");
    let asks = |line: &str, headers: &str| raw(&address, &format!("{line}\r\n{headers}Connection: close\r\n\r\n"));

    // A name that was made to resolve to this machine.
    for path in ["/metrics", "/api/status", "/readyz", "/connectors/kafka/config", "/"] {
        let (status, answer) = asks(&format!("GET {path} HTTP/1.1"), "Host: rebound.example:9095\r\n");
        assert!(status == 421 && answer.contains("ask for one of those"), "{path}: {answer}");
        assert_eq!(asks(&format!("GET {path} HTTP/1.1"), &own).0, 200, "{path}");
    }
    assert_eq!(asks("GET http://rebound.example/metrics HTTP/1.1", &own).0, 421);
    for hosts in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: \r\n"] {
        assert_eq!(asks("GET /metrics HTTP/1.1", hosts).0, 400, "{hosts:?}");
    }

    // A page of another site, with the password that the browser keeps.
    let basic = format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("me:{TOKEN}")));
    for foreign in
        ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
    {
        for line in ["POST /connectors/kafka/restart HTTP/1.1", "PUT /connectors/kafka/stop HTTP/1.1"] {
            let (status, answer) = asks(line, &format!("{own}{basic}{foreign}\r\nContent-Length: 0\r\n"));
            assert!(status == 403 && answer.contains("page of another site"), "{line}, {foreign}: {answer}");
        }
    }
    assert_eq!(service.state(), "RUNNING");
    assert_eq!(service.metric("tidelog_http_refused_total{reason=\"origin\"}"), Some(8.0));
    assert_eq!(service.metric("tidelog_http_refused_total{reason=\"host\"}"), Some(9.0));
    // A page of its own may.
    let same = format!("{own}{basic}Origin: http://{address}\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n");
    assert_eq!(asks("PUT /connectors/kafka/pause HTTP/1.1", &same).0, 202);
    service.wait_state("PAUSED");
    service.program.terminate(STOP);
}

#[test]
fn wrong_tokens_and_changes_leave_a_trail() {
    let service = service("http-trail");
    let guessed = |at: usize| format!("Bearer guess-number-{at:020}");
    for at in 0..200 {
        let answer = service.server.request("POST", "/connectors/kafka/restart", &[("Authorization", &guessed(at))]);
        assert_eq!(answer.status, 403);
    }
    assert_eq!(service.metric("tidelog_http_refused_total{reason=\"token\"}"), Some(200.0));
    let told = || service.program.output().matches("an HTTP request was refused").count();
    assert!((1..10).contains(&told()), "{}", service.program.output());
    assert!(!service.program.output().contains("guess-number"), "no token is repeated");

    let basic = format!("Basic {}", STANDARD.encode(format!("admin:{TOKEN}")));
    for (change, authorization) in [("pause", &basic), ("resume", &format!("Bearer {TOKEN}"))] {
        let path = format!("/connectors/kafka/{change}");
        assert_eq!(service.server.request("PUT", &path, &[("Authorization", authorization)]).status, 202);
    }
    wait_until("both changes in the log", PROBE_WITHIN, || service.program.output().matches("over HTTP").count() == 2);
    let output = service.program.output();
    let line =
        |what: &str| output.lines().find(|line| line.contains("over HTTP") && line.contains(what)).map(str::to_owned);
    let (pause, resume) = (line("pause").expect("a line"), line("resume").expect("a line"));
    assert!(pause.contains("127.0.0.1:") && pause.contains("Password"), "{pause}");
    assert!(resume.contains("127.0.0.1:") && resume.contains("Bearer"), "{resume}");
    assert!(!output.contains(TOKEN), "the token is in no log");
    service.program.terminate(STOP);
}

/// Sends a request as it is written, ends it if asked to, and returns the status and the rest of the answer, if one comes.
fn answered(address: &str, request: &[u8], ends: bool) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.write_all(request).expect("it is sent");
    if ends {
        stream.shutdown(std::net::Shutdown::Write).expect("it can end");
    }
    let mut answer = Vec::new();
    // What comes behind a refusal is reset.
    drop(stream.read_to_end(&mut answer));
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text))
}

/// What an answer says in JSON, as Connect writes an error.
fn said((status, answer): &(u16, String)) -> String {
    let (_, body) = answer.split_once("\r\n\r\n").expect("headers and a body");
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(body["error_code"], *status, "{answer}");
    body["message"].as_str().expect("a message").to_owned()
}

#[test]
fn a_request_is_carried_out_only_when_all_of_it_has_come() {
    let service = service("http-body");
    let address = service.server.address.clone();
    let head = format!(
        "PUT /connectors/kafka/pause HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"
    );
    let ask = |more: &str, ends| answered(&address, format!("{head}{more}").as_bytes(), ends);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let waiting = [
            "Content-Length: 10\r\n\r\n",
            "Content-Length: 10\r\n\r\nhalf",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        ]
        .map(|more| (more, scope.spawn(move || ask(more, false))));
        for (more, answer) in waiting {
            let answer = answer.join().expect("it asks").expect("an answer");
            assert_eq!(answer.0, 408, "{more}: {answer:?}");
            assert!(said(&answer).contains("did not come in time; nothing was done"), "{answer:?}");
        }
    });
    assert!((8..30).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    // A client that is gone in the middle, and sizes that are none, get 400 or nothing.
    for more in [
        "Content-Length: 10\r\n\r\nhalf",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let answer = ask(more, true);
        assert!(answer.as_ref().is_none_or(|answer| answer.0 == 400), "{more}: {answer:?}");
    }
    let large = format!("Transfer-Encoding: chunked\r\n\r\n10001\r\n{}\r\n0\r\n\r\n", "x".repeat(0x10001));
    for more in ["Content-Length: 65537\r\n\r\n", &large] {
        let answer = ask(more, false).expect("an answer");
        assert!(answer.0 == 413 && said(&answer).contains("64 KiB"), "{answer:?}");
    }
    assert_eq!(service.state(), "RUNNING", "none of them was done");
    assert_eq!(ask("Content-Length: 4\r\n\r\nwhat", false).expect("an answer").0, 202);
    service.wait_state("PAUSED");
    service.program.terminate(STOP);
}

#[test]
fn a_refusal_is_json_as_far_as_the_request_can_be_read() {
    let service = service("http-refusal");
    let address = service.server.address.clone();
    let ask = |line: &str, headers: &str| {
        answered(&address, format!("{line}\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n").as_bytes(), false)
            .unwrap_or_else(|| panic!("{line}: no answer"))
    };
    for (line, status) in [
        ("GET /api/streams/%ff HTTP/1.1", 400),
        ("GET /connectors/%ff HTTP/1.1", 400),
        ("GET /connectors/%80/tasks/%fe/status HTTP/1.1", 400),
        ("GET /connectors/kafka/tasks/99999999999999999999/status HTTP/1.1", 404),
        ("PUT /connectors/%ff/pause HTTP/1.1", 400),
        ("POST /connectors/kafka/skip?topic=%ff HTTP/1.1", 401),
        ("GET /nowhere HTTP/1.1", 404),
        ("BREW /metrics HTTP/1.1", 405),
        ("OPTIONS * HTTP/1.1", 404),
        ("PUT /connectors/kafka/pause HTTP/1.1", 401),
    ] {
        let answer = ask(line, "");
        assert_eq!(answer.0, status, "{line}: {answer:?}");
        assert!(!said(&answer).is_empty() && answer.1.contains("nosniff"), "{line}: {answer:?}");
    }
    // What is no request is refused by its status alone.
    let many: String = (0..65).map(|at| format!("X-{at}: 1\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "x".repeat(17 << 10));
    let path = format!("GET /{} HTTP/1.1", "x".repeat(70_000));
    for (line, headers, status) in [
        ("GET /metrics HTTP/1.1", many.as_str(), 431),
        ("GET /metrics HTTP/1.1", &long, 431),
        (&path, "", 431),
        ("GET /metrics HTTP/1.1", "no header\r\n", 400),
        ("GET /metrics HTTP/9.9", "", 400),
        ("\u{1}\u{2}\u{3}", "", 400),
        ("PUT /connectors/kafka/pause HTTP/1.1", "Content-Length: -1\r\n", 400),
        ("PUT /connectors/kafka/pause HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2\r\n", 400),
    ] {
        let answer = ask(line, headers);
        assert_eq!(answer.0, status, "{line:.60}: {answer:?}");
        assert!(answer.1.contains("content-length: 0\r\n") && answer.1.contains("connection: close"), "{answer:?}");
    }
    assert_eq!(service.state(), "RUNNING");
    service.program.terminate(STOP);
}

/// Headers of a change that are complete, and a body that never is.
#[test]
fn bodies_that_never_come_keep_no_probe_from_its_answer() {
    let service = service("http-bodies");
    let address: SocketAddr = service.server.address.parse().expect("an address");
    let half = format!(
        "PUT /connectors/kafka/pause HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 10\r\n\r\nhalf"
    );
    let mut slow: Vec<TcpStream> = (0..160).map(|at| connect_from(2 + at % 10, address)).collect();
    for stream in &mut slow {
        send_what_fits(stream, half.as_bytes());
    }
    for probe in 0..10 {
        let start = Instant::now();
        let status = service.server.get("/healthz").status;
        assert!(status == 200 && start.elapsed() < PROBE_WITHIN, "probe {probe}: {status} after {:?}", start.elapsed());
    }
    assert_eq!(service.state(), "RUNNING", "nothing was done by halves");
    service.program.terminate(STOP);
}

#[test]
fn no_answer_lets_a_page_of_another_site_read_it() {
    let service = service("http-preflight");
    let address = service.server.address.clone();
    let asks = |line: &str, headers: &str| {
        raw(&address, &format!("{line}\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n"))
    };
    for path in ["/", "/metrics", "/api/status", "/readyz", "/connectors", "/connectors/kafka/config"] {
        let foreign = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
        for line in [format!("GET {path} HTTP/1.1"), format!("HEAD {path} HTTP/1.1")] {
            let answer = asks(&line, foreign).1.to_ascii_lowercase();
            assert!(!answer.contains("access-control-"), "{line}: {answer}");
            assert!(answer.contains("x-content-type-options: nosniff"), "{line}: {answer}");
        }
        // What a browser asks before it sends a change with a header of its own.
        let (status, answer) = asks(
            &format!("OPTIONS {path} HTTP/1.1"),
            &format!(
                "{foreign}Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: authorization\r\n"
            ),
        );
        assert!(status >= 400 && !answer.to_ascii_lowercase().contains("access-control-"), "{path}: {answer}");
    }
    service.program.terminate(STOP);
}

#[test]
fn a_browser_s_word_on_where_it_comes_from_is_taken_once() {
    let service = service("http-origins");
    let address = service.server.address.clone();
    let basic = STANDARD.encode(format!("me:{TOKEN}"));
    let change = |headers: &str| {
        let head =
            format!("PUT /connectors/kafka/stop HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {basic}\r\n");
        raw(&address, &format!("{head}{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"))
    };
    let own = format!("Origin: http://{address}\r\n");
    let port = address.rsplit(':').next().expect("a port");
    for headers in [
        format!("{own}Origin: https://evil.example\r\n"),
        format!("{own}Sec-Fetch-Site: cross-site\r\n"),
        format!("{own}Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n"),
        format!("Origin: http://{address}.evil.example\r\n"),
        format!("Origin: http://evil.example:{port}\r\n"),
        "Origin: \r\n".to_owned(),
    ] {
        let (status, answer) = change(&headers);
        assert!(status == 403 && answer.contains("page of another site"), "{headers}: {answer}");
    }
    assert_eq!(service.state(), "RUNNING");
    assert_eq!(service.metric("tidelog_http_refused_total{reason=\"origin\"}"), Some(6.0));
    service.program.terminate(STOP);
}

#[test]
fn a_flood_from_many_peers_is_counted_by_reason_and_fills_no_log() {
    let service = service("http-flood");
    let address: SocketAddr = service.server.address.parse().expect("an address");
    let kinds = [
        ("token", format!("Host: {address}\r\nAuthorization: Bearer guess-number-0123456789\r\n")),
        ("origin", format!("Host: {address}\r\nOrigin: https://evil.example\r\n")),
        ("host", "Host: rebound.example\r\n".to_owned()),
    ];
    let start = Instant::now();
    for at in 0..300_u16 {
        let mut stream = connect_from(2 + (at % 100) as u8, address);
        let (_, headers) = &kinds[usize::from(at) % 3];
        let request =
            format!("PUT /connectors/kafka/pause HTTP/1.1\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it is sent");
        drop(stream.read_to_end(&mut Vec::new()));
    }
    for (reason, _) in kinds {
        let counted = service.metric(&format!("tidelog_http_refused_total{{reason=\"{reason}\"}}"));
        assert_eq!(counted, Some(100.0), "{reason}");
    }
    let output = service.program.output();
    let lines: Vec<&str> = output.lines().filter(|line| line.contains("an HTTP request was refused")).collect();
    let most = 1 + start.elapsed().as_secs() as usize / 10;
    assert!((1..=most).contains(&lines.len()), "{lines:?}");
    assert!(lines[0].contains("127.0.0.2:"), "the first one is named: {}", lines[0]);
    service.program.terminate(STOP);
}

#[test]
fn every_change_names_its_peer_and_how_it_knew_the_token() {
    let service = service("http-changes");
    let address: SocketAddr = service.server.address.parse().expect("an address");
    let basic = format!("Basic {}", STANDARD.encode(format!("somebody:{TOKEN}")));
    let bearer = format!("Bearer {TOKEN}");
    let changes = [
        (7, "PUT", "/connectors/kafka/pause", &basic, "Password"),
        (8, "PUT", "/connectors/kafka/resume", &bearer, "Bearer"),
        (9, "POST", "/connectors/kafka/restart", &basic, "Password"),
        (10, "PUT", "/connectors/kafka/stop", &bearer, "Bearer"),
    ];
    for (peer, method, path, authorization, way) in changes {
        let mut stream = connect_from(peer, address);
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {authorization}\r\n");
        stream
            .write_all(format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())
            .expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 20"), "{path}: {answer}");
        let named = format!("127.0.0.{peer}:");
        let line = || {
            let output = service.program.output();
            output.lines().find(|line| line.contains("over HTTP") && line.contains(&named)).map(str::to_owned)
        };
        wait_until("the change in the log", PROBE_WITHIN, || line().is_some());
        let line = line().expect("a line");
        assert!(line.contains(way), "{path}: {line}");
    }
    assert!(!service.program.output().contains(TOKEN), "the token is in no log");
    service.program.terminate(STOP);
}
