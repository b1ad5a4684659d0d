//! What the VMM says, and how it ends, when it cannot run what it is given. Needs no KVM: each is found before.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

use std::io::Write;
use std::process::{Command, Output};

use tempfile::{NamedTempFile, TempDir};

const BAD_CONFIGURATION: i32 = 152;
const BAD_ARGUMENTS: i32 = 153;

fn vmm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_daruma-vmm"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs with `config`; gives the exit code and what was said.
fn with_config(config: &str) -> (Option<i32>, String) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(config.as_bytes()).unwrap();
    let output = vmm(&["--no-api", "--config-file", file.path().to_str().unwrap()]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "one line says it: {stderr}");
    (output.status.code(), stderr)
}

fn boot(kernel: &str, more: &str) -> String {
    format!(r#"{{"boot-source": {{"kernel_image_path": "{kernel}"}}{more}}}"#)
}

#[test]
fn bad_arguments_have_their_own_code() {
    for (arguments, expected) in [
        (&["--nonsense"][..], "--nonsense"),
        (&["--no-api"], "--config-file"),
        (
            &["--config-file", "/dev/null", "--load-file", "/dev/null"],
            "--load-file",
        ),
        (
            &["--api-sock", "x", "--no-api", "--config-file", "/dev/null"],
            "--api-sock",
        ),
        (&["--http-api-max-payload-size", "0"], "1 to 67108864 bytes"),
        (
            &[
                "--no-api",
                "--config-file",
                "/dev/null",
                "--control-fd",
                "77",
            ],
            "--control-fd 77",
        ),
        (
            &[
                "--no-api",
                "--config-file",
                "/dev/null",
                "--control-fd",
                "1",
            ],
            "control-fd",
        ),
        (
            &["--no-api", "--config-file", "/dev/null", "--id", "a b"],
            "--id",
        ),
    ] {
        let output = vmm(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            output.status.code(),
            Some(BAD_ARGUMENTS),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn the_version_is_told() {
    let output = vmm(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .starts_with("daruma-vmm ")
    );
}

#[test]
fn bad_configurations_say_what_is_wrong() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("text"), "#!/bin/sh\n").unwrap();
    std::fs::write(path("odd"), [0; 700]).unwrap();
    let drive = |path: String| {
        format!(
            r#", "drives": [{{"drive_id": "d", "is_root_device": true, "path_on_host": "{path}"}}]"#
        )
    };
    for (config, expected) in [
        ("{".to_owned(), "line 1"),
        (
            boot(
                "k",
                &format!(
                    r#", "vsock": {{"guest_cid": 3, "uds_path": "{}"}}"#,
                    path("text")
                ),
            ),
            "text exists and is not a socket",
        ),
        (
            boot(
                "k",
                r#", "network-interfaces": [{"iface_id": "eth0", "host_dev_fd": 77}]"#,
            ),
            "Descriptor 77 is not a tap",
        ),
        (
            boot(
                "k",
                r#", "machine-config": {"vcpu_count": 33, "mem_size_mib": 64}"#,
            ),
            "1 to 32 vCPUs",
        ),
        (
            boot(
                "k",
                r#", "machine-config": {"vcpu_count": 1, "mem_size_mib": 1000000}"#,
            ),
            "MiB in total",
        ),
        (boot(&path("missing"), ""), "missing: No such file"),
        (
            boot(directory.path().to_str().unwrap(), ""),
            "is not a regular file",
        ),
        (
            boot(&path("text"), ""),
            "is neither an ELF image nor a bzImage",
        ),
        (
            boot("k", &drive(path("gone"))),
            "gone for drive \"d\": No such file",
        ),
        (boot("k", &drive(path("odd"))), "700 bytes"),
    ] {
        let (code, said) = with_config(&config);
        assert_eq!(code, Some(BAD_CONFIGURATION), "{config}: {said}");
        assert!(said.contains(expected), "{config}: {said}");
    }
}

#[test]
fn a_file_system_that_nobody_serves_is_named() {
    let folder = TempDir::new().unwrap();
    let kernel = folder.path().join("kernel");
    let socket = folder.path().join("socket");
    let fs = format!(
        r#", "fs": [{{"tag": "share", "socket": "{}"}}]"#,
        socket.display()
    );
    let (code, said) = with_config(&boot(kernel.to_str().unwrap(), &fs));
    assert_eq!(code, Some(BAD_CONFIGURATION), "{said}");
    assert!(said.contains("share") && said.contains("socket"), "{said}");
}

#[test]
fn a_request_to_go_on_says_what_is_wrong_with_it() {
    let folder = TempDir::new().unwrap();
    let request = folder.path().join("request");
    let missing = folder.path().join("state");
    let body = |more: &str| {
        let state = missing.display();
        format!(r#"{{"snapshot_path": "{state}"{more}}}"#)
    };
    for (text, expected) in [
        ("{".to_owned(), "line 1"),
        ("{}".to_owned(), "snapshot_path"),
        (body(r#", "more": 1"#), "more"),
        (body(""), "mem_backend"),
        (
            body(r#", "mem_backend": {"backend_type": "Tape", "backend_path": "m"}"#),
            "Tape",
        ),
        (
            body(r#", "mem_backend": {"backend_type": "Uffd", "backend_path": "m"}"#),
            "state: No such file",
        ),
    ] {
        for jail in [&[][..], &["--jail"]] {
            std::fs::write(&request, &text).unwrap();
            let load = ["--no-api", "--load-file", request.to_str().unwrap()];
            let output = vmm(&[&load, jail].concat());
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                output.status.code(),
                Some(BAD_CONFIGURATION),
                "{text}: {said}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
