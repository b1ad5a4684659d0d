//! PID 1 of the laboratory: a host without a supervisor in which VMMs are started and measured.
//!
//! The same executable is the guest's init, so that nothing but the VMM differs between runs. The command line of the
//! laboratory's kernel says which experiments to make.

#![expect(
    clippy::print_stdout,
    reason = "the serial console is how results leave the machine"
)]

mod api;
mod forks;
mod guest;
mod measure;
mod network;
mod restore;
mod system;
mod vmm;

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::restore::Source;
use crate::vmm::{Guest, Machine, Vmm};

/// What the guest's init says first.
const MARKER: &str = "guest-init";

/// Where the laboratory keeps what it starts; a guest's initramfs has no such folder.
const LAB: &str = "/lab";

/// Memory of a measured guest, and of each of many, in MiB.
const GUEST_MIB: u64 = 128;
const SMALL_GUEST_MIB: u64 = 64;

/// How many guests are started at once.
const MANY: usize = 32;

/// How many guests go on from one snapshot.
const FORKS: usize = 100;

/// The guests' disk, and the network's tap.
const DISK: &str = "/peer/disk.img";
const TAP: &str = "tap0";

const DARUMA: Vmm = Vmm::Daruma { pci: false };
const DARUMA_PCI: Vmm = Vmm::Daruma { pci: true };

/// All that are measured with devices, ours on both transports and the peer's machine types.
const VMMS: [Vmm; 5] = [
    DARUMA,
    DARUMA_PCI,
    qemu(Machine::Microvm),
    qemu(Machine::MicrovmPci),
    qemu(Machine::Q35),
];

fn main() {
    if Path::new(LAB).exists() {
        for word in std::env::args().skip(1) {
            match experiment(&word) {
                Ok(()) => println!("lab: done {word}"),
                Err(error) => println!("lab: error: {word}: {error:#}"),
            }
        }
        system::power_off();
    }
    guest::main();
}

fn experiment(word: &str) -> Result<()> {
    system::mount_all()?;
    match word {
        "start" => starts(),
        "devices" => devices(),
        "blk" => blk(),
        "net" => net(),
        "many" => many(),
        "restore" => restore(),
        "forks" => forks(),
        other => bail!("No experiment is called {other}"),
    }
}

/// Starts of a guest without devices: three of each kind.
fn starts() -> Result<()> {
    let elf = Guest::bare("vmlinux", "stay", GUEST_MIB);
    let bzimage = Guest::bare("bzImage", "stay", GUEST_MIB);
    for (name, vmm, guest) in [
        ("daruma", DARUMA, &elf),
        ("daruma-pci", DARUMA_PCI, &elf),
        ("daruma-jailed", Vmm::DarumaJailed, &elf),
        ("daruma-open", Vmm::DarumaOpen, &elf),
        ("daruma-by-api", Vmm::DarumaByApi, &elf),
        ("daruma-bzimage", DARUMA, &bzimage),
        ("qemu", qemu(Machine::Microvm), &elf),
    ] {
        for _ in 0..3 {
            report("start", name, measure::start(vmm, guest)?);
        }
    }
    Ok(())
}

/// Starts of a guest with a disk, a network interface and a vsock. The peer goes without the vsock: its own is the host
/// kernel's vhost, which costs its process nothing.
fn devices() -> Result<()> {
    system::make_disk(DISK)?;
    network::make_tap(TAP)?;
    let guest = Guest {
        disk: Some(DISK),
        tap: Some(TAP),
        vsock: true,
        ..Guest::bare("vmlinux", "stay", GUEST_MIB)
    };
    for vmm in VMMS {
        let result =
            measure::start(vmm, &guest).map(|sample| report("devices", &vmm.name(), sample));
        tolerate_peer(vmm, result)?;
    }
    Ok(())
}

/// Block requests.
fn blk() -> Result<()> {
    system::make_disk(DISK)?;
    let guest = Guest {
        disk: Some(DISK),
        ..Guest::bare("vmlinux", "blk", GUEST_MIB)
    };
    for vmm in VMMS {
        let name = vmm.name();
        let result = measure::work(vmm, &guest, |sample| report("blk", &name, sample));
        tolerate_peer(vmm, result)?;
    }
    Ok(())
}

/// TCP between the guest and the laboratory.
fn net() -> Result<()> {
    network::make_tap(TAP)?;
    network::serve()?;
    let guest = Guest {
        tap: Some(TAP),
        ..Guest::bare("vmlinux", "net", GUEST_MIB)
    };
    for vmm in VMMS {
        let name = vmm.name();
        let result = measure::work(vmm, &guest, |sample| report("net", &name, sample));
        tolerate_peer(vmm, result)?;
    }
    Ok(())
}

/// Many small guests at once, and one of them alone.
fn many() -> Result<()> {
    let guest = Guest::bare("vmlinux", "stay", SMALL_GUEST_MIB);
    for count in [1, 1, 1, MANY] {
        let us = measure::many(&guest, count)?;
        report("many", "daruma", json!({ "count": count, "us": us }));
    }
    Ok(())
}

/// A guest that goes on from its snapshot: three times each.
fn restore() -> Result<()> {
    restore::save(&Guest::bare("vmlinux", "tick", GUEST_MIB))?;
    let mut needed = Vec::new();
    for (name, source, jail) in [
        ("file", Source::File, false),
        ("demand", Source::Demand, false),
        ("working-set", Source::WorkingSet, false),
        ("working-set-jailed", Source::WorkingSet, true),
    ] {
        for _ in 0..3 {
            report("restore", name, restore::start(source, jail, &mut needed)?);
        }
    }
    Ok(())
}

/// Guests that go on from one snapshot, at the same time.
fn forks() -> Result<()> {
    restore::save(&Guest::bare("vmlinux", "tick", GUEST_MIB))?;
    for (name, jail) in [("open", false), ("jailed", true)] {
        report("forks", name, forks::measure(jail, FORKS)?);
    }
    Ok(())
}

/// A machine type of the peer that does not work in this host is no reason not to measure the others.
fn tolerate_peer(vmm: Vmm, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if matches!(vmm, Vmm::Qemu { .. }) => {
            println!("lab: without {}: {error:#}", vmm.name());
            Ok(())
        }
        result => result,
    }
}

const fn qemu(machine: Machine) -> Vmm {
    Vmm::Qemu {
        machine,
        aio: "io_uring",
        iothread: false,
    }
}

fn report(experiment: &str, vmm: &str, mut sample: Value) {
    sample["experiment"] = experiment.into();
    sample["vmm"] = vmm.into();
    println!("lab: {sample}");
}
