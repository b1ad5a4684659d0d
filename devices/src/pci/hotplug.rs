//! The registers by which a guest is told that functions come and shall go, and by which it lets go of them.
//!
//! Our own design, for the AML of the VMM's DSDT; nothing else needs to know it. Three registers of 32 bits, in which bit
//! `n` stands for device number `n`:
//!
//! ```text
//!   offset  read                                   write
//!   0x0     up: functions the guest has not        1 bits: the guest has been told
//!           been told of yet
//!   0x4     down: functions the guest is asked     1 bits: the guest has been told
//!           to let go of, and has not been told
//!   0x8     what the guest may let go of           1 bits: it has done so (`_EJ0`)
//! ```
//!
//! The registers tell nobody that they have changed: that is the generic event device's part
//! ([`GedEvent::PciSlots`](crate::legacy::acpi::GedEvent)). Its handler reads up and down, notifies the devices (1 = device
//! check, 3 = eject request, ACPI 6.5 §5.6.6) and writes back what it has seen, so that a bit that is set in between is not
//! lost. Accesses other than of 32 bits to a register's offset read as zero and change nothing.

use serde::{Deserialize, Serialize};

use crate::bus::MutBusDevice;
use crate::throttle::Throttle;

/// Bytes of the registers.
pub const LEN: u64 = 12;
/// Offset of what has come.
pub const UP: u64 = 0;
/// Offset of what shall go.
pub const DOWN: u64 = 4;
/// Offset of what is let go of.
pub const EJECT: u64 = 8;

/// Takes a function that the guest has let go of off the bus: a bitmap of device numbers. Called on the vCPU's thread, so
/// it must be quick; when it returns, the guest finds the places empty.
pub type Eject = Box<dyn FnMut(u32) + Send>;

/// What the guest has not been told yet, and what it may let go of: bitmaps of device numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct HotplugState {
    /// Functions that have come.
    pub up: u32,
    /// Functions that shall go.
    pub down: u32,
    /// Functions that may go.
    pub removable: u32,
}

/// The registers.
pub struct HotplugRegisters {
    up: u32,
    down: u32,
    removable: u32,
    eject: Eject,
    refused: Throttle,
}

impl HotplugRegisters {
    /// Registers of a bus from which the guest may remove the functions of the bitmap `removable`.
    pub fn new(removable: u32, eject: Eject) -> Self {
        Self {
            up: 0,
            down: 0,
            removable,
            eject,
            refused: Throttle::default(),
        }
    }

    /// All that they hold.
    pub fn state(&self) -> HotplugState {
        HotplugState {
            up: self.up,
            down: self.down,
            removable: self.removable,
        }
    }

    /// Goes on from `state`, as far as it is about functions that are there and may go.
    pub fn restore(&mut self, state: &HotplugState) {
        self.up = state.up & self.removable;
        self.down = state.down & self.removable;
    }

    /// There is a new function at `slot`, which the guest may remove. The guest is to be told.
    pub fn plug(&mut self, slot: usize) {
        let bit = bit(slot);
        self.removable |= bit;
        self.up |= bit;
        self.down &= !bit;
    }

    /// The guest is to be asked to let go of the function at `slot`. Says whether it can be.
    pub fn request(&mut self, slot: usize) -> bool {
        let asked = bit(slot) & self.removable;
        self.down |= asked;
        asked != 0
    }

    /// The guest is not asked any longer to let go of `slot`. If it was told already, it may do so all the same.
    pub fn withdraw(&mut self, slot: usize) {
        self.down &= !bit(slot);
    }

    /// Whether there is something that the guest has not been told: it does not listen, or not yet.
    pub fn is_unheard(&self) -> bool {
        self.up | self.down != 0
    }

    /// Whether the guest has yet to be told of the function at `slot`.
    pub fn is_new(&self, slot: usize) -> bool {
        self.up & bit(slot) != 0
    }
}

fn bit(slot: usize) -> u32 {
    u32::try_from(slot)
        .ok()
        .and_then(|slot| 1_u32.checked_shl(slot))
        .unwrap_or(0)
}

impl MutBusDevice for HotplugRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(register) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        *register = match offset {
            UP => self.up,
            DOWN => self.down,
            EJECT => self.removable,
            _ => 0,
        }
        .to_le_bytes();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let value = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        match (offset, value) {
            (UP, Ok(value)) => self.up &= !value,
            (DOWN, Ok(value)) => self.down &= !value,
            (EJECT, Ok(value)) => {
                let gone = value & self.removable;
                if gone != value {
                    self.refused.warn(format_args!(
                        "The guest lets go of PCI device numbers {:#x}, at which there is nothing to remove",
                        value & !gone
                    ));
                }
                if gone != 0 {
                    self.removable &= !gone;
                    self.up &= !gone;
                    self.down &= !gone;
                    (self.eject)(gone);
                }
            }
            _ => self.refused.warn(format_args!(
                "Write of {} bytes to PCI hot-plug register {offset:#x} ignored",
                data.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    fn registers(removable: u32) -> (HotplugRegisters, Arc<Mutex<Vec<u32>>>) {
        let ejected = Arc::<Mutex<Vec<u32>>>::default();
        let sink = ejected.clone();
        let eject = Box::new(move |slots| sink.lock().unwrap().push(slots));
        (HotplugRegisters::new(removable, eject), ejected)
    }

    fn read(registers: &mut HotplugRegisters, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(registers: &mut HotplugRegisters, offset: u64, value: u32) {
        registers.write(offset, &value.to_le_bytes());
    }

    #[test]
    fn a_new_function_is_told_once_and_can_be_let_go_of() {
        let (mut registers, ejected) = registers(0);
        registers.plug(5);
        registers.plug(31);
        assert!(registers.is_unheard() && registers.is_new(5));
        assert_eq!(read(&mut registers, UP), 1 << 31 | 1 << 5);
        write(&mut registers, UP, 1 << 5);
        assert_eq!(read(&mut registers, UP), 1 << 31);
        assert!(!registers.is_new(5));
        write(&mut registers, EJECT, 1 << 5);
        assert_eq!(*ejected.lock().unwrap(), [1 << 5]);
        assert_eq!(read(&mut registers, EJECT), 1 << 31);
    }

    #[test]
    fn what_the_guest_has_not_heard_is_there_after_a_restore_for_what_can_go() {
        let (mut before, _) = registers(0b0110);
        before.plug(3);
        before.request(1);
        let state = before.state();
        // Device number 3 has nothing that can go now.
        let (mut after, _) = registers(0b0110);
        after.restore(&state);
        assert_eq!(read(&mut after, UP), 0);
        assert_eq!(read(&mut after, DOWN), 0b0010);
        let (mut after, _) = registers(0b1110);
        after.restore(&state);
        assert_eq!(after.state(), state);
        assert_eq!(read(&mut after, UP), 0b1000);
    }

    #[test]
    fn a_request_stands_until_it_is_heard_withdrawn_or_fulfilled() {
        let (mut registers, ejected) = registers(0b1110);
        assert!(registers.request(1) && registers.request(2) && registers.request(3));
        assert_eq!(read(&mut registers, DOWN), 0b1110);
        write(&mut registers, DOWN, 0b0010);
        registers.withdraw(2);
        assert_eq!(read(&mut registers, DOWN), 0b1000);
        write(&mut registers, EJECT, 0b1000);
        assert_eq!(read(&mut registers, DOWN), 0);
        assert!(!registers.is_unheard());
        assert_eq!(*ejected.lock().unwrap(), [0b1000]);
    }

    #[test]
    fn only_what_is_there_can_be_asked_for_and_let_go_of() {
        let (mut registers, ejected) = registers(0b10);
        assert!(!registers.request(0) && !registers.request(2) && !registers.request(32));
        assert!(!registers.request(usize::MAX));
        write(&mut registers, EJECT, u32::MAX);
        write(&mut registers, EJECT, u32::MAX);
        assert_eq!(*ejected.lock().unwrap(), [0b10]);
    }

    #[test]
    fn a_new_function_in_an_old_place_is_not_asked_for() {
        let (mut registers, _) = registers(0b10);
        registers.request(1);
        write(&mut registers, EJECT, 0b10);
        registers.plug(1);
        assert_eq!(read(&mut registers, DOWN), 0);
        assert_eq!(read(&mut registers, UP), 0b10);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Plug(usize),
        Request(usize),
        Withdraw(usize),
        Write(u64, Vec<u8>),
        Read(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let slot = 0..40_usize;
        prop_oneof![
            slot.clone().prop_map(Step::Plug),
            slot.clone().prop_map(Step::Request),
            slot.prop_map(Step::Withdraw),
            (0..LEN, prop::collection::vec(any::<u8>(), 1..=8))
                .prop_map(|(at, data)| Step::Write(at, data)),
            (prop_oneof![Just(UP), Just(DOWN), Just(EJECT)], any::<u32>())
                .prop_map(|(at, value)| Step::Write(at, value.to_le_bytes().to_vec())),
            (0..LEN, 1..=8_usize).prop_map(|(at, len)| Step::Read(at, len)),
        ]
    }

    proptest! {
        /// Whatever both sides do: only what is there is announced, asked for or let go of, and each once.
        #[test]
        fn any_accesses_keep_the_bitmaps_consistent(
            removable: u32,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let (mut registers, ejected) = registers(removable);
            let mut there = removable;
            for step in steps {
                match step {
                    Step::Plug(slot) => {
                        registers.plug(slot);
                        there |= bit(slot);
                    }
                    Step::Request(slot) => {
                        prop_assert_eq!(registers.request(slot), there & bit(slot) != 0);
                    }
                    Step::Withdraw(slot) => registers.withdraw(slot),
                    Step::Write(at, data) => registers.write(at, &data),
                    Step::Read(at, len) => {
                        let mut data = vec![0xff; len];
                        let before = (registers.up, registers.down, registers.removable);
                        registers.read(at, &mut data);
                        prop_assert_eq!((registers.up, registers.down, registers.removable), before);
                        if len != 4 || at % 4 != 0 {
                            prop_assert_eq!(data, vec![0; len]);
                        }
                    }
                }
                for gone in ejected.lock().unwrap().drain(..) {
                    prop_assert_eq!(gone & !there, 0, "let go of twice, or of nothing");
                    prop_assert_ne!(gone, 0);
                    there &= !gone;
                }
                prop_assert_eq!(registers.removable, there);
                prop_assert_eq!((registers.up | registers.down) & !there, 0);
            }
        }
    }
}
