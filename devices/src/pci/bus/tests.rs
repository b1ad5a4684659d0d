use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::pci::{ConfigSpace, HostBridge, Identity};

/// A function with 4 KiB of memory that answers each byte with its offset.
struct Plain {
    space: Mutex<ConfigSpace>,
    written: Mutex<Writes>,
}

/// Offsets and bytes.
type Writes = Vec<(u64, Vec<u8>)>;

impl Plain {
    fn new(base: u64) -> Arc<Self> {
        let identity = Identity {
            vendor: 0x1234,
            device: 0x5678,
            revision: 0,
            class: [0xff, 0, 0],
            subsystem: (0, 0),
        };
        let space = ConfigSpace::new(&identity).with_memory(Bar { base, len: 0x1000 });
        Arc::new(Self {
            space: Mutex::new(space),
            written: Mutex::default(),
        })
    }

    fn written(&self) -> Writes {
        std::mem::take(&mut self.written.lock().unwrap())
    }
}

impl PciFunction for Plain {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        assert!(usize::from(register) + data.len() <= 0x1000);
        self.space.lock().unwrap().read(register, data);
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        assert!(usize::from(register) + data.len() <= 0x1000);
        self.space.lock().unwrap().write(register, data);
    }

    fn memory(&self) -> Option<Bar> {
        self.space.lock().unwrap().memory()
    }

    fn read_memory(&self, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= 0x1000);
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = at.to_le_bytes()[0];
        }
    }

    fn write_memory(&self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= 0x1000);
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }
}

const WINDOW: u64 = 0xd800_0000;

struct Fixture {
    function: Arc<Plain>,
    bus: Arc<PciBus>,
    ecam: Arc<dyn BusDevice>,
    ports: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
}

impl Fixture {
    /// A bridge at 0 and a function at 3.
    fn new() -> Self {
        let bus = PciBus::new();
        bus.insert(0, Arc::new(HostBridge::new())).unwrap();
        let function = Plain::new(WINDOW + 0x2000);
        bus.insert(3, function.clone()).unwrap();
        Self {
            function,
            ecam: bus.ecam(),
            ports: bus.config_ports(),
            window: bus.window(WINDOW),
            bus,
        }
    }

    fn by_ports(&self, address: u32, offset: u64, len: usize) -> Vec<u8> {
        self.ports.write(0, &address.to_le_bytes());
        read(&self.ports, 4 + offset, len)
    }
}

/// Reads as the memory or port bus does: over ones.
fn read(device: &Arc<dyn BusDevice>, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0xff; len];
    device.read(offset, &mut data);
    data
}

#[test]
fn both_ways_into_configuration_space_lead_to_the_same() {
    let f = Fixture::new();
    for device in 0..32_u32 {
        for register in (0..0x40).step_by(4) {
            let ecam = read(&f.ecam, u64::from(device << 15 | register), 4);
            let ports = f.by_ports(0x8000_0000 | device << 11 | register, 0, 4);
            assert_eq!(ecam, ports, "{device}: {register:#x}");
            let present = device == 0 || device == 3;
            assert!(present || ecam == [0xff; 4]);
        }
    }
    assert_eq!(f.by_ports(0x8000_1800, 2, 2), 0x5678_u16.to_le_bytes());
    assert_eq!(f.by_ports(0x8000_1800, 1, 1), [0x12]);
}

#[test]
fn nobody_answers_beyond_function_0_of_bus_0() {
    let f = Fixture::new();
    for function in 1..8 {
        assert_eq!(read(&f.ecam, 3 << 15 | function << 12, 4), [0xff; 4]);
    }
    for address in [0x8000_1900, 0x8001_1800, 0x0000_1800, 0x80ff_1800] {
        assert_eq!(f.by_ports(address, 0, 4), [0xff; 4], "{address:#x}");
    }
}

#[test]
fn address_port_takes_32_bits_and_gives_them_back() {
    let f = Fixture::new();
    // Linux tells the ports from other chips by this.
    f.ports.write(3, &[1]);
    f.ports.write(0, &0x8000_0000_u32.to_le_bytes());
    assert_eq!(read(&f.ports, 0, 4), 0x8000_0000_u32.to_le_bytes());
    // The reset port of some chips lies within; nobody resets here.
    f.ports.write(1, &[0x06]);
    f.ports.write(0, &[1, 2]);
    assert_eq!(read(&f.ports, 0, 4), 0x8000_0000_u32.to_le_bytes());
    assert_eq!(read(&f.ports, 1, 1), [0xff]);
}

#[test]
fn memory_follows_the_driver() {
    let f = Fixture::new();
    let command = 3 << 15 | 0x04;
    let bar = 3 << 15 | 0x10;
    assert_eq!(read(&f.window, 0x2001, 2), [0xff, 0xff], "decoding is off");
    f.ecam.write(command, &[2, 0]);
    assert_eq!(read(&f.window, 0x2001, 2), [1, 2]);
    f.ecam.write(bar, &0xd800_5123_u32.to_le_bytes());
    assert_eq!(read(&f.window, 0x2001, 2), [0xff, 0xff]);
    f.window.write(0x5008, &[7]);
    assert_eq!(f.function.written(), [(8, vec![7])]);
    // An access over the end is cut, to others' left and right.
    assert_eq!(read(&f.window, 0x5ffe, 4), [0xfe, 0xff, 0xff, 0xff]);
    assert_eq!(read(&f.window, 0x4ffe, 4), [0xff; 4]);
    f.ecam.write(command, &[0, 0]);
    f.window.write(0x5008, &[7]);
    assert_eq!(f.function.written(), []);
}

#[test]
fn accesses_over_the_end_of_a_function_stay_inside() {
    let f = Fixture::new();
    assert_eq!(read(&f.ecam, 3 << 15 | 0xffc, 8)[..4], [0; 4]);
    f.ecam.write(3 << 15 | 0xffc, &[0xff; 8]);
    assert_eq!(read(&f.ecam, ECAM_LEN - 1, 1), [0xff]);
}

#[test]
fn numbers_are_given_once_and_end_at_31() {
    let f = Fixture::new();
    let function = || Plain::new(WINDOW);
    assert_eq!(
        f.bus.insert(3, function()),
        Err(SlotError::Taken { slot: 3 })
    );
    assert_eq!(
        f.bus.insert(32, function()),
        Err(SlotError::OutOfRange { slot: 32 })
    );
    f.bus.insert(31, function()).unwrap();
    assert_eq!(read(&f.ecam, 31 << 15, 2), 0x1234_u16.to_le_bytes());
}

#[test]
fn a_removed_function_is_gone_by_every_way_and_its_place_is_free() {
    let f = Fixture::new();
    assert_eq!(f.bus.free(), Some(1));
    f.ecam.write(3 << 15 | 0x04, &[2, 0]);
    assert_eq!(read(&f.window, 0x2001, 1), [1]);
    let removed = f.bus.remove(3).unwrap();
    assert_eq!(read(&f.window, 0x2001, 1), [0xff]);
    assert_eq!(read(&f.ecam, 3 << 15, 4), [0xff; 4]);
    assert_eq!(f.by_ports(0x8000_1800, 0, 4), [0xff; 4]);
    f.ecam.write(3 << 15 | 0x04, &[0, 0]);
    f.window.write(0x2001, &[1]);
    assert!(removed.memory().is_some(), "it was not reached");
    assert_eq!(Arc::strong_count(&removed), 2, "the bus holds nothing back");
    assert!(f.bus.remove(3).is_none() && f.bus.remove(32).is_none());
    f.bus.insert(3, Plain::new(WINDOW)).unwrap();
    for slot in [1, 2].into_iter().chain(4..32) {
        f.bus.insert(slot, Plain::new(WINDOW)).unwrap();
    }
    assert_eq!(f.bus.free(), None);
}

#[test]
fn functions_come_and_go_while_others_are_used() {
    let f = Fixture::new();
    f.ecam.write(3 << 15 | 0x04, &[2, 0]);
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        assert_eq!(read(&f.window, 0x2001, 1), [1]);
                        let other = read(&f.ecam, 5 << 15, 2);
                        assert!(other == [0x34, 0x12] || other == [0xff; 2]);
                        f.ecam.write(5 << 15 | 4, &[2]);
                    }
                })
            })
            .collect();
        while users.iter().any(|user| !user.is_finished()) {
            f.bus.insert(5, Plain::new(WINDOW + 0x8000)).unwrap();
            assert!(f.bus.remove(5).is_some());
        }
    });
}

proptest! {
    /// The functions assert that no access leaves them.
    #[test]
    fn any_accesses_are_harmless(
        accesses in proptest::collection::vec(
            (
                0..3_u8,
                prop_oneof![0..0x40_u64, 0..0x3000_u64, 3 << 15..(3 << 15) + 0x1010_u64, 0..ECAM_LEN],
                proptest::sample::select(&[1_usize, 2, 3, 4, 5, 6, 7, 8][..]),
                prop_oneof![any::<u64>(), (0..32_u64).prop_map(|slot| 0x8000_0000 | slot << 11)],
                any::<bool>(),
            ),
            0..100,
        ),
    ) {
        let f = Fixture::new();
        for (space, offset, width, value, write) in accesses {
            let (device, offset) = match space {
                0 => (&f.ecam, offset % (ECAM_LEN - 8)),
                1 => (&f.ports, offset % CONFIG_PORTS_LEN),
                _ => (&f.window, offset),
            };
            let mut data = value.to_le_bytes();
            if write {
                device.write(offset, &data[..width]);
            } else {
                device.read(offset, &mut data[..width]);
            }
        }
        // Whatever was set: the function is where its own registers say.
        f.ecam.write(3 << 15 | 0x10, &u64::to_le_bytes(WINDOW + 0x7000));
        f.ecam.write(3 << 15 | 4, &[2]);
        prop_assert_eq!(read(&f.window, 0x7003, 1), [3]);
    }
}
