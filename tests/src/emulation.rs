//! The processor that QEMU emulates where no hardware can be lent to a nested host.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// The newest major version of QEMU whose emulation of AMD-V mostly holds, with `-npt`.
///
/// That of 7.2 goes wrong with nested paging: now and then, and within a minute where several guests run, it walks a
/// guest's intact page tables and finds reserved bits set, or the host's kernel runs with a guest's GS. Without, where KVM
/// shadows page tables, the latter is seen in one boot of some forty, and as many machines stand still: `VMRUN` sets
/// `CPU_INTERRUPT_VIRQ` without QEMU's lock, so that an interrupt that comes at that moment is lost (mended in 10.2).
///
/// 10.0 cannot do without: it lets a guest read CR3 though KVM intercepts that, so that Linux sees the shadow's address,
/// takes it for page tables that are not its own, and halts at its first page fault. And with nested paging it still
/// goes wrong: one boot of three guests in twelve had a triple fault, some machines stood still. 11.1 is the same without;
/// with, it is 1.7 times as fast as 7.2, but of 37 machines two stood still, and hostile guests' VMMs saw three triple faults
/// where 7.2 and the guests' code have none. Between 7.2 and 10.0 nothing was tried.
const NEWEST_SOUND: u32 = 7;

/// Whether the emulation of the QEMU at `program` holds.
pub fn is_sound(program: &Path) -> Result<bool> {
    major_version(program).map(is_sound_version)
}

/// Whether the emulation of a QEMU of this major version holds.
pub fn is_sound_version(major: u32) -> bool {
    major <= NEWEST_SOUND
}

/// What `-cpu` is for the QEMU at `program`, if several guests run in the machine.
pub fn cpu(program: &Path) -> Result<&'static str> {
    major_version(program).map(cpu_of)
}

fn major_version(program: &Path) -> Result<u32> {
    let said = version(program)?;
    major(&said).with_context(|| format!("QEMU's version is not in {said:?}"))
}

/// What the QEMU at `program` says of itself.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("Cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

fn cpu_of(major: u32) -> &'static str {
    if is_sound_version(major) {
        "EPYC,+svm,-npt"
    } else {
        "EPYC,+svm,+npt"
    }
}

fn major(said: &str) -> Option<u32> {
    let (_, version) = said.split_once("version ")?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tables_are_shadowed_by_those_that_can() {
        let old = "QEMU emulator version 7.2.18 (Debian 1:7.2+dfsg-7+deb12u15)\nCopyright (c) 2003";
        assert_eq!(major(old).map(cpu_of), Some("EPYC,+svm,-npt"));
        let new = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)";
        assert_eq!(major(new).map(cpu_of), Some("EPYC,+svm,+npt"));
        assert_eq!(major("no such thing"), None);
    }
}
