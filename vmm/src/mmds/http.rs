//! HTTP as guests speak it to the service: GET for data, PUT for a token.

use std::fmt::Write;
use std::time::Instant;

use super::store::{LookupError, Store};
use super::token::LIFETIME;
use super::{Rules, Version};

/// Most headers of a request.
const MAX_HEADERS: usize = 32;
const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN_HEADERS: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
/// Headers by which a guest asks for a token, and is told how long it is good.
const LIFETIME_HEADERS: [&str; 2] = [
    "x-metadata-token-ttl-seconds",
    "x-aws-ec2-metadata-token-ttl-seconds",
];

/// What became of the bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is more to come before there is a request.
    Incomplete,
    /// A request of `taken` bytes is answered.
    Answer {
        /// Bytes that it was.
        taken: usize,
        /// The answer, with its header.
        bytes: Vec<u8>,
        /// The connection ends with it.
        last: bool,
    },
}

/// A status and what to say with it.
struct Response {
    status: &'static str,
    kind: &'static str,
    /// More lines of the header, each with its end.
    headers: String,
    body: String,
}

impl Response {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            kind: "text/plain",
            headers: String::new(),
            body: body.into(),
        }
    }

    fn bad(body: impl Into<String>) -> Self {
        Self::text("400 Bad Request", body)
    }

    fn bytes(&self, version: u8, last: bool) -> Vec<u8> {
        let Self {
            status,
            kind,
            headers,
            body,
        } = self;
        let (connection, length) = (if last { "close" } else { "keep-alive" }, body.len());
        let text = format!(
            "HTTP/1.{version} {status}\r\nServer: Daruma MMDS\r\nConnection: {connection}\r\n{headers}Content-Type: \
             {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        text.into_bytes()
    }
}

/// Answers the request at the start of `received`, which ends there if it `is_full`: no more will fit.
pub fn answer(
    received: &[u8],
    is_full: bool,
    store: &Store,
    rules: &Rules,
    now: Instant,
) -> Outcome {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let refused = |response: &Response| Outcome::Answer {
        taken: received.len(),
        bytes: response.bytes(1, true),
        last: true,
    };
    let too_long = || refused(&Response::bad("The request is too long."));
    let head = match request.parse(received) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if is_full => return too_long(),
        Ok(httparse::Status::Partial) => return Outcome::Incomplete,
        Err(error) => return refused(&Response::bad(format!("Invalid request: {error}."))),
    };
    let request = Request(&request);
    // No request needs a body, but one may have it.
    let body = match request.header(&["content-length"]) {
        None => Some(0),
        Some(text) => number(text),
    };
    let chunked = request.header(&["transfer-encoding"]).is_some();
    let Some(end) = body
        .and_then(|body| head.checked_add(body))
        .filter(|_| !chunked)
    else {
        return refused(&Response::bad("The length of the body is not known."));
    };
    if end > received.len() {
        return if is_full {
            too_long()
        } else {
            Outcome::Incomplete
        };
    }
    let version = request.0.version.unwrap_or(1);
    let last = version == 0
        || request
            .header(&["connection"])
            .is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
    let response = respond(&request, store, rules, now);
    Outcome::Answer {
        taken: end,
        bytes: response.bytes(version, last),
        last,
    }
}

fn respond(request: &Request<'_>, store: &Store, rules: &Rules, now: Instant) -> Response {
    let Some(path) = request.path() else {
        return Response::bad("Invalid URI.");
    };
    match request.0.method {
        Some("GET") => get(request, path, store, rules, now),
        Some("PUT") => put(request, path, rules, now),
        _ => Response {
            headers: "Allow: GET, PUT\r\n".into(),
            ..Response::text("405 Method Not Allowed", "Not allowed HTTP method.")
        },
    }
}

fn get(request: &Request<'_>, path: &str, store: &Store, rules: &Rules, now: Instant) -> Response {
    if rules.version == Version::V2 {
        let complaint = match request.header(&TOKEN_HEADERS) {
            None => {
                "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the \
                 session token."
            }
            Some(token) if rules.tokens.is_good(token, now) => "",
            Some(_) => "MMDS token not valid.",
        };
        if !complaint.is_empty() {
            return Response::text("401 Unauthorized", complaint);
        }
    }
    let json = !rules.imds_compat
        && request
            .header(&["accept"])
            .is_some_and(|accepted| accepted.eq_ignore_ascii_case(b"application/json"));
    let found = if json {
        store.json(path)
    } else {
        store.text(path)
    };
    match found {
        Ok(body) if json => Response {
            kind: "application/json",
            ..Response::text("200 OK", body)
        },
        Ok(body) => Response::text("200 OK", body),
        Err(LookupError::NotFound) => {
            Response::text("404 Not Found", format!("Resource not found: {path}."))
        }
        Err(LookupError::NoText) => Response::text(
            "501 Not Implemented",
            "Cannot retrieve value. The value has an unsupported type.",
        ),
    }
}

fn put(request: &Request<'_>, path: &str, rules: &Rules, now: Instant) -> Response {
    // A proxy that passes requests on must not be what fetches a token.
    if request.header(&["x-forwarded-for"]).is_some() {
        return Response::bad(
            "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For.",
        );
    }
    if path.trim_end_matches('/') != TOKEN_PATH {
        return Response::text("404 Not Found", format!("Resource not found: {path}."));
    }
    let Some(lifetime) = request.header(&LIFETIME_HEADERS) else {
        return Response::bad(
            "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
             `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
        );
    };
    let seconds = number(lifetime).and_then(|seconds| u64::try_from(seconds).ok());
    match seconds.filter(|seconds| LIFETIME.contains(seconds)) {
        Some(seconds) => {
            let mut headers = String::new();
            for name in LIFETIME_HEADERS {
                // Told by the name by which it was asked for.
                if request.header(&[name]).is_some() {
                    // Writing to a string cannot fail.
                    let _ = write!(headers, "{name}: {seconds}\r\n");
                }
            }
            Response {
                headers,
                ..Response::text("200 OK", rules.tokens.make(seconds, now))
            }
        }
        None => Response::bad(format!(
            "Invalid time to live value provided for token. Please provide a value between {} and {}.",
            LIFETIME.start(),
            LIFETIME.end()
        )),
    }
}

/// A decimal number and nothing else.
fn number(text: &[u8]) -> Option<usize> {
    let text = str::from_utf8(text).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

struct Request<'a>(&'a httparse::Request<'a, 'a>);

impl Request<'_> {
    /// The value of the first header with one of these names.
    fn header(&self, names: &[&str]) -> Option<&[u8]> {
        let headers = self.0.headers.iter();
        let is_meant = |name: &str| names.iter().any(|known| name.eq_ignore_ascii_case(known));
        let mut found = headers.filter(|header| is_meant(header.name));
        found.next().map(|header| header.value)
    }

    /// The path that is asked for, without scheme, host and query.
    fn path(&self) -> Option<&str> {
        let target = self.0.path?;
        let path = match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => target,
        };
        let path = path.split(['?', '#']).next()?;
        path.starts_with('/').then_some(path)
    }
}

#[cfg(test)]
mod tests;
