use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::boot::memory_map;
use crate::memory::testing::ram;

const BASE: u32 = 0x10_0000;

fn header(flags: u32, addresses: [u32; 5]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
    let mut words = vec![HEADER_MAGIC, flags, checksum];
    words.extend(addresses);
    bytes(&words)
}

/// A kernel of `size` bytes with the header at `offset`.
fn image(offset: usize, header: &[u8], size: usize) -> Vec<u8> {
    let mut image = vec![0x90; size];
    image[offset..offset + header.len()].copy_from_slice(header);
    image
}

fn load_bytes(memory: &GuestMemory, image: &[u8]) -> Result<LoadedKernel, BootError> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let header = find(image).expect("a header");
    let path = file.path().to_owned();
    load(
        memory,
        &path,
        file.as_file_mut(),
        image.len() as u64,
        header,
    )
}

/// An ELF32 file with one segment, linked at `linked`, and a header behind its program header.
fn elf32(linked: u32, address: u32) -> Vec<u8> {
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    for word in [linked + 0x80, 52, 0, 0] {
        image.extend(u32::to_le_bytes(word));
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    for word in [1, 0, linked, address, 0x200, 0x1000, 7, 0] {
        image.extend(u32::to_le_bytes(word));
    }
    image.resize(0x60, 0);
    image.extend(header(FLAG_ALIGN | FLAG_MEMORY, [0; 5]));
    image.resize(0x200, 0x90);
    image
}

#[test]
fn the_header_is_found_at_any_word_of_the_first_8_kib() {
    for (offset, found) in [(0, true), (8180, true), (8184, false), (2, false)] {
        let image = image(offset, &header(0, [0; 5])[..12], 9000);
        assert_eq!(find(&image).is_some(), found, "offset {offset}");
    }
    let mut wrong_sum = header(0, [0; 5]);
    wrong_sum[8] ^= 1;
    assert_eq!(find(&wrong_sum), None);
}

#[test]
fn addresses_in_the_header_place_the_file() {
    let memory = ram(4);
    let head = header(
        FLAG_ADDRESSES,
        [BASE + 0x10, BASE, BASE + 0x80, BASE + 0x2000, BASE + 0x30],
    );
    let kernel = load_bytes(&memory, &image(0x10, &head, 0x100)).unwrap();
    assert_eq!(kernel.entry, Entry::Multiboot { rip: 0x10_0030 });
    assert_eq!(kernel.end, 0x10_2000);
    let loaded = |at: u64| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
    assert_eq!((loaded(0x10_007f), loaded(0x10_0080)), (0x90, 0));
    let magic: u32 = memory.read_obj(GuestAddress(0x10_0010)).unwrap();
    assert_eq!(magic, HEADER_MAGIC);
}

#[test]
fn elf_segments_go_to_their_physical_addresses() {
    let memory = ram(4);
    for linked in [BASE, 0xc010_0000] {
        let kernel = load_bytes(&memory, &elf32(linked, BASE)).unwrap();
        assert_eq!(kernel.entry, Entry::Multiboot { rip: 0x10_0080 });
        assert_eq!(kernel.end, 0x10_1000);
    }
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    let memory = ram(4);
    let addresses = |fields| image(0x10, &header(FLAG_ADDRESSES, fields), 0x100);
    let refused = |image: &[u8]| load_bytes(&memory, image).unwrap_err().to_string();
    for (fields, why) in [
        ([BASE + 0x20, BASE, 0, 0, BASE], "before the file's start"),
        ([BASE, BASE + 0x10, 0, 0, BASE], "before the file's start"),
        (
            [BASE + 0x10, BASE, BASE - 1, 0, BASE],
            "ends before it starts",
        ),
        ([BASE + 0x10, BASE, BASE + 0x101, 0, BASE], "is truncated"),
        ([BASE + 0x10, BASE, BASE, 0, BASE], "is truncated"),
        ([BASE + 0x10, BASE, 0, BASE + 1, BASE], "zeroed memory"),
        ([BASE + 0x10, BASE, 0, u32::MAX, BASE], "needs guest memory"),
        (
            [0x7c10, 0x7c00, 0, 0, 0x7c00],
            "overlaps the boot structures",
        ),
        ([BASE + 0x10, BASE, 0, 0, BASE - 4], "entry point"),
    ] {
        let text = refused(&addresses(fields));
        assert!(text.contains(why), "{why}: {text}");
    }
    let video = refused(&image(0, &header(1 << 2, [0; 5]), 0x100));
    assert!(video.contains("video mode"), "{video}");
    let no_elf = refused(&image(0, &header(0, [0; 5]), 0x100));
    assert!(no_elf.contains("no ELF image"), "{no_elf}");
    let short = header(FLAG_ADDRESSES, [0; 5]);
    assert!(refused(&short[..12]).contains("ends before its addresses"));
    assert!(refused(&elf32(BASE, 0x1000)).contains("overlaps the boot structures"));
}

#[test]
fn the_information_points_to_everything() {
    let memory = ram(4);
    let map = memory_map(&memory);
    let initrd = Initrd {
        address: 0x30_0000,
        size: 5,
    };
    write(&memory, &map, Some(initrd)).unwrap();
    let word = |at: u64| u64::from(memory.read_obj::<u32>(GuestAddress(at)).unwrap());
    let info = |index: u64| word(MULTIBOOT_INFO + 4 * index);
    assert_eq!(info(0), 0x24d);
    assert_eq!((info(1), info(2)), (639, 3 * 1024));
    assert_eq!(info(4), CMDLINE);
    assert_eq!((word(info(6)), word(info(6) + 4)), (0x30_0000, 0x30_0005));
    assert_eq!(info(11), map.len() as u64 * 24);
    assert_eq!(
        (word(info(12)), word(info(12) + 20)),
        (20, Kind::Ram as u64)
    );
    let mut name = [0; 7];
    memory
        .read_slice(&mut name, GuestAddress(info(16)))
        .unwrap();
    assert_eq!(name, LOADER_NAME);

    write(&memory, &map, None).unwrap();
    assert_eq!(info(0) & 8, 0);
}

proptest! {
    #[test]
    fn any_header_is_loaded_inside_of_memory_or_refused(
        offset in 0..32_usize,
        flags in prop_oneof![Just(FLAG_ADDRESSES), Just(0), any::<u32>()],
        fields in (0..0x50_0000_u32, 0..0x50_0000_u32, 0..0x50_0000_u32, 0..0x50_0000_u32, any::<u32>()),
        elf in prop::collection::vec(any::<u8>(), 0..128),
        wide: bool,
    ) {
        let memory = ram(4);
        let fields = [fields.0, fields.1, fields.2, fields.3, fields.4];
        let mut image = image(128 + offset * 4, &header(flags, fields), 0x200);
        image[..elf.len()].copy_from_slice(&elf);
        image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1 + u8::from(wide), 1]);
        if let Ok(kernel) = load_bytes(&memory, &image) {
            prop_assert!(kernel.end <= 4 << 20);
            let Entry::Multiboot { rip } = kernel.entry else { panic!("{:?}", kernel.entry) };
            prop_assert!((HIGH_RAM..kernel.end).contains(&rip));
        }
    }
}
