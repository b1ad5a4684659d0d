//! Takes out of a program what only debuggers read.

use anyhow::{Context, Result};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Endianness, Object, ObjectSection, elf};

/// Tables of how to unwind each function. `-C force-unwind-tables=no` leaves out those of our own code; the standard
/// library and libc come with theirs, a tenth of the program. A panic ends the process where it is, so that nothing
/// reads them.
const UNWINDING: [&str; 3] = [".eh_frame", ".eh_frame_hdr", ".gcc_except_table"];

/// Zeroes the tables of `program`, an ELF executable, and what points to them. Zeroes cost no flash.
///
/// They keep their place: all after them is where the linker wanted it.
pub fn without_unwinding(mut program: Vec<u8>) -> Result<Vec<u8>> {
    let mut unneeded = Vec::new();
    let mut headers = Vec::new();
    {
        let file = ElfFile64::<Endianness>::parse(&*program).context("Not an ELF executable")?;
        for name in UNWINDING {
            let section = file.section_by_name(name);
            unneeded.extend(section.and_then(|section| section.file_range()));
        }
        let table = file.elf_header().e_phoff.get(file.endian());
        for (index, header) in (0u64..).zip(file.elf_program_headers()) {
            if header.p_type(file.endian()) == elf::PT_GNU_EH_FRAME {
                headers.push(
                    table + index * u64::from(file.elf_header().e_phentsize.get(file.endian())),
                );
            }
        }
    }
    for (start, len) in unneeded {
        let range = usize::try_from(start)?..usize::try_from(start + len)?;
        program[range].fill(0);
    }
    for header in headers {
        // The type is the first field.
        let start = usize::try_from(header)?;
        program[start..start + 4].copy_from_slice(&elf::PT_NULL.0.to_le_bytes());
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::{env, fs};

    use super::*;

    #[test]
    fn a_program_without_its_tables_still_runs() {
        // Any program will do that does not unwind: this one, listing its tests.
        let whole = fs::read(env::current_exe().unwrap()).unwrap();
        let slim = without_unwinding(whole.clone()).unwrap();
        assert_eq!(slim.len(), whole.len());
        let zeroes = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0).count();
        assert!(zeroes(&slim) > zeroes(&whole) + 1000);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slim");
        fs::copy(env::current_exe().unwrap(), &path).unwrap();
        fs::write(&path, slim).unwrap();
        let output = Command::new(&path).arg("--list").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("still_runs"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(without_unwinding(b"#!/bin/sh".to_vec()).is_err());
    }
}
