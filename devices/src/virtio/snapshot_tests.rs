//! Devices that go on from a state, on both transports: what a driver began before, it ends after.

use proptest::prelude::*;
use serde_json::Value;

use super::block::engine::Preference;
use super::block::{Block, Engine, Options, RawFile};
use super::queue::RING_FEATURES;
use super::rng::Rng;
use super::saved::RestoreError;
use super::state::{NEEDS_RESET, Register};
use super::testing::{GuestRing, TestGuest, Transport};

/// Bytes of a disk request's header.
const READ: u32 = 0;
const WRITE: u32 = 1;

fn disk(file: &tempfile::NamedTempFile, preference: Preference) -> Block {
    let backend = RawFile::new(file.reopen().unwrap(), false).unwrap();
    let engine = Engine::new(preference);
    Block::new(Box::new(backend), engine, Options::default()).unwrap()
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 * 512).unwrap();
    file
}

/// Another file with the same contents: an image belongs to one device at a time.
fn copy(image: &tempfile::NamedTempFile) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(image.path(), file.path()).unwrap();
    file
}

/// Makes a request of one sector available; its data and status.
fn request(
    ring: &mut GuestRing,
    kind: u32,
    sector: u64,
    data: &[u8],
) -> (super::testing::Buffer, super::testing::Buffer) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    let header = ring.data(&header);
    let data = match kind {
        READ => ring.buffer(512, true),
        _ => ring.data(data),
    };
    let status = ring.buffer(1, true);
    ring.add(&[header, data, status]);
    (data, status)
}

#[test]
fn a_driver_goes_on_with_its_ring_and_is_interrupted() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start(RING_FEATURES, 16);
        for round in 0..100 {
            let buffer = ring.buffer(32, true);
            ring.reuse_buffers();
            let head = ring.add(&[buffer]);
            // What the driver has rung for, and nobody has looked at, is done by who goes on.
            guest.ring(0);
            let text = guest.save().unwrap();
            guest.replace(Rng::new(), &text).unwrap();
            // An interrupt on its way when the state was taken is in no state.
            assert!(guest.interrupts() > 0, "round {round} on {on:?}");
            guest.run();
            assert_eq!(ring.used(), Some((head, 32)), "round {round} on {on:?}");
            assert_ne!(ring.contents(buffer), [0; 32]);
            assert_eq!(guest.acknowledge() & 1, 1);
        }
    }
}

#[test]
fn the_device_that_was_saved_goes_on_as_well() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let mut ring = guest.start(RING_FEATURES, 16);
        for _ in 0..3 {
            let buffer = ring.buffer(32, true);
            let head = ring.add(&[buffer]);
            guest.save().unwrap();
            guest.notify(0);
            assert_eq!(ring.used(), Some((head, 32)), "{on:?}");
        }
        // Saving twice in a row says the same.
        assert_eq!(guest.save().unwrap(), guest.save().unwrap());
    }
}

#[test]
fn a_disk_has_what_was_written_before_and_takes_more() {
    for &on in Transport::ALL {
        for preference in [Preference::Synchronous, Preference::Asynchronous] {
            let mut file = image();
            let mut guest = TestGuest::new(on, disk(&file, preference));
            let mut ring = guest.start(RING_FEATURES, 64);
            for sector in 0..32_u8 {
                ring.reuse_buffers();
                let (_, status) = request(&mut ring, WRITE, sector.into(), &[sector + 1; 512]);
                guest.ring(0);
                if sector % 2 == 0 {
                    // In flight, or done: both are fine.
                    guest.run();
                }
                let text = guest.save().unwrap();
                file = copy(&file);
                guest.replace(disk(&file, preference), &text).unwrap();
                while ring.used().is_none() {
                    guest.run();
                }
                assert_eq!(ring.contents(status), [0]);
                let (data, status) = request(&mut ring, READ, sector.into(), &[]);
                guest.notify(0);
                let text = guest.save().unwrap();
                assert!(
                    ring.used().is_some(),
                    "a device that is saved has ended its work"
                );
                assert_eq!(ring.contents(status), [0]);
                assert_eq!(
                    ring.contents(data),
                    [sector + 1; 512],
                    "{on:?} {preference:?}"
                );
                file = copy(&file);
                guest.replace(disk(&file, preference), &text).unwrap();
                guest.run();
            }
        }
    }
}

#[test]
fn a_device_without_a_driver_or_with_a_broken_one_stays_so() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let text = guest.save().unwrap();
        guest.replace(Rng::new(), &text).unwrap();
        assert_eq!(guest.status(), 0);
        let mut ring = guest.start(RING_FEATURES, 16);
        ring.offer(77);
        ring.publish();
        guest.ring_anyway(0);
        assert_ne!(guest.status() & NEEDS_RESET, 0);
        let text = guest.save().unwrap();
        guest.replace(Rng::new(), &text).unwrap();
        assert_ne!(guest.status() & NEEDS_RESET, 0);
        let mut ring = guest.start(RING_FEATURES, 16);
        let buffer = ring.buffer(8, true);
        ring.add(&[buffer]);
        guest.notify(0);
        assert_eq!(ring.used().map(|used| used.1), Some(8));
    }
}

#[test]
fn half_set_registers_are_what_they_were() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        assert!(guest.negotiate(RING_FEATURES));
        guest.write(Register::QueueSelect, 0);
        guest.write(Register::QueueDescriptorsLow, 0x8000);
        guest.write(Register::QueueUsedHigh, 7);
        let text = guest.save().unwrap();
        guest.replace(Rng::new(), &text).unwrap();
        let state = guest.state();
        assert_eq!(state.read(Register::QueueDescriptorsLow), 0x8000);
        assert_eq!(state.read(Register::QueueUsedHigh), 7);
        assert_eq!(state.read(Register::QueueSelect), 0);
    }
}

#[test]
fn the_state_of_another_device_is_refused() {
    for &on in Transport::ALL {
        let file = image();
        let mut guest = TestGuest::new(on, Rng::new());
        let text = guest.save().unwrap();
        let error = guest.replace(disk(&file, Preference::Synchronous), &text);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("type 4") || error.contains("configuration space"),
            "{error}"
        );
    }
}

/// Puts `value` into every place that `find` names, in all of `tree`.
fn set(tree: &mut Value, key: &str, value: &Value) {
    match tree {
        Value::Object(map) => {
            for (name, inner) in map {
                if name == key {
                    *inner = value.clone();
                } else {
                    set(inner, key, value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|inner| set(inner, key, value)),
        _ => {}
    }
}

#[test]
fn contradictions_are_refused_in_words() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        guest.start(RING_FEATURES, 16);
        let good: Value = serde_json::from_str(&guest.save().unwrap()).unwrap();
        for (key, value, expected) in [
            ("status", Value::from(0xf00), "unknown bits"),
            ("status", Value::from(4), "misses a step"),
            ("status", Value::from(1), "has not started"),
            (
                "driver_features",
                Value::from(u64::MAX),
                "does not have here",
            ),
            ("driver_features", Value::from(0), "before virtio 1.0"),
            ("queues", Value::Array(Vec::new()), "0 queues"),
            ("next_used", Value::from(9), "in flight"),
            ("state", Value::Null, "stands still"),
            ("descriptors", Value::from(u64::MAX), "cannot go on"),
            ("used", Value::from(0x7_fff0_u64), "cannot go on"),
            ("size", Value::from(3), "cannot go on"),
        ] {
            let mut bad = good.clone();
            set(&mut bad, key, &value);
            let error = guest.replace(Rng::new(), &bad.to_string()).unwrap_err();
            assert!(error.to_string().contains(expected), "{key}: {error}");
        }
        guest.replace(Rng::new(), &good.to_string()).unwrap();
    }
}

#[test]
fn a_function_that_is_another_is_refused_by_its_configuration_space() {
    let mut guest = TestGuest::new(Transport::Pci, Rng::new());
    let mut state: Value = serde_json::from_str(&guest.save().unwrap()).unwrap();
    state["config"][2] = 0xff.into();
    let error = guest.replace(Rng::new(), &state.to_string()).unwrap_err();
    assert!(
        matches!(error, RestoreError::ConfigSpace { register: 2, .. }),
        "{error}"
    );
    state["config"] = Value::Array(vec![0.into(); 3]);
    assert!(guest.replace(Rng::new(), &state.to_string()).is_err());
}

proptest! {
    #[test]
    fn any_numbers_in_a_state_are_refused_or_go_on(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..6),
        pci in any::<bool>(),
    ) {
        let on = if pci { Transport::Pci } else { Transport::Mmio };
        let mut guest = TestGuest::new(on, Rng::new());
        guest.start(RING_FEATURES, 16);
        let mut state: Value = serde_json::from_str(&guest.save().unwrap()).unwrap();
        for (place, value) in changes {
            let mut numbers = Vec::new();
            numbers_of(&mut state, &mut numbers);
            let index = place.index(numbers.len());
            // As wide as the one before, as far as can be known.
            let old = numbers[index].as_u64().unwrap_or(0);
            *numbers[index] = match old {
                0..=0xff => value % 0x100,
                0x100..=0xffff => value % 0x1_0000,
                _ => value % 0x1_0000_0000,
            }.into();
        }
        let text = state.to_string();
        // Words of any kind; no panic, and no device that works where it may not.
        if guest.replace(Rng::new(), &text).is_ok() {
            guest.run();
            guest.place();
            guest.reset();
            let mut ring = guest.start(RING_FEATURES, 16);
            let buffer = ring.buffer(8, true);
            ring.add(&[buffer]);
            guest.ring_anyway(0);
        }
    }
}

fn numbers_of<'a>(tree: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match tree {
        Value::Number(_) => found.push(tree),
        Value::Array(list) => list.iter_mut().for_each(|inner| numbers_of(inner, found)),
        // The test's driver knows its messages, and others are a test's of their own.
        Value::Object(map) => map
            .iter_mut()
            .filter(|(key, _)| *key != "message")
            .for_each(|(_, inner)| numbers_of(inner, found)),
        _ => {}
    }
}
