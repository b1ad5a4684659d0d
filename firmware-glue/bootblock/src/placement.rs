//! Where kernel and initramfs go.

use core::ops::Range;

use firmware_glue::linux::Kernel;
use thiserror::Error;

use crate::e820::Map;

/// Nothing is placed below: real-mode memory, and this stage itself.
const LOWEST: u64 = 1 << 20;
/// Nothing is placed above: the stage's page tables and the 32-bit entry end there.
const HIGHEST: u64 = 1 << 32;
const PAGE: u64 = 4096;

/// Why the kernel cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// No room for the kernel.
    #[error("Not enough memory for the kernel: it needs {} KiB in one piece at {pref:#x} or above (init_size), the machine has {} KiB in all", .need >> 10, .have >> 10)]
    Kernel {
        /// Bytes that the kernel needs, from its start.
        need: u64,
        /// Lowest address that it runs at.
        pref: u64,
        /// Bytes of RAM.
        have: u64,
    },
    /// A kernel that cannot be moved wants memory that is not there.
    #[error("The kernel is not relocatable and needs {} KiB at {pref:#x}, which is not all memory (the machine has {} KiB)", .need >> 10, .have >> 10)]
    FixedKernel {
        /// Bytes that the kernel needs.
        need: u64,
        /// The only address that it runs at.
        pref: u64,
        /// Bytes of RAM.
        have: u64,
    },
    /// No room for the initramfs.
    #[error("Not enough memory for the initramfs: {} KiB are needed beside the kernel's {} KiB, the machine has {} KiB in all", .need >> 10, .kernel >> 10, .have >> 10)]
    Initramfs {
        /// Bytes of the initramfs.
        need: u64,
        /// Bytes that the kernel needs.
        kernel: u64,
        /// Bytes of RAM.
        have: u64,
    },
}

/// Where things go: physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Start of the protected-mode code.
    pub kernel: u64,
    /// Start of the initramfs; 0 if there is none.
    pub initramfs: u64,
}

/// Finds room for the kernel, from its preferred address upward, and for an initramfs of `initramfs` bytes, as high as the
/// kernel can reach and never in the memory where the kernel unpacks itself.
pub fn place(map: &Map, kernel: &Kernel<'_>, initramfs: u64) -> Result<Places, PlaceError> {
    let need = u64::from(kernel.init_size);
    let pref = kernel.pref_address;
    let have = map.total_ram();
    let at = if kernel.relocatable {
        // A relocatable kernel loaded below its preferred address moves itself there (arch/x86/boot/compressed).
        lowest(map, need, pref.max(LOWEST), u64::from(kernel.alignment))
            .ok_or(PlaceError::Kernel { need, pref, have })?
    } else {
        lowest(map, need, pref, 1)
            .filter(|at| *at == pref && pref >= LOWEST)
            .ok_or(PlaceError::FixedKernel { need, pref, have })?
    };
    if initramfs == 0 {
        return Ok(Places {
            kernel: at,
            initramfs: 0,
        });
    }
    let limit = (u64::from(kernel.initrd_addr_max) + 1).min(HIGHEST);
    let initramfs =
        highest(map, initramfs, limit, &(at..at + need)).ok_or(PlaceError::Initramfs {
            need: initramfs,
            kernel: need,
            have,
        })?;
    Ok(Places {
        kernel: at,
        initramfs,
    })
}

/// Lowest address from `from` on, a multiple of `align`, with `need` bytes of RAM.
fn lowest(map: &Map, need: u64, from: u64, align: u64) -> Option<u64> {
    map.ram().find_map(|ram| {
        let at = ram.start.max(from).checked_next_multiple_of(align)?;
        let end = at.checked_add(need)?;
        (end <= ram.end.min(HIGHEST)).then_some(at)
    })
}

/// Highest page below `limit` with `need` bytes of RAM outside of `taken`.
fn highest(map: &Map, need: u64, limit: u64, taken: &Range<u64>) -> Option<u64> {
    map.ram().rev().find_map(|ram| {
        let free_above = ram.start.max(taken.end)..ram.end.min(limit);
        let free_below = ram.start..ram.end.min(limit).min(taken.start);
        [free_above, free_below].into_iter().find_map(|free| {
            let at = free.end.checked_sub(need)? & !(PAGE - 1);
            (at >= free.start.max(LOWEST)).then_some(at)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::e820::Kind;

    const MIB: u64 = 1 << 20;

    fn map(end: u64) -> Map {
        let mut map = Map::new();
        map.set(0..0xa_0000, Kind::RAM).unwrap();
        map.set(MIB..end, Kind::RAM).unwrap();
        map
    }

    fn bzimage(relocatable: bool, init_size: u32) -> Vec<u8> {
        let mut image = vec![0; 2048];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1f4, &64u32.to_le_bytes());
        put(0x1fe, &[0x55, 0xaa]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x234, &[u8::from(relocatable)]);
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &init_size.to_le_bytes());
        image
    }

    #[test]
    fn the_preferred_address_is_taken_and_the_initramfs_goes_high() {
        let image = bzimage(true, 40 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        let places = place(&map(512 * MIB), &kernel, 5 * MIB + 1).unwrap();
        assert_eq!(places.kernel, 16 * MIB);
        assert_eq!(places.initramfs, 507 * MIB - PAGE);
    }

    #[test]
    fn the_initramfs_stays_below_what_the_kernel_can_reach() {
        let image = bzimage(true, 40 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        let places = place(&map(3 << 30), &kernel, MIB).unwrap();
        assert_eq!(places.initramfs, (2 << 30) - MIB);
    }

    #[test]
    fn a_hole_at_the_preferred_address_moves_a_relocatable_kernel_up() {
        let image = bzimage(true, 40 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        let mut map = map(512 * MIB);
        map.set(20 * MIB..33 * MIB, Kind::RESERVED).unwrap();
        assert_eq!(place(&map, &kernel, 0).unwrap().kernel, 34 * MIB);
        let image = bzimage(false, 40 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        assert!(matches!(
            place(&map, &kernel, 0),
            Err(PlaceError::FixedKernel { .. })
        ));
    }

    #[test]
    fn the_initramfs_goes_below_the_kernel_if_there_is_no_room_above() {
        let image = bzimage(true, 40 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        let places = place(&map(57 * MIB), &kernel, 10 * MIB).unwrap();
        assert_eq!(places.initramfs, 6 * MIB);
    }

    #[test]
    fn too_little_memory_is_refused_with_numbers() {
        let image = bzimage(true, 40 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        let error = place(&map(50 * MIB), &kernel, MIB).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Not enough memory for the kernel: it needs 40960 KiB in one piece at 0x1000000 or above (init_size), \
             the machine has 50816 KiB in all"
        );
        let error = place(&map(57 * MIB), &kernel, 20 * MIB).unwrap_err();
        assert!(matches!(error, PlaceError::Initramfs { need, .. } if need == 20 * MIB));
    }

    proptest! {
        #[test]
        fn whatever_is_placed_lies_in_ram_and_apart(
            ranges in prop::collection::vec((0u64..4200, 0u64..1500), 1..12),
            init_mib in 1u32..2000,
            initramfs in 1u64..3 << 30,
            relocatable: bool,
        ) {
            let mut map = Map::new();
            for (index, (start, len)) in ranges.into_iter().enumerate() {
                let kind = if index % 3 == 2 { Kind::RESERVED } else { Kind::RAM };
                map.set(start * MIB..(start + len) * MIB, kind).unwrap();
            }
            let image = bzimage(relocatable, init_mib << 20);
            let kernel = Kernel::parse(&image).unwrap();
            if let Ok(places) = place(&map, &kernel, initramfs) {
                let kernel_end = places.kernel + (u64::from(init_mib) << 20);
                let initramfs_end = places.initramfs + initramfs;
                let in_ram = |start, end| map.ram().any(|ram| ram.start <= start && end <= ram.end);
                prop_assert!(in_ram(places.kernel, kernel_end));
                prop_assert!(in_ram(places.initramfs, initramfs_end));
                prop_assert!(initramfs_end <= places.kernel || kernel_end <= places.initramfs);
                prop_assert!(initramfs_end <= 1 << 31);
                prop_assert_eq!(places.kernel % 0x20_0000, 0);
            }
        }
    }
}
