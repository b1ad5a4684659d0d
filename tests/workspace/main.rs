//! What holds for the source tree as a whole.

#![expect(
    clippy::unwrap_used,
    reason = "a broken tree fails here, at the line that found it"
)]

mod logging;

mod threat_model;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tests::image::workspace;

/// The crates of rust-vmm, of which the tree may hold one version each: two versions of
/// `vm-memory` are two incompatible ideas of guest memory.
const RUST_VMM: &[&str] = &[
    "acpi_tables",
    "event-manager",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "seccompiler",
    "vhost",
    "vhost-user-backend",
    "virtio-bindings",
    "virtio-queue",
    "virtio-vsock",
    "vm-allocator",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

/// Which of our crates a crate may use: arrows point down, nothing points up.
const MAY_USE: &[(&str, &[&str])] = &[
    ("devices", &[]),
    ("api", &[]),
    ("store", &[]),
    ("vmm", &["api", "devices"]),
    ("firmware-glue", &[]),
    ("bootblock", &["firmware-glue"]),
    ("starter", &["firmware-glue"]),
    ("guest-images", &["firmware-glue"]),
    ("hostile", &[]),
    ("boot-entry", &[]),
    ("agent", &[]),
    ("web", &[]),
    (
        "host",
        &["vmm", "devices", "store", "firmware-glue", "boot-entry"],
    ),
    (
        "tests",
        &["firmware-glue", "guest-images", "host", "vmm", "devices"],
    ),
    (
        "benches",
        &["firmware-glue", "guest-images", "tests", "vmm", "devices"],
    ),
    // It lays the list of an image beside it, and runs QEMU as the tests do.
    (
        "xtask",
        &["firmware-glue", "guest-images", "store", "tests"],
    ),
];

fn read_toml(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse()
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn members() -> Vec<PathBuf> {
    let root = read_toml(&workspace().join("Cargo.toml"));
    root["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| workspace().join(member.as_str().unwrap()))
        .collect()
}

#[test]
fn the_tree_holds_one_version_of_every_rust_vmm_crate() {
    let lock = read_toml(&workspace().join("Cargo.lock"));
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if RUST_VMM.contains(&name) {
            versions
                .entry(name)
                .or_default()
                .insert(package["version"].as_str().unwrap());
        }
    }
    assert!(
        versions.contains_key("vm-memory"),
        "the lock file lists no rust-vmm crate at all"
    );
    for (name, versions) in versions {
        assert_eq!(versions.len(), 1, "{name} is in the tree as {versions:?}");
    }
}

/// Crates that had a hole, and the first version without it.
const HOLES: [(&str, [u64; 3]); 5] = [
    // CVE-2020-13759, CVE-2023-41051
    ("vm-memory", [0, 12, 2]),
    // CVE-2023-50711
    ("vmm-sys-util", [0, 12, 0]),
    // RUSTSEC-2024-0428
    ("kvm-ioctls", [0, 19, 1]),
    // GHSA-52h2-m2cf-9jh6
    ("linux-loader", [0, 8, 1]),
    // CVE-2023-28448
    ("versionize", [0, 1, 10]),
];

#[test]
fn no_crate_is_of_a_version_with_a_known_hole() {
    let lock = read_toml(&workspace().join("Cargo.lock"));
    let mut seen = 0;
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some((_, fixed)) = HOLES.iter().find(|(hole, _)| *hole == name) else {
            continue;
        };
        let version = package["version"].as_str().unwrap();
        let numbers: Vec<u64> = version
            .split(['.', '-', '+'])
            .map_while(|number| number.parse().ok())
            .collect();
        assert!(
            numbers[..] >= fixed[..],
            "{name} {version} has a known hole"
        );
        seen += 1;
    }
    assert!(seen >= 4, "only {seen} of the crates are in the lock file");
}

#[test]
fn a_room_knows_only_the_rooms_below_it() {
    let ours: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    for member in members() {
        let manifest = read_toml(&member.join("Cargo.toml"));
        let name = manifest["package"]["name"].as_str().unwrap();
        let allowed = ours
            .get(name)
            .unwrap_or_else(|| panic!("{name} has no place in MAY_USE"));
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let used = manifest.get(section).and_then(toml::Value::as_table);
            for used in used.into_iter().flat_map(toml::Table::keys) {
                // A crate's own tests may ask for more of itself.
                let other = used != name && ours.contains_key(used.as_str());
                let up = other && !allowed.contains(&used.as_str());
                assert!(!up, "{name} may not use {used}");
            }
        }
    }
}

#[test]
fn every_crate_inherits_the_lints() {
    for member in members() {
        let manifest = read_toml(&member.join("Cargo.toml"));
        let inherits = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"));
        assert_eq!(
            inherits.and_then(toml::Value::as_bool),
            Some(true),
            "{}",
            member.display()
        );
    }
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut files = Vec::new();
    rust_files(&workspace(), &mut files);
    let mut lengths: Vec<(usize, PathBuf)> = files
        .into_iter()
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .collect();
    lengths.sort();
    let (longest, path) = lengths.last().unwrap();
    assert!(
        *longest <= 1000,
        "{} has {longest} lines; 1000 is the limit",
        path.display()
    );
    let median = lengths[lengths.len() / 2].0;
    assert!(
        median <= 220,
        "the median file has {median} lines; about 200 is the aim"
    );
}
