use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

/// Remembers what was routed and sent.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<(u16, Option<MsiMessage>)>>,
    broken: AtomicBool,
}

impl Recorder {
    fn take(&self) -> Vec<(u16, Option<MsiMessage>)> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    fn record(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        self.events.lock().unwrap().push((vector, message));
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }
}

impl MsiSink for Recorder {
    fn route(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
        self.record(vector, Some(message))
    }

    fn send(&self, vector: u16) -> io::Result<()> {
        self.record(vector, None)
    }
}

const VECTORS: u16 = 5;
const ENABLED: u16 = 0x8000;
const MASKED: u16 = 0xc000;
const MESSAGE: MsiMessage = MsiMessage {
    address: 0x1_fee0_1004,
    data: 0x4321,
};

fn fixture() -> (Msix, Arc<Recorder>) {
    let sink = Arc::<Recorder>::default();
    (Msix::new(VECTORS, sink.clone()), sink)
}

fn write(msix: &Msix, offset: u64, value: u32) {
    msix.write_table(offset, &value.to_le_bytes());
}

fn read(msix: &Msix, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    msix.read_table(offset, &mut data);
    u32::from_le_bytes(data)
}

/// What a driver does to use a vector.
fn set(msix: &Msix, vector: u64) {
    let base = vector * ENTRY_LEN;
    write(msix, base, 0xfee0_1004);
    write(msix, base + 4, 1);
    write(msix, base + 8, 0x4321);
    write(msix, base + 12, 0);
}

fn pending(msix: &Msix) -> u32 {
    let mut data = [0xff; 4];
    msix.read_pending(0, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn message_is_routed_once_and_sent_each_time() {
    let (msix, sink) = fixture();
    msix.set_control(ENABLED);
    set(&msix, 2);
    assert_eq!(sink.take(), [(2, Some(MESSAGE))]);
    msix.signal(2);
    msix.signal(2);
    assert_eq!(sink.take(), [(2, None), (2, None)]);
    // Masked and unmasked with the same message: nothing new to say.
    write(&msix, 44, 1);
    write(&msix, 44, 0);
    assert_eq!(sink.take(), []);
    write(&msix, 44, 1);
    write(&msix, 40, 0x4322);
    assert_eq!(sink.take(), [], "a masked entry may be half written");
    write(&msix, 44, 0);
    let changed = MsiMessage {
        data: 0x4322,
        ..MESSAGE
    };
    assert_eq!(sink.take(), [(2, Some(changed))]);
}

#[test]
fn masked_vector_is_pending_until_it_is_unmasked_and_then_sent_once() {
    let (msix, sink) = fixture();
    msix.set_control(ENABLED);
    set(&msix, 1);
    write(&msix, 28, 1);
    sink.take();
    msix.signal(1);
    msix.signal(1);
    msix.signal(4);
    assert_eq!((sink.take(), pending(&msix)), (vec![], 0b1_0010));
    write(&msix, 28, 0);
    assert_eq!((sink.take(), pending(&msix)), (vec![(1, None)], 0b1_0000));
}

#[test]
fn function_mask_holds_all_vectors_back() {
    let (msix, sink) = fixture();
    msix.set_control(MASKED);
    set(&msix, 0);
    set(&msix, 3);
    msix.signal(3);
    assert_eq!((sink.take(), pending(&msix)), (vec![], 0b1000));
    msix.set_control(ENABLED);
    assert_eq!(
        sink.take(),
        [(0, Some(MESSAGE)), (3, Some(MESSAGE)), (3, None)]
    );
    assert_eq!(pending(&msix), 0);
}

#[test]
fn disabled_function_is_silent_and_forgets() {
    let (msix, sink) = fixture();
    set(&msix, 0);
    msix.signal(0);
    assert_eq!((sink.take(), pending(&msix)), (vec![], 0));
    msix.set_control(MASKED);
    msix.signal(0);
    assert_eq!(pending(&msix), 1);
    msix.set_control(0);
    msix.set_control(ENABLED);
    assert_eq!((sink.take(), pending(&msix)), (vec![(0, Some(MESSAGE))], 0));
}

#[test]
fn vectors_out_of_range_are_nobody() {
    let (msix, sink) = fixture();
    msix.set_control(ENABLED);
    for vector in [VECTORS, VECTORS + 1, 2047, u16::MAX] {
        msix.signal(vector);
        set(&msix, vector.into());
        assert_eq!(read(&msix, u64::from(vector) * ENTRY_LEN), 0);
    }
    for offset in [u64::MAX - 3, !7, 0x1_0000_0000] {
        write(&msix, offset, 1);
        assert_eq!(read(&msix, offset), 0);
        msix.read_pending(offset, &mut [0; 4]);
    }
    assert_eq!(sink.take(), []);
}

#[test]
fn table_takes_aligned_32_and_64_bits_only() {
    let (msix, _) = fixture();
    let before = msix.state();
    for offset in 0..40 {
        for width in 1..=16_u8 {
            if matches!(width, 4 | 8) && offset % u64::from(width) == 0 {
                continue;
            }
            msix.write_table(offset, &vec![0xff; width.into()]);
            let mut data = vec![0xff; width.into()];
            msix.read_table(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0), "{width} at {offset}");
        }
    }
    assert_eq!(msix.state(), before);
    msix.write_table(16, &0x1_fee0_1007_u64.to_le_bytes());
    msix.write_table(24, &0xffff_fffe_0000_4321_u64.to_le_bytes());
    assert_eq!(msix.state().entries[1].message, MESSAGE);
    assert!(!msix.state().entries[1].masked);
    let mut word = [0; 8];
    msix.read_table(24, &mut word);
    assert_eq!(u64::from_le_bytes(word), 0x4321);
}

#[test]
fn message_that_cannot_be_delivered_is_not_tried_again_and_again() {
    let (msix, sink) = fixture();
    sink.broken.store(true, Ordering::SeqCst);
    msix.set_control(ENABLED);
    set(&msix, 0);
    for _ in 0..100 {
        write(&msix, 12, 1);
        write(&msix, 12, 0);
    }
    assert_eq!(sink.take().len(), 1);
}

#[test]
fn capability_says_how_many_vectors_there_are_and_where() {
    let (msix, _) = fixture();
    let body = msix.capability(0x3000, 0x4000);
    assert_eq!(body, [4, 0, 0, 0x30, 0, 0, 0, 0x40, 0, 0]);
}

proptest! {
    /// Against the rule in one sentence: a vector is sent when it is signalled or unmasked-while-pending, and may be.
    #[test]
    fn sent_is_what_was_signalled_and_not_masked(
        steps in proptest::collection::vec((0..4_u8, 0..7_u16, any::<bool>()), 0..80),
    ) {
        let (msix, sink) = fixture();
        let count = usize::from(VECTORS);
        let (mut control, mut masked, mut waiting) = (0, vec![true; count], vec![false; count]);
        for (step, vector, flag) in steps {
            let index = usize::from(vector);
            let mut expected = vec![];
            match step {
                0 => {
                    msix.signal(vector);
                    if index < count && control & ENABLED != 0 {
                        if control == ENABLED && !masked[index] {
                            expected.push(vector);
                        } else {
                            waiting[index] = true;
                        }
                    }
                }
                1 => {
                    write(&msix, u64::from(vector) * ENTRY_LEN + 12, flag.into());
                    if index < count {
                        masked[index] = flag;
                    }
                }
                2 => {
                    control = if flag { ENABLED } else { MASKED };
                    msix.set_control(control);
                }
                _ => {
                    control = if flag { ENABLED } else { 0 };
                    msix.set_control(control);
                    if !flag {
                        waiting.fill(false);
                    }
                }
            }
            for index in 0..count {
                if control == ENABLED && !masked[index] && waiting[index] {
                    waiting[index] = false;
                    expected.push(u16::try_from(index).unwrap());
                }
            }
            let sent: Vec<u16> = sink
                .take()
                .into_iter()
                .filter_map(|(vector, message)| message.is_none().then_some(vector))
                .collect();
            prop_assert_eq!(sent, expected);
            let bits = (0..count).fold(0, |bits, index| bits | u32::from(waiting[index]) << index);
            prop_assert_eq!(pending(&msix), bits);
        }
    }
}

#[test]
fn a_table_goes_on_routed_as_it_was_and_sends_what_has_waited() {
    let (msix, _) = fixture();
    msix.set_control(ENABLED);
    for vector in [1_u64, 2] {
        let entry = vector * ENTRY_LEN;
        msix.write_table(entry, &MESSAGE.address.to_le_bytes());
        msix.write_table(entry + 8, &MESSAGE.data.to_le_bytes());
    }
    msix.write_table(ENTRY_LEN + 12, &[0; 4]);
    // Masked: it waits.
    msix.signal(2);
    let mut state = msix.state();
    let (other, sink) = fixture();
    assert!(other.restore(&state));
    assert_eq!(other.state(), state);
    assert_eq!(sink.take(), [(1, Some(MESSAGE))]);
    assert_eq!(pending(&other), 1 << 2);
    other.write_table(2 * ENTRY_LEN + 12, &[0; 4]);
    assert_eq!(sink.take(), [(2, Some(MESSAGE)), (2, None)]);
    other.signal(1);
    assert_eq!(sink.take(), [(1, None)]);
    // A state of another function changes nothing.
    state.entries.pop();
    assert!(!other.restore(&state));
    assert!(sink.take().is_empty());
}
