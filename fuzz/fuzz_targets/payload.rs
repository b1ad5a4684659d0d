//! Payloads: the table of segments, their compressions, and payloads made of kernels that are none.
#![no_main]

use firmware_glue::compress::{Method, unpack};
use firmware_glue::payload::linux::Trio;
use firmware_glue::payload::{NewSegment, Payload, SegmentKind, write};

/// Longer ones are not unpacked here.
const MAX: usize = 1 << 16;

fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 0x500];
    kernel[0x1f1] = 1;
    kernel[0x1f4] = 0x10;
    kernel[0x1fe..0x202].copy_from_slice(&[0x55, 0xaa, 0xeb, 0x66]);
    kernel[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    kernel[0x211] = 1;
    kernel[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    kernel[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    kernel[0x234] = 1;
    kernel[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    kernel[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    kernel[0x260..0x264].copy_from_slice(&0x200_0000_u32.to_le_bytes());
    kernel
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for method in [Method::None, Method::Lzma, Method::Lz4, Method::Zstd] {
        let segment = |kind, load, byte| NewSegment {
            kind,
            load,
            data: vec![byte; 400],
            more: 16,
            method,
        };
        let segments = [
            segment(SegmentKind::Code, 0x1000, 0x90),
            segment(SegmentKind::Data, 0x2000, 7),
        ];
        let payload = write(&segments, 0x1000).expect("it is sound");
        seeds.push([vec![0], payload].concat());
        let packed = firmware_glue::compress::compress(method, &[9; 500]).expect("it is short");
        seeds.push(
            [
                vec![1 + u8::try_from(method.number()).expect("0 to 3")],
                packed,
            ]
            .concat(),
        );
    }
    seeds.push([vec![0x80], kernel()].concat());
    seeds
}

fn table(data: &[u8]) {
    let Ok(payload) = Payload::parse(data) else {
        return;
    };
    assert!(
        payload
            .segments()
            .any(|segment| segment.memory().contains(&payload.entry()))
    );
    if let Some((header, code)) = payload.linux() {
        assert!(header.len() < 0x100 && code.len() <= data.len());
    }
    let mut segments = Vec::new();
    for segment in payload.segments() {
        assert!(segment.memory().end <= payload.memory_end() || segment.memory().is_empty());
        let size = segment.mem_len as usize;
        let method = Method::of_number(segment.compression);
        let unpacked = match method {
            Ok(Method::None) => Some(segment.data.to_vec()),
            Ok(method) if size <= MAX => unpack(method, segment.data, size).ok(),
            _ => None,
        };
        let Some(data) = unpacked else { return };
        segments.push(NewSegment {
            kind: segment.kind,
            load: segment.load,
            more: segment
                .mem_len
                .saturating_sub(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            data,
            method: Method::None,
        });
    }
    // What is sound can be written, and is the same when read.
    if payload.check_overlap().is_ok()
        && let Ok(again) = write(&segments, payload.entry())
    {
        let again = Payload::parse(&again).expect("it was written");
        assert_eq!(again.entry(), payload.entry());
        assert!(
            again
                .segments()
                .map(|s| s.memory())
                .eq(payload.segments().map(|s| s.memory()))
        );
    }
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let [what, data @ ..] = data else { return };
    match what {
        0 => table(data),
        1..=0x7f => {
            let method = Method::of_number(u32::from(what - 1) % 4).expect("0 to 3");
            for size in [500, data.len()] {
                if let Ok(unpacked) = unpack(method, data, size) {
                    assert_eq!(unpacked.len(), size);
                }
            }
        }
        _ => {
            let trio = Trio {
                kernel: data,
                initramfs: (what & 1 == 0).then_some(&data[..data.len() / 2]),
                cmdline: "console=ttyS0",
                method: Method::None,
            };
            match trio.payload() {
                Ok(made) => {
                    let payload = Payload::parse(&made.bytes).expect("it was written");
                    assert!(payload.check_overlap().is_ok());
                    assert!(payload.memory_end() <= made.memory_end);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
});
