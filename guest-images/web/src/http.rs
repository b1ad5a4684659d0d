//! The page, over as much HTTP/1.1 (RFC 9112) as one page needs. Whoever connects may be hostile: bounded in bytes, in
//! time and in connections.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::{self, Facts};

/// A request line with its header fields; browsers send about 600 bytes.
const MAX_REQUEST: usize = 8 << 10;
/// For a whole request, however slowly it drips in.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 32;
/// A pause after an accept that failed: the usual cause, no descriptors, does not go away at once.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Answers every connection, each on a thread of its own, for as long as the machine runs.
pub fn serve(listener: &TcpListener) -> ! {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(AFTER_FAILURE);
            continue;
        };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            // Closed at once: better than a queue that nobody serves.
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let count = Arc::clone(&open);
        let answer = move || {
            // A peer that went away is no business of ours.
            let _ = answer(stream);
            count.fetch_sub(1, Ordering::Relaxed);
        };
        let thread = thread::Builder::new().stack_size(64 << 10).spawn(answer);
        if thread.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let address = stream.local_addr()?.ip();
    stream.set_write_timeout(Some(DEADLINE))?;
    let request = read_request(&mut stream)?;
    let response = respond(&request, || page(&machine::facts(), &address.to_string()));
    stream.write_all(&response)
}

/// Reads up to the empty line, the size limit or the deadline.
fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let start = Instant::now();
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while request.len() < MAX_REQUEST && !is_complete(&request) {
        let left = DEADLINE.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            length => request.extend_from_slice(&part[..length]),
        }
    }
    Ok(request)
}

fn is_complete(request: &[u8]) -> bool {
    request.windows(4).any(|window| window == b"\r\n\r\n")
}

/// The response to a request; `page` is made only when it is wanted.
fn respond(request: &[u8], page: impl FnOnce() -> String) -> Vec<u8> {
    if !is_complete(request) {
        return message("400 Bad Request", "text/plain", "Bad request\n", true);
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or(&[]);
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if words.next().is_some() || !version.is_some_and(|version| version.starts_with(b"HTTP/1.")) {
        return message("400 Bad Request", "text/plain", "Bad request\n", true);
    }
    let path = target.and_then(|target| target.split(|byte| *byte == b'?').next());
    match (method, path) {
        (Some(b"GET"), Some(b"/")) => message("200 OK", "text/html", &page(), true),
        (Some(b"HEAD"), Some(b"/")) => message("200 OK", "text/html", &page(), false),
        (Some(b"GET" | b"HEAD"), _) => {
            let body = method == Some(b"GET");
            message("404 Not Found", "text/plain", "No such page\n", body)
        }
        _ => message(
            "405 Method Not Allowed",
            "text/plain",
            "GET or HEAD\n",
            true,
        ),
    }
}

fn message(status: &str, kind: &str, text: &str, with_body: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") {
        "Allow: GET, HEAD\r\n"
    } else {
        ""
    };
    let mut message = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\n{allow}Connection: close\r\n\r\n",
        text.len()
    );
    if with_body {
        message.push_str(text);
    }
    message.into_bytes()
}

fn page(facts: &Facts, address: &str) -> String {
    let Facts {
        name,
        kernel,
        uptime,
        cpus,
    } = facts;
    let seconds = uptime.as_secs();
    let name = escape(name);
    let kernel = escape(kernel);
    let address = escape(address);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{name}, a guest of Daruma</title>\n\
         <style>body{{font:16px/1.5 sans-serif;max-width:34em;margin:3em auto;padding:0 1em}}\
         td{{padding:0 1.5em 0 0}}</style>\n</head>\n<body>\n<h1>{name}</h1>\n\
         <p>A guest of Daruma: one static program as the only process.</p>\n<table>\n\
         <tr><td>up for<td>{seconds} s\n<tr><td>kernel<td>Linux {kernel}\n\
         <tr><td>address<td>{address}\n<tr><td>processors<td>{cpus}\n</table>\n</body>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(request: &[u8]) -> String {
        let response = respond(request, || "PAGE".to_owned());
        let text = String::from_utf8(response).unwrap();
        assert!(text.contains("\r\n\r\n"), "{text}");
        text.split("\r\n").next().unwrap().to_owned()
    }

    #[test]
    fn root_is_the_page_and_nothing_else_is() {
        let get = respond(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", || "PAGE".to_owned());
        assert!(get.ends_with(b"\r\n\r\nPAGE"));
        let head = respond(b"HEAD /?q HTTP/1.0\r\n\r\n", || "PAGE".to_owned());
        assert!(head.ends_with(b"\r\n\r\n"));
        assert_eq!(status(b"GET /x HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
        assert!(status(b"POST / HTTP/1.1\r\n\r\n").contains("405"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for request in [
            &b""[..],
            b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n",
            b"GET / x HTTP/1.1\r\n\r\n",
            b"GET /\r\n\r\n",
        ] {
            assert!(status(request).contains("400"), "{request:?}");
        }
    }

    #[test]
    fn the_page_names_the_guest_and_escapes_what_it_shows() {
        let facts = Facts {
            name: "a<b>&".to_owned(),
            kernel: "6".to_owned(),
            uptime: Duration::from_secs(90),
            cpus: 2,
        };
        let page = page(&facts, "192.0.2.9");
        assert!(page.contains("<title>a&lt;b&gt;&amp;, a guest of Daruma</title>"));
        assert!(page.contains("192.0.2.9") && page.contains("90 s"));
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(request in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = status(&request);
        }
    }
}
