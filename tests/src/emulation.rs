//! The processor that QEMU emulates where no hardware can be lent to a nested host.

use std::process::Command;

use anyhow::{Context, Result};

/// The first QEMU whose emulation of nested paging holds.
///
/// That of 7.2 goes wrong: now and then, and within a minute where several guests run, it walks a guest's intact page
/// tables and finds reserved bits set, or the host's kernel runs with a guest's GS. None of it without, where KVM
/// shadows page tables. With 10.0 it is the other way round: it is guests on shadowed page tables that stand still
/// there. Between the two nothing was tried.
const NESTED_PAGING_HOLDS: u32 = 9;

/// What `-cpu` is for the QEMU that is installed, if several guests run in the machine.
pub fn cpu() -> Result<&'static str> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .context("Cannot start qemu-system-x86_64")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let major = major(&said).with_context(|| format!("QEMU's version is not in {said:?}"))?;
    Ok(cpu_of(major))
}

fn cpu_of(major: u32) -> &'static str {
    if major < NESTED_PAGING_HOLDS {
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
    fn nested_paging_is_emulated_by_those_that_can() {
        let old = "QEMU emulator version 7.2.18 (Debian 1:7.2+dfsg-7+deb12u15)\nCopyright (c) 2003";
        assert_eq!(major(old).map(cpu_of), Some("EPYC,+svm,-npt"));
        let new = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)";
        assert_eq!(major(new).map(cpu_of), Some("EPYC,+svm,+npt"));
        assert_eq!(major("no such thing"), None);
    }
}
