use proptest::prelude::*;

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{GuestRing, InterruptCounter, TestGuest, Transport, guest_memory};

/// A real device, so the rules are tested as they apply: one queue of 16.
struct Fixture {
    state: VirtioState,
    memory: Arc<GuestMemory>,
    interrupts: Arc<InterruptCounter>,
}

const ALL: [Register; 16] = [
    Register::DeviceFeaturesSelect,
    Register::DeviceFeatures,
    Register::DriverFeaturesSelect,
    Register::DriverFeatures,
    Register::QueueSelect,
    Register::QueueSizeMax,
    Register::QueueSize,
    Register::QueueReady,
    Register::QueueDescriptorsLow,
    Register::QueueDescriptorsHigh,
    Register::QueueAvailableLow,
    Register::QueueAvailableHigh,
    Register::QueueUsedLow,
    Register::QueueUsedHigh,
    Register::Status,
    Register::ConfigGeneration,
];

const QUEUE_REGISTERS: [Register; 8] = [
    Register::QueueSize,
    Register::QueueReady,
    Register::QueueDescriptorsLow,
    Register::QueueDescriptorsHigh,
    Register::QueueAvailableLow,
    Register::QueueAvailableHigh,
    Register::QueueUsedLow,
    Register::QueueUsedHigh,
];

impl Fixture {
    fn new() -> Self {
        let memory = guest_memory();
        let interrupts = Arc::new(InterruptCounter::default());
        let state =
            VirtioState::new(Box::new(Rng::new()), memory.clone(), interrupts.clone()).unwrap();
        Self {
            state,
            memory,
            interrupts,
        }
    }

    fn status(&self) -> u32 {
        self.state.read(Register::Status)
    }

    fn add_status(&mut self, bits: u32) -> u32 {
        self.state.write(Register::Status, self.status() | bits);
        self.status()
    }

    fn accept(&mut self, features: u64) -> u32 {
        self.state.write(Register::DriverFeaturesSelect, 0);
        self.state.write(Register::DriverFeatures, low(features));
        self.state.write(Register::DriverFeaturesSelect, 1);
        self.state.write(Register::DriverFeatures, high(features));
        self.add_status(FEATURES_OK)
    }

    /// Up to FEATURES_OK.
    fn negotiated() -> Self {
        let mut f = Self::new();
        f.add_status(ACKNOWLEDGE);
        f.add_status(DRIVER);
        assert_eq!(f.accept(RING_FEATURES), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        f
    }

    fn set_queue(&mut self, registers: &QueueRegisters) {
        for (register, value) in [
            (Register::QueueSelect, 0),
            (Register::QueueSize, registers.size),
            (Register::QueueDescriptorsLow, low(registers.descriptors)),
            (Register::QueueDescriptorsHigh, high(registers.descriptors)),
            (Register::QueueAvailableLow, low(registers.available)),
            (Register::QueueAvailableHigh, high(registers.available)),
            (Register::QueueUsedLow, low(registers.used)),
            (Register::QueueUsedHigh, high(registers.used)),
            (Register::QueueReady, registers.ready.into()),
        ] {
            self.state.write(register, value);
        }
    }

    fn running() -> (Self, GuestRing) {
        let mut f = Self::negotiated();
        let ring = GuestRing::new(f.memory.clone(), 0, 16);
        f.set_queue(&ring.registers());
        assert_eq!(
            f.add_status(DRIVER_OK),
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        );
        assert_eq!(f.state.refused_writes(), 0);
        (f, ring)
    }

    fn queue(&self) -> QueueRegisters {
        self.state.queues[0]
    }

    fn registers(&self) -> Vec<u32> {
        QUEUE_REGISTERS
            .iter()
            .map(|&register| self.state.read(register))
            .collect()
    }
}

#[test]
fn requests_are_served_between_driver_ok_and_reset() {
    let (mut f, mut ring) = Fixture::running();
    let buffer = ring.buffer(64, true);
    let head = ring.add(&[buffer]);
    f.state.process_queue(0);
    assert_eq!(ring.used(), Some((head, 64)));
    assert_eq!(f.interrupts.queue(), 1);

    f.state.write(Register::Status, 0);
    ring.add(&[buffer]);
    f.state.process_queue(0);
    assert_eq!(ring.used(), None);
}

#[test]
fn nothing_is_served_before_driver_ok() {
    let mut f = Fixture::negotiated();
    let mut ring = GuestRing::new(f.memory.clone(), 0, 16);
    f.set_queue(&ring.registers());
    let buffer = ring.buffer(64, true);
    ring.add(&[buffer]);
    f.state.process_queue(0);
    assert_eq!(ring.used(), None);
}

#[test]
fn requests_from_before_driver_ok_are_served_without_another_ring() {
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, Rng::new());
        let features = guest.offered();
        assert!(guest.negotiate(features));
        let mut ring = GuestRing::new(guest.memory.clone(), 0, 16);
        guest.set_queue(0, &ring.registers());
        let buffer = ring.buffer(64, true);
        let head = ring.add(&[buffer]);
        guest.notify(0);
        assert_eq!(ring.used(), None);
        assert!(guest.add_status(DRIVER_OK));
        guest.run();
        assert_eq!(ring.used(), Some((head, 64)));
    }
}

#[test]
fn doorbell_of_no_queue_is_harmless() {
    let (mut f, _) = Fixture::running();
    f.state.process_queue(1);
    f.state.process_queue(u16::MAX);
    assert_eq!(f.status() & NEEDS_RESET, 0);
}

#[test]
fn status_bits_come_in_order() {
    for (bits, granted) in [
        (DRIVER, 0),
        (FEATURES_OK, 0),
        (DRIVER_OK, 0),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER),
        (ACKNOWLEDGE | FEATURES_OK, ACKNOWLEDGE),
        (NEEDS_RESET, 0),
        (0x10, 0),
        (0x100 | ACKNOWLEDGE, 0),
    ] {
        let mut f = Fixture::new();
        assert_eq!(f.add_status(bits), granted, "bits {bits:#x}");
    }
    // Features must be seen as granted before the device is started.
    let mut f = Fixture::new();
    f.add_status(ACKNOWLEDGE | DRIVER);
    f.state.write(Register::DriverFeaturesSelect, 1);
    f.state.write(Register::DriverFeatures, 1);
    assert_eq!(f.add_status(FEATURES_OK | DRIVER_OK) & DRIVER_OK, 0);
}

#[test]
fn status_bits_are_cleared_by_a_reset_only() {
    let (mut f, _) = Fixture::running();
    let status = f.status();
    for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
        f.state.write(Register::Status, status & !bit);
        assert_eq!(f.status(), status);
    }
    assert_eq!(f.state.refused_writes(), 4);
    f.state.write(Register::Status, 0);
    assert_eq!(f.status(), 0);
}

#[test]
fn only_offered_features_with_version_1_are_granted() {
    let version_1 = 1 << VIRTIO_F_VERSION_1;
    for (features, granted) in [
        (RING_FEATURES, true),
        (version_1, true),
        (0, false),
        (RING_FEATURES & !version_1, false),
        (RING_FEATURES | 1, false),
        (RING_FEATURES | 1 << 63, false),
        (u64::MAX, false),
    ] {
        let mut f = Fixture::new();
        f.add_status(ACKNOWLEDGE);
        f.add_status(DRIVER);
        assert_eq!(
            f.accept(features) & FEATURES_OK != 0,
            granted,
            "features {features:#x}"
        );
        if !granted {
            assert_eq!(
                f.accept(RING_FEATURES) & FEATURES_OK,
                FEATURES_OK,
                "a second try"
            );
        }
    }
}

#[test]
fn features_are_frozen_once_they_are_granted() {
    let mut f = Fixture::new();
    assert_eq!(f.accept(RING_FEATURES), 0, "before there is a driver");
    assert_eq!(f.state.driver_features, 0);
    let mut f = Fixture::negotiated();
    f.accept(0);
    assert_eq!(f.state.driver_features, RING_FEATURES);
    let (mut f, _) = Fixture::running();
    f.accept(0);
    assert_eq!(f.state.driver_features, RING_FEATURES);
}

#[test]
fn feature_pages_beyond_the_second_are_empty() {
    let mut f = Fixture::new();
    f.add_status(ACKNOWLEDGE | DRIVER);
    for page in [2, 31, 32, u32::MAX] {
        f.state.write(Register::DeviceFeaturesSelect, page);
        assert_eq!(f.state.read(Register::DeviceFeatures), 0);
        f.state.write(Register::DriverFeaturesSelect, page);
        f.state.write(Register::DriverFeatures, u32::MAX);
    }
    assert_eq!(f.state.driver_features, 0);
    assert_eq!(f.state.refused_writes(), 4);
}

#[test]
fn queues_that_do_not_exist_read_as_zero() {
    let mut f = Fixture::negotiated();
    for index in [1, 2, 0x1_0000, u32::MAX] {
        f.state.write(Register::QueueSelect, index);
        assert_eq!(f.state.read(Register::QueueSizeMax), 0);
        for register in QUEUE_REGISTERS {
            f.state.write(register, 1);
            assert_eq!(f.state.read(register), 0);
        }
    }
    assert_eq!(
        f.queue(),
        QueueRegisters {
            size: 16,
            ..Default::default()
        }
    );
}

#[test]
fn ready_queue_is_frozen_until_it_is_taken_down() {
    let mut f = Fixture::negotiated();
    let ring = GuestRing::new(f.memory.clone(), 0, 16);
    f.set_queue(&ring.registers());
    let before = f.queue();
    for register in QUEUE_REGISTERS {
        if register != Register::QueueReady {
            f.state.write(register, 8);
            assert_eq!(f.queue(), before);
        }
    }
    f.state.write(Register::QueueReady, 2);
    assert_eq!((f.queue(), f.state.refused_writes()), (before, 8));
    f.state.write(Register::QueueReady, 0);
    f.state.write(Register::QueueSize, 8);
    assert_eq!(f.queue().size, 8);
}

#[test]
fn unusable_queue_needs_reset_and_the_device_lives_on() {
    let good = GuestRing::new(guest_memory(), 0, 16).registers();
    for bad in [
        QueueRegisters { size: 3, ..good },
        QueueRegisters { size: 32, ..good },
        QueueRegisters {
            size: 0x1_0010,
            ..good
        },
        QueueRegisters {
            descriptors: good.descriptors + 8,
            ..good
        },
        QueueRegisters {
            used: u64::MAX - 3,
            ..good
        },
        QueueRegisters {
            available: 0x8_0000,
            ..good
        },
    ] {
        let mut f = Fixture::negotiated();
        f.set_queue(&bad);
        assert_eq!(
            f.add_status(DRIVER_OK) & NEEDS_RESET,
            NEEDS_RESET,
            "{bad:?}"
        );
        assert_eq!(f.interrupts.config(), 1);
        assert!(
            f.state.device.stop_queue(0).is_none(),
            "the queue must not run"
        );

        f.state.write(Register::Status, 0);
        f.add_status(ACKNOWLEDGE);
        f.add_status(DRIVER);
        f.accept(RING_FEATURES);
        f.set_queue(&good);
        assert_eq!(
            f.add_status(DRIVER_OK) & (DRIVER_OK | NEEDS_RESET),
            DRIVER_OK
        );
    }
}

#[test]
fn broken_ring_needs_reset_once_and_stops_the_queue() {
    let (mut f, mut ring) = Fixture::running();
    ring.set_available_index(17);
    f.state.process_queue(0);
    assert_eq!(f.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!((f.interrupts.config(), f.interrupts.queue()), (1, 0));

    ring.set_available_index(0);
    let buffer = ring.buffer(8, true);
    ring.add(&[buffer]);
    f.state.process_queue(0);
    assert_eq!((ring.used(), f.interrupts.config()), (None, 1));
    assert!(
        f.state.device.stop_queue(0).is_none(),
        "the device has given the queue back"
    );

    // Neither bits nor registers help; a reset does.
    let status = f.status();
    f.state.write(Register::Status, status & !NEEDS_RESET);
    f.state.write(Register::QueueSize, 8);
    assert_eq!((f.status(), f.queue().size), (status, 16));
    f.state.write(Register::Status, 0);
    assert_eq!((f.status(), f.queue().ready), (0, false));
}

#[test]
fn failed_driver_stops_the_queues_until_a_reset() {
    let (mut f, mut ring) = Fixture::running();
    assert_eq!(f.add_status(FAILED) & FAILED, FAILED);
    assert!(
        f.state.device.stop_queue(0).is_none(),
        "the device has given the queue back"
    );
    let buffer = ring.buffer(8, true);
    ring.add(&[buffer]);
    f.state.process_queue(0);
    assert_eq!(ring.used(), None);
    f.state.write(Register::Status, 0);
    assert_eq!(f.status(), 0);
}

#[test]
fn driver_without_queues_is_taken_at_its_word() {
    let mut f = Fixture::negotiated();
    assert_eq!(
        f.add_status(DRIVER_OK) & (DRIVER_OK | NEEDS_RESET),
        DRIVER_OK
    );
    f.state.process_queue(0);
    assert_eq!(f.status() & NEEDS_RESET, 0);
}

#[test]
fn changed_configuration_is_announced_to_a_running_driver() {
    let (mut f, _) = Fixture::running();
    f.state.config_changed();
    assert_eq!(f.state.read(Register::ConfigGeneration), 1);
    assert_eq!(f.interrupts.config(), 1);
    let mut f = Fixture::new();
    f.state.config_changed();
    assert_eq!(
        (
            f.state.read(Register::ConfigGeneration),
            f.interrupts.config()
        ),
        (1, 0)
    );
}

#[test]
fn queue_registers_change_in_no_status_but_features_ok() {
    const OK: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    let reached: [(u32, fn() -> Fixture); 7] = [
        (0, Fixture::new),
        (ACKNOWLEDGE, || {
            let mut f = Fixture::new();
            f.add_status(ACKNOWLEDGE);
            f
        }),
        (ACKNOWLEDGE | DRIVER, || {
            let mut f = Fixture::new();
            f.add_status(ACKNOWLEDGE | DRIVER);
            f
        }),
        (OK, Fixture::negotiated),
        (OK | DRIVER_OK, || Fixture::running().0),
        (OK | DRIVER_OK | NEEDS_RESET, || {
            let (mut f, ring) = Fixture::running();
            ring.set_available_index(99);
            f.state.process_queue(0);
            f
        }),
        (OK | FAILED, || {
            let mut f = Fixture::negotiated();
            f.add_status(FAILED);
            f
        }),
    ];
    for (status, reach) in reached {
        for register in QUEUE_REGISTERS {
            for value in [0, 1, 2, 8, 16, 0x1000, 0xffff, u32::MAX] {
                let mut f = reach();
                assert_eq!(f.status(), status);
                let before = f.registers();
                f.state.write(register, value);
                let allowed = status == OK;
                assert!(
                    allowed || f.registers() == before,
                    "{register:?} = {value:#x} took effect in status {status:#x}"
                );
                let fits = register != Register::QueueReady || value <= 1;
                assert!(!allowed || !fits || f.state.read(register) == value);
            }
        }
    }
}

/// A status, or any other value.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => proptest::sample::select(vec![0, 1, 2, 3, 8, 11, 15, 16, 64, 79, 128, 0x1_0000]),
        1 => any::<u32>(),
    ]
}

proptest! {
    /// Whatever is written in whatever order: no panic, and the rules of the table in the module's
    /// head hold at each step.
    #[test]
    fn any_sequence_of_writes_keeps_the_rules(
        start in 0..3_u8,
        writes in proptest::collection::vec((proptest::sample::select(&ALL[..]), value()), 0..60),
    ) {
        let mut f = match start {
            0 => Fixture::new(),
            1 => Fixture::negotiated(),
            _ => Fixture::running().0,
        };
        for (register, value) in writes {
            let (status, queue) = (f.status(), f.queue());
            let features = f.state.driver_features;
            f.state.write(register, value);
            f.state.process_queue(0);
            let reset = register == Register::Status && value == 0;
            if reset {
                prop_assert_eq!(f.status(), 0);
                continue;
            }
            prop_assert_eq!(status & !f.status(), 0, "bits vanished without a reset");
            if status & FEATURES_OK != 0 {
                prop_assert_eq!(f.state.driver_features, features);
            }
            if status & DRIVER_OK != 0 || status & FEATURES_OK == 0 {
                prop_assert_eq!(f.queue(), queue);
            }
            let now = f.status();
            prop_assert!(now & DRIVER == 0 || now & ACKNOWLEDGE != 0);
            prop_assert!(now & FEATURES_OK == 0 || now & DRIVER != 0);
            prop_assert!(now & DRIVER_OK == 0 || now & FEATURES_OK != 0);
        }
    }
}
