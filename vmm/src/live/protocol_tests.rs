use std::io::ErrorKind;

use proptest::prelude::*;

use super::*;

fn one<M: Message>(bytes: &[u8]) -> Result<Option<M>, ProtocolError> {
    Decoder::new().receive(&mut &*bytes)
}

fn raw(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame(kind, payload)
}

fn pages(offset: u64, bytes: &[u8]) -> Report {
    let mut frame = pages_header(offset, bytes.len()).to_vec();
    frame.extend(bytes);
    one(&frame).unwrap().unwrap()
}

fn reason() -> impl Strategy<Value = String> {
    prop_oneof![".{0,40}", Just("\u{1}ü".repeat(1000))]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        (any::<u64>(), any::<bool>()).prop_map(|(number, full)| Order::Take(Take { number, full })),
        Just(Order::Frozen),
        any::<u64>().prop_map(|number| Order::Kept(Kept { number })),
        (any::<u64>(), reason())
            .prop_map(|(number, reason)| Order::Lost(Failure { number, reason })),
    ]
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        (any::<u64>(), any::<bool>(), any::<u64>())
            .prop_map(|(number, full, len)| Report::Memory(Memory { number, full, len })),
        Just(Report::Freeze),
        (0..1_u64 << 40, 1..4_usize, any::<u8>())
            .prop_map(|(page, count, byte)| pages(page * 4096, &vec![byte; count * PAGE])),
        prop::collection::vec(any::<u8>(), 1..3000).prop_map(|state| one(&encode_state(&state)
            .next()
            .unwrap())
        .unwrap()
        .unwrap()),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(number, pause_us, pages)| {
            Report::End(End {
                number,
                pause_us,
                pages,
            })
        }),
        (any::<u64>(), reason())
            .prop_map(|(number, reason)| Report::Failed(Failure { number, reason })),
    ]
}

/// What is left of a reason when it was sent.
fn shortened(reason: &str) -> bool {
    reason.len() > MAX_REASON
}

/// Gives a few bytes at a time, and says in between that there are none yet.
struct Slow<'a>(&'a [u8], usize, bool);

impl Read for Slow<'_> {
    fn read(&mut self, place: &mut [u8]) -> io::Result<usize> {
        self.2 = !self.2;
        if self.2 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = self.1.min(place.len());
        self.0.read(&mut place[..count])
    }
}

fn all<M: Message>(source: &mut Slow<'_>) -> Vec<M> {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    loop {
        match decoder.receive(source) {
            Ok(Some(message)) => found.push(message),
            Ok(None) => return found,
            Err(ProtocolError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

proptest! {
    #[test]
    fn what_the_store_says_is_understood_however_its_bytes_come(
        orders in prop::collection::vec(order(), 0..8),
        step in 1..50_usize,
    ) {
        let bytes: Vec<u8> = orders.iter().flat_map(Message::encode).collect();
        let found = all::<Order>(&mut Slow(&bytes, step, false));
        prop_assert_eq!(found.len(), orders.len());
        for (found, order) in found.into_iter().zip(orders) {
            match (found, order) {
                (Order::Lost(found), Order::Lost(sent)) if shortened(&sent.reason) => {
                    prop_assert_eq!(found.number, sent.number);
                    prop_assert!(sent.reason.starts_with(&found.reason));
                    prop_assert!(found.reason.len() > MAX_REASON - 4);
                }
                (found, order) => prop_assert_eq!(found, order),
            }
        }
    }

    #[test]
    fn what_the_vmm_says_is_understood_however_its_bytes_come(
        reports in prop::collection::vec(report(), 0..8),
        step in 1..5000_usize,
    ) {
        let bytes: Vec<u8> = reports.iter().flat_map(Message::encode).collect();
        let found = all::<Report>(&mut Slow(&bytes, step, false));
        prop_assert_eq!(found.len(), reports.len());
        for (found, report) in found.into_iter().zip(reports) {
            match (found, report) {
                (Report::Failed(found), Report::Failed(sent)) if shortened(&sent.reason) => {
                    prop_assert!(sent.reason.starts_with(&found.reason));
                }
                (found, report) => prop_assert_eq!(found, report),
            }
        }
    }

    #[test]
    fn noise_is_an_error_and_never_a_panic_and_never_held_in_bulk(
        kind in any::<u8>(),
        len in any::<u32>(),
        rest in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(len.to_le_bytes());
        bytes.extend(&rest);
        let mut decoder = Decoder::<Report>::new();
        let _ = decoder.receive(&mut &*bytes);
        prop_assert!(decoder.payload.capacity() <= MAX_PAYLOAD);
        let _ = one::<Order>(&bytes);
        let _ = one::<Order>(&rest);
        let _ = one::<Report>(&rest);
    }

    #[test]
    fn a_cut_frame_is_an_error_and_an_end_between_frames_is_none(
        report in report(),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = report.encode();
        let at = at.index(bytes.len());
        match one::<Report>(&bytes[..at]) {
            Ok(None) => prop_assert_eq!(at, 0),
            Err(ProtocolError::Cut { missing }) => prop_assert!(missing <= bytes.len() - at),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

fn error<M: Message + std::fmt::Debug>(bytes: &[u8]) -> String {
    one::<M>(bytes).unwrap_err().to_string()
}

#[test]
fn each_side_refuses_what_only_the_other_one_gets() {
    let take = Order::Take(Take {
        number: 1,
        full: true,
    });
    assert!(error::<Report>(&take.encode()).contains("kind 1"));
    assert!(error::<Order>(&Report::Freeze.encode()).contains("kind 17"));
    assert!(error::<Order>(&raw(0, &[])).contains("kind 0"));
    assert!(error::<Report>(&raw(22, &[])).contains("kind 22"));
}

#[test]
fn padding_and_lengths_are_checked_before_anything_is_held() {
    let mut padded = Report::Freeze.encode();
    padded[2] = 1;
    assert!(error::<Report>(&padded).contains("to be zero"));
    for (kind, len) in [
        (FREEZE, 1),
        (MEMORY, 0),
        (MEMORY, MAX_JSON + 1),
        (STATE, NUMBER),
        (STATE, MAX_PAYLOAD + 1),
        (PAGES, NUMBER),
        (PAGES, NUMBER + PAGE + 1),
        (PAGES, NUMBER + MAX_DATA + PAGE),
    ] {
        // Only the header comes.
        let found = error::<Report>(&header(kind, len));
        assert!(
            found.contains(&format!("of {len} bytes")),
            "{kind}: {found}"
        );
    }
    assert!(error::<Report>(&header(PAGES, NUMBER + MAX_DATA)).contains("in the middle"));
}

#[test]
fn json_of_something_else_and_pages_where_none_are_get_errors() {
    for payload in [
        &b"{}"[..],
        b"[]",
        b"{\"number\":-1,\"full\":true}",
        b"{\"number\":1,\"full\":true,\"more\":1}",
        b"\xff\xff",
    ] {
        assert!(error::<Order>(&raw(TAKE, payload)).contains("kind 1 does not say"));
    }
    for offset in [1, 4095, 1 << 63, u64::MAX, u64::MAX - 4095] {
        let mut frame = pages_header(offset, PAGE).to_vec();
        frame.extend([0; PAGE]);
        assert!(error::<Report>(&frame).contains("multiples of 4096"));
    }
    for total in [0_u64, 1, MAX_STATE + 1, u64::MAX] {
        let mut payload = total.to_le_bytes().to_vec();
        payload.extend([0; 2]);
        assert!(error::<Report>(&raw(STATE, &payload)).contains("at most"));
    }
}

#[test]
fn a_long_state_comes_in_parts_that_all_say_how_long_it_is() {
    let state: Vec<u8> = (0..MAX_DATA * 2 + 17)
        .map(|at| at.to_le_bytes()[0])
        .collect();
    let mut found: Vec<u8> = Vec::new();
    for frame in encode_state(&state) {
        match one::<Report>(&frame).unwrap() {
            Some(Report::State(part)) => {
                assert_eq!(part.total(), state.len() as u64);
                found.extend(part.bytes());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(found == state);
}

#[test]
fn a_buffer_that_is_given_back_is_used_again() {
    let bytes = pages(8192, &vec![3; MAX_DATA]).encode();
    let mut decoder = Decoder::<Report>::new();
    let first = decoder.receive(&mut &*bytes).unwrap().unwrap();
    decoder.recycle(first);
    let capacity = decoder.payload.capacity();
    assert!(capacity >= MAX_PAYLOAD);
    match decoder.receive(&mut &*bytes).unwrap() {
        Some(Report::Pages(pages)) => {
            assert_eq!(pages.offset(), 8192);
            assert_eq!(pages.bytes(), vec![3; MAX_DATA]);
            assert_eq!(pages.payload.capacity(), capacity);
        }
        other => panic!("{other:?}"),
    }
}
