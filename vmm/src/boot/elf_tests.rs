//! Hostile and well-formed ELF images.

use std::io::Write;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::testing::ram;

const LOAD_AT: u64 = 0x20_0000;

/// A PVH note.
fn pvh_note(entry: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, XEN_PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend(XEN_NAME);
    note.extend(entry.to_le_bytes());
    note
}

/// An image with one loaded segment of code and one of notes.
struct Image {
    header: [u8; HEADER_BYTES],
    segments: Vec<[u8; SEGMENT_BYTES]>,
    body: Vec<u8>,
}

impl Image {
    fn new(note: &[u8]) -> Self {
        let mut header = [0; HEADER_BYTES];
        header[..6].copy_from_slice(&MAGIC);
        header[16..18].copy_from_slice(&TYPE_EXECUTABLE.to_le_bytes());
        header[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        header[24..32].copy_from_slice(&LOAD_AT.to_le_bytes());
        header[32..40].copy_from_slice(&64u64.to_le_bytes());
        header[54..56].copy_from_slice(&56u16.to_le_bytes());
        header[56..58].copy_from_slice(&2u16.to_le_bytes());
        let body_at = 64 + 2 * 56;
        let code = [0xf4; 16];
        let mut body = code.to_vec();
        body.extend(note);
        let segments = vec![
            segment(SEGMENT_LOAD, body_at, LOAD_AT, 16, 0x1000),
            segment(
                SEGMENT_NOTE,
                body_at + 16,
                0,
                note.len() as u64,
                note.len() as u64,
            ),
        ];
        Self {
            header,
            segments,
            body,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        bytes.extend(self.segments.concat());
        bytes.extend(&self.body);
        bytes
    }
}

fn segment(kind: u32, offset: u64, address: u64, file: u64, memory: u64) -> [u8; SEGMENT_BYTES] {
    let mut raw = [0; SEGMENT_BYTES];
    raw[..4].copy_from_slice(&kind.to_le_bytes());
    for (at, value) in [(8, offset), (24, address), (32, file), (40, memory)] {
        raw[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    raw
}

fn try_load(bytes: &[u8], protocol: BootProtocol) -> Result<LoadedKernel, BootError> {
    load_into(&ram(4), bytes, protocol)
}

fn load_into(
    memory: &GuestMemory,
    bytes: &[u8],
    protocol: BootProtocol,
) -> Result<LoadedKernel, BootError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let mut opened = file.reopen().unwrap();
    load(
        memory,
        file.path(),
        &mut opened,
        bytes.len() as u64,
        protocol,
    )
}

#[test]
fn a_pvh_note_chooses_the_pvh_entry() {
    let image = Image::new(&pvh_note(0x20_0008)).bytes();
    let kernel = try_load(&image, BootProtocol::Auto).unwrap();
    assert_eq!(kernel.entry, Entry::Pvh { rip: 0x20_0008 });
    let kernel = try_load(&image, BootProtocol::Linux64).unwrap();
    assert_eq!(kernel.entry, Entry::Linux64 { rip: LOAD_AT });
}

#[test]
fn without_a_note_the_64_bit_entry_is_used_unless_pvh_is_asked_for() {
    let image = Image::new(&[]).bytes();
    let kernel = try_load(&image, BootProtocol::Auto).unwrap();
    assert_eq!(kernel.entry, Entry::Linux64 { rip: LOAD_AT });
    assert!(matches!(
        try_load(&image, BootProtocol::Pvh).unwrap_err(),
        BootError::NoPvhEntry { .. }
    ));
}

#[test]
fn segments_arrive_in_memory_and_the_end_counts_their_zeroes() {
    let memory = ram(4);
    let image = Image::new(&[]).bytes();
    let kernel = load_into(&memory, &image, BootProtocol::Auto).unwrap();
    assert_eq!(kernel.end, LOAD_AT + 0x1000);
    assert_eq!(
        memory.read_obj::<u8>(GuestAddress(LOAD_AT + 15)).unwrap(),
        0xf4
    );
    assert_eq!(
        memory.read_obj::<u8>(GuestAddress(LOAD_AT + 16)).unwrap(),
        0
    );
}

#[test]
fn a_segment_over_the_boot_structures_is_refused() {
    let mut image = Image::new(&[]);
    image.segments[0] = segment(SEGMENT_LOAD, 176, 0x7000, 16, 16);
    let error = try_load(&image.bytes(), BootProtocol::Auto).unwrap_err();
    assert!(matches!(
        error,
        BootError::KernelOverlapsBootStructures { start: 0x7000, .. }
    ));
}

#[test]
fn a_segment_outside_memory_is_refused_with_the_sizes() {
    for (address, size) in [(0x3f_f000, 0x2000), (u64::MAX - 8, 16), (LOAD_AT, u64::MAX)] {
        let mut image = Image::new(&[]);
        image.segments[0] = segment(SEGMENT_LOAD, 176, address, 16, size);
        let error = try_load(&image.bytes(), BootProtocol::Auto).unwrap_err();
        assert!(
            matches!(error, BootError::KernelOutsideMemory { ram: 0x40_0000, .. }),
            "{address:#x} {size:#x}: {error}"
        );
    }
}

#[test]
fn overlapping_segments_are_refused() {
    let mut image = Image::new(&[]);
    image.segments[1] = segment(SEGMENT_LOAD, 176, LOAD_AT + 0xfff, 1, 1);
    let text = try_load(&image.bytes(), BootProtocol::Auto)
        .unwrap_err()
        .to_string();
    assert!(text.contains("overlap"), "{text}");
}

#[test]
fn an_entry_point_outside_all_segments_is_refused() {
    let mut image = Image::new(&[]);
    image.header[24..32].copy_from_slice(&0x30_0000u64.to_le_bytes());
    let text = try_load(&image.bytes(), BootProtocol::Auto)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("0x300000 is not in a loaded segment"),
        "{text}"
    );
}

#[test]
fn a_file_that_ends_inside_a_segment_is_refused_with_the_sizes() {
    let image = Image::new(&[]).bytes();
    let text = try_load(&image[..image.len() - 1], BootProtocol::Auto)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("a segment ends at byte 192, the file has 191"),
        "{text}"
    );
}

#[test]
fn a_32_bit_image_is_refused() {
    let mut image = Image::new(&[]);
    image.header[4] = 1;
    assert!(try_load(&image.bytes(), BootProtocol::Auto).is_err());
}

#[test]
fn notes_before_the_pvh_note_are_skipped() {
    let mut notes = Vec::new();
    for word in [4u32, 5, 3] {
        notes.extend(word.to_le_bytes());
    }
    notes.extend(b"GNU\0hello\0\0\0");
    notes.extend(pvh_note(0x1234));
    assert_eq!(parse_pvh_note(&notes), Ok(Some(0x1234)));
    assert!(parse_pvh_note(&notes[..20]).is_err());
}

proptest! {
    #[test]
    fn hostile_notes_terminate(notes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = parse_pvh_note(&notes);
    }

    /// Whatever the headers say, loading ends, and nothing below 1 MiB is touched.
    #[test]
    fn hostile_headers_terminate_and_spare_the_boot_structures(
        flips in prop::collection::vec((0usize..192, any::<u8>()), 1..12),
    ) {
        let memory = ram(4);
        let mut image = Image::new(&pvh_note(0x20_0008)).bytes();
        for (at, value) in flips {
            let at = at.min(image.len() - 1);
            image[at] = value;
        }
        drop(load_into(&memory, &image, BootProtocol::Auto));
        let mut low = vec![0; 1 << 20];
        memory.read_slice(&mut low, GuestAddress(0)).unwrap();
        prop_assert!(low.iter().all(|byte| *byte == 0));
    }
}
