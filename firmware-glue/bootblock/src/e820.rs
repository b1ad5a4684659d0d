//! The memory map, in the form that the BIOS call INT 15h, AX=E820h gave it its name.

use core::ops::Range;

use thiserror::Error;

use crate::list::List;

/// Bytes of an entry, in fw_cfg's `etc/e820` and in the zero page: base, length, type, without padding.
pub const ENTRY_SIZE: usize = 20;
/// Entries that the zero page has room for.
pub const MAX_ENTRIES: usize = 128;

/// What a range of addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u32);

impl Kind {
    /// Memory for any use.
    pub const RAM: Self = Self(1);
    /// Not to be used.
    pub const RESERVED: Self = Self(2);
    /// Holds ACPI tables; may be used once they were read.
    pub const ACPI: Self = Self(3);
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    pub base: u64,
    /// First address after it; above `base`.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
}

/// Why a memory map cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum E820Error {
    /// Not a whole number of entries.
    #[error(
        "The machine's memory map (fw_cfg etc/e820) has {len} bytes, which is no multiple of {ENTRY_SIZE}"
    )]
    Length {
        /// Its length in bytes.
        len: usize,
    },
    /// An entry goes past the end of the address space.
    #[error(
        "The machine's memory map has {len:#x} bytes at {base:#x}, past the end of the address space"
    )]
    Overflow {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Too many entries.
    #[error("The memory map has more than {MAX_ENTRIES} entries")]
    Full,
}

/// A memory map whose entries never overlap and are sorted.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    entries: List<Entry, MAX_ENTRIES>,
}

impl Default for Map {
    fn default() -> Self {
        Self::new()
    }
}

impl Map {
    /// A map that says nothing.
    pub const fn new() -> Self {
        Self {
            entries: List::new(Entry {
                base: 0,
                end: 0,
                // All zeros: a static map takes no room in flash.
                kind: Kind(0),
            }),
        }
    }

    /// Adds the entries of fw_cfg's `etc/e820`, in any order; a later one wins where they overlap.
    pub fn add_table(&mut self, table: &[u8]) -> Result<(), E820Error> {
        let (entries, rest) = table.as_chunks::<ENTRY_SIZE>();
        if !rest.is_empty() {
            return Err(E820Error::Length { len: table.len() });
        }
        for entry in entries {
            let [
                b0,
                b1,
                b2,
                b3,
                b4,
                b5,
                b6,
                b7,
                l0,
                l1,
                l2,
                l3,
                l4,
                l5,
                l6,
                l7,
                k0,
                k1,
                k2,
                k3,
            ] = *entry;
            let base = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
            let len = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
            let kind = Kind(u32::from_le_bytes([k0, k1, k2, k3]));
            let end = base
                .checked_add(len)
                .ok_or(E820Error::Overflow { base, len })?;
            self.set(base..end, kind)?;
        }
        Ok(())
    }

    /// Says that `range` is `kind`, whatever the map said before.
    pub fn set(&mut self, range: Range<u64>, kind: Kind) -> Result<(), E820Error> {
        if range.is_empty() {
            return Ok(());
        }
        let old = self.entries;
        self.entries.clear();
        let mut new = Some(Entry {
            base: range.start,
            end: range.end,
            kind,
        });
        for entry in old.iter().copied() {
            let before = Entry {
                end: entry.end.min(range.start),
                ..entry
            };
            let after = Entry {
                base: entry.base.max(range.end),
                ..entry
            };
            self.append(before)?;
            if entry.end > range.start
                && let Some(new) = new.take()
            {
                self.append(new)?;
            }
            self.append(after)?;
        }
        new.map_or(Ok(()), |new| self.append(new))
    }

    /// Says that the part of `range` that is RAM is `kind` from now on.
    pub fn set_ram(&mut self, range: Range<u64>, kind: Kind) -> Result<(), E820Error> {
        let old = self.entries;
        for entry in old.iter().filter(|entry| entry.kind == Kind::RAM) {
            let part = entry.base.max(range.start)..entry.end.min(range.end);
            self.set(part, kind)?;
        }
        Ok(())
    }

    /// All entries, in the order of addresses.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The ranges of RAM, in the order of addresses.
    pub fn ram(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.entries
            .iter()
            .filter(|entry| entry.kind == Kind::RAM)
            .map(|entry| entry.base..entry.end)
    }

    /// Bytes of RAM.
    pub fn total_ram(&self) -> u64 {
        self.ram().map(|range| range.end - range.start).sum()
    }

    /// First address after the last byte of RAM below `limit`; 0 if there is none.
    pub fn ram_end_below(&self, limit: u64) -> u64 {
        self.ram()
            .rfind(|range| range.start < limit)
            .map_or(0, |range| range.end.min(limit))
    }

    /// Adds an entry after all others, joined with the last if it continues it.
    fn append(&mut self, entry: Entry) -> Result<(), E820Error> {
        if entry.base >= entry.end {
            return Ok(());
        }
        if let Some(last) = self.entries.last_mut()
            && last.end == entry.base
            && last.kind == entry.kind
        {
            last.end = entry.end;
            return Ok(());
        }
        self.entries.push(entry).map_err(|_| E820Error::Full)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (base, len, kind) in entries {
            out.extend(base.to_le_bytes());
            out.extend(len.to_le_bytes());
            out.extend(kind.to_le_bytes());
        }
        out
    }

    #[test]
    fn holes_are_cut_out_of_ram() {
        let mut map = Map::new();
        map.add_table(&table(&[
            (1 << 32, 1 << 30, 1),
            (0, 1 << 31, 1),
            (0xfeff_c000, 0x4000, 2),
        ]))
        .unwrap();
        map.set(0xa_0000..0x10_0000, Kind::RESERVED).unwrap();
        let ram: Vec<_> = map.ram().collect();
        assert_eq!(ram, [0..0xa_0000, 0x10_0000..1 << 31, 1 << 32..5 << 30]);
        assert_eq!(map.ram_end_below(1 << 32), 1 << 31);
        assert_eq!(map.total_ram(), (3 << 30) - 0x6_0000);
    }

    #[test]
    fn neighbours_of_one_kind_are_joined() {
        let mut map = Map::new();
        map.set(0..10, Kind::RAM).unwrap();
        map.set(20..30, Kind::RAM).unwrap();
        map.set(10..20, Kind::RAM).unwrap();
        assert_eq!(map.entries().len(), 1);
        assert_eq!(map.ram().next(), Some(0..30));
    }

    #[test]
    fn only_ram_becomes_reserved() {
        let mut map = Map::new();
        map.set(10..20, Kind::RAM).unwrap();
        map.set_ram(0..15, Kind::ACPI).unwrap();
        assert_eq!(
            map.entries()[0],
            Entry {
                base: 10,
                end: 15,
                kind: Kind::ACPI
            }
        );
        assert_eq!(map.ram().next(), Some(15..20));
    }

    #[test]
    fn malformed_tables_are_refused() {
        let mut map = Map::new();
        assert_eq!(map.add_table(&[0; 21]), Err(E820Error::Length { len: 21 }));
        let entry = table(&[(u64::MAX, 2, 1)]);
        assert_eq!(
            map.add_table(&entry),
            Err(E820Error::Overflow {
                base: u64::MAX,
                len: 2
            })
        );
    }

    #[test]
    fn too_many_entries_are_refused() {
        let mut map = Map::new();
        let result = (0..1000u64).try_for_each(|i| map.set(i * 2..i * 2 + 1, Kind::RAM));
        assert_eq!(result, Err(E820Error::Full));
    }

    proptest! {
        #[test]
        fn the_last_word_on_each_address_counts(
            ranges in prop::collection::vec((0usize..64, 0usize..64, 1u32..4), 0..30)
        ) {
            let mut map = Map::new();
            let mut model = [0u32; 64];
            for (from, to, kind) in ranges {
                map.set(from as u64..to as u64, Kind(kind)).unwrap();
                if from < to {
                    model[from..to].fill(kind);
                }
            }
            for (address, kind) in (0u64..).zip(model) {
                let found = map.entries().iter().find(|e| (e.base..e.end).contains(&address));
                prop_assert_eq!(found.map_or(0, |e| e.kind.0), kind);
            }
            prop_assert!(map.entries().windows(2).all(|w| w[0].end <= w[1].base));
        }
    }
}
