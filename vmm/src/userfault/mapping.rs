//! What a VMM says of its memory to the program that serves it: Firecracker's words.

use serde::{Deserialize, Serialize};

use super::PAGE;

/// One region of a guest's memory. The message is a JSON array of them, and the userfaultfd comes with it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// Where it is in the VMM.
    pub base_host_virt_addr: u64,
    /// Its bytes.
    pub size: u64,
    /// Where it begins in the snapshot's memory: all regions one after the other.
    pub offset: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// The same, by the name that it had in older versions. In bytes, whatever the name says.
    #[serde(default)]
    pub page_size_kib: u64,
}

impl Mapping {
    /// A region of `size` bytes at `base`, whose contents are from `offset` on.
    pub fn new(base: u64, size: u64, offset: u64) -> Self {
        Self {
            base_host_virt_addr: base,
            size,
            offset,
            page_size: PAGE,
            page_size_kib: PAGE,
        }
    }
}

/// Why mappings cannot be served.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum MappingError {
    #[error("The VMM has {found} regions of memory, permitted are 1 to {MAX_MAPPINGS}")]
    Count { found: usize },
    #[error(
        "The VMM's region of {size} bytes at {base:#x}, offset {offset:#x}, is not of whole pages of {PAGE} bytes"
    )]
    Alignment { base: u64, size: u64, offset: u64 },
    #[error("The VMM's region has pages of {found} bytes, only {PAGE} can be served")]
    PageSize { found: u64 },
    #[error(
        "The VMM's region of {size} bytes at {base:#x} reaches beyond the end of the address space"
    )]
    Address { base: u64, size: u64 },
    #[error("Two of the VMM's regions have the address {base:#x}")]
    Overlap { base: u64 },
    #[error(
        "The VMM's regions leave out or repeat what is at {offset:#x} of the snapshot's memory, which has {expected} bytes"
    )]
    Cover { offset: u64, expected: u64 },
}

/// Most regions: a guest of ours has two.
const MAX_MAPPINGS: usize = 64;

/// Where the pages of a snapshot's memory are in a VMM, which is not trusted.
#[derive(Debug)]
pub struct Places {
    /// By their offsets, which have neither gaps nor overlaps.
    mappings: Vec<Mapping>,
    len: u64,
}

impl Places {
    /// All of `mappings` together are the `len` bytes of a snapshot's memory.
    ///
    /// # Errors
    /// They are not.
    pub fn new(mut mappings: Vec<Mapping>, len: u64) -> Result<Self, MappingError> {
        let found = mappings.len();
        if !(1..=MAX_MAPPINGS).contains(&found) {
            return Err(MappingError::Count { found });
        }
        for mapping in &mappings {
            let Mapping {
                base_host_virt_addr: base,
                size,
                offset,
                page_size,
                ..
            } = *mapping;
            if page_size != PAGE {
                return Err(MappingError::PageSize { found: page_size });
            }
            if size == 0 || [base, size, offset].iter().any(|at| at % PAGE != 0) {
                return Err(MappingError::Alignment { base, size, offset });
            }
            if base.checked_add(size).is_none() {
                return Err(MappingError::Address { base, size });
            }
        }
        mappings.sort_unstable_by_key(|mapping| mapping.base_host_virt_addr);
        let mut end = 0;
        for mapping in &mappings {
            let base = mapping.base_host_virt_addr;
            if base < end {
                return Err(MappingError::Overlap { base });
            }
            end = base + mapping.size;
        }
        mappings.sort_unstable_by_key(|mapping| mapping.offset);
        let mut covered: u64 = 0;
        for mapping in &mappings {
            let wrong = MappingError::Cover {
                offset: covered.min(mapping.offset),
                expected: len,
            };
            if mapping.offset != covered || mapping.size > len - covered {
                return Err(wrong);
            }
            covered += mapping.size;
        }
        if covered != len {
            return Err(MappingError::Cover {
                offset: covered,
                expected: len,
            });
        }
        Ok(Self { mappings, len })
    }

    /// Bytes of all.
    #[expect(
        clippy::len_without_is_empty,
        reason = "there is no memory without bytes"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Which offset is at `address`.
    pub fn offset(&self, address: u64) -> Option<u64> {
        self.mappings.iter().find_map(|mapping| {
            let inside = address.checked_sub(mapping.base_host_virt_addr)?;
            (inside < mapping.size).then(|| mapping.offset + inside)
        })
    }

    /// At which address `offset` is.
    pub fn address(&self, offset: u64) -> Option<u64> {
        self.mappings.iter().find_map(|mapping| {
            let inside = offset.checked_sub(mapping.offset)?;
            (inside < mapping.size).then(|| mapping.base_host_virt_addr + inside)
        })
    }

    /// The offsets of those pages that touch `addresses`, as ranges.
    pub fn offsets(
        &self,
        addresses: &std::ops::Range<u64>,
    ) -> impl Iterator<Item = std::ops::Range<u64>> {
        let (start, end) = (addresses.start, addresses.end);
        self.mappings.iter().filter_map(move |mapping| {
            let base = mapping.base_host_virt_addr;
            let first = start.max(base) & !(PAGE - 1);
            let last = end.min(base + mapping.size);
            let place = |address: u64| address - base + mapping.offset;
            (first < last).then(|| place(first)..place(last).next_multiple_of(PAGE))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_message_is_firecrackers() {
        let text = serde_json::to_string(&[Mapping::new(0x7f00_0000_0000, 0x20_0000, 0)]).unwrap();
        assert_eq!(
            text,
            r#"[{"base_host_virt_addr":139637976727552,"size":2097152,"offset":0,"page_size":4096,"page_size_kib":4096}]"#
        );
        // An older or newer one says less or more.
        let other =
            r#"[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096,"more":1}]"#;
        let mappings: Vec<Mapping> = serde_json::from_str(other).unwrap();
        assert_eq!(mappings[0].page_size_kib, 0);
        Places::new(mappings, 4096).unwrap();
    }

    #[test]
    fn regions_that_are_not_the_snapshots_memory_are_refused_with_the_reason() {
        let region = |base: u64, size: u64, offset: u64| {
            Mapping::new(base * PAGE, size * PAGE, offset * PAGE)
        };
        let error = |mappings: &[Mapping]| {
            Places::new(mappings.to_vec(), 8 * PAGE)
                .unwrap_err()
                .to_string()
        };
        for (mappings, expected) in [
            (&[][..], "has 0 regions"),
            (&[region(1, 1, 0); 65], "has 65 regions"),
            (&[region(1, 7, 0)], "at 0x7000"),
            (&[region(1, 9, 0)], "at 0x0"),
            (&[region(1, 4, 0), region(9, 4, 3)], "at 0x3000"),
            (&[region(1, 4, 0), region(9, 4, 5)], "at 0x4000"),
            (&[region(1, 4, 0), region(2, 4, 4)], "address 0x2000"),
            (&[region(1, 0, 0), region(1, 8, 0)], "whole pages"),
            (&[Mapping::new(1, 8 * PAGE, 0)], "whole pages"),
            (
                &[Mapping::new(0_u64.wrapping_sub(PAGE), 8 * PAGE, 0)],
                "end of the address space",
            ),
        ] {
            let error = error(mappings);
            assert!(error.contains(expected), "{mappings:?}: {error}");
        }
        let mut huge = region(1, 8, 0);
        huge.page_size = 2 << 20;
        assert!(error(&[huge]).contains("2097152"));
    }

    proptest! {
        #[test]
        fn whatever_is_said_places_are_inside_or_nowhere(
            mappings in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..5),
            bits in 12..64_u32,
            len in any::<u64>(),
            asked in any::<u64>(),
            until in any::<u64>(),
        ) {
            let mask = u64::MAX >> (64 - bits) & !(PAGE - 1);
            let mappings = mappings
                .into_iter()
                .map(|(base, size, offset)| Mapping::new(base & mask, size & mask, offset & mask))
                .collect();
            if let Ok(places) = Places::new(mappings, len) {
                if let Some(offset) = places.offset(asked) {
                    prop_assert!(offset < len);
                }
                for range in places.offsets(&(asked..until)) {
                    prop_assert!(range.start < range.end && range.end <= len);
                }
            }
        }

        #[test]
        fn each_page_has_one_address_and_the_other_way_round(
            sizes in prop::collection::vec((1..20_u64, 0..5_u64), 1..6),
            page in any::<prop::sample::Index>(),
        ) {
            let (mut base, mut offset) = (PAGE, 0);
            let mut mappings = Vec::new();
            for (size, gap) in sizes {
                mappings.push(Mapping::new(base, size * PAGE, offset));
                base += (size + gap) * PAGE;
                offset += size * PAGE;
            }
            mappings.reverse();
            let places = Places::new(mappings, offset).unwrap();
            let pages = usize::try_from(offset / PAGE).unwrap();
            let at = page.index(pages) as u64 * PAGE;
            let address = places.address(at).unwrap();
            prop_assert_eq!(places.offset(address + 17), Some(at + 17));
            let all: Vec<_> = places.offsets(&(address..address + 1)).collect();
            prop_assert_eq!(all, vec![at..at + PAGE]);
            let all = places.offsets(&(0..u64::MAX)).map(|all| all.end - all.start);
            prop_assert_eq!(all.sum::<u64>(), offset);
        }
    }
}
