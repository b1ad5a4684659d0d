//! Turning the ROM stage from the ELF file that the linker makes into the bytes that lie at the end of flash.
//!
//! Build it with `cargo build --package bootblock --features stage --bin bootblock --profile rom`; then [`flatten`] the ELF
//! file. Its linker script (`bootblock/stage.ld`) makes two sections: `.stage`, which runs in RAM, and `.reset`, whose last
//! 16 bytes are the reset vector. In flash `.reset` follows `.stage`, and copies it to RAM.

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};
use thiserror::Error;

use crate::anchor::{Anchor, AnchorError};

/// Where `.reset` must end.
const FOUR_GIB: u64 = 1 << 32;

/// Why an ELF file is no ROM stage.
#[derive(Debug, Error)]
pub enum StageError {
    /// Not an ELF file, or damaged.
    #[error("The ROM stage is no readable 64-bit ELF file")]
    Elf(#[from] object::Error),
    /// A section is missing.
    #[error("The ROM stage has no section {name}: it was not linked by bootblock/stage.ld")]
    NoSection {
        /// Name of the section.
        name: &'static str,
    },
    /// The reset vector is elsewhere.
    #[error("Section .reset of the ROM stage ends at {end:#x}, not at 4 GiB")]
    ResetVector {
        /// Where it ends.
        end: u64,
    },
    /// There is no place for the metadata hash, or more than one.
    #[error("The ROM stage cannot hold the metadata hash")]
    Anchor(#[from] AnchorError),
}

/// The bytes of the boot block in the ELF file `elf`.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>, StageError> {
    let file = ElfFile64::<object::Endianness>::parse(elf)?;
    let section = |name: &'static str| {
        file.section_by_name(name)
            .ok_or(StageError::NoSection { name })
    };
    let (stage, reset) = (section(".stage")?, section(".reset")?);
    let end = reset.address().wrapping_add(reset.size());
    if end != FOUR_GIB {
        return Err(StageError::ResetVector { end });
    }
    let bytes = [stage.data()?, reset.data()?].concat();
    Anchor::find(&bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(matches!(flatten(b"MZ"), Err(StageError::Elf(_))));
    }

    #[test]
    fn a_program_for_an_operating_system_is_refused() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(matches!(
            flatten(&own),
            Err(StageError::NoSection { name: ".stage" })
        ));
    }
}
