use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::mmds::{Config, DEFAULT_ADDRESS};
use std::time::Duration;

fn rules(version: Version, imds_compat: bool) -> Rules {
    Rules::new(&Config {
        version,
        interfaces: Vec::new(),
        address: DEFAULT_ADDRESS,
        imds_compat,
    })
    .unwrap()
}

fn store() -> Store {
    let mut store = Store::default();
    store
        .put(json!({"latest": {"meta-data": {"ami-id": "ami-1", "number": 7}}}))
        .unwrap();
    store
}

/// Status and body of the answer to `request`.
fn ask(request: &str, rules: &Rules) -> (u16, String) {
    match answer(request.as_bytes(), false, &store(), rules, Instant::now()) {
        Outcome::Answer { taken, bytes, .. } => {
            assert_eq!(taken, request.len());
            let text = String::from_utf8(bytes).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let length = format!("Content-Length: {}", body.len());
            assert!(head.contains(&length), "{head}");
            (head[9..12].parse().unwrap(), body.to_owned())
        }
        Outcome::Incomplete => panic!("{request} is incomplete"),
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n")
}

#[test]
fn data_come_in_the_form_that_is_accepted() {
    let rules = rules(Version::V1, false);
    let json = "Accept: application/json\r\n";
    for (path, headers, expected) in [
        ("/latest/meta-data/ami-id", "", "ami-1"),
        ("/latest/meta-data/ami-id", json, "\"ami-1\""),
        ("/latest/meta-data/", "", "ami-id\nnumber"),
        ("/latest", "Accept: */*\r\n", "meta-data/"),
        ("http://169.254.169.254/latest?x=1", "", "meta-data/"),
        ("/latest/meta-data/number", json, "7"),
    ] {
        let answer = ask(&get(path, headers), &rules);
        assert_eq!(answer, (200, expected.to_owned()), "{path}");
    }
    let (status, body) = ask(&get("/nothing", ""), &rules);
    assert_eq!(
        (status, body.as_str()),
        (404, "Resource not found: /nothing.")
    );
    assert_eq!(ask(&get("/latest/meta-data/number", ""), &rules).0, 501);
}

#[test]
fn plain_text_can_be_all_there_is() {
    let rules = rules(Version::V1, true);
    let request = get("/latest/meta-data/ami-id", "Accept: application/json\r\n");
    assert_eq!(ask(&request, &rules), (200, "ami-1".to_owned()));
}

#[test]
fn version_2_gives_nothing_without_a_token() {
    let rules = rules(Version::V2, false);
    let path = "/latest/meta-data/ami-id";
    assert_eq!(ask(&get(path, ""), &rules).0, 401);
    assert_eq!(
        ask(&get(path, "X-metadata-token: guess\r\n"), &rules).0,
        401
    );
    let put = |headers: &str| format!("PUT /latest/api/token HTTP/1.1\r\n{headers}\r\n");
    for (asked, shown) in [
        ("X-metadata-token-ttl-seconds", "X-metadata-token"),
        (
            "X-aws-ec2-metadata-token-ttl-seconds",
            "x-aws-ec2-metadata-token",
        ),
    ] {
        let (status, token) = ask(&put(&format!("{asked}: 60\r\n")), &rules);
        assert_eq!(status, 200);
        let answer = ask(&get(path, &format!("{shown}: {token}\r\n")), &rules);
        assert_eq!(answer, (200, "ami-1".to_owned()));
    }
    for bad in [
        "",
        "X-metadata-token-ttl-seconds: 0\r\n",
        "X-metadata-token-ttl-seconds: 21601\r\n",
        "X-metadata-token-ttl-seconds: +5\r\n",
        "X-metadata-token-ttl-seconds: 99999999999999999999999\r\n",
        "X-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 10.0.0.1\r\n",
    ] {
        assert_eq!(ask(&put(bad), &rules).0, 400, "{bad}");
    }
    let elsewhere = "PUT /latest HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    assert_eq!(ask(elsewhere, &rules).0, 404);
}

#[test]
fn a_token_ends() {
    let rules = rules(Version::V2, false);
    let now = Instant::now();
    let token = rules.tokens.make(1, now);
    let request = get("/latest", &format!("X-metadata-token: {token}\r\n"));
    let later = now + Duration::from_secs(2);
    let Outcome::Answer { bytes, .. } = answer(request.as_bytes(), false, &store(), &rules, later)
    else {
        panic!("no answer");
    };
    assert!(bytes.starts_with(b"HTTP/1.1 401 "));
}

#[test]
fn other_methods_and_nonsense_are_refused() {
    let rules = rules(Version::V1, false);
    for method in ["POST", "DELETE", "HEAD", "PATCH"] {
        let request = format!("{method} /latest HTTP/1.1\r\n\r\n");
        assert_eq!(ask(&request, &rules).0, 405, "{method}");
    }
    for request in [
        "\0\0\0\0",
        "GET latest HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
    ] {
        assert_eq!(ask(request, &rules).0, 400, "{request}");
    }
}

#[test]
fn requests_in_pieces_and_one_after_the_other_are_told_apart() {
    let rules = rules(Version::V1, false);
    let request = "PUT / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc";
    let now = Instant::now();
    for length in 0..request.len() {
        let part = &request.as_bytes()[..length];
        let outcome = answer(part, false, &store(), &rules, now);
        assert_eq!(outcome, Outcome::Incomplete, "{length}");
        // No more will fit: whatever it is, it is over.
        if length > 0 {
            let full = answer(part, true, &store(), &rules, now);
            assert!(matches!(full, Outcome::Answer { last: true, .. }));
        }
    }
    let two = format!("{request}GET / HTTP/1.1\r\n\r\n");
    let Outcome::Answer { taken, last, .. } = answer(two.as_bytes(), false, &store(), &rules, now)
    else {
        panic!("no answer");
    };
    assert_eq!((taken, last), (request.len(), true), "HTTP/1.0 closes");
}

proptest! {
    #[test]
    fn any_bytes_are_harmless(
        start in prop::sample::select(vec!["", "GET /", "PUT /latest/api/token HTTP/1.1\r\n"]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
        full in any::<bool>(),
    ) {
        let request = [start.as_bytes(), &rest].concat();
        let rules = rules(Version::V2, false);
        if let Outcome::Answer { taken, .. } =
            answer(&request, full, &store(), &rules, Instant::now())
        {
            prop_assert!(taken <= request.len());
        }
    }
}
