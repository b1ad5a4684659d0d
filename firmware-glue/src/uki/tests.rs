use super::*;
use crate::pe::tests::program;

/// A file that is a bzImage and a UEFI program by its headers; it could not run.
fn kernel() -> Vec<u8> {
    let mut file = crate::linux::tests::bzimage(4096);
    let program = program(b"", 2);
    assert!(program.len() < 0x1f1, "the setup header begins there");
    file[..program.len()].copy_from_slice(&program);
    // Its headers reach as far as the kernel's setup code.
    let headers = 0x40 + 24 + 60;
    file[headers..headers + 4].copy_from_slice(&0x400u32.to_le_bytes());
    file
}

fn uki(kernel: &[u8]) -> Uki<'_> {
    Uki {
        kernel,
        initramfs: b"an initramfs",
        cmdline: "console=ttyS0 quiet",
        os_release: "ID=test\n",
    }
}

#[test]
fn the_stub_gets_what_it_looks_for_and_stays_what_is_entered() {
    let (kernel, stub) = (kernel(), program(b"a stub", 4));
    let made = uki(&kernel).with_stub(&stub).unwrap();
    let pe = Pe::parse(&made).unwrap();
    assert_eq!(pe.entry, Pe::parse(&stub).unwrap().entry);
    assert_eq!(pe.find(".linux").unwrap().data, kernel);
    assert_eq!(pe.find(".initrd").unwrap().data, b"an initramfs");
    assert_eq!(pe.find(".cmdline").unwrap().data, b"console=ttyS0 quiet");
    assert_eq!(pe.find(".osrel").unwrap().data, b"ID=test\n");
    let last = pe.sections().last().unwrap();
    assert_eq!(last.name(), ".linux");
}

#[test]
fn without_a_stub_the_parameters_lead_to_kernel_and_initramfs() {
    let kernel = kernel();
    let made = uki(&kernel).without_stub().unwrap();
    let pe = Pe::parse(&made).unwrap();
    let start = pe.find(".start").unwrap();
    assert_eq!(pe.entry, start.address);
    let long = |at: usize| {
        i64::from(i32::from_le_bytes(
            start.data[at..at + 4].try_into().unwrap(),
        ))
    };
    let parameters = entry::CODE.len() - 16;
    let base = i64::from(start.address);
    let before = Pe::parse(&kernel).unwrap();
    assert_eq!(base + long(parameters), i64::from(before.entry));
    let initramfs = pe.find(".initrd").unwrap();
    assert_eq!(base + long(parameters + 4), i64::from(initramfs.address));
    assert_eq!(long(parameters + 8), 12);
    assert_eq!(initramfs.data, b"an initramfs");
    let text: Vec<u8> = "console=ttyS0 quiet\0"
        .bytes()
        .flat_map(|byte| [byte, 0])
        .collect();
    assert_eq!(long(parameters + 12), i64::try_from(text.len()).unwrap());
    assert_eq!(start.data[entry::CODE.len()..], text);
    // Other loaders find the kernel's setup header where it was.
    assert_eq!(made[0x1f1..0x400], kernel[0x1f1..0x400]);
}

#[test]
fn the_same_parts_give_the_same_bytes() {
    let (kernel, stub) = (kernel(), program(b"a stub", 4));
    let uki = uki(&kernel);
    assert_eq!(uki.with_stub(&stub), uki.with_stub(&stub));
    assert_eq!(uki.without_stub(), uki.without_stub());
}

#[test]
fn what_cannot_boot_is_refused() {
    let plain = crate::linux::tests::bzimage(4096);
    let error = uki(&plain).without_stub().unwrap_err();
    assert_eq!(
        error.to_string(),
        "The kernel cannot be started by UEFI: it was built without CONFIG_EFI_STUB"
    );
    let kernel = kernel();
    let with_cmdline = |cmdline| {
        let uki = Uki {
            cmdline,
            ..uki(&kernel)
        };
        uki.without_stub().unwrap_err()
    };
    let (at, byte) = (5, b'\n');
    assert_eq!(with_cmdline("quiet\n"), UkiError::Cmdline { at, byte });
    assert!(matches!(
        with_cmdline("größer"),
        UkiError::Cmdline { at: 2, .. }
    ));
    let (len, max) = (3000, 2047);
    assert_eq!(
        with_cmdline(&"x".repeat(3000)),
        UkiError::CmdlineTooLong { len, max }
    );
    let empty = Uki {
        initramfs: b"",
        ..uki(&kernel)
    };
    assert_eq!(empty.without_stub(), Err(UkiError::NoInitramfs));
    assert!(matches!(
        uki(&kernel).with_stub(b"#!/bin/sh"),
        Err(UkiError::Stub(_))
    ));
}
