use proptest::prelude::*;

use super::*;

/// A function of a modelled PCI tree. Bus numbers mean what the bridges' registers say, as in hardware.
#[derive(Clone, Debug, Default)]
struct Node {
    registers: Vec<u8>,
    /// For each base address register: bits that can be set, and the read-only low bits.
    bars: Vec<(u32, u32)>,
    children: Vec<(u8, u8, Node)>,
}

fn device(bars: &[(u32, u32)]) -> Node {
    let mut registers = vec![0; 64];
    registers[..4].copy_from_slice(&0x1234_1af4u32.to_le_bytes());
    Node {
        registers,
        bars: bars.to_vec(),
        children: Vec::new(),
    }
}

fn bridge(children: Vec<(u8, u8, Node)>) -> Node {
    let mut node = device(&[]);
    node.registers[0x0e] = 1;
    node.registers[0x24] = 1;
    node.children = children;
    node
}

fn memory(size: u32) -> (u32, u32) {
    (!(size - 1), 0)
}

fn io(size: u32) -> (u32, u32) {
    (!(size - 1), 1)
}

/// A prefetchable 64-bit register: two entries.
fn wide(size: u64) -> [(u32, u32); 2] {
    let mask = !(size - 1);
    let [high, low] = crate::memory::halves(mask);
    [(low, 0xc), (high, 0)]
}

struct Tree(Vec<(u8, u8, Node)>);

impl Tree {
    fn node(&mut self, at: Address) -> Option<&mut Node> {
        fn behind(children: &mut [(u8, u8, Node)], bus: u8) -> Option<&mut [(u8, u8, Node)]> {
            for (_, _, node) in children {
                let (secondary, last) = (node.registers[0x19], node.registers[0x1a]);
                if node.registers[0x0e] & 0x7f == 1
                    && secondary != 0
                    && (secondary..=last).contains(&bus)
                {
                    if secondary == bus {
                        return Some(&mut node.children);
                    }
                    return behind(&mut node.children, bus);
                }
            }
            None
        }
        let bus = if at.bus == 0 {
            Some(&mut self.0[..])
        } else {
            behind(&mut self.0, at.bus)
        };
        bus?.iter_mut()
            .find(|(device, function, _)| (*device, *function) == (at.device, at.function))
            .map(|(_, _, node)| node)
    }
}

impl Config for Tree {
    fn read8(&mut self, at: Address, register: u16) -> u8 {
        self.node(at)
            .map_or(0xff, |node| node.registers[usize::from(register)])
    }

    fn read16(&mut self, at: Address, register: u16) -> u16 {
        u16::from_le_bytes([self.read8(at, register), self.read8(at, register + 1)])
    }

    fn read32(&mut self, at: Address, register: u16) -> u32 {
        u32::from(self.read16(at, register)) | u32::from(self.read16(at, register + 2)) << 16
    }

    fn write8(&mut self, at: Address, register: u16, value: u8) {
        if let Some(node) = self.node(at) {
            node.registers[usize::from(register)] = value;
        }
    }

    fn write16(&mut self, at: Address, register: u16, value: u16) {
        for (offset, byte) in (0..).zip(value.to_le_bytes()) {
            self.write8(at, register + offset, byte);
        }
    }

    fn write32(&mut self, at: Address, register: u16, value: u32) {
        let Some(node) = self.node(at) else { return };
        let header = node.registers[0x0e] & 0x7f;
        let bars = if header == 1 { 0x10..0x18 } else { 0x10..0x28 };
        let value = if bars.contains(&register) {
            let (mask, low) = node
                .bars
                .get(usize::from(register - 0x10) / 4)
                .copied()
                .unwrap_or_default();
            value & mask | low
        } else if header == 1 && register == 0x24 {
            value & 0xfff0_fff0 | 0x0001_0001
        } else {
            value
        };
        let at = usize::from(register);
        node.registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

fn windows() -> Windows {
    Windows {
        io: 0x1000..0x1_0000,
        memory: 0xc000_0000..0xfec0_0000,
        high: 0x1_0000_0000..0x80_0000_0000,
    }
}

fn set_up(tree: &mut Tree) -> (Inventory, usize) {
    let found = scan(tree).unwrap();
    let missing = assign(tree, &found, &windows()).unwrap();
    (found, missing)
}

/// Start and end of each register of all functions that answer, and whether it is I/O.
fn assigned(tree: &mut Tree, found: &Inventory) -> Vec<(Address, u64, u64, bool)> {
    let mut out = Vec::new();
    for function in found.iter() {
        let at = function.address;
        let command = tree.read16(at, register::COMMAND);
        let bars = tree.node(at).unwrap().bars.clone();
        let mut index = 0;
        while index < bars.len() {
            let (mask, low) = bars[index];
            let register = 0x10 + 4 * u16::try_from(index).unwrap();
            index += 1;
            let mut value = u64::from(tree.read32(at, register) & mask);
            let mut mask = u64::from(mask) | !0xffff_ffff;
            if low & 6 == 4 && low & 1 == 0 {
                value |= u64::from(tree.read32(at, register + 4)) << 32;
                mask = mask & 0xffff_ffff | u64::from(bars[index].0) << 32;
                index += 1;
            }
            let is_io = low & 1 == 1;
            let answers = command & if is_io { COMMAND_IO } else { COMMAND_MEMORY } != 0;
            let size = mask & mask.wrapping_neg();
            if answers {
                out.push((at, value, value + size, is_io));
            }
        }
    }
    out
}

#[test]
fn buses_are_numbered_depth_first() {
    let mut tree = Tree(vec![
        (
            1,
            0,
            bridge(vec![(0, 0, bridge(vec![(3, 0, device(&[]))]))]),
        ),
        (2, 0, bridge(vec![(0, 0, device(&[]))])),
    ]);
    let found = scan(&mut tree).unwrap();
    let buses: Vec<_> = found
        .iter()
        .map(|f| (f.address.bus, f.secondary, f.swizzle))
        .collect();
    assert_eq!(
        buses,
        [
            (0, Some(1), 0),
            (1, Some(2), 1),
            (2, None, 1),
            (0, Some(3), 0),
            (3, None, 2)
        ]
    );
    assert_eq!(tree.read8(found[0].address, 0x1a), 2);
    assert_eq!(tree.read8(found[3].address, 0x1a), 3);
}

#[test]
fn functions_of_one_device_are_all_found() {
    let mut multi = device(&[]);
    multi.registers[0x0e] = 0x80;
    let mut tree = Tree(vec![
        (31, 0, multi),
        (31, 2, device(&[])),
        (31, 3, device(&[])),
        (5, 1, device(&[])),
    ]);
    assert_eq!(scan(&mut tree).unwrap().len(), 3);
}

#[test]
fn registers_get_aligned_places_and_the_devices_answer() {
    let [low, high] = wide(0x4000);
    let mut tree = Tree(vec![
        (1, 0, device(&[memory(0x100_0000), (0, 0), memory(0x1000)])),
        (
            2,
            0,
            device(&[io(0x80), memory(0x1000), (0, 0), (0, 0), low, high]),
        ),
    ]);
    let (found, missing) = set_up(&mut tree);
    assert_eq!(missing, 0);
    let assigned = assigned(&mut tree, &found);
    assert!(assigned.contains(&(Address::on_root(1, 0), 0xc000_0000, 0xc100_0000, false)));
    assert!(assigned.contains(&(Address::on_root(2, 0), 0x1000, 0x1080, true)));
    assert!(
        assigned.contains(&(Address::on_root(2, 0), 0xc100_0000, 0xc100_4000, false))
            || assigned.contains(&(Address::on_root(2, 0), 0xc100_4000, 0xc100_8000, false)),
        "{assigned:x?}"
    );
}

#[test]
fn a_large_prefetchable_register_goes_above_4_gib_behind_a_bridge() {
    let bars = wide(8 << 30);
    let mut tree = Tree(vec![(4, 0, bridge(vec![(0, 0, device(&bars))]))]);
    let (found, missing) = set_up(&mut tree);
    assert_eq!(missing, 0);
    let at = found[1].address;
    assert_eq!(tree.read32(at, 0x14), 2);
    assert_eq!(tree.read32(at, 0x10) & !0xf, 0);
    assert_eq!(tree.read32(found[0].address, 0x28), 2);
    assert_eq!(tree.read32(found[0].address, 0x2c), 3);
    assert_eq!(tree.read32(found[0].address, 0x24), 0xfff1_0001);
}

#[test]
fn windows_nobody_needs_are_closed() {
    let mut tree = Tree(vec![(4, 0, bridge(vec![]))]);
    let (found, _) = set_up(&mut tree);
    let at = found[0].address;
    assert_eq!(tree.read16(at, 0x1c), 0x00f0);
    assert_eq!(tree.read32(at, 0x20), 0x0000_0010);
    assert_eq!(tree.read32(at, 0x24), 0x0001_0011);
}

#[test]
fn what_does_not_fit_stays_disabled() {
    let mut tree = Tree(vec![
        (1, 0, device(&[memory(0x8000_0000)])),
        (2, 0, device(&[memory(0x1000)])),
    ]);
    let (found, missing) = set_up(&mut tree);
    assert_eq!(missing, 1);
    assert_eq!(assigned(&mut tree, &found).len(), 1);
}

#[test]
fn bridges_without_end_are_refused() {
    let mut node = device(&[]);
    for _ in 0..20 {
        node = bridge(vec![(0, 0, node)]);
    }
    assert!(matches!(
        scan(&mut Tree(vec![(0, 0, node)])),
        Err(PciError::TooDeep { .. })
    ));
    let many: Vec<_> = (0..32)
        .map(|d| (d, 0, bridge(vec![(0, 0, bridge(vec![]))])))
        .collect();
    let wide: Vec<_> = (0..8).map(|d| (d, 0, bridge(many.clone()))).collect();
    assert!(matches!(
        scan(&mut Tree(wide)),
        Err(PciError::NoBuses { .. } | PciError::TooManyFunctions)
    ));
}

fn any_tree() -> impl Strategy<Value = Node> {
    let bar = prop_oneof![
        (2u32..10).prop_map(|bits| vec![io(1 << bits)]),
        (4u32..26).prop_map(|bits| vec![memory(1 << bits)]),
        (4u32..36).prop_map(|bits| wide(1 << bits).to_vec()),
    ];
    let leaf = prop::collection::vec(bar, 0..3).prop_map(|bars| device(&bars.concat()));
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(|children| {
            bridge(
                (0..)
                    .zip(children)
                    .map(|(device, node)| (device, 0, node))
                    .collect(),
            )
        })
    })
}

proptest! {
    #[test]
    fn no_two_registers_overlap_and_all_lie_in_their_bridges(nodes in prop::collection::vec(any_tree(), 1..6)) {
        let mut tree = Tree((0..).zip(nodes).map(|(device, node)| (device, 0, node)).collect());
        let (found, _) = set_up(&mut tree);
        let all = assigned(&mut tree, &found);
        let limits = windows();
        for (index, (at, start, end, is_io)) in all.iter().enumerate() {
            prop_assert_eq!(start % (end - start), 0);
            let inside = |range: &core::ops::Range<u64>| range.start <= *start && *end <= range.end;
            let right_place = if *is_io { inside(&limits.io) } else { inside(&limits.memory) || inside(&limits.high) };
            prop_assert!(right_place);
            for (_, other_start, other_end, other_io) in &all[index + 1..] {
                prop_assert!(is_io != other_io || end <= other_start || other_end <= start);
            }
            // The bridge to the register's bus passes it on.
            for bridge in found.iter().filter(|f| f.secondary == Some(at.bus)) {
                let io = tree.read16(bridge.address, 0x1c);
                let memory = tree.read32(bridge.address, 0x20);
                let prefetch = tree.read32(bridge.address, 0x24);
                let upper = (tree.read32(bridge.address, 0x28), tree.read32(bridge.address, 0x2c));
                let passes_io = u64::from(io & 0xf0) << 8 <= *start && *end <= (u64::from(io & 0xf000) | 0xfff) + 1;
                let window = |low: u32, upper: (u32, u32)| {
                    let base = u64::from(upper.0) << 32 | u64::from(low & 0xfff0) << 16;
                    let limit = u64::from(upper.1) << 32 | u64::from(low & 0xfff0_0000) | 0xf_ffff;
                    base <= *start && *end <= limit + 1
                };
                let passes = if *is_io { passes_io } else { window(memory, (0, 0)) || window(prefetch, upper) };
                prop_assert!(passes);
            }
        }
    }
}
