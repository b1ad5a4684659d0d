//! One request in a stream of bytes, and one answer as bytes.

use serde_json::json;

use crate::{Answer, Fault, Outcome, Status};

/// Most bytes of a request line and its header fields.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// Most header fields: clients send five.
const MAX_FIELDS: usize = 64;

/// The beginning of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) path: String,
    /// Bytes of the head itself.
    pub(super) length: usize,
    /// Bytes of the body behind it.
    pub(super) body: usize,
    /// The client waits for a word before it sends the body.
    pub(super) expects_continue: bool,
    /// The client wants no more than this one answer.
    pub(super) closes: bool,
}

/// Reads the head at the beginning of `bytes`, if it is all there. After a fault nothing that follows can be understood.
pub(super) fn read_head(bytes: &[u8], max_body: usize) -> Result<Option<Head>, Fault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let status = request
        .parse(bytes)
        .map_err(|error| Fault::new(format!("The request is not HTTP/1.1: {error}")))?;
    let httparse::Status::Complete(length) = status else {
        if bytes.len() >= MAX_HEAD {
            return Err(head_too_long());
        }
        return Ok(None);
    };
    if length > MAX_HEAD {
        return Err(head_too_long());
    }
    let mut head = Head {
        method: request.method.unwrap_or_default().into(),
        path: absolute_path(request.path.unwrap_or_default()).into(),
        length,
        body: 0,
        expects_continue: false,
        closes: false,
    };
    let mut body = None;
    for field in request.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let value = field.value.trim_ascii();
        if is("content-length") {
            let length = content_length(value)?;
            if body.is_some_and(|before| before != length) {
                return Err(Fault::new("The request has two lengths"));
            }
            body = Some(length);
        } else if is("transfer-encoding") {
            return Err(Fault::new(
                "Transfer-Encoding is not supported: send the body in one piece, with Content-Length",
            ));
        } else if is("expect") {
            head.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
        } else if is("connection") {
            head.closes |= value.eq_ignore_ascii_case(b"close");
        }
    }
    let body = body.unwrap_or(0);
    head.body = usize::try_from(body)
        .ok()
        .filter(|body| *body <= max_body)
        .ok_or_else(|| {
            Fault::new(format!(
                "Request payload with size {body} is larger than the limit of {max_body} allowed by server."
            ))
        })?;
    Ok(Some(head))
}

fn head_too_long() -> Fault {
    Fault::new(format!(
        "The request's head is longer than {MAX_HEAD} bytes"
    ))
}

/// Only digits: what parses as a number in Rust may have a sign.
fn content_length(value: &[u8]) -> Result<u64, Fault> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Fault::new("Content-Length is not a number of bytes"))
}

/// The path of a target that may have a scheme and a host in front.
fn absolute_path(target: &str) -> &str {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

/// What an outcome looks like to the client. `closes`: no more will follow.
pub(super) fn write(outcome: Outcome, closes: bool) -> Vec<u8> {
    let (status, body) = match outcome {
        Ok(Answer::Done) => (Status::NoContent, None),
        Ok(Answer::Json(body)) => (Status::Ok, Some(body)),
        Err(Fault { status, message }) => (status, Some(json!({"fault_message": message}))),
    };
    let connection = if closes { "close" } else { "keep-alive" };
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nServer: daruma-vmm\r\nConnection: {connection}\r\n",
        status.code(),
        status.reason()
    );
    let body = body.map(|body| body.to_string());
    if let Some(body) = &body {
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    head.push_str("\r\n");
    head.push_str(&body.unwrap_or_default());
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> Result<Option<Head>, Fault> {
        read_head(text.as_bytes(), 100)
    }

    fn fault(text: &str) -> String {
        head(text).unwrap_err().message
    }

    #[test]
    fn a_head_is_read_when_it_is_complete() {
        let text = "PUT /drives/a HTTP/1.1\r\nHost: localhost\r\ncontent-LENGTH:  7 \r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(head(&text[..end]), Ok(None), "{end} bytes");
        }
        let read = head(text).unwrap().unwrap();
        assert_eq!(
            (read.method.as_str(), read.path.as_str()),
            ("PUT", "/drives/a")
        );
        assert_eq!((read.length, read.body), (text.len(), 7));
        assert!(!read.closes && !read.expects_continue);
    }

    #[test]
    fn fields_that_matter_are_understood() {
        let with = |fields: &str| {
            head(&format!("GET / HTTP/1.0\r\n{fields}\r\n\r\n"))
                .unwrap()
                .unwrap()
        };
        assert!(with("Expect: 100-continue").expects_continue);
        assert!(with("Connection: Close").closes);
        assert!(!with("Connection: keep-alive").closes);
        let read = head("GET http://localhost/vm/config HTTP/1.1\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(read.path, "/vm/config");
        let read = head("GET http://localhost HTTP/1.1\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(read.path, "/");
    }

    #[test]
    fn a_body_that_is_too_long_is_refused_by_its_length() {
        let put = |length: &str| format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(head(&put("100")).unwrap().unwrap().body, 100);
        assert_eq!(
            fault(&put("1073741824")),
            "Request payload with size 1073741824 is larger than the limit of 100 allowed by server."
        );
        for bad in ["-1", "+1", "", "0x10", "1 1", "99999999999999999999"] {
            assert_eq!(
                fault(&put(bad)),
                "Content-Length is not a number of bytes",
                "{bad}"
            );
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let two = "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(fault(two), "The request has two lengths");
        let chunked = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(fault(chunked).starts_with("Transfer-Encoding is not supported"));
        assert!(fault("nonsense\r\n\r\n").starts_with("The request is not HTTP/1.1"));
    }

    #[test]
    fn a_head_without_an_end_is_refused() {
        let text = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        assert!(fault(&text).contains("longer than 8192 bytes"));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "X: y\r\n".repeat(MAX_FIELDS + 1)
        );
        assert!(fault(&many).starts_with("The request is not HTTP/1.1"));
    }

    #[test]
    fn answers_are_what_clients_read() {
        let text = |outcome| String::from_utf8(write(outcome, false)).unwrap();
        assert_eq!(
            text(Ok(Answer::Done)),
            "HTTP/1.1 204 No Content\r\nServer: daruma-vmm\r\nConnection: keep-alive\r\n\r\n"
        );
        let fault = text(Err(Fault::new("Say \"why\"")));
        assert!(fault.starts_with("HTTP/1.1 400 Bad Request\r\n"));
        assert!(
            fault.ends_with("Content-Length: 31\r\n\r\n{\"fault_message\":\"Say \\\"why\\\"\"}"),
            "{fault}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_head_that_is_longer_than_they_are(bytes: Vec<u8>) {
            if let Ok(Some(head)) = read_head(&bytes, 1000) {
                prop_assert!(head.length <= bytes.len() && head.body <= 1000);
            }
        }
    }
}
