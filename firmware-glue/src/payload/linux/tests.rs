use super::*;
use crate::linux::tests::bzimage;
use crate::payload::Payload;

fn trio<'a>(kernel: &'a [u8], initramfs: &'a [u8]) -> Trio<'a> {
    Trio {
        kernel,
        initramfs: Some(initramfs),
        cmdline: "console=ttyS0",
        method: Method::None,
    }
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = bzimage(40_000);
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn every_part_is_where_the_zero_page_says() {
    let kernel = bzimage(40_000);
    let made = trio(&kernel, &[7; 5000]).payload().unwrap();
    let payload = Payload::parse(&made.bytes).unwrap();
    assert_eq!(payload.entry(), u64::from(entry::ADDRESS));
    let at = |address: u64| payload.segments().find(|s| s.load == address).unwrap();
    let zero_page = at(ZERO_PAGE.into()).data;
    let word = |at: usize| u64::from(crate::bytes::le32(zero_page, at).unwrap());
    assert_eq!(&zero_page[0x202..0x206], b"HdrS");
    assert_eq!(at(word(CODE32_START)).data, &kernel[1024..]);
    let initramfs = at(word(RAMDISK_IMAGE));
    assert_eq!((initramfs.data, word(RAMDISK_SIZE)), (&[7; 5000][..], 5000));
    assert_eq!(at(word(CMDLINE_POINTER)).data, b"console=ttyS0\0");
    assert_eq!(at(payload.entry()).data, entry::CODE);
    assert_eq!(made.memory_end, made.initramfs_at.unwrap() + 5000);
}

#[test]
fn the_kernel_is_found_in_its_payload_again() {
    let kernel = bzimage(40_000);
    let made = trio(&kernel, &[7; 5000]).payload().unwrap();
    let payload = Payload::parse(&made.bytes).unwrap();
    let (header, code) = payload.linux().unwrap();
    assert_eq!(code, &kernel[1024..]);
    assert_eq!(header[0x202 - SETUP_HEADER..][..4], *b"HdrS");
    let method = Method::Lzma;
    let packed = Trio {
        method,
        ..trio(&kernel, &[7; 5000])
    }
    .payload()
    .unwrap();
    assert_eq!(Payload::parse(&packed.bytes).unwrap().linux(), None);
}

/// The incumbent puts it at 64 MiB whatever the kernel needs: a kernel of 55.86 MiB at 16 MiB (Debian's 6.12) unpacks
/// itself over it.
#[test]
fn the_initramfs_is_behind_all_the_memory_that_the_kernel_unpacks_itself_in() {
    for mib in [4, 32, 48, 56, 100, 500] {
        let kernel = with(0x260, &u32::to_le_bytes(mib << 20));
        let made = trio(&kernel, &[7; 100]).payload().unwrap();
        let end = made.kernel_at + (u64::from(mib) << 20);
        assert!(made.initramfs_at.unwrap() >= end, "{mib}");
        assert!(made.initramfs_at.unwrap() < end + PAGE, "{mib}");
    }
}

#[test]
fn an_initramfs_above_the_kernels_limit_is_refused() {
    let kernel = with(0x22c, &u32::to_le_bytes(0x300_1000));
    assert!(matches!(
        trio(&kernel, &[7; 8192]).payload().unwrap_err(),
        LinuxError::TooHigh {
            end: 0x300_2000,
            limit: 0x300_1001,
            ..
        }
    ));
}

#[test]
fn a_kernel_goes_where_it_wants_to_or_can_be() {
    let place = |relocatable: u8, alignment: u32, pref: u64| {
        let mut kernel = with(0x234, &[relocatable]);
        kernel[0x230..0x234].copy_from_slice(&alignment.to_le_bytes());
        kernel[0x258..0x260].copy_from_slice(&pref.to_le_bytes());
        trio(&kernel, &[1]).payload().map(|made| made.kernel_at)
    };
    assert_eq!(place(1, 0x20_0000, 0x100_0000).unwrap(), 0x100_0000);
    assert_eq!(place(1, 0x20_0000, 0x1000).unwrap(), 0x20_0000);
    assert_eq!(place(0, 0x20_0000, 0x10_0000).unwrap(), 0x10_0000);
    assert!(place(0, 0x20_0000, 0x8_0000).is_err());
    assert!(place(1, 0x20_0000, u64::MAX).is_err());
    assert!(place(0, 0x20_0000, u64::MAX - 4).is_err());
    assert!(place(1, 0x8000_0000, 0xf000_0000).is_err());
}

#[test]
fn kernels_of_others_are_called_by_their_name() {
    let file = |at: usize, magic: &[u8]| {
        let mut file = vec![0; 4096];
        file[at..at + magic.len()].copy_from_slice(magic);
        file
    };
    let mut aarch64 = file(0, b"\x7fELF\x02\x01\x01");
    aarch64[0x12] = 183;
    let mut vmlinux = aarch64.clone();
    vmlinux[0x12] = 62;
    for (kernel, word) in [
        (file(0x38, b"ARM\x64"), "arm64"),
        (file(0x38, b"RSC\x05"), "RISC-V"),
        (file(0x24, &[0x18, 0x28, 0x6f, 0x01]), "zImage"),
        (file(0, &[0x27, 0x05, 0x19, 0x56]), "uImage"),
        (file(0, &[0xd0, 0x0d, 0xfe, 0xed]), "FIT"),
        (aarch64, "another processor"),
        (vmlinux, "vmlinux"),
    ] {
        let error = trio(&kernel, &[1]).payload().unwrap_err();
        assert!(matches!(error, LinuxError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(matches!(
        trio(&[0; 4096], &[1]).payload().unwrap_err(),
        LinuxError::Kernel(_)
    ));
}

#[test]
fn what_cannot_be_given_to_the_kernel_is_refused() {
    let kernel = bzimage(4000);
    let with = |cmdline| {
        Trio {
            cmdline,
            ..trio(&kernel, &[1])
        }
        .payload()
    };
    assert!(matches!(
        with("a\nb"),
        Err(LinuxError::CmdlineNotOneLine { at: 1 })
    ));
    let long = "x".repeat(2048);
    assert!(matches!(
        with(&long),
        Err(LinuxError::CmdlineTooLong {
            len: 2048,
            max: 2047
        })
    ));
    assert!(with(&long[1..]).is_ok());
    assert!(matches!(
        trio(&kernel, &[]).payload(),
        Err(LinuxError::NoInitramfs)
    ));
    let alone = Trio {
        initramfs: None,
        ..trio(&kernel, &[])
    }
    .payload()
    .unwrap();
    assert_eq!(alone.initramfs_at, None);
}

#[test]
fn compressed_segments_are_never_longer_and_never_empty() {
    // Half of it does not get any smaller, as a real kernel.
    let mut kernel = bzimage(60_000);
    let mut state = 1u32;
    for byte in &mut kernel[2000..30_000] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = u8::try_from(state >> 24).unwrap();
    }
    let noise = kernel[2000..20_000].to_vec();
    for method in [Method::None, Method::Lzma, Method::Lz4, Method::Zstd] {
        let made = Trio {
            method,
            ..trio(&kernel, &noise)
        }
        .payload()
        .unwrap();
        let payload = Payload::parse(&made.bytes).unwrap();
        for segment in payload.segments() {
            assert!(!segment.data.is_empty() && segment.data.len() <= segment.mem_len as usize);
            let by = Method::of_number(segment.compression).unwrap();
            let unpacked = crate::compress::unpack(by, segment.data, segment.mem_len as usize);
            if segment.load == made.kernel_at {
                assert_eq!(by, method);
                assert_eq!(unpacked.unwrap(), &kernel[1024..]);
            } else if Some(segment.load) == made.initramfs_at {
                assert_eq!(by, Method::None, "noise stays as it is");
                assert_eq!(unpacked.unwrap(), noise);
            }
        }
    }
}
