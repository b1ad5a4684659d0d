//! Giving addresses to base address registers and bridge windows.
//!
//! From the leaves to the root every bus adds up what it needs; then from the root to the leaves everything gets its place.
//! On each bus the largest alignment comes first, so that no space is lost between.

use core::ops::Range;

use super::{
    COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, Config, Function, Inventory, PciError, register,
};
use crate::list::List;
use crate::memory::halves;

/// Base address registers and bridge windows that fit.
pub(super) const MAX_ITEMS: usize = 512;

/// Granularity of bridge windows in bytes (PCI-to-PCI Bridge 1.2 §3.2.5.6, §3.2.5.8).
const IO_WINDOW_GRANULE: u64 = 4 << 10;
const MEMORY_WINDOW_GRANULE: u64 = 1 << 20;

/// The addresses that PCI devices may be given.
#[derive(Clone, Debug)]
pub struct Windows {
    /// I/O ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub memory: Range<u64>,
    /// Memory above 4 GiB, for 64-bit registers that do not fit below.
    pub high: Range<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Io,
    Memory,
    Prefetch,
}

const KINDS: [Kind; 3] = [Kind::Io, Kind::Memory, Kind::Prefetch];

#[derive(Clone, Copy, Debug)]
enum Owner {
    /// The register at this offset; `wide` if the next one holds bits 32 and up.
    Bar { register: u16, wide: bool },
    /// The window of a bridge to this bus.
    Window { secondary: u8 },
}

#[derive(Clone, Copy, Debug)]
struct Item {
    function: usize,
    bus: u8,
    owner: Owner,
    kind: Kind,
    size: u64,
    align: u64,
    /// Whether it may lie above 4 GiB.
    high: bool,
    /// From the start of its window at first, then an address. `None` if there was no room.
    base: Option<u64>,
    /// Already has its place in this turn.
    placed: bool,
}

type Items = List<Item, MAX_ITEMS>;

/// Gives addresses to all functions, writes them, and lets the functions answer to them. Returns the number of registers and
/// windows for which there was no room; their functions stay disabled, and Linux may still find them room.
pub fn assign(
    config: &mut impl Config,
    found: &Inventory,
    windows: &Windows,
) -> Result<usize, PciError> {
    let mut items = Items::new(Item {
        function: 0,
        bus: 0,
        owner: Owner::Window { secondary: 0 },
        kind: Kind::Io,
        size: 0,
        align: 1,
        high: false,
        base: None,
        placed: false,
    });
    for (index, function) in found.iter().enumerate() {
        size_registers(config, &mut items, index, function)?;
    }
    // A bridge comes before everything behind it, so backwards the inner windows are complete before the outer ones.
    for (index, function) in found.iter().enumerate().rev() {
        if let Some(secondary) = function.secondary {
            add_windows(config, &mut items, index, function, secondary)?;
        }
    }
    place_root(&mut items, windows);
    for function in found.iter() {
        if let Some(secondary) = function.secondary {
            move_children(&mut items, secondary);
        }
    }
    program(config, found, &items);
    Ok(items.iter().filter(|item| item.base.is_none()).count())
}

/// Finds the size of each register by writing all ones (PCI 3.0 §6.2.5.1), with the function not answering meanwhile.
fn size_registers(
    config: &mut impl Config,
    items: &mut Items,
    index: usize,
    function: &Function,
) -> Result<(), PciError> {
    let at = function.address;
    let command = config.read16(at, register::COMMAND);
    config.write16(
        at,
        register::COMMAND,
        command & !(COMMAND_IO | COMMAND_MEMORY),
    );
    let count = match config.read8(at, register::HEADER_TYPE) & 0x7f {
        0 => 6,
        1 => 2,
        _ => 0,
    };
    let mut number = 0;
    while number < count {
        let register = register::BAR0 + 4 * number;
        number += 1;
        let low = probe(config, function, register);
        if low == 0 {
            continue;
        }
        let (kind, wide, mask) = if low & 1 != 0 {
            // Devices may leave the upper half of an I/O register at 0.
            (Kind::Io, false, u64::from(low & !3) | !0xffff)
        } else {
            let wide = low & 6 == 4 && number < count;
            let high = if wide {
                number += 1;
                probe(config, function, register + 4)
            } else {
                u32::MAX
            };
            let kind = if low & 8 != 0 {
                Kind::Prefetch
            } else {
                Kind::Memory
            };
            (kind, wide, u64::from(high) << 32 | u64::from(low & !15))
        };
        // The lowest bit that can be set is the size.
        let size = mask & mask.wrapping_neg();
        if size == 0 {
            continue;
        }
        push(
            items,
            Item {
                function: index,
                bus: at.bus,
                owner: Owner::Bar { register, wide },
                kind,
                size,
                align: size,
                high: wide && kind == Kind::Prefetch,
                base: None,
                placed: false,
            },
        )?;
    }
    Ok(())
}

fn probe(config: &mut impl Config, function: &Function, register: u16) -> u32 {
    config.write32(function.address, register, u32::MAX);
    let value = config.read32(function.address, register);
    config.write32(function.address, register, 0);
    value
}

/// Adds the windows that a bridge needs for what is behind it.
fn add_windows(
    config: &mut impl Config,
    items: &mut Items,
    index: usize,
    bridge: &Function,
    secondary: u8,
) -> Result<(), PciError> {
    let wide_prefetch = config.read16(bridge.address, register::PREFETCH_WINDOW) & 0xf == 1;
    for kind in KINDS {
        let Some(content) = stack(items, secondary, kind) else {
            continue;
        };
        let granule = match kind {
            Kind::Io => IO_WINDOW_GRANULE,
            Kind::Memory | Kind::Prefetch => MEMORY_WINDOW_GRANULE,
        };
        let all_high = inside(items, secondary, kind).all(|item| item.high);
        push(
            items,
            Item {
                function: index,
                bus: bridge.address.bus,
                owner: Owner::Window { secondary },
                kind,
                size: content
                    .size
                    .checked_next_multiple_of(granule)
                    .unwrap_or(u64::MAX),
                align: content.align.max(granule),
                high: wide_prefetch && all_high,
                base: None,
                placed: false,
            },
        )?;
    }
    Ok(())
}

struct Content {
    size: u64,
    align: u64,
}

/// Stacks all items of one kind on one bus from 0 upward; `None` if there are none.
fn stack(items: &mut Items, bus: u8, kind: Kind) -> Option<Content> {
    let mut content = Content { size: 0, align: 0 };
    while let Some(item) = next(items, |item| item.bus == bus && item.kind == kind) {
        let base = content.size.checked_next_multiple_of(item.align);
        let end = base.and_then(|base| base.checked_add(item.size));
        content.align = content.align.max(item.align);
        if let Some(end) = end {
            item.base = base;
            content.size = end;
        }
    }
    (content.align != 0).then_some(content)
}

/// Gives the items of bus 0 their addresses. Those that must lie below 4 GiB choose first.
fn place_root(items: &mut Items, windows: &Windows) {
    let mut io = windows.io.clone();
    let mut memory = windows.memory.clone();
    let mut high = windows.high.clone();
    while let Some(item) = next(items, |item| item.bus == 0 && item.kind == Kind::Io) {
        item.base = take(&mut io, item);
    }
    for may_be_high in [false, true] {
        while let Some(item) = next(items, |item| item.bus == 0 && item.high == may_be_high) {
            item.base = take(&mut memory, item);
            if item.base.is_none() && may_be_high {
                item.base = take(&mut high, item);
            }
        }
    }
}

fn take(free: &mut Range<u64>, item: &Item) -> Option<u64> {
    let base = free.start.checked_next_multiple_of(item.align)?;
    let end = base.checked_add(item.size)?;
    if end > free.end {
        return None;
    }
    free.start = end;
    Some(base)
}

/// Moves everything on bus `secondary` from offsets in its window to addresses.
fn move_children(items: &mut Items, secondary: u8) {
    for kind in KINDS {
        let window = items.iter().find(|item| {
            item.kind == kind
                && matches!(item.owner, Owner::Window { secondary: s } if s == secondary)
        });
        let start = window.and_then(|window| window.base);
        for item in items.iter_mut() {
            if item.bus == secondary && item.kind == kind {
                item.base = item
                    .base
                    .zip(start)
                    .and_then(|(base, start)| base.checked_add(start));
            }
        }
    }
}

/// Writes all addresses, closes the windows nobody needs, and enables what has all its addresses.
fn program(config: &mut impl Config, found: &Inventory, items: &Items) {
    for function in found.iter().filter(|function| function.secondary.is_some()) {
        for kind in KINDS {
            set_window(config, function, kind, None);
        }
    }
    for item in items.iter() {
        let (Some(base), Some(function)) = (item.base, found.get(item.function)) else {
            continue;
        };
        match item.owner {
            Owner::Bar { register, wide } => {
                config.write32(function.address, register, low(base));
                if wide {
                    config.write32(function.address, register + 4, low(base >> 32));
                }
            }
            Owner::Window { .. } => {
                set_window(config, function, item.kind, Some(base..base + item.size));
            }
        }
    }
    for (index, function) in found.iter().enumerate() {
        let mut command = config.read16(function.address, register::COMMAND);
        if function.secondary.is_some() {
            command |= COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER;
        }
        let mut own = items.iter().filter(|item| item.function == index);
        if own.clone().all(|item| item.base.is_some()) {
            if own.clone().any(|item| item.kind == Kind::Io) {
                command |= COMMAND_IO;
            }
            if own.any(|item| item.kind != Kind::Io) {
                command |= COMMAND_MEMORY;
            }
        }
        config.write16(function.address, register::COMMAND, command);
    }
}

/// Opens a bridge's window for `range`, or closes it: a base above its limit.
fn set_window(config: &mut impl Config, bridge: &Function, kind: Kind, range: Option<Range<u64>>) {
    let closed = MEMORY_WINDOW_GRANULE..MEMORY_WINDOW_GRANULE;
    let range = range.unwrap_or(closed);
    let (base, limit) = (range.start, range.end.saturating_sub(1));
    let at = bridge.address;
    // Base in the low half, limit in the high half; each holds the bits from 12 (I/O) or 20 (memory) on.
    let memory = low(base >> 16) & 0xfff0 | low(limit >> 16 << 16) & 0xfff0_0000;
    match kind {
        Kind::Io => {
            // A closed window has base 0xF000 and limit 0x0FFF.
            let (base, limit) = if base >= limit {
                (0xf000, 0x0fff)
            } else {
                (base, limit)
            };
            let window = low(base >> 8) & 0xf0 | low(limit) & 0xf000;
            // Two writes of 8 bits: the upper half of this word is the status register, cleared by ones.
            let [base8, limit8, ..] = window.to_le_bytes();
            config.write8(at, register::IO_WINDOW, base8);
            config.write8(at, register::IO_WINDOW + 1, limit8);
            config.write32(at, register::IO_UPPER, 0);
        }
        Kind::Memory => config.write32(at, register::MEMORY_WINDOW, memory),
        Kind::Prefetch => {
            config.write32(at, register::PREFETCH_WINDOW, memory);
            config.write32(at, register::PREFETCH_UPPER, low(base >> 32));
            config.write32(at, register::PREFETCH_UPPER + 4, low(limit >> 32));
        }
    }
}

fn inside(items: &Items, bus: u8, kind: Kind) -> impl Iterator<Item = &Item> {
    items
        .iter()
        .filter(move |item| item.bus == bus && item.kind == kind)
}

/// The item that comes next among those `wanted`: the one with the largest alignment, then the first.
fn next(items: &mut Items, wanted: impl Fn(&Item) -> bool) -> Option<&mut Item> {
    let (_, index) = items
        .iter()
        .enumerate()
        .filter(|(_, item)| !item.placed && wanted(item))
        .map(|(index, item)| (item.align, usize::MAX - index))
        .max()?;
    let item = items.get_mut(usize::MAX - index)?;
    item.placed = true;
    Some(item)
}

fn push(items: &mut Items, item: Item) -> Result<(), PciError> {
    items.push(item).map_err(|_| PciError::TooManyResources)
}

/// The low 32 bits.
fn low(value: u64) -> u32 {
    halves(value)[1]
}
