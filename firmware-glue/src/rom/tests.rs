use std::process::Command;

use super::*;
use crate::cbfs::CbfsError;
use crate::linux;

/// Stands for the ROM stage where nothing runs it.
pub(crate) fn bootblock() -> Vec<u8> {
    let mut bytes = vec![0xf4; 900];
    bytes[500..500 + crate::anchor::SIZE].copy_from_slice(&Anchor::blank());
    bytes
}

/// A whole ROM with some room.
pub(crate) fn rom() -> Vec<u8> {
    builder().size(3 * ROM_GRANULE).build().unwrap().bytes
}

fn builder() -> RomBuilder {
    RomBuilder::new(bootblock())
        .kernel(linux::tests::bzimage(40_000))
        .initramfs(vec![3; 20_000])
        .cmdline("console=ttyS0")
        .machine("[machine]\nname = \"default\"\n")
        .guest_file("web/initrd", vec![9; 3000])
}

fn verify(rom: &[u8]) -> Result<(), AnchorError> {
    let map = Fmap::find(rom).unwrap();
    let cbfs = Cbfs::new(map.region(AREA_CBFS).unwrap());
    let bootblock = cbfs.find(BOOTBLOCK).map_err(AnchorError::Cbfs)?;
    let at = Anchor::find(bootblock.data())?;
    Anchor::parse(&bootblock.data()[at..])?.verify(&map, &cbfs)
}

#[test]
fn every_part_is_found_and_the_anchor_vouches_for_it() {
    let rom = builder().build().unwrap();
    assert_eq!(rom.bytes.len(), 2 * ROM_GRANULE);
    verify(&rom.bytes).unwrap();
    let map = Fmap::find(&rom.bytes).unwrap();
    assert_eq!(map.base(), FOUR_GIB - 2 * ROM_GRANULE as u64);
    let cbfs = Cbfs::new(map.region("COREBOOT").unwrap());
    for name in [KERNEL, INITRAMFS, CMDLINE, MACHINE, "guest/web/initrd"] {
        cbfs.find(name).unwrap().verify().unwrap();
    }
    assert_eq!(cbfs.find(CMDLINE).unwrap().data(), b"console=ttyS0");
    assert_eq!(rom.parts.len(), 6);
    assert!(rom.free < ROM_GRANULE);
}

#[test]
fn the_same_parts_give_the_same_bytes() {
    assert_eq!(
        builder().build().unwrap().bytes,
        builder().build().unwrap().bytes
    );
}

#[test]
fn a_size_can_be_asked_for() {
    let rom = builder().size(1 << 20).build().unwrap();
    assert_eq!(rom.bytes.len(), 1 << 20);
    verify(&rom.bytes).unwrap();
    for size in [0, 100_000, 32 << 20] {
        let error = builder().size(size).build().unwrap_err();
        assert!(matches!(error, RomError::BadSize { .. }), "{size}");
    }
}

#[test]
fn a_changed_header_breaks_the_anchor() {
    let mut rom = builder().build().unwrap().bytes;
    // The name of the kernel: found again under another name, were it not for the anchor.
    rom[FMAP_AREA_SIZE + 24] ^= 1;
    assert_eq!(verify(&rom), Err(AnchorError::WrongMetadata));
    let mut rom = builder().build().unwrap().bytes;
    rom[10] ^= 1;
    assert_eq!(verify(&rom), Err(AnchorError::WrongFmap));
    let mut rom = builder().build().unwrap().bytes;
    rom[FMAP_AREA_SIZE + 20..FMAP_AREA_SIZE + 24].fill(0xff);
    assert!(matches!(
        verify(&rom),
        Err(AnchorError::Cbfs(CbfsError::DataOffset { at: 0, .. }))
    ));
}

#[test]
fn too_much_lists_all_parts_and_what_to_drop() {
    let error = builder()
        .guest_file("pocket/root.erofs", vec![1; 9 << 20])
        .guest_file("large/disk", vec![1; 12 << 20])
        .build()
        .unwrap_err();
    let message = error.to_string();
    let lines: Vec<&str> = message.lines().collect();
    assert!(lines[0].starts_with("The ROM would have 21."), "{message}");
    assert!(lines[0].contains("more than the 16.00 MiB"), "{message}");
    assert_eq!(lines[1].trim(), "12.00 MiB  guest/large/disk");
    assert_eq!(lines[2].trim(), "9.00 MiB  guest/pocket/root.erofs");
    assert_eq!(lines.len(), 1 + 8 + 1, "{message}");
    assert!(
        lines[9].starts_with("Leave out guest/pocket/root.erofs, or"),
        "{message}"
    );
}

#[test]
fn without_guests_to_drop_the_message_says_so() {
    let error = RomBuilder::new(bootblock())
        .kernel(linux::tests::bzimage(1 << 20))
        .initramfs(vec![0; 16 << 20])
        .cmdline("")
        .build()
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("make the kernel or the initramfs smaller")
    );
}

#[test]
fn contents_that_cannot_start_are_refused() {
    let new = || RomBuilder::new(bootblock());
    assert!(matches!(
        new().build(),
        Err(RomError::Missing { name: KERNEL })
    ));
    let kernel = linux::tests::bzimage(4000);
    let cut = kernel[..3000].to_vec();
    assert!(matches!(
        new().kernel(cut.clone()).build(),
        Err(RomError::Kernel(KernelError::Truncated { .. }))
    ));
    assert!(new().kernel(cut).unchecked().build().is_ok());
    let with = || new().kernel(kernel.clone()).initramfs(vec![0]);
    assert!(matches!(
        with().cmdline("a\nb").build(),
        Err(RomError::CmdlineNotOneLine { at: 1 })
    ));
    assert!(matches!(
        with().cmdline(&"x".repeat(2048)).build(),
        Err(RomError::CmdlineTooLong {
            len: 2048,
            max: 2047
        })
    ));
    let twice = with()
        .cmdline("")
        .guest_file("a", vec![])
        .guest_file("a", vec![]);
    assert!(matches!(
        twice.build(),
        Err(RomError::Cbfs(WriteError::Duplicate { .. }))
    ));
    let no_anchor = RomBuilder::new(vec![0; 100])
        .kernel(kernel)
        .initramfs(vec![0])
        .cmdline("");
    assert!(matches!(
        no_anchor.build(),
        Err(RomError::Anchor(AnchorError::Missing))
    ));
}

#[test]
fn cbfstool_agrees_with_every_file_hash_and_the_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daruma.rom");
    let rom = builder().build().unwrap();
    std::fs::write(&path, &rom.bytes).unwrap();
    let cbfstool = |args: &[&str]| {
        let output = Command::new("cbfstool")
            .arg(&path)
            .args(args)
            .output()
            .expect("cbfstool (Debian package coreboot-utils) must be installed: cargo xtask test installs it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    };
    let listing = cbfstool(&["print", "-v"]);
    for part in &rom.parts {
        let line = listing
            .lines()
            .find(|line| line.starts_with(&part.name))
            .unwrap_or_else(|| panic!("{} is not in\n{listing}", part.name));
        assert!(line.contains(&part.size.to_string()), "{line}");
    }
    assert_eq!(listing.matches("hash SHA256:").count(), 5, "{listing}");
    assert_eq!(listing.matches(" valid\n").count(), 5, "{listing}");
    assert!(
        listing.contains("[METADATA HASH]") && listing.trim_end().ends_with(":valid"),
        "{listing}"
    );
    assert!(!listing.contains("invalid"), "{listing}");

    let extracted = folder.path().join("kernel");
    cbfstool(&["extract", "-n", KERNEL, "-f", extracted.to_str().unwrap()]);
    assert_eq!(
        std::fs::read(&extracted).unwrap(),
        linux::tests::bzimage(40_000)
    );

    // What cbfstool adds, this crate reads, with the anchor rewritten by cbfstool.
    cbfstool(&[
        "add",
        "-n",
        "guest/extra",
        "-t",
        "raw",
        "-A",
        "sha256",
        "-f",
        extracted.to_str().unwrap(),
    ]);
    let changed = std::fs::read(&path).unwrap();
    verify(&changed).unwrap();
    let map = Fmap::find(&changed).unwrap();
    let file = Cbfs::new(map.region(AREA_CBFS).unwrap())
        .find("guest/extra")
        .unwrap();
    assert_eq!(file.data(), linux::tests::bzimage(40_000));
    assert_eq!(file.verify(), Ok(crate::cbfs::Algorithm::Sha256));
}
