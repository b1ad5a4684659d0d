//! What a client says to the API's socket, in any pieces.
#![no_main]

use api::{Answer, Fault, Request};

fn seeds() -> Vec<Vec<u8>> {
    let requests = [
        ("GET", "/", ""),
        ("GET", "/vm/config", ""),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":2,"mem_size_mib":128}"#,
        ),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path":"/k","boot_args":"x"}"#,
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","path_on_host":"/a","is_root_device":true,"is_read_only":false}"#,
        ),
        (
            "PATCH",
            "/drives/a",
            r#"{"drive_id":"a","path_on_host":"/b"}"#,
        ),
        (
            "PUT",
            "/network-interfaces/e",
            r#"{"iface_id":"e","host_dev_name":"t"}"#,
        ),
        ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
        ("PATCH", "/vm", r#"{"state":"Paused"}"#),
        ("PUT", "/mmds", r#"{"a":{"b":"c"}}"#),
        (
            "PUT",
            "/mmds/config",
            r#"{"network_interfaces":["e"],"version":"V2","ipv4_address":"169.254.1.1"}"#,
        ),
        ("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"/v"}"#),
        (
            "PUT",
            "/snapshot/create",
            r#"{"snapshot_path":"/s","mem_file_path":"/m"}"#,
        ),
        ("DELETE", "/drives/a", ""),
    ];
    let texts = requests.map(|(method, path, body)| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    });
    let all = texts.concat();
    let chunked = b"PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_vec();
    texts
        .into_iter()
        .chain([all, chunked])
        .map(|text| [vec![0], text].concat())
        .collect()
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let [cut, data @ ..] = data else {
        return;
    };
    let mut handler = |request: Request| match format!("{request:?}").len() % 3 {
        0 => Ok(Answer::Done),
        1 => Err(Fault::new("no")),
        _ => Answer::json(&"yes"),
    };
    let size = if *cut == 0 { data.len().max(1) } else { usize::from(*cut) };
    let answers = api::http::converse(data.chunks(size), &mut handler).expect("a socket");
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1.1 "), "{answers:?}");
});
