//! A guest decides how often it misbehaves, so what it can cause is logged by `devices::throttle::Throttle` only.

use std::fs;
use std::path::Path;

use tests::image::workspace;

/// Where code runs on behalf of a guest.
const GUEST_REACHABLE: &[&str] = &[
    "devices/src",
    "vmm/src/events.rs",
    "vmm/src/mmds",
    "vmm/src/msi.rs",
    "vmm/src/output.rs",
    "vmm/src/platform.rs",
    "vmm/src/vcpu",
    "vmm/src/virtio",
];

/// The calls of `log` that are allowed there: the file, how many, and why no guest can repeat them.
const ONCE: &[(&str, usize, &str)] = &[
    (
        "devices/src/legacy/serial.rs",
        3,
        "the serial port's input ends once, and is connected once",
    ),
    (
        "devices/src/legacy/watchdog.rs",
        1,
        "connected once, at the start",
    ),
    ("devices/src/throttle.rs", 1, "the throttle itself"),
    (
        "devices/src/virtio/block/device.rs",
        1,
        "the host changes a disk, no guest",
    ),
    (
        "devices/src/virtio/block/engine/mod.rs",
        3,
        "at the start and at the end of a disk",
    ),
    (
        "devices/src/virtio/block/engine/ring.rs",
        1,
        "an io_uring breaks once: it is not used again",
    ),
    (
        "devices/src/virtio/block/nbd/link.rs",
        1,
        "a disk's server is lost once: it is not connected again",
    ),
    (
        "devices/src/virtio/fs.rs",
        1,
        "a program is lost once: it is not connected again",
    ),
    (
        "devices/src/virtio/net/wire.rs",
        1,
        "a link goes down once: it does not come up again",
    ),
    (
        "devices/src/virtio/worker.rs",
        1,
        "connected once, at the start",
    ),
    (
        "vmm/src/events.rs",
        4,
        "the host plugs a device in, and a guest lets go of it once",
    ),
    (
        "vmm/src/msi.rs",
        1,
        "when a PCI function is taken away, which the host does",
    ),
    (
        "vmm/src/output.rs",
        3,
        "at the end of the run, or when the output has broken for good",
    ),
    (
        "vmm/src/platform.rs",
        3,
        "only the first report of a panic or of a finished boot is heard",
    ),
    (
        "vmm/src/vcpu/kick.rs",
        1,
        "the VMM signals its own threads, no guest does",
    ),
    ("vmm/src/vcpu/mod.rs", 1, "when a vCPU is made"),
    ("vmm/src/vcpu/state.rs", 1, "when a snapshot is loaded"),
    (
        "vmm/src/vcpu/thread.rs",
        1,
        "the host pauses a guest, no guest does",
    ),
    ("vmm/src/virtio/listener.rs", 1, "at the end of a socket"),
    ("vmm/src/virtio/tap.rs", 1, "when a tap is opened"),
];

/// How many calls of `log` there are in the code of `text`, its tests left out.
fn direct_calls(text: &str) -> usize {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    ["error", "warn", "info", "debug", "trace", "log"]
        .iter()
        .map(|level| code.matches(&format!("log::{level}!(")).count())
        .sum()
}

fn look(path: &Path, found: &mut Vec<(String, usize)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            look(&entry.unwrap().path(), found);
        }
        return;
    }
    let relative = path.strip_prefix(workspace()).unwrap();
    let is_test = relative
        .components()
        .any(|part| ["tests", "testing", "tests.rs"].contains(&part.as_os_str().to_str().unwrap()));
    if is_test || path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let calls = direct_calls(&fs::read_to_string(path).unwrap());
    if calls > 0 {
        found.push((relative.to_str().unwrap().to_owned(), calls));
    }
}

#[test]
fn what_a_guest_can_cause_is_logged_by_a_throttle() {
    let mut found = Vec::new();
    for path in GUEST_REACHABLE {
        look(&workspace().join(path), &mut found);
    }
    assert!(!found.is_empty(), "the sources are elsewhere");
    for (path, calls) in &found {
        let allowed = ONCE.iter().find(|(known, ..)| known == path);
        let allowed = allowed.map_or(0, |(_, calls, _)| *calls);
        assert_eq!(
            *calls, allowed,
            "{path} calls log {calls} times, allowed are {allowed}: use devices::throttle::Throttle, or say in \
             tests/workspace/logging.rs why no guest can repeat it"
        );
    }
    for (path, ..) in ONCE {
        assert!(
            found.iter().any(|(known, _)| known == path),
            "{path} logs nothing any more: take it off the list"
        );
    }
}

#[test]
fn calls_are_counted_outside_of_tests() {
    let text = "log::warn!(\"a\"); self.throttle.warn(1); log::error!(\"b\");\n#[cfg(test)]\nmod tests { log::info!(\"c\"); }";
    assert_eq!(direct_calls(text), 2);
}
