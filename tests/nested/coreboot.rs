//! The payload for coreboot, entered as coreboot enters it: segments at their addresses, 32-bit flat mode, and a table that
//! tells of the machine.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use firmware_glue::compress::Method;
use firmware_glue::payload::Payload;
use firmware_glue::payload::linux::Trio;
use tests::Image;
use tests::qemu::{Builder, Qemu};

const MEMORY_MIB: u32 = 1024;
/// Where coreboot's tables are: a short one in low memory that leads to the real one.
const POINTER: u32 = 0x500;
const TABLE: u32 = 0x8_0000;

/// What stands for coreboot: from the reset vector to 32-bit flat mode and to the payload's entry at 0x40000.
fn firmware() -> Vec<u8> {
    let mut rom = vec![0xff; 0x1_0000];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    // cli; lgdt cs:[0xff60]; set bit 0 of cr0; far jump to 0x08:0xffffff20
    put(
        0xff00,
        b"\xfa\x66\x2e\x0f\x01\x16\x60\xff\x0f\x20\xc0\x0c\x01\x0f\x22\xc0",
    );
    put(0xff10, b"\x66\xea\x20\xff\xff\xff\x08\x00");
    // ds, es and ss = 0x10; jump to 0x40000
    put(
        0xff20,
        b"\x66\xb8\x10\x00\x8e\xd8\x8e\xc0\x8e\xd0\xb8\x00\x00\x04\x00\xff\xe0",
    );
    // 0x08 is flat code, 0x10 flat data.
    put(0xff40, &0_u64.to_le_bytes());
    put(0xff48, &0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    put(0xff50, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    put(0xff60, b"\x17\x00\x40\xff\xff\xff");
    // jmp 0xff00
    put(0xfff0, b"\xe9\x0d\xff");
    rom
}

/// A coreboot table of one entry.
fn table(entry: &[u8]) -> Result<Vec<u8>> {
    let len = u32::try_from(entry.len())?;
    let fields = [24, 0, len, 0, 1].map(u32::to_le_bytes).concat();
    Ok([b"LBIO", &fields[..], entry].concat())
}

fn entry(tag: u32, content: &[u8]) -> Result<Vec<u8>> {
    let len = u32::try_from(content.len() + 8)?;
    Ok([&tag.to_le_bytes()[..], &len.to_le_bytes(), content].concat())
}

/// Kinds are coreboot's: 1 RAM, 2 reserved, 16 its own tables, which Linux must not use either.
fn memory_map() -> Result<Vec<u8>> {
    let end = u64::from(MEMORY_MIB) << 20;
    let ranges: [(u64, u64, u32); 5] = [
        (0, 0x1000, 16),
        (0x1000, 0x9_f000, 1),
        (0xf_0000, 0x10_0000, 2),
        (0x10_0000, end - 0x1_0000, 1),
        (end - 0x1_0000, end, 16),
    ];
    let bytes = ranges.map(|(start, end, kind)| {
        [
            &start.to_le_bytes()[..],
            &(end - start).to_le_bytes(),
            &kind.to_le_bytes(),
        ]
        .concat()
    });
    entry(0x01, &bytes.concat())
}

/// Boots `payload`, loaded segment by segment, with these `tables` in memory.
fn boot(folder: &Path, payload: &[u8], tables: &[(u32, Vec<u8>)]) -> Result<Qemu> {
    let rom = folder.join("firmware.rom");
    std::fs::write(&rom, firmware())?;
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    for segment in Payload::parse(payload)?.segments() {
        pieces.push((segment.load, segment.data.to_vec()));
    }
    pieces.extend(
        tables
            .iter()
            .map(|(at, bytes)| (u64::from(*at), bytes.clone())),
    );
    let mut arguments: Vec<OsString> = Vec::new();
    for (index, (at, bytes)) in pieces.iter().enumerate() {
        let path = folder.join(format!("piece{index}"));
        std::fs::write(&path, bytes)?;
        let path = path.to_str().context("a path that is no text")?;
        let device = format!("loader,file={path},addr={at:#x},force-raw=on");
        arguments.extend(["-device".into(), device.into()]);
    }
    Builder::rom(&rom)
        .memory_mib(MEMORY_MIB)
        .args(arguments)
        .boot()
}

#[test]
fn the_payload_gives_linux_coreboots_memory_map_and_its_initramfs() -> Result<()> {
    let image = Image::built()?;
    // The built one says nothing of this on its way.
    let built = image.read("daruma.payload")?;
    let (kernel, initramfs) = (image.read("bzImage")?, image.read("initramfs")?);
    let trio = |cmdline: &str| {
        let trio = Trio {
            kernel: &kernel,
            initramfs: Some(&initramfs),
            cmdline,
            method: Method::None,
        };
        trio.payload()
    };
    let cmdline = String::from_utf8(image.read("cmdline")?)?;
    anyhow::ensure!(
        trio(&cmdline)?.bytes == built,
        "daruma.payload is made of the trio"
    );

    let folder = tempfile::tempdir()?;
    let pointer = entry(0x11, &u64::from(TABLE).to_le_bytes())?;
    let tables = [(POINTER, table(&pointer)?), (TABLE, table(&memory_map()?)?)];
    let made = trio("console=ttyS0 panic=10")?;
    let mut machine = boot(folder.path(), &made.bytes, &tables)?;
    let console = &mut machine.console;
    for (range, kind) in [
        ("0x0000000000000000-0x0000000000000fff", "reserved"),
        ("0x0000000000001000-0x000000000009efff", "usable"),
        ("0x00000000000f0000-0x00000000000fffff", "reserved"),
        ("0x0000000000100000-0x000000003ffeffff", "usable"),
        ("0x000000003fff0000-0x000000003fffffff", "reserved"),
    ] {
        console.expect(&format!("BIOS-e820: [mem {range}] {kind}"))?;
    }
    let at = made.initramfs_at.context("it has an initramfs")?;
    console.expect(&format!("RAMDISK: [mem {at:#010x}-"))?;
    console.expect("Run /init as init process")?;
    Ok(())
}

#[test]
fn a_payload_without_coreboots_table_says_so() -> Result<()> {
    let payload = Image::built()?.read("daruma.payload")?;
    let folder = tempfile::tempdir()?;
    let mut machine = boot(folder.path(), &payload, &[])?;
    machine
        .console
        .expect("Daruma: coreboot left no table, so Linux cannot know where memory is")?;
    Ok(())
}
