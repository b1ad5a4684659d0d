//! The whole host in virtual time, with one guest.

use std::path::Path;

use anyhow::Result;
use tests::qemu::{Clock, Qemu};
use tests::{Image, image};

use crate::laboratory;

/// MiB of the disk with the machine, the guest's images and the store.
const DISK_MIB: u64 = 1024;
/// What the host has beyond the guest's memory, in MiB.
const HOST_MIB: u32 = 1024;

/// Boots the host with the guest `g`: the laboratory's, in `mib` MiB with 2 vCPUs and a disk of its own. `work` is what it
/// does, `rules` are further sections of it in the machine's file.
pub fn boot(
    image: &Image,
    lab: &[u8],
    folder: &Path,
    mib: u32,
    work: &str,
    rules: &str,
) -> Result<Qemu> {
    let machine = format!(
        "[machine]\nname = \"bench\"\n[store]\npath = \"disk:store\"\n[[guest]]\nname = \"g\"\nvcpus = 2\n\
         memory = {mib}\nkernel = \"disk:kernel\"\ninitrd = \"disk:initrd\"\n\
         cmdline = \"console=ttyS0 quiet {work}\"\nready = {{ boot-timer = true }}\n{rules}\
         [[guest.disk]]\nsource = \"disk:spare.img\"\n"
    );
    let (kernel, initrd) = (image.read("vmlinux")?, laboratory::guest(lab)?);
    let files = [
        ("machine.toml", machine.as_bytes()),
        ("kernel", &kernel),
        ("initrd", &initrd),
        ("spare.img", &[0; 16 << 20]),
    ];
    let disk = image::machine_disk(folder, DISK_MIB, &files)?;
    image
        .trio()?
        .clock(Clock::Virtual)
        .memory_mib(HOST_MIB + mib)
        .disk(&disk, true)
        .boot()
}
