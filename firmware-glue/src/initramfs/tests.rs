use std::process::{Command, Stdio};

use super::*;

fn sample() -> Builder {
    let mut builder = Builder::new();
    builder
        .file("init", 0o755, b"#!/bin/sh\n".to_vec())
        .unwrap();
    builder.file("bin/daruma", 0o755, vec![1; 5]).unwrap();
    builder.symlink("bin/daruma-vmm", "daruma").unwrap();
    builder.dir("proc", 0o555).unwrap();
    builder.char_device("dev/console", 0o600, 5, 1).unwrap();
    builder.block_device("dev/vda", 0o660, 254, 0).unwrap();
    builder
}

#[test]
fn order_of_calls_does_not_change_the_bytes() {
    let mut other = Builder::new();
    other.block_device("dev/vda", 0o660, 254, 0).unwrap();
    other.char_device("dev/console", 0o600, 5, 1).unwrap();
    other.dir("proc", 0o555).unwrap();
    other.symlink("bin/daruma-vmm", "daruma").unwrap();
    other.file("bin/daruma", 0o755, vec![1; 5]).unwrap();
    other.file("init", 0o755, b"#!/bin/sh\n".to_vec()).unwrap();
    assert_eq!(sample().build().unwrap(), other.build().unwrap());
    assert_eq!(
        sample().build_zstd(19).unwrap(),
        other.build_zstd(19).unwrap()
    );
}

#[test]
fn compression_is_undone_by_zstd() {
    let packed = sample().build_zstd(19).unwrap();
    assert_eq!(
        zstd::decode_all(&packed[..]).unwrap(),
        sample().build().unwrap()
    );
}

#[test]
fn gnu_cpio_lists_every_entry_with_its_mode() {
    let mut cpio = Command::new("cpio")
        .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cpio (Debian package cpio) must be installed: cargo xtask test installs it");
    cpio.stdin
        .take()
        .unwrap()
        .write_all(&sample().build().unwrap())
        .unwrap();
    let output = cpio.wait_with_output().unwrap();
    assert!(output.status.success());
    let listed: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        listed,
        [
            "drwxr-xr-x 2 0 0 0 Jan 1 1970 bin",
            "-rwxr-xr-x 1 0 0 5 Jan 1 1970 bin/daruma",
            "lrwxrwxrwx 1 0 0 6 Jan 1 1970 bin/daruma-vmm -> daruma",
            "drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
            "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
            "brw-rw---- 1 0 0 254, 0 Jan 1 1970 dev/vda",
            "-rwxr-xr-x 1 0 0 10 Jan 1 1970 init",
            "dr-xr-xr-x 2 0 0 0 Jan 1 1970 proc",
        ]
    );
}

#[test]
fn parents_come_before_children() {
    let mut builder = Builder::new();
    builder.file("a-b", 0o644, Vec::new()).unwrap();
    builder.file("a/b", 0o644, Vec::new()).unwrap();
    let archive = builder.build().unwrap();
    let place = |name: &[u8]| archive.windows(name.len()).position(|w| w == name).unwrap();
    assert!(place(b"a\0") < place(b"a/b\0"));
}

#[test]
fn bad_paths_are_refused() {
    let mut builder = Builder::new();
    for path in ["", "/init", "a//b", "a/../b", "./a", "a/", "a\0b"] {
        let error = builder.file(path, 0o644, Vec::new()).unwrap_err();
        assert!(matches!(error, InitramfsError::BadPath { .. }), "{path}");
    }
}

#[test]
fn conflicts_are_refused() {
    let mut builder = sample();
    let error = builder.file("init", 0o644, Vec::new()).unwrap_err();
    assert!(matches!(error, InitramfsError::Duplicate { .. }));
    let mut builder = sample();
    builder.file("init/below", 0o644, Vec::new()).unwrap();
    let error = builder.build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "init/below lies below init, which is no directory"
    );
    // A block device's type bits contain the directory's.
    let mut builder = sample();
    builder.file("dev/vda/below", 0o644, Vec::new()).unwrap();
    assert!(builder.build().is_err());
}
