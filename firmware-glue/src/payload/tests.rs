use proptest::prelude::*;

use super::*;
use crate::compress::Method;

fn segment(kind: SegmentKind, load: u64, len: usize) -> NewSegment {
    NewSegment {
        kind,
        load,
        data: vec![0x90; len],
        more: 0,
        method: Method::None,
    }
}

fn good() -> Vec<u8> {
    let segments = [
        segment(SegmentKind::Code, 0x10_0000, 500),
        segment(SegmentKind::Data, 0x20_0000, 300),
    ];
    write(&segments, 0x10_0010).unwrap()
}

fn changed(at: usize, value: u32) -> PayloadError {
    let mut payload = good();
    payload[at..at + 4].copy_from_slice(&value.to_be_bytes());
    Payload::parse(&payload).unwrap_err()
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = good();
    let payload = Payload::parse(&bytes).unwrap();
    assert_eq!(payload.entry(), 0x10_0010);
    assert_eq!(payload.memory_end(), 0x20_0000 + 300);
    let loads: Vec<_> = payload
        .segments()
        .map(|s| (s.kind, s.load, s.data.len()))
        .collect();
    let (code, data) = (SegmentKind::Code, SegmentKind::Data);
    assert_eq!(loads, [(code, 0x10_0000, 500), (data, 0x20_0000, 300)]);
}

#[test]
fn each_impossible_field_is_refused() {
    assert!(matches!(
        changed(0, 0x7f45_4c46),
        PayloadError::Kind {
            index: 0,
            kind: 0x7f45_4c46
        }
    ));
    // Data in the table, past the end, and so far that sizes wrap.
    for offset in [0, 28 * 3 - 1, 0xffff_fff0, 0x1000] {
        assert!(
            matches!(changed(8, offset), PayloadError::Data { index: 0, .. }),
            "{offset:#x}"
        );
    }
    for len in [0x1000, u32::MAX] {
        assert!(
            matches!(changed(20, len), PayloadError::Data { index: 0, .. }),
            "{len:#x}"
        );
    }
    assert!(matches!(
        changed(24, 499),
        PayloadError::TooLong {
            len: 500,
            mem_len: 499,
            ..
        }
    ));
    assert!(matches!(changed(20, 0), PayloadError::Empty { index: 0 }));
    assert!(matches!(
        changed(ENTRY_SIZE * 2 + 16, 5),
        PayloadError::EntryOutside { entry: 5 }
    ));
    let mut wraps = good();
    wraps[12..20].fill(0xff);
    assert!(matches!(
        Payload::parse(&wraps),
        Err(PayloadError::Address { index: 0, .. })
    ));
}

#[test]
fn segments_that_overlap_are_seen() {
    let mut payload = good();
    payload[24..28].copy_from_slice(&0x20_0000u32.to_be_bytes());
    assert!(matches!(
        Payload::parse(&payload).unwrap().check_overlap(),
        Err(PayloadError::Overlap {
            first: 0,
            second: 1,
            at: 0x20_0000
        })
    ));
    assert_eq!(Payload::parse(&good()).unwrap().check_overlap(), Ok(()));
}

#[test]
fn the_wrong_endianness_is_no_payload() {
    let mut payload = good();
    for entry in payload[..ENTRY_SIZE * 3].chunks_exact_mut(4) {
        entry.reverse();
    }
    assert!(matches!(
        Payload::parse(&payload),
        Err(PayloadError::Kind { index: 0, .. })
    ));
}

#[test]
fn a_payload_cut_anywhere_is_refused() {
    let payload = good();
    for len in 0..payload.len() {
        assert!(Payload::parse(&payload[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_table_without_an_end_is_refused() {
    let entry = [
        &SegmentKind::Parameters.number().to_be_bytes()[..],
        &[0; 24],
    ]
    .concat();
    assert_eq!(
        Payload::parse(&entry.repeat(MAX_SEGMENTS + 2)).unwrap_err(),
        PayloadError::TooMany
    );
    assert_eq!(
        Payload::parse(&entry.repeat(3)).unwrap_err(),
        PayloadError::NoEntry { count: 3 }
    );
}

#[test]
fn what_could_not_be_started_is_not_written() {
    let empty = [segment(SegmentKind::Code, 0x1000, 0)];
    assert!(matches!(
        write(&empty, 0x1000),
        Err(WriteError::Unsound(PayloadError::Empty { .. }))
    ));
    let two = [
        segment(SegmentKind::Code, 0x1000, 9),
        segment(SegmentKind::Bss, 0x1008, 0),
    ];
    assert!(write(&two, 0x1000).is_ok());
    let mut two = two;
    two[1].more = 1;
    assert!(matches!(
        write(&two, 0x1000),
        Err(WriteError::Unsound(PayloadError::Overlap { .. }))
    ));
}

proptest! {
    #[test]
    fn no_change_of_bytes_panics(changes in prop::collection::vec((0usize..ENTRY_SIZE * 3, any::<u8>()), 1..12)) {
        let mut bytes = good();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(payload) = Payload::parse(&bytes) {
            for segment in payload.segments() {
                prop_assert!(segment.memory().end <= payload.memory_end());
                prop_assert!(segment.data.len() <= bytes.len());
            }
        }
    }
}
