//! The file that says that this is a store, which one, and of which format.

use crate::FORMAT;
use crate::error::{Error, Result};
use crate::hash::Digest;
use crate::medium::Medium;

/// Name of the file.
pub const NAME: &str = "daruma-store";
/// The last bytes show whether the file was copied as text.
const MAGIC: &[u8; 16] = b"DARUMA STORE\r\n\x1a\n";
/// Bytes before the machine's name: magic, format, length of the name, id.
const FIXED: usize = 16 + 4 + 4 + 16;
const DIGEST: usize = 32;
/// Format of a store without images, which every program reads.
const FIRST: u32 = 1;
/// Longest name of a machine, bytes. All fits one sector, so that it is written whole.
const MACHINE: usize = 512 - FIXED - DIGEST;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub format: u32,
    pub id: [u8; 16],
    pub machine: String,
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        let machine = self.machine.as_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.format.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(machine.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(machine);
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(&digest.0);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let not = |why: &str| Error::NotAStore {
            why: format!("{NAME} {why}"),
        };
        let (fixed, rest) = bytes
            .split_first_chunk::<FIXED>()
            .ok_or_else(|| not("is cut off"))?;
        if fixed[..16] != *MAGIC {
            return Err(not("does not begin as a store's does"));
        }
        // Before anything else: what follows may be different in a newer format.
        let format = u32::from_le_bytes([fixed[16], fixed[17], fixed[18], fixed[19]]);
        if format > FORMAT {
            return Err(Error::Newer {
                found: format,
                known: FORMAT,
            });
        }
        let len = u32::from_le_bytes([fixed[20], fixed[21], fixed[22], fixed[23]]);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(MACHINE + 1);
        let (machine, digest) = rest
            .split_at_checked(len)
            .filter(|(_, digest)| digest.len() >= DIGEST)
            .ok_or_else(|| not("is cut off"))?;
        if Digest::of(&bytes[..FIXED + len]).0 != digest[..DIGEST] {
            return Err(not("is damaged: its hash differs"));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&fixed[24..]);
        let machine = String::from_utf8_lossy(machine).into_owned();
        Ok(Self {
            format,
            id,
            machine,
        })
    }

    /// Whether there is a store.
    pub fn found(medium: &dyn Medium, names: &[String]) -> Result<bool> {
        match Self::read(medium, names) {
            Ok(_) | Err(Error::Newer { .. }) => Ok(true),
            Err(Error::NotAStore { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub fn read(medium: &dyn Medium, names: &[String]) -> Result<Self> {
        if !names.iter().any(|name| name == NAME) {
            let why = if names.is_empty() {
                "the directory is empty".to_owned()
            } else {
                format!("there is no file {NAME} among {} others", names.len())
            };
            return Err(Error::NotAStore { why });
        }
        let mut bytes = vec![0; 512];
        let len = (medium
            .open(NAME)
            .and_then(|file| file.read_at(0, &mut bytes)))
        .map_err(Error::io(format!("read {NAME}")))?;
        Self::decode(&bytes[..len])
    }

    /// Makes the file, durable.
    pub fn create(medium: &dyn Medium, machine: &str) -> Result<()> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| Error::Io {
            doing: "make an id for the store".to_owned(),
            source: std::io::Error::other(error),
        })?;
        let superblock = Self {
            format: FIRST,
            id,
            machine: machine.to_owned(),
        };
        superblock.usable()?;
        let doing = || Error::io(format!("write {NAME}"));
        let file = medium.create(NAME).map_err(doing())?;
        file.write_at(0, &superblock.encode()).map_err(doing())?;
        file.sync().map_err(doing())?;
        medium.sync_names().map_err(doing())
    }

    fn usable(&self) -> Result<()> {
        if self.machine.len() > MACHINE {
            return Err(Error::Unusable {
                what: "The name of the machine".to_owned(),
                why: "it has more than 440 bytes",
            });
        }
        Ok(())
    }

    /// Changes the machine.
    pub fn adopt(&mut self, medium: &dyn Medium, machine: &str) -> Result<()> {
        machine.clone_into(&mut self.machine);
        self.usable()?;
        if medium.read_only() {
            return Ok(());
        }
        self.write(medium)
    }

    /// Changes the format to this program's.
    pub fn raise(&self, medium: &dyn Medium) -> Result<()> {
        let raised = Self {
            format: FORMAT,
            ..self.clone()
        };
        raised.write(medium)
    }

    fn write(&self, medium: &dyn Medium) -> Result<()> {
        let doing = || Error::io(format!("write {NAME}"));
        let file = medium.open(NAME).map_err(doing())?;
        let mut bytes = self.encode();
        // One sector, always: a shorter name leaves nothing of a longer one.
        bytes.resize(512, 0);
        file.write_at(0, &bytes).map_err(doing())?;
        file.sync().map_err(doing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Superblock {
        Superblock {
            format: FORMAT,
            id: [7; 16],
            machine: "attic".to_owned(),
        }
    }

    #[test]
    fn it_comes_back() {
        let mut bytes = some().encode();
        assert_eq!(Superblock::decode(&bytes).unwrap(), some());
        bytes.resize(512, 0);
        assert_eq!(Superblock::decode(&bytes).unwrap(), some());
    }

    #[test]
    fn any_changed_byte_and_any_cut_is_refused() {
        let bytes = some().encode();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Superblock::decode(&changed).is_err(), "{at}");
            assert!(Superblock::decode(&bytes[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_number_whatever_follows() {
        let mut bytes = some().encode();
        bytes[16] = 9;
        bytes.truncate(40);
        let error = Superblock::decode(&bytes).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("format 9 and this program reads up to 2")
        );
    }
}
