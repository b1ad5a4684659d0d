//! What a file in CBFS is.

use core::fmt;

/// What a file is, by coreboot's numbers; any other number is kept as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kind(pub u32);

impl Kind {
    /// A deleted file: free space.
    pub const DELETED: Self = Self(0);
    /// Code at the reset vector.
    pub const BOOTBLOCK: Self = Self(0x01);
    /// The header of CBFS as it was before FMAP.
    pub const MASTER_HEADER: Self = Self(0x02);
    /// A coreboot stage.
    pub const STAGE: Self = Self(0x11);
    /// A payload in SELF format.
    pub const SELF: Self = Self(0x20);
    /// Any data.
    pub const RAW: Self = Self(0x50);
    /// Free space.
    pub const EMPTY: Self = Self(0xffff_ffff);

    /// Whether it is free space, which no hash covers and no name finds.
    pub fn is_free(self) -> bool {
        self == Self::DELETED || self == Self::EMPTY
    }

    /// Whether it is firmware proper: code or data that coreboot itself runs on, made for one board.
    pub fn is_firmware(self) -> bool {
        matches!(
            self.0,
            0x01 | 0x02 | 0x10 | 0x11 | 0x53 | 0x60..=0x62 | 0x80 | 0xab
        )
    }

    /// cbfstool's name for it, if it is one that coreboot has given out.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "deleted",
            0x01 => "bootblock",
            0x02 => "cbfs header",
            0x10 => "legacy stage",
            0x11 => "stage",
            0x20 => "simple elf",
            0x21 => "fit",
            0x30 => "optionrom",
            0x40 => "bootsplash",
            0x50 => "raw",
            0x51 => "vsa",
            0x52 => "mbi",
            0x53 => "microcode",
            0x60 => "fsp",
            0x61 => "mrc",
            0x62 => "mma",
            0x63 => "efi",
            0x70 => "struct",
            0x80 => "amdfw",
            0xaa => "cmos_default",
            0xab => "spd",
            0xac => "mrc_cache",
            0x1aa => "cmos_layout",
            u32::MAX => "free",
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
