use proptest::prelude::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::*;
use crate::pci::MsiMessage;
use crate::virtio::block::engine::Preference;
use crate::virtio::block::{Block, Engine, Options, RawFile};
use crate::virtio::rng::Rng;
use crate::virtio::testing::{TestGuest, Transport, guest_memory};

const BASE: u64 = 0xd800_0000;

/// Delivers anything, and counts.
#[derive(Default)]
struct Counter(Mutex<Vec<u16>>);

impl MsiSink for Counter {
    fn route(&self, _vector: u16, _message: MsiMessage) -> io::Result<()> {
        Ok(())
    }

    fn send(&self, vector: u16) -> io::Result<()> {
        self.0.lock().unwrap().push(vector);
        Ok(())
    }
}

/// Remembers where doorbells are bound.
#[derive(Default)]
struct Bound(Mutex<Vec<u64>>);

impl DoorbellBinder for Bound {
    fn bind(&self, _doorbell: &EventFd, address: u64) -> io::Result<()> {
        self.0.lock().unwrap().push(address);
        Ok(())
    }

    fn unbind(&self, _doorbell: &EventFd, address: u64) -> io::Result<()> {
        let mut bound = self.0.lock().unwrap();
        let at = bound.iter().position(|other| *other == address);
        bound.remove(at.expect("only what is bound is unbound"));
        Ok(())
    }
}

fn disk() -> Block {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * 512).unwrap();
    let disk = Box::new(RawFile::new(file, false).unwrap());
    let engine = Engine::new(Preference::Synchronous);
    let options = Options {
        queues: 3,
        ..Options::default()
    };
    Block::new(disk, engine, options).unwrap()
}

fn function(device: impl VirtioDevice + 'static) -> (VirtioPci, Arc<Counter>, Arc<Bound>) {
    let (sink, bound) = (Arc::<Counter>::default(), Arc::<Bound>::default());
    let binder = Some(bound.clone() as Arc<dyn DoorbellBinder>);
    let device = Box::new(device);
    let function = VirtioPci::new(device, guest_memory(), BASE, sink.clone(), binder).unwrap();
    (function, sink, bound)
}

fn config(function: &VirtioPci, register: u16) -> u32 {
    let mut data = [0; 4];
    function.read_config(register, &mut data);
    u32::from_le_bytes(data)
}

fn read<const N: usize>(function: &VirtioPci, offset: u64) -> u64 {
    let mut data = [0xff; 8];
    function.read_memory(offset, &mut data[..N]);
    data[N..].fill(0);
    u64::from_le_bytes(data)
}

/// The capabilities: (ID, register).
fn capabilities(function: &VirtioPci) -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    let mut at = u16::from(config(function, 0x34).to_le_bytes()[0]);
    while at != 0 {
        let [id, next, ..] = config(function, at).to_le_bytes();
        found.push((id, at));
        at = next.into();
        assert!(found.len() < 20, "the list ends");
    }
    found
}

/// (kind, offset, length) of each structure of virtio, all of which are in BAR 0.
fn structures(function: &VirtioPci) -> Vec<(u8, u32, u32)> {
    let vendor = capabilities(function)
        .into_iter()
        .filter(|(id, _)| *id == 9);
    vendor
        .map(|(_, at)| {
            let kind = config(function, at).to_le_bytes()[3];
            assert_eq!(config(function, at + 4), 0, "BAR 0, no ID");
            (kind, config(function, at + 8), config(function, at + 12))
        })
        .collect()
}

#[test]
fn function_says_what_it_is_and_where_its_registers_are() {
    let (disk, ..) = function(disk());
    assert_eq!(config(&disk, 0), 0x1042_1af4);
    assert_eq!(config(&disk, 8), 0x0180_0001);
    assert_eq!(config(&disk, 0x2c), 0x1042_1af4);
    assert_eq!(config(&disk, 0x3c) >> 8, 0, "no interrupt pin");
    let config_len = u32::try_from(disk.lock().traits().config_len).unwrap();
    assert_eq!(
        structures(&disk),
        [
            (1, 0, 0x38),
            (3, 0x1000, 1),
            (2, 0x6000, 12),
            (4, 0x2000, config_len),
            (5, 0, 0)
        ]
    );
    let (_, msix) = capabilities(&disk)
        .into_iter()
        .find(|(id, _)| *id == 0x11)
        .unwrap();
    assert_eq!(
        config(&disk, msix) >> 16,
        3,
        "three queues and the configuration"
    );
    let (rng, ..) = function(Rng::new());
    assert_eq!(config(&rng, 0) >> 16, 0x1040 + VIRTIO_ID_RNG);
    assert!(
        structures(&rng).iter().all(|(kind, ..)| *kind != 4),
        "nothing to configure"
    );
}

#[test]
fn queues_are_numbered_as_their_notification_registers() {
    let (disk, ..) = function(disk());
    assert_eq!(read::<2>(&disk, 0x12), 3);
    for (queue, size, offset) in [
        (0_u16, true, 0),
        (1, true, 1),
        (2, true, 2),
        (3, false, 0),
        (0xffff, false, 0),
    ] {
        disk.write_memory(0x16, &queue.to_le_bytes());
        assert_eq!(read::<2>(&disk, 0x18) > 0, size);
        assert_eq!(read::<2>(&disk, 0x1e), offset);
    }
}

#[test]
fn any_write_to_a_queues_own_register_rings_its_doorbell() {
    let (disk, ..) = function(disk());
    for width in [1, 2, 4, 8] {
        disk.write_memory(0x6004, &[0xab; 8][..width]);
        assert_eq!(disk.doorbells[1].read().unwrap(), 1);
    }
    for offset in [0x6001, 0x6002, 0x600c, 0x7fff] {
        disk.write_memory(offset, &[0]);
    }
    assert_eq!(disk.lock().refused_writes(), 4);
    assert!(disk.doorbells.iter().all(|bell| bell.read().is_err()));
}

#[test]
fn nothing_stays_bound_to_a_function_that_is_gone() {
    let (disk, _, bound) = function(disk());
    disk.write_config(4, &[2, 0]);
    assert_eq!(bound.0.lock().unwrap().len(), 3);
    drop(disk);
    assert_eq!(bound.0.lock().unwrap().len(), 0);
}

#[test]
fn doorbells_follow_the_registers() {
    let (disk, _, bound) = function(disk());
    let at = |base: u64| [base + 0x6000, base + 0x6004, base + 0x6008].to_vec();
    let bound = || {
        let mut list = bound.0.lock().unwrap().clone();
        list.sort_unstable();
        list
    };
    assert_eq!(bound(), [0; 0], "decoding is off");
    disk.write_config(4, &[6, 0]);
    assert_eq!(bound(), at(BASE));
    disk.write_config(0x10, &0xe000_0000_u32.to_le_bytes());
    assert_eq!(bound(), at(0xe000_0000));
    disk.write_config(0x14, &7_u32.to_le_bytes());
    assert_eq!(bound(), at(0x7_e000_0000));
    disk.write_config(0x10, &[0xff; 8]);
    assert_eq!(bound(), at(0xffff_ffff_ffff_8000));
    disk.write_config(4, &[0, 0]);
    assert_eq!(bound(), [0; 0]);
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let (disk, ..) = function(disk());
    for (value, kept) in [
        (0_u16, 0),
        (3, 3),
        (4, 0xffff),
        (0x7fff, 0xffff),
        (0xffff, 0xffff),
    ] {
        for register in [0x10, 0x1a] {
            disk.write_memory(register, &value.to_le_bytes());
            assert_eq!(read::<2>(&disk, register), kept, "{value:#x}");
        }
    }
    // Of a queue that does not exist.
    disk.write_memory(0x16, &3_u16.to_le_bytes());
    disk.write_memory(0x1a, &0_u16.to_le_bytes());
    assert_eq!(read::<2>(&disk, 0x1a), 0xffff);
}

#[test]
fn reset_takes_the_vectors_away_but_not_the_table() {
    let (disk, ..) = function(disk());
    disk.write_memory(0x10, &1_u16.to_le_bytes());
    disk.write_memory(0x3000, &0xfee0_0000_u32.to_le_bytes());
    disk.write_memory(0x14, &[0]);
    assert_eq!(read::<2>(&disk, 0x10), 0xffff);
    assert_eq!(read::<4>(&disk, 0x3000), 0xfee0_0000);
}

#[test]
fn reading_isr_status_clears_it() {
    let mut guest = TestGuest::new(Transport::Pci, Rng::new());
    let mut ring = guest.start_all();
    let buffer = ring.buffer(8, true);
    ring.add(&[buffer]);
    guest.notify(0);
    let isr = |guest: &TestGuest| {
        let mut data = [0xff; 4];
        guest.bus_device().read(0x1000, &mut data);
        data
    };
    assert_eq!(isr(&guest), [1, 0, 0, 0]);
    assert_eq!(isr(&guest), [0; 4]);
    ring.set_available_index(99);
    guest.notify(0);
    assert_eq!(isr(&guest), [2, 0, 0, 0]);
}

#[test]
fn each_event_has_its_own_vector() {
    let mut guest = TestGuest::new(Transport::Pci, Rng::new());
    let mut ring = guest.start_all();
    let buffer = ring.buffer(8, true);
    ring.add(&[buffer]);
    guest.notify(0);
    assert_eq!((guest.interrupts(), guest.acknowledge()), (1, 1));
    guest.state().config_changed();
    assert_eq!((guest.interrupts(), guest.acknowledge()), (1, 2));
}

#[test]
fn queue_is_enabled_by_a_one_and_taken_down_by_a_reset_alone() {
    let mut guest = TestGuest::new(Transport::Pci, Rng::new());
    let features = guest.offered();
    guest.negotiate(features);
    let enable = |guest: &TestGuest, value: u16| {
        guest.bus_device().write(0x1c, &value.to_le_bytes());
        let mut data = [0; 2];
        guest.bus_device().read(0x1c, &mut data);
        u16::from_le_bytes(data)
    };
    for value in [0, 2, 0x101] {
        assert_eq!(enable(&guest, value), 0);
    }
    assert_eq!(enable(&guest, 1), 1);
    assert_eq!(enable(&guest, 0), 1);
    guest.reset();
    assert_eq!(enable(&guest, 0), 0);
}

#[test]
fn fields_answer_to_their_own_width_only() {
    // Offsets and widths of virtio 1.2 §4.1.4.3, with the halves of 64-bit fields.
    let fields = [
        (0, 4),
        (4, 4),
        (8, 4),
        (12, 4),
        (16, 2),
        (18, 2),
        (20, 1),
        (21, 1),
        (22, 2),
        (24, 2),
        (26, 2),
        (28, 2),
        (30, 2),
        (32, 4),
        (32, 8),
        (36, 4),
        (40, 4),
        (40, 8),
        (44, 4),
        (48, 4),
        (48, 8),
        (52, 4),
    ];
    let (disk, ..) = function(disk());
    for offset in 0..0x1000_u64 {
        for width in 1..=8_usize {
            if fields.contains(&(offset, width)) {
                continue;
            }
            let before = disk.lock().refused_writes();
            disk.write_memory(offset, &vec![1; width]);
            assert_eq!(
                disk.lock().refused_writes(),
                before + 1,
                "{width} at {offset:#x}"
            );
            let mut data = vec![0xff; width];
            disk.read_memory(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0), "{width} at {offset:#x}");
        }
    }
}

/// The configuration access capability of a function.
fn window(function: &VirtioPci) -> u16 {
    let (_, at) = *capabilities(function).last().unwrap();
    assert_eq!(config(function, at).to_le_bytes()[3], 5);
    at
}

fn aim(function: &VirtioPci, bar: u8, offset: u32, len: u32) -> u16 {
    let at = window(function);
    function.write_config(at + 4, &[bar]);
    function.write_config(at + 8, &offset.to_le_bytes());
    function.write_config(at + 12, &len.to_le_bytes());
    at + 16
}

#[test]
fn registers_are_reached_through_configuration_space() {
    let (disk, ..) = function(disk());
    let data = aim(&disk, 0, 0x14, 1);
    disk.write_config(data, &[1]);
    assert_eq!(read::<1>(&disk, 0x14), 1, "ACKNOWLEDGE");
    assert_eq!(config(&disk, data) & 0xff, 1);
    let data = aim(&disk, 0, 0x2000, 4);
    assert_eq!(config(&disk, data), 8, "sectors");
    let data = aim(&disk, 0, 0x6008, 2);
    disk.write_config(data, &2_u16.to_le_bytes());
    assert_eq!(disk.doorbells[2].read().unwrap(), 1);
}

#[test]
fn window_aimed_at_nothing_does_nothing() {
    let (disk, ..) = function(disk());
    for (bar, offset, len) in [
        (0, 0x14, 0),
        (0, 0x14, 3),
        (0, 0x14, 8),
        (0, 0x15, 2),
        (0, 0x8000, 1),
        (0, 0x7ffe, 4),
        (0, u32::MAX, 1),
        (0, u32::MAX - 3, 4),
        (0, 0x14, u32::MAX),
        (1, 0x14, 1),
        (6, 0x14, 1),
        (0xff, 0x14, 1),
    ] {
        let data = aim(&disk, bar, offset, len);
        disk.write_config(data, &[0x0f, 0, 0, 0]);
        config(&disk, data);
        assert_eq!(
            read::<1>(&disk, 0x14),
            0,
            "{len} bytes at {offset:#x} of {bar}"
        );
    }
    assert!(disk.doorbells.iter().all(|bell| bell.read().is_err()));
}

#[test]
fn device_with_more_than_fits_is_refused() {
    struct Big(Rng);
    impl VirtioDevice for Big {
        fn traits(&self) -> super::super::device::DeviceTraits {
            super::super::device::DeviceTraits {
                config_len: 0x1001,
                ..self.0.traits()
            }
        }
        fn read_config(&self, _: u64, _: &mut [u8]) {}
        fn start_queue(&mut self, _: u16, _: super::super::queue::Virtqueue, _: u64) {}
        fn stop_queue(&mut self, _: u16) -> Option<super::super::queue::QueueState> {
            None
        }
        fn process(
            &mut self,
            _: u16,
        ) -> Result<super::super::device::Progress, super::super::queue::QueueError> {
            Ok(super::super::device::Progress::Idle)
        }
        fn reset(&mut self) {}
    }
    let device = Box::new(Big(Rng::new()));
    let sink = Arc::<Counter>::default();
    let error = VirtioPci::new(device, guest_memory(), BASE, sink, None)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("4096 bytes of configuration"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Registers, table, notification and configuration space, in any width and order: no panic, and the device can be
    /// reset and used.
    #[test]
    fn any_accesses_are_harmless(
        accesses in proptest::collection::vec(
            (
                any::<bool>(),
                prop_oneof![
                    6 => 0..0x40_u64,
                    1 => 0x1000..0x1004_u64,
                    1 => 0x2000..0x2040_u64,
                    3 => 0x3000..0x3050_u64,
                    1 => 0x4000..0x4010_u64,
                    1 => 0x6000..0x6010_u64,
                    1 => 0..0x7ff8_u64,
                ],
                1..9_usize,
                prop_oneof![2 => 0..256_u64, 1 => any::<u64>()],
                any::<bool>(),
                any::<bool>(),
            ),
            0..120,
        ),
    ) {
        let (function, ..) = function(disk());
        for (in_config, offset, width, value, align, write) in accesses {
            let mut data = value.to_le_bytes();
            let offset = if align { offset & !3 } else { offset };
            let width = if align { 4 } else { width };
            let register = u16::try_from(offset % 0xb0).unwrap();
            match (in_config, write) {
                (true, true) => function.write_config(register, &data[..width]),
                (true, false) => function.read_config(register, &mut data[..width]),
                (false, true) => function.write_memory(offset, &data[..width]),
                (false, false) => function.read_memory(offset, &mut data[..width]),
            }
            for index in 0..3 {
                function.lock().process_queue(index);
            }
        }
        function.write_memory(0x14, &[0]);
        prop_assert_eq!(read::<1>(&function, 0x14), 0);
        function.write_memory(0x14, &[1]);
        function.write_memory(0x14, &[3]);
        function.write_memory(8, &1_u32.to_le_bytes());
        function.write_memory(12, &1_u32.to_le_bytes());
        function.write_memory(0x14, &[0xb]);
        prop_assert_eq!(read::<1>(&function, 0x14), 0xb);
    }
}

#[test]
fn vectors_are_one_for_each_queue_and_one() {
    assert_eq!(vectors(&disk()), 4);
    assert_eq!(vectors(&Rng::new()), 2);
}
