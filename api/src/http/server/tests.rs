use std::io::Read;
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{Answer, Outcome, Request};

/// A server whose handler tells its version and refuses all else.
struct World {
    folder: TempDir,
    handled: Arc<AtomicUsize>,
    _stopper: Stopper,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let handled = Arc::new(AtomicUsize::new(0));
        let count = handled.clone();
        let (server, stopper) = Server::bind(&folder.path().join("socket"), 1000).unwrap();
        thread::spawn(move || {
            server.run(&mut move |request: Request| -> Outcome {
                count.fetch_add(1, Ordering::Relaxed);
                match request {
                    Request::GetVersion => Answer::json(&json!({"firecracker_version": "1"})),
                    Request::PutMmds(_) => Ok(Answer::Done),
                    _ => Err(Fault::new("no")),
                }
            })
        });
        Self {
            folder,
            handled,
            _stopper: stopper,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("socket")).unwrap();
        // A test that fails does not hang.
        let timeout = Some(Duration::from_secs(60));
        stream.set_read_timeout(timeout).unwrap();
        stream.set_write_timeout(timeout).unwrap();
        stream
    }

    fn handled(&self) -> usize {
        self.handled.load(Ordering::Relaxed)
    }
}

const GET: &[u8] = b"GET /version HTTP/1.1\r\n\r\n";

/// Reads one answer: its head, and the body that it announces.
fn answer(stream: &mut UnixStream) -> (u16, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    let code = head["HTTP/1.1 ".len()..][..3].parse().unwrap();
    (code, String::from_utf8(body).unwrap())
}

fn is_closed(stream: &mut UnixStream) -> bool {
    // A stream that is closed with something unread is reset.
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}

#[test]
fn a_client_gets_answers_for_as_long_as_it_asks() {
    let world = World::new();
    let mut client = world.connect();
    for _ in 0..3 {
        client.write_all(GET).unwrap();
        let body = r#"{"firecracker_version":"1"}"#;
        assert_eq!(answer(&mut client), (200, body.into()));
    }
    client
        .write_all(b"PUT /mmds HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        .unwrap();
    assert_eq!(answer(&mut client), (204, String::new()));
    client
        .write_all(b"GET /balloon HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert_eq!(
        answer(&mut client),
        (400, r#"{"fault_message":"no"}"#.into())
    );
    assert!(is_closed(&mut client));
}

#[test]
fn a_request_may_come_byte_by_byte_and_many_at_once() {
    let world = World::new();
    let mut client = world.connect();
    for byte in GET {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(answer(&mut client).0, 200);
    // More than one turn, and more than one read.
    let count = 1000;
    let mut writer = client.try_clone().unwrap();
    let all = GET.repeat(count);
    let sender = thread::spawn(move || writer.write_all(&all).unwrap());
    for _ in 0..count {
        assert_eq!(answer(&mut client).0, 200);
    }
    sender.join().unwrap();
    assert_eq!(world.handled(), count + 1);
}

#[test]
fn a_client_that_reads_nothing_is_not_worked_for() {
    let world = World::new();
    let mut deaf = world.connect();
    deaf.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut stuck = 0;
    // Until nothing more is taken, for a while.
    while stuck < 20 {
        match deaf.write(&GET.repeat(100)) {
            Ok(length) => (sent, stuck) = (sent + length, 0),
            Err(_) => {
                stuck += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    assert!(
        world.handled() * GET.len() < sent,
        "answers pile up nowhere"
    );
    let mut other = world.connect();
    other.write_all(GET).unwrap();
    assert_eq!(answer(&mut other).0, 200);
}

#[test]
fn a_request_of_a_gibibyte_is_refused_by_its_head() {
    let world = World::new();
    let mut client = world.connect();
    let head = format!("PUT /mmds HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 1 << 30);
    client.write_all(head.as_bytes()).unwrap();
    let (code, body) = answer(&mut client);
    assert_eq!(code, 400);
    assert!(
        body.contains("1073741824") && body.contains("1000"),
        "{body}"
    );
    // What it would send is not taken.
    let mut sent = 0;
    while sent < 1 << 30 {
        match client.write(&[b' '; 1 << 16]) {
            Ok(length) => sent += length,
            Err(_) => break,
        }
    }
    assert!(sent < 1 << 24, "{sent} bytes were taken");
    assert_eq!(world.handled(), 0);
}

#[test]
fn a_client_that_stalls_holds_up_nobody_and_is_told_in_the_end() {
    let world = World::new();
    let mut lazy = world.connect();
    lazy.write_all(b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\n\r\n{")
        .unwrap();
    let mut half = world.connect();
    half.write_all(b"GET /ver").unwrap();
    let mut other = world.connect();
    for _ in 0..10 {
        other.write_all(GET).unwrap();
        assert_eq!(answer(&mut other).0, 200);
    }
    for client in [&mut lazy, &mut half] {
        let (code, body) = answer(client);
        assert_eq!(code, 408);
        assert!(body.contains("not complete after 5 seconds"), "{body}");
        assert!(is_closed(client));
    }
    // Who has asked for nothing may stay.
    other.write_all(GET).unwrap();
    assert_eq!(answer(&mut other).0, 200);
}

#[test]
fn the_eleventh_client_is_told_and_the_ten_stay() {
    let world = World::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| world.connect()).collect();
    for client in &mut clients {
        client.write_all(GET).unwrap();
        assert_eq!(answer(client).0, 200);
    }
    let mut late = world.connect();
    let (code, body) = answer(&mut late);
    assert_eq!(code, 503);
    assert!(body.contains("Too many open connections"), "{body}");
    assert!(is_closed(&mut late));
    clients.pop().unwrap().shutdown(Shutdown::Both).unwrap();
    // The place is free as soon as the server has seen that.
    let mut code = 503;
    while code == 503 {
        let mut client = world.connect();
        // Who is refused may find the stream closed.
        if client.write_all(GET).is_ok() {
            code = answer(&mut client).0;
        }
    }
    assert_eq!(code, 200);
}

#[test]
fn a_client_that_waits_for_a_word_gets_it() {
    let world = World::new();
    let mut client = world.connect();
    client
        .write_all(b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(answer(&mut client).0, 100);
    client.write_all(b"{}").unwrap();
    assert_eq!(answer(&mut client).0, 204);
}

#[test]
fn a_stream_that_makes_no_sense_ends_with_a_fault() {
    let world = World::new();
    let mut client = world.connect();
    client.write_all(b"\x16\x03\x01\x02\r\n\r\n").unwrap();
    assert_eq!(answer(&mut client).0, 400);
    assert!(is_closed(&mut client));
}

#[test]
fn clients_are_served_one_after_the_other_while_both_are_connected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (server, _stopper) = Server::bind(&path, 1000).unwrap();
    let (entered, enters) = mpsc::channel();
    let (leave, leaves) = mpsc::channel::<()>();
    thread::spawn(move || {
        server.run(&mut move |_| -> Outcome {
            entered.send(()).unwrap();
            leaves.recv().unwrap();
            Ok(Answer::Done)
        })
    });
    let mut clients = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
    for client in &mut clients {
        client.write_all(GET).unwrap();
    }
    for _ in 0..2 {
        enters.recv().unwrap();
        assert!(enters.try_recv().is_err(), "one at a time");
        leave.send(()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(answer(client).0, 204);
    }
}

#[test]
fn a_path_that_exists_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let bind = || Server::bind(&path, 1).map(drop).unwrap_err();
    let server = Server::bind(&path, 1).unwrap();
    let text = bind().to_string();
    assert!(text.contains("Check that it is not already used"), "{text}");
    // As well when nobody listens there any more.
    drop(server);
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(bind(), BindError::InUse { .. }));
    let missing = folder.path().join("missing/socket");
    let error = Server::bind(&missing, 1).map(drop).unwrap_err();
    assert!(matches!(error, BindError::Bind { .. }));
}

#[test]
fn a_server_that_is_stopped_answers_first_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (server, stopper) = Server::bind(&path, 1000).unwrap();
    let mut stopper = Some(stopper);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(GET).unwrap();
    let thread = thread::spawn(move || {
        server.run(&mut move |_| -> Outcome {
            drop(stopper.take());
            Ok(Answer::Done)
        })
    });
    assert_eq!(answer(&mut client).0, 204);
    thread.join().unwrap().unwrap();
    assert!(!path.exists());
}
