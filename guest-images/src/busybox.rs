//! Checks a BusyBox and asks it for its applets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// A static x86-64 BusyBox.
#[derive(Debug)]
pub struct BusyBox {
    path: PathBuf,
    applets: Vec<String>,
}

impl BusyBox {
    /// Takes the BusyBox at `path`, if it runs here and needs no libraries.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let unusable = |reason| Error::BusyBox {
            path: path.to_owned(),
            reason,
        };
        let elf = fs::read(path).map_err(Error::io("read", path))?;
        match needs_interpreter(&elf) {
            None => return Err(unusable("not a 64-bit ELF program")),
            Some(true) => return Err(unusable("it is linked to shared libraries")),
            Some(false) => {}
        }
        let listed = Command::new(path)
            .arg("--list")
            .output()
            .map_err(|source| Error::Start {
                program: path.display().to_string(),
                source,
            })?;
        let applets: Vec<String> = String::from_utf8_lossy(&listed.stdout)
            .lines()
            .map(str::trim)
            .filter(|name| !name.is_empty() && *name != "busybox" && !name.contains('/'))
            .map(str::to_owned)
            .collect();
        if !applets.iter().any(|name| name == "init") {
            return Err(unusable("it has no `init` applet"));
        }
        Ok(Self {
            path: path.to_owned(),
            applets,
        })
    }

    /// The program file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the applets, without `busybox` itself.
    pub fn applets(&self) -> &[String] {
        &self.applets
    }
}

/// Whether an ELF64 file has a PT_INTERP program header, or `None` if it is no such file.
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    /// `ELFMAG`, then ELFCLASS64 and little-endian.
    const IDENT: &[u8] = b"\x7fELF\x02\x01";
    const PT_INTERP: u32 = 3;
    /// Size of a program header.
    const HEADER: usize = 56;

    if !elf.starts_with(IDENT) {
        return None;
    }
    let offset = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?);
    let count = u16::from_le_bytes(elf.get(56..58)?.try_into().ok()?);
    let headers = elf.get(usize::try_from(offset).ok()?..)?;
    let headers = headers.get(..usize::from(count).checked_mul(HEADER)?)?;
    Some(
        headers
            .chunks_exact(HEADER)
            .any(|header| header[..4] == PT_INTERP.to_le_bytes()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_refused() {
        // This test program itself: a dynamically linked executable.
        let me = std::env::current_exe().unwrap();
        let error = BusyBox::open(&me).unwrap_err().to_string();
        assert!(
            error.contains("it is linked to shared libraries"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_elf_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("busybox");
        for content in [&b"#!/bin/sh\n"[..], b"\x7fELF\x02\x01", b""] {
            fs::write(&path, content).unwrap();
            let error = BusyBox::open(&path).unwrap_err().to_string();
            assert!(error.contains("not a 64-bit ELF program"), "{error}");
        }
    }

    #[test]
    fn a_header_table_beyond_the_file_is_refused() {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        elf[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(needs_interpreter(&elf), None);
    }
}
