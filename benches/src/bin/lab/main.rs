//! PID 1 of the laboratory: a host without a supervisor in which VMMs are started and timed.
//!
//! The same executable is the guest's init, so that nothing but the VMM differs between runs: it
//! says [`MARKER`] on the console, writes the boot timer, and powers off.

#![expect(
    clippy::print_stdout,
    reason = "the serial console is how results leave the machine"
)]

mod guest;
mod measure;
mod system;

use std::path::Path;

use anyhow::Result;

/// What the guest's init says first.
const MARKER: &str = "guest-init";

/// Where the laboratory keeps what it starts; a guest's initramfs has no such folder.
const LAB: &str = "/lab";

fn main() {
    if Path::new(LAB).exists() {
        if let Err(error) = run() {
            println!("lab: error: {error:#}");
        }
        system::power_off();
    }
    guest::main();
}

fn run() -> Result<()> {
    system::mount_all()?;
    for round in 0..3 {
        report("daruma", round, &measure::daruma("vmlinux")?);
    }
    for round in 0..3 {
        report("daruma-bzimage", round, &measure::daruma("bzImage")?);
    }
    if Path::new("/peer/qemu").exists() {
        for round in 0..3 {
            report("qemu", round, &measure::qemu()?);
        }
    }
    println!("lab: done");
    Ok(())
}

fn report(vmm: &str, round: u32, sample: &measure::Sample) {
    println!("lab: {}", sample.to_json(vmm, round));
}
