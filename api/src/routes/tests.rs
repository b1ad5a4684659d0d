use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::{Action, VmState};

fn fault(method: &str, path: &str, body: &str) -> String {
    parse(method, path, body.as_bytes()).unwrap_err().message
}

#[test]
fn a_request_is_found_by_method_and_path() {
    for (method, path, body, expected) in [
        ("GET", "/", "", Request::GetInstance),
        ("GET", "/vm/config/", "", Request::GetVmConfig),
        (
            "PUT",
            "/actions",
            r#"{"action_type": "InstanceStart"}"#,
            Request::PutAction(Action::InstanceStart),
        ),
        (
            "PATCH",
            "/vm",
            r#"{"state": "Paused"}"#,
            Request::PatchVm(VmState::Paused),
        ),
        (
            "PUT",
            "/mmds",
            r#"{"a": 1}"#,
            Request::PutMmds(json!({"a": 1})),
        ),
        (
            "DELETE",
            "/drives/d-1",
            "",
            Request::DeleteDrive("d-1".into()),
        ),
    ] {
        assert_eq!(parse(method, path, body.as_bytes()), Ok(expected), "{path}");
    }
}

#[test]
fn faults_are_firecrackers() {
    let drive = r#"{"drive_id": "a", "is_root_device": true}"#;
    for (method, path, body, expected) in [
        (
            "GET",
            "/nowhere",
            "",
            "Invalid request method and/or path: GET nowhere.",
        ),
        (
            "GET",
            "/vm",
            "",
            "Invalid request method and/or path: GET vm.",
        ),
        (
            "GET",
            "/version/more",
            "",
            "Invalid request method and/or path: GET version.",
        ),
        (
            "PUT",
            "/nowhere",
            "{}",
            "Invalid request method and/or path: PUT nowhere.",
        ),
        (
            "POST",
            "/drives/a",
            drive,
            "Invalid request method and/or path: POST drives.",
        ),
        ("GET", "/version", "{}", "GET request cannot have a body."),
        ("GET", "/nowhere", "{}", "GET request cannot have a body."),
        ("PUT", "/drives/a", "", "Empty PUT request."),
        ("PATCH", "/nowhere", "", "Empty PATCH request."),
        ("PUT", "/drives", drive, "The ID cannot be empty."),
        ("PUT", "/drives/", drive, "The ID cannot be empty."),
        ("DELETE", "/drives", "", "The ID cannot be empty."),
        (
            "PUT",
            "/drives/b",
            drive,
            "The id from the path [b] does not match the id from the body [a]!",
        ),
    ] {
        assert_eq!(fault(method, path, body), expected);
    }
    let text = fault("PUT", "/drives/a%20b", drive);
    assert!(
        text.starts_with("API Resource IDs can only contain"),
        "{text}"
    );
}

#[test]
fn bodies_that_are_no_json_of_the_right_shape_say_where() {
    for (path, body, expected) in [
        ("/boot-source", "{", "EOF while parsing"),
        ("/boot-source", "{}", "missing field `kernel_image_path`"),
        (
            "/boot-source",
            r#"{"kernel_image_path": 1}"#,
            "invalid type: integer `1`",
        ),
        (
            "/boot-source",
            r#"{"kernel_image_path": "k", "x": 1}"#,
            "unknown field `x`",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": "1", "mem_size_mib": 1}"#,
            "expected i64",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 1}"#,
            "missing field `mem_size_mib`",
        ),
        (
            "/vsock",
            r#"{"guest_cid": -1, "uds_path": "v"}"#,
            "expected u32",
        ),
        (
            "/actions",
            r#"{"action_type": "Explode"}"#,
            "unknown variant `Explode`",
        ),
        (
            "/balloon",
            r#"{"amount_mib": 4294967296, "deflate_on_oom": true}"#,
            "expected u32",
        ),
        ("/drives/a", "[]", "invalid length 0"),
    ] {
        let text = fault("PUT", path, body);
        let prefix = "An error occurred when deserializing the json body of a request: ";
        assert!(
            text.starts_with(prefix) && text.contains(expected),
            "{text}"
        );
    }
}

#[test]
fn no_two_routes_are_the_same() {
    for (index, route) in ROUTES.iter().enumerate() {
        let same = |other: &Route| other.method == route.method && other.path == route.path;
        assert!(
            !ROUTES[..index].iter().any(same),
            "{} {}",
            route.method,
            route.path
        );
    }
}

proptest! {
    #[test]
    fn nothing_that_is_read_panics(
        method in "GET|PUT|PATCH|DELETE|[A-Z]{0,20}",
        path in "/?(drives|mmds|vm|balloon|[a-z/{}%]{0,20})(/[^ ]{0,10}){0,3}",
        body: Vec<u8>,
    ) {
        let _ = parse(&method, &path, &body);
    }
}
