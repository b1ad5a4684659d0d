//! PCI configuration space by the reference model: by ECAM and by the ports of old, the window that leads from it into
//! the device's memory, and the memory itself wherever it is moved.

use super::model::Model;
use super::pci::{BAR, ECAM, FUNCTION, Pci, Transport, WINDOW, WINDOW_LEN};
use super::{Pair, SITUATIONS, World, report, values};
use crate::pci::PciFunction;
use crate::virtio::pci::BAR_LEN;

const LEN: usize = 256;
/// Message control of MSI-X.
const MSIX_CONTROL: usize = 0x86;
/// The configuration access capability (virtio 1.2 §4.1.4.9): BAR, offset, length, data.
const WINDOW_BAR: usize = 0x94;
const WINDOW_OFFSET: usize = 0x98;
const WINDOW_LENGTH: usize = 0x9c;
const WINDOW_DATA: usize = 0xa0;
/// Configuration space of one function.
const FUNCTION_LEN: u64 = 0x1000;

/// What a driver can write, and nothing else.
fn writable() -> [u8; LEN] {
    let mut mask = [0; LEN];
    // Command: memory, master, interrupts off.
    (mask[4], mask[5]) = (0x06, 0x04);
    // BAR 0 and 1: above the 32 KiB of its length.
    mask[0x10..0x18].copy_from_slice(&(!(BAR_LEN - 1)).to_le_bytes());
    mask[MSIX_CONTROL + 1] = 0xc0;
    mask[WINDOW_BAR] = 0xff;
    mask[WINDOW_OFFSET..WINDOW_DATA + 4].fill(0xff);
    mask
}

/// Configuration space, and all that is behind it.
#[derive(Clone, Debug, PartialEq)]
struct Space {
    bytes: [u8; LEN],
    mask: [u8; LEN],
}

impl Space {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Where in the memory the window leads.
    fn window(&self, register: u64, len: usize) -> Option<(u64, usize)> {
        let register = usize::try_from(register).unwrap();
        let touched = register < WINDOW_DATA + 4 && register + len > WINDOW_DATA;
        let (offset, width) = (self.u32(WINDOW_OFFSET), self.u32(WINDOW_LENGTH));
        let fits = matches!(width, 1 | 2 | 4)
            && offset % width == 0
            && u64::from(offset) + u64::from(width) <= BAR_LEN
            && self.bytes[WINDOW_BAR] == 0;
        (touched && fits).then_some((offset.into(), width as usize))
    }

    fn read(&mut self, pair: &mut Behind, register: u64, data: &mut [u8]) {
        if let Some((offset, width)) = self.window(register, data.len()) {
            let mut value = [0; 4];
            Pci::read(pair.0, pair.1, offset, &mut value[..width]);
            self.bytes[WINDOW_DATA..WINDOW_DATA + 4].copy_from_slice(&value);
        }
        for (byte, at) in data.iter_mut().zip(usize::try_from(register).unwrap()..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, pair: &mut Behind, register: u64, data: &[u8]) {
        for (byte, at) in data.iter().zip(usize::try_from(register).unwrap()..) {
            if let Some(place) = self.bytes.get_mut(at) {
                *place = *place & !self.mask[at] | byte & self.mask[at];
            }
        }
        pair.1
            .set_control(u16::from(self.bytes[MSIX_CONTROL + 1]) << 8);
        if let Some((offset, width)) = self.window(register, data.len()) {
            let value = &self.bytes[WINDOW_DATA..WINDOW_DATA + width];
            Pci::write(pair.0, pair.1, offset, value);
        }
    }

    /// Where the function's memory is.
    fn memory(&self) -> Option<u64> {
        let base = u64::from(self.u32(0x14)) << 32 | u64::from(self.u32(0x10) & !0x7fff);
        (self.bytes[4] & 2 != 0).then_some(base)
    }
}

/// What the window leads to.
struct Behind<'a>(&'a mut Model, &'a mut Transport);

/// How configuration space is reached.
#[derive(Clone, Copy, Debug)]
enum Way {
    Ecam,
    Ports,
}

struct Sweep {
    pair: Pair<Pci>,
    space: Space,
    fresh: Space,
    /// What the address port holds.
    address: u32,
}

impl Sweep {
    fn new() -> Self {
        let pair = Pair::<Pci>::new();
        let mut bytes = [0; LEN];
        pair.world.function().read_config(0, &mut bytes);
        let fresh = Space {
            bytes,
            mask: writable(),
        };
        assert_eq!(fresh.bytes[MSIX_CONTROL - 2], 0x11, "MSI-X is there");
        assert_eq!(fresh.bytes[WINDOW_BAR - 1], 5, "and the window");
        Self {
            pair,
            space: fresh.clone(),
            fresh,
            address: 0,
        }
    }

    fn enter(&mut self, situation: usize) {
        let function = self.pair.world.function();
        function.write_config(0x9c, &[0; 4]);
        for range in [
            4..6,
            0x10..0x18,
            WINDOW_BAR..WINDOW_BAR + 1,
            WINDOW_OFFSET..LEN,
        ] {
            let register = u16::try_from(range.start).unwrap();
            function.write_config(register, &self.fresh.bytes[range]);
        }
        self.pair.enter(&SITUATIONS[situation], situation % 2 == 1);
        self.space = self.fresh.clone();
        let control = self.pair.transport.control.to_le_bytes();
        self.space.bytes[MSIX_CONTROL + 1] = control[1];
        self.set_address(0);
    }

    fn set_address(&mut self, address: u32) {
        self.pair.world.ports.write(0xcf8, &address.to_le_bytes());
        self.address = address;
    }

    /// The register an access leads to, and how many of its bytes, from `skipped` on.
    fn target(&self, way: Way, offset: i64, width: usize) -> Option<(u64, usize, usize)> {
        match way {
            Way::Ecam => {
                let register = u64::try_from(offset).ok()?;
                let room = usize::try_from(FUNCTION_LEN.saturating_sub(register)).unwrap();
                (room > 0).then_some((register, 0, width.min(room)))
            }
            Way::Ports => {
                let skipped = usize::try_from((-offset).max(0)).unwrap();
                let start = offset.max(0);
                let room = usize::try_from((8 - start).max(0)).unwrap();
                let len = width.saturating_sub(skipped).min(room);
                let ours = self.address & 0x80ff_ff00 == 0x8000_0800;
                let byte = u64::try_from(start - 4).ok()?;
                let register = u64::from(self.address & 0xfc) + byte;
                (ours && len > 0).then_some((register, skipped, len))
            }
        }
    }

    fn access(&mut self, way: Way, offset: i64, write: Option<&[u8]>, width: usize) {
        let target = self.target(way, offset, width);
        let (bus, base) = match way {
            Way::Ecam => (self.pair.world.bus(), FUNCTION),
            Way::Ports => (&self.pair.world.ports, 0xcf8),
        };
        let at = base.wrapping_add_signed(offset);
        // The address port is 32 bits, and takes no less.
        let skipped = usize::try_from((-offset).max(0)).unwrap();
        let address = matches!(way, Way::Ports)
            && (offset == 0 && width == 4 || offset < 0 && width == skipped + 4);
        let mut behind = Behind(&mut self.pair.model, &mut self.pair.transport);
        if let Some(data) = write {
            bus.write(at, data);
            if address {
                self.address = u32::from_le_bytes(data[skipped..].try_into().unwrap());
            } else if let Some((register, skipped, len)) = target {
                let data = &data[skipped..skipped + len];
                self.space.write(&mut behind, register, data);
            }
            self.pair.settle();
        } else {
            let (mut data, mut expected) = ([0x5a; 16], [0xff; 16]);
            bus.read(at, &mut data[..width]);
            if address {
                expected[skipped..skipped + 4].copy_from_slice(&self.address.to_le_bytes());
            } else if let Some((register, skipped, len)) = target {
                let expected = &mut expected[skipped..skipped + len];
                self.space.read(&mut behind, register, expected);
            }
            assert_eq!(data[..width], expected[..width], "read");
        }
    }

    fn check(&mut self) {
        let function = self.pair.world.function();
        for range in [0..WINDOW_DATA, WINDOW_DATA + 4..LEN] {
            let mut bytes = vec![0; range.len()];
            function.read_config(u16::try_from(range.start).unwrap(), &mut bytes);
            assert_eq!(bytes, self.space.bytes[range]);
        }
        assert_eq!(
            function.memory().map(|bar| bar.base),
            self.space.memory(),
            "the memory's place"
        );
        let data = i64::try_from(WINDOW_DATA).unwrap();
        self.access(Way::Ecam, data, None, 4);
        self.pair.check();
    }

    /// All accesses to `offsets`, each from `situation` (made anew by `prepare`); says how many.
    fn sweep(
        &mut self,
        way: Way,
        situation: usize,
        offsets: std::ops::Range<i64>,
        prepare: &dyn Fn(&mut Self),
    ) -> u64 {
        let mut cases = 0;
        let all = super::WIDTHS.map(|width| (width, values(width, true)));
        let few = super::WIDTHS.map(|width| (width, values(width, false)));
        self.enter(situation);
        prepare(self);
        let mut before = self.memory();
        for offset in offsets {
            let near = offset < 0x110;
            for (width, values) in if near { &all } else { &few } {
                for write in std::iter::once(None).chain(values.iter().map(Some)) {
                    self.access(way, offset, write.map(Vec::as_slice), *width);
                    let refused = self.pair.state().refused_writes();
                    assert_eq!(refused, self.pair.model.refused, "refused");
                    before.1.refused = refused;
                    if before != self.memory() {
                        self.check();
                        self.enter(situation);
                        prepare(self);
                        before = self.memory();
                    }
                    cases += 1;
                }
            }
        }
        self.check();
        cases
    }

    /// Everything the model remembers.
    fn memory(&self) -> (Space, Model, Transport, u32) {
        (
            self.space.clone(),
            self.pair.model.clone(),
            self.pair.transport.clone(),
            self.address,
        )
    }
}

#[test]
fn configuration_space_is_as_the_model_in_every_status() {
    let mut sweep = Sweep::new();
    let end = i64::try_from(FUNCTION_LEN).unwrap() + 8;
    let cases: u64 = (0..SITUATIONS.len())
        .map(|situation| sweep.sweep(Way::Ecam, situation, -8..end, &|_| {}))
        .sum();
    report(&format!("{cases} configuration accesses on PCI by ECAM"));
}

#[test]
fn configuration_space_by_the_ports_is_as_the_model() {
    let mut sweep = Sweep::new();
    let registers = (0..0x40_u32).map(|register| 0x8000_0800 | register << 2);
    let others = [
        // Off, another bus, another device, another function; reserved bits; the last register.
        0x0000_0800,
        0x8001_0800,
        0x80ff_0800,
        0x8000_0000,
        0x8000_1000,
        0x8000_f800,
        0x8000_0900,
        0x8000_0f00,
        0xff00_0810,
        0x8000_0813,
        u32::MAX,
    ];
    let mut cases = 0;
    for (index, address) in registers.chain(others).enumerate() {
        let prepare = |sweep: &mut Sweep| sweep.set_address(address);
        cases += sweep.sweep(Way::Ports, index % SITUATIONS.len(), -8..16, &prepare);
    }
    report(&format!("{cases} configuration accesses on PCI by ports"));
}

#[test]
fn window_into_the_memory_is_as_the_model_in_every_status() {
    let mut sweep = Sweep::new();
    let mut cases = 0;
    // Each kind of register, and what is none.
    let places = [
        0x00,
        0x08,
        0x0c,
        0x10,
        0x14,
        0x16,
        0x18,
        0x1a,
        0x1c,
        0x20,
        0x24,
        0x30,
        0x1000,
        0x2000,
        0x2004,
        0x3000,
        0x300c,
        0x4000,
        0x5000,
        0x6000,
        0x6004,
        0x6014,
        0x7fff,
        0x7ffc,
        0x8000,
        u32::MAX,
    ];
    let widths = [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (8, 0),
        (4, 1),
        (4, 5),
    ];
    for situation in 0..SITUATIONS.len() {
        for place in places {
            for (width, bar) in widths {
                let prepare = |sweep: &mut Sweep| {
                    let mut set = |register: usize, data: &[u8]| {
                        let register = i64::try_from(register).unwrap();
                        sweep.access(Way::Ecam, register, Some(data), data.len());
                    };
                    set(WINDOW_BAR, &[bar]);
                    set(WINDOW_OFFSET, &u32::to_le_bytes(place));
                    set(WINDOW_LENGTH, &u32::to_le_bytes(width));
                };
                let data = i64::try_from(WINDOW_DATA).unwrap();
                // Beside its first byte: what touches the data in part.
                let offsets = if place == 0x14 && width == 1 && bar == 0 {
                    data - 1..data + 4
                } else {
                    data..data + 1
                };
                cases += sweep.sweep(Way::Ecam, situation, offsets, &prepare);
            }
        }
    }
    report(&format!(
        "{cases} accesses on PCI by the window in configuration space"
    ));
}

#[test]
fn memory_answers_where_it_was_moved_and_nowhere_else() {
    let mut sweep = Sweep::new();
    let bases = [
        WINDOW,
        WINDOW + BAR_LEN,
        BAR,
        WINDOW + WINDOW_LEN - BAR_LEN,
        WINDOW + WINDOW_LEN,
        WINDOW - BAR_LEN,
        0,
        ECAM,
        1 << 40,
        !(BAR_LEN - 1),
    ];
    let last = BAR_LEN - 16;
    let mut cases = 0;
    for base in bases {
        for command in [0_u8, 2, 4, 6] {
            sweep.enter(11);
            sweep.access(Way::Ecam, 0x10, Some(&base.to_le_bytes()), 8);
            sweep.access(Way::Ecam, 4, Some(&[command]), 1);
            sweep.check();
            let places = bases.into_iter().flat_map(|other| {
                let near = |start: u64, len: u64| {
                    (0..len).map(move |at| other.wrapping_add(start).wrapping_add(at))
                };
                near(8_u64.wrapping_neg(), 0x60).chain(near(last, 24))
            });
            for address in places {
                for width in super::WIDTHS {
                    // What is there beside this function is not asked here.
                    let end = address.wrapping_add(width as u64);
                    let here = |at: u64| at.checked_sub(WINDOW).is_some_and(|at| at < WINDOW_LEN);
                    if !here(address) || !here(end - 1) {
                        continue;
                    }
                    let (mut data, mut expected) = ([0; 16], [0xff; 16]);
                    let offset = sweep
                        .space
                        .memory()
                        .and_then(|base| address.checked_sub(base));
                    if let Some(offset) = offset.filter(|offset| *offset < BAR_LEN) {
                        let room = usize::try_from(BAR_LEN - offset).unwrap();
                        let (model, transport) = (&mut sweep.pair.model, &mut sweep.pair.transport);
                        let expected = &mut expected[..width.min(room)];
                        Pci::read(model, transport, offset, expected);
                    }
                    sweep.pair.world.bus().read(address, &mut data[..width]);
                    assert_eq!(
                        data[..width],
                        expected[..width],
                        "{address:#x}, {width} bytes"
                    );
                    cases += 1;
                }
            }
            sweep.check();
        }
    }
    report(&format!("{cases} accesses on PCI to memory that was moved"));
}
