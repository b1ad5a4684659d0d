//! Configuration space of one function: a type 0 header, its base address register, its capabilities
//! (PCI Local Bus Specification 3.0 §6).

/// Bytes of configuration space in use; of the 4 KiB of PCI Express the rest reads as zero: no extended capabilities.
const LEN: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// First byte behind the header.
const HEADER_LEN: usize = 0x40;

/// Command: answer to memory accesses.
const COMMAND_MEMORY: u8 = 1 << 1;
/// Command: may access memory itself. Kept for the driver; a paravirtual device is stopped by its status.
const COMMAND_MASTER: u8 = 1 << 2;
/// Command, second byte: no INTx. There is none anyway; drivers expect to read back what they wrote.
const COMMAND_INTX_OFF: u8 = 1 << 2;
/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// BAR: a 64-bit address of memory.
const BAR_MEMORY_64: u8 = 0b100;

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
    /// Revision of the device.
    pub revision: u8,
    /// Base class, sub-class, programming interface (from the high byte down).
    pub class: [u8; 3],
    /// Subsystem vendor and number.
    pub subsystem: (u16, u16),
}

/// A region of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// First guest address.
    pub base: u64,
    /// Bytes: a power of two, at least 16.
    pub len: u64,
}

impl Bar {
    /// Where in the region `address` is.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.base)?;
        (offset < self.len).then_some(offset)
    }
}

/// The registers as a value: what can be saved is all that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    /// Which bits a driver may change.
    writable: [u8; LEN],
    memory_len: Option<u64>,
    /// Where the next capability goes, and where the pointer to it is.
    free: usize,
    link: usize,
}

impl ConfigSpace {
    /// A function without memory and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            memory_len: None,
            free: HEADER_LEN,
            link: CAPABILITIES,
        };
        let [class, subclass, interface] = identity.class;
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &[identity.revision, interface, subclass, class]);
        space.set(0x2c, &identity.subsystem.0.to_le_bytes());
        space.set(0x2e, &identity.subsystem.1.to_le_bytes());
        space
    }

    /// Gives the function a region of memory: BAR 0 and 1, 64 bits wide, where firmware would have put it. Memory
    /// decoding is off until a driver switches it on.
    pub fn with_memory(mut self, bar: Bar) -> Self {
        debug_assert!(
            bar.len.is_power_of_two() && bar.len >= 16 && bar.base.is_multiple_of(bar.len)
        );
        let base = bar.base.to_le_bytes();
        self.set(BAR0, &base);
        self.bytes[BAR0] |= BAR_MEMORY_64;
        // Only the bits above the length can be set, and by them a driver learns the length.
        self.writable[BAR0..BAR0 + 8].copy_from_slice(&(!(bar.len - 1)).to_le_bytes());
        self.writable[COMMAND] = COMMAND_MEMORY | COMMAND_MASTER;
        self.writable[COMMAND + 1] = COMMAND_INTX_OFF;
        self.memory_len = Some(bar.len);
        self
    }

    /// Appends a capability whose bytes after its link are `body`; a driver may change the bits in `writable` (as long
    /// as `body` or shorter). Returns its register.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.free;
        let end = at + 2 + body.len();
        assert!(
            end <= LEN && writable.len() <= body.len(),
            "a device's capabilities are fixed and fit"
        );
        let register = u8::try_from(at).unwrap_or(0);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.bytes[self.link] = register;
        self.bytes[at] = id;
        self.link = at + 1;
        self.set(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.free = end.next_multiple_of(4);
        register.into()
    }

    /// Fills `data` from `register`.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(register)..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Takes a driver's write to `register`.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        for (value, at) in data.iter().zip(usize::from(register)..LEN) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
    }

    /// Sets bytes that a driver may not be able to.
    pub fn set(&mut self, register: usize, data: &[u8]) {
        self.bytes[register..register + data.len()].copy_from_slice(data);
    }

    /// All registers.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Sets all registers that a driver can, as they are in `bytes`. The first register that is another and cannot be
    /// set, if there is one, or the number of bytes if that is wrong; nothing changes then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| bytes.len())?;
        let differs = |at: &usize| (self.bytes[*at] ^ bytes[*at]) & !self.writable[*at] != 0;
        match (0..LEN).find(differs) {
            Some(register) => Err(register),
            None => {
                self.bytes = *bytes;
                Ok(())
            }
        }
    }

    /// The little-endian 16 bits at `register`.
    pub fn u16_at(&self, register: u16) -> u16 {
        let mut data = [0; 2];
        self.read(register, &mut data);
        u16::from_le_bytes(data)
    }

    /// The little-endian 32 bits at `register`.
    pub fn u32_at(&self, register: u16) -> u32 {
        let mut data = [0; 4];
        self.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// The memory the function answers for now.
    pub fn memory(&self) -> Option<Bar> {
        let len = self.memory_len?;
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let mut base = [0; 8];
        base.copy_from_slice(&self.bytes[BAR0..BAR0 + 8]);
        let base = u64::from_le_bytes(base) & !(len - 1);
        Some(Bar { base, len })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 9,
        class: [1, 2, 3],
        subsystem: (0xabcd, 0xef01),
    };
    const BAR: Bar = Bar {
        base: 0xd800_0000,
        len: 0x8000,
    };

    fn space() -> ConfigSpace {
        ConfigSpace::new(&IDENTITY).with_memory(BAR)
    }

    fn write_u32(space: &mut ConfigSpace, register: u16, value: u32) {
        space.write(register, &value.to_le_bytes());
    }

    #[test]
    fn header_says_what_the_function_is() {
        let space = space();
        assert_eq!(space.u32_at(0x00), 0x5678_1234);
        assert_eq!(space.u32_at(0x08), 0x0102_0309);
        assert_eq!(space.u32_at(0x2c), 0xef01_abcd);
        assert_eq!(space.u32_at(0x0c), 0, "one function, type 0");
        assert_eq!(space.u32_at(0x3c), 0, "no interrupt pin");
        assert_eq!(space.u32_at(0x100), 0, "no extended capabilities");
    }

    #[test]
    fn bar_is_sized_and_moved_as_the_specification_says() {
        let mut space = space();
        assert_eq!((space.u32_at(0x10), space.u32_at(0x14)), (0xd800_0004, 0));
        write_u32(&mut space, 0x10, u32::MAX);
        write_u32(&mut space, 0x14, u32::MAX);
        assert_eq!(
            (space.u32_at(0x10), space.u32_at(0x14)),
            (0xffff_8004, u32::MAX)
        );
        write_u32(&mut space, 0x10, 0x1234_5678);
        write_u32(&mut space, 0x14, 0x9);
        assert_eq!(space.memory(), None, "decoding is off");
        space.write(0x04, &[0xff, 0xff]);
        assert_eq!(space.u16_at(0x04), 0x0406);
        let moved = Bar {
            base: 0x9_1234_0000,
            len: 0x8000,
        };
        assert_eq!(space.memory(), Some(moved));
        for bar in (0x18..0x28).step_by(4) {
            write_u32(&mut space, bar, u32::MAX);
            assert_eq!(space.u32_at(bar), 0, "there is one BAR");
        }
    }

    #[test]
    fn capabilities_are_linked_and_only_their_writable_bits_change() {
        let mut space = space();
        let first = space.add_capability(0x11, &[1, 2, 3, 4, 5], &[0, 0xc0]);
        let second = space.add_capability(0x09, &[6, 7], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.u32_at(0x34), 0x40);
        assert_eq!(space.u16_at(0x06), 0x10);
        assert_eq!(space.u16_at(0x40), 0x4811);
        assert_eq!(space.u16_at(0x48), 0x0009);
        write_u32(&mut space, 0x40, u32::MAX);
        assert_eq!(space.u32_at(0x40), 0xc201_4811);
    }

    #[test]
    fn region_holds_its_first_and_last_byte() {
        assert_eq!(BAR.offset_of(0xd800_0000), Some(0));
        assert_eq!(BAR.offset_of(0xd800_7fff), Some(0x7fff));
        assert_eq!(BAR.offset_of(0xd800_8000), None);
        assert_eq!(BAR.offset_of(0xd7ff_ffff), None);
        let top = Bar {
            base: 0xffff_ffff_ffff_8000,
            len: 0x8000,
        };
        assert_eq!(top.offset_of(u64::MAX), Some(0x7fff));
    }

    proptest! {
        #[test]
        fn any_accesses_change_nothing_but_writable_bits(
            accesses in proptest::collection::vec(
                (any::<u16>(), proptest::collection::vec(any::<u8>(), 1..9)), 0..64),
        ) {
            let mut space = space();
            space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
            let fresh = space.clone();
            for (register, data) in accesses {
                space.write(register % 0x1000, &data);
                let mut read = vec![0; data.len()];
                space.read(register, &mut read);
                space.memory();
            }
            for at in 0..LEN {
                prop_assert_eq!((space.bytes[at] ^ fresh.bytes[at]) & !space.writable[at], 0);
            }
        }
    }
}
