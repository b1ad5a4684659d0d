//! The real-time clock of the PC: an MC146818 with its battery-backed bytes, at ports 0x70 and 0x71.
//!
//! It tells the host's time in UTC. Setting it has no effect (a guest keeps its own offset), there is
//! no alarm and no periodic interrupt, and all other bytes are memory. The "update in progress" bit
//! follows the clock: it is set in the last 244 µs of each second, as the chip's is, so that a driver
//! that waits for it to clear always gets on and never reads a time that is changing.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::MutBusDevice;
use crate::calendar::Utc;
use crate::metrics::RtcMetrics;

/// First I/O port of the range.
pub const PORT: u64 = 0x70;
/// Ports in the range: index and data.
pub const LEN: u64 = 2;

const INDEX: u64 = 0;
const DATA: u64 = 1;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Where the IBM AT and ACPI's FADT (`CENTURY`) expect the century.
pub const CENTURY: u8 = 0x32;

const BYTES: usize = 128;
/// Bit 7 of the index port masks NMIs, which nothing here raises.
const INDEX_MASK: u8 = 0x7f;

/// Register A: time base 32.768 kHz, 1024 Hz periodic rate (the reset values of the PC).
const A_RATE: u8 = 0x26;
const A_UPDATE_IN_PROGRESS: u8 = 0x80;
/// Register B: 24-hour mode, binary instead of BCD.
const B_24_HOURS: u8 = 0x02;
const B_BINARY: u8 = 0x04;
/// Register B: the bits a driver may set. Interrupt enables would promise interrupts.
const B_WRITABLE: u8 = B_24_HOURS | B_BINARY;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;
/// How long before the next second the chip announces the update.
const UPDATE_TIME: Duration = Duration::from_micros(244);

/// A host clock: the current time, counted from the Unix epoch.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// What a driver has set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RtcState {
    /// The register that the data port is.
    pub index: u8,
    /// The battery-backed bytes; those of the time mean nothing.
    pub bytes: Vec<u8>,
}

/// The real-time clock.
pub struct Rtc {
    index: u8,
    bytes: [u8; BYTES],
    clock: Clock,
    metrics: Arc<RtcMetrics>,
}

impl Default for Rtc {
    fn default() -> Self {
        // A host whose clock is before 1970 shows the guest 1970.
        let now = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        };
        Self::with_clock(Box::new(now))
    }
}

impl Rtc {
    /// A clock that tells the host's time.
    pub fn new() -> Self {
        Self::default()
    }

    /// A clock that tells what `clock` says.
    pub fn with_clock(clock: Clock) -> Self {
        let mut bytes = [0; BYTES];
        bytes[usize::from(REGISTER_B)] = B_24_HOURS;
        Self {
            index: 0,
            bytes,
            clock,
            metrics: Arc::default(),
        }
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<RtcMetrics> {
        self.metrics.clone()
    }

    /// What a driver has set.
    pub fn state(&self) -> RtcState {
        RtcState {
            index: self.index,
            bytes: self.bytes.to_vec(),
        }
    }

    /// Goes on from `state`; bytes that it lacks stay as they are. The time is the host's.
    pub fn restore(&mut self, state: &RtcState) {
        self.index = state.index & INDEX_MASK;
        for (byte, saved) in self.bytes.iter_mut().zip(&state.bytes) {
            *byte = *saved;
        }
        self.bytes[usize::from(REGISTER_B)] &= B_WRITABLE;
    }

    fn register(&self) -> u8 {
        let time = Utc::since_1970((self.clock)());
        match self.index {
            SECONDS => self.number(time.second),
            MINUTES => self.number(time.minute),
            HOURS => self.hours(time.hour),
            DAY_OF_WEEK => self.number(time.day_of_week),
            DAY_OF_MONTH => self.number(time.day),
            MONTH => self.number(time.month),
            YEAR => self.number(two_digits(time.year)),
            CENTURY => self.number(two_digits(time.year / 100)),
            REGISTER_A => {
                let into_second = (self.clock)().subsec_nanos();
                let updating =
                    Duration::from_nanos(into_second.into()) + UPDATE_TIME > Duration::from_secs(1);
                if updating {
                    A_RATE | A_UPDATE_IN_PROGRESS
                } else {
                    A_RATE
                }
            }
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            index => self.bytes[usize::from(index)],
        }
    }

    fn control(&self) -> u8 {
        self.bytes[usize::from(REGISTER_B)]
    }

    /// A number in the format register B asks for.
    fn number(&self, value: u8) -> u8 {
        if self.control() & B_BINARY != 0 {
            value
        } else {
            value / 10 * 16 + value % 10
        }
    }

    /// An hour in the format register B asks for; bit 7 is PM in 12-hour mode.
    fn hours(&self, hour: u8) -> u8 {
        if self.control() & B_24_HOURS != 0 {
            return self.number(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        let hour = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.number(hour) | afternoon
    }
}

impl MutBusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        // The index port is write-only on the PC.
        if offset == DATA {
            data[0] = self.register();
            self.metrics.read_count.count();
        } else {
            self.metrics.missed_read_count.count();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        self.metrics.write_count.count();
        match (offset, self.index) {
            (INDEX, _) => {
                self.index = value & INDEX_MASK;
                // A 16-bit write to the index port selects and writes at once.
                if data.len() > 1 {
                    self.write(DATA, &data[1..2]);
                }
            }
            (
                DATA,
                SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY_OF_MONTH | MONTH | YEAR | CENTURY
                | REGISTER_A | REGISTER_C | REGISTER_D,
            ) => self.metrics.missed_write_count.count(),
            (DATA, REGISTER_B) => self.bytes[usize::from(REGISTER_B)] = value & B_WRITABLE,
            (DATA, index) => self.bytes[usize::from(index)] = value,
            _ => {}
        }
    }
}

/// The chip counts years and centuries with two digits each.
fn two_digits(number: u64) -> u8 {
    (number % 100).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rtc_at(now: Duration) -> Rtc {
        Rtc::with_clock(Box::new(move || now))
    }

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(INDEX, &[index]);
        let mut data = [0];
        rtc.read(DATA, &mut data);
        data[0]
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8) {
        rtc.write(INDEX, &[index]);
        rtc.write(DATA, &[value]);
    }

    #[test]
    fn a_clock_goes_on_with_its_bytes_and_tells_the_time_of_now() {
        let mut before = rtc_at(Duration::from_secs(1));
        write(&mut before, 0x40, 0x77);
        write(&mut before, REGISTER_B, B_24_HOURS | B_BINARY);
        before.write(INDEX, &[0x40]);
        let state: RtcState =
            serde_json::from_str(&serde_json::to_string(&before.state()).unwrap()).unwrap();
        let mut after = rtc_at(Duration::from_secs(59));
        after.restore(&state);
        let mut data = [0];
        after.read(DATA, &mut data);
        assert_eq!(data, [0x77], "the register that was selected");
        assert_eq!(
            read(&mut after, SECONDS),
            59,
            "in binary, by the clock of now"
        );
        // Whatever a state says.
        let hostile = RtcState {
            index: 0xff,
            bytes: vec![0xff; 1000],
        };
        after.restore(&hostile);
        after.read(DATA, &mut data);
        assert_eq!(read(&mut after, REGISTER_B), B_WRITABLE);
    }

    fn date(rtc: &mut Rtc) -> [u8; 8] {
        [
            CENTURY,
            YEAR,
            MONTH,
            DAY_OF_MONTH,
            DAY_OF_WEEK,
            HOURS,
            MINUTES,
            SECONDS,
        ]
        .map(|index| read(rtc, index))
    }

    #[test]
    fn time_is_shown_in_bcd() {
        // 2024-02-29T23:58:07Z, a Thursday.
        let mut rtc = rtc_at(Duration::from_secs(1_709_251_087));
        assert_eq!(
            date(&mut rtc),
            [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x58, 0x07]
        );
    }

    #[test]
    fn binary_and_twelve_hour_modes_are_honoured() {
        let mut rtc = rtc_at(Duration::from_secs(1_709_251_087));
        write(&mut rtc, REGISTER_B, B_BINARY);
        assert_eq!(date(&mut rtc), [20, 24, 2, 29, 5, 0x80 | 11, 58, 7]);
        let mut midnight = rtc_at(Duration::ZERO);
        write(&mut midnight, REGISTER_B, 0);
        assert_eq!(read(&mut midnight, HOURS), 0x12);
    }

    #[test]
    fn update_in_progress_shows_only_before_the_next_second() {
        let at = |micros| read(&mut rtc_at(Duration::from_micros(micros)), REGISTER_A);
        assert_eq!(at(5_000_000), A_RATE);
        assert_eq!(at(5_999_755), A_RATE);
        assert_eq!(at(5_999_757), A_RATE | A_UPDATE_IN_PROGRESS);
        assert_eq!(at(5_999_999), A_RATE | A_UPDATE_IN_PROGRESS);
    }

    #[test]
    fn time_cannot_be_set_and_interrupts_cannot_be_enabled() {
        let mut rtc = rtc_at(Duration::from_secs(1_709_251_087));
        let before = date(&mut rtc);
        for index in [
            SECONDS, HOURS, YEAR, CENTURY, REGISTER_A, REGISTER_C, REGISTER_D,
        ] {
            write(&mut rtc, index, 0x55);
        }
        assert_eq!(date(&mut rtc), before);
        assert_eq!(read(&mut rtc, REGISTER_A), A_RATE);
        assert_eq!(read(&mut rtc, REGISTER_C), 0);
        assert_eq!(read(&mut rtc, REGISTER_D), D_VALID);
        write(&mut rtc, REGISTER_B, 0xff);
        assert_eq!(read(&mut rtc, REGISTER_B), B_24_HOURS | B_BINARY);
    }

    #[test]
    fn other_bytes_are_memory_and_the_nmi_bit_selects_nothing() {
        let mut rtc = rtc_at(Duration::ZERO);
        write(&mut rtc, 0x40, 0xa5);
        assert_eq!(read(&mut rtc, 0x40 | 0x80), 0xa5);
        rtc.write(INDEX, &[0x41, 0x5a]);
        assert_eq!(read(&mut rtc, 0x41), 0x5a);
        let mut index = [0];
        rtc.read(INDEX, &mut index);
        assert_eq!(index, [0xff]);
    }

    proptest! {
        #[test]
        fn any_access_at_any_time_is_harmless(
            seconds in any::<u64>(),
            accesses in proptest::collection::vec((0..LEN, any::<[u8; 2]>(), 1..=2_usize), 0..32),
        ) {
            let mut rtc = rtc_at(Duration::from_secs(seconds));
            for (offset, value, len) in accesses {
                rtc.write(offset, &value[..len]);
                let mut data = [0; 4];
                rtc.read(offset, &mut data[..len]);
            }
        }
    }
}
