//! The whole host in virtual time, with guests of the laboratory.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tests::qemu::{Clock, Qemu};
use tests::{Image, image};

use crate::laboratory;

/// MiB of the disk with the machine, the guests' images and the store.
const DISK_MIB: u64 = 1024;
/// What the host has beyond the guests' memory, in MiB.
const HOST_MIB: u32 = 1024;

/// What the guests are: alike, named `g1`, `g2` ..., each with 2 vCPUs and a disk of its own.
pub struct Guests<'a> {
    /// How many.
    pub count: u32,
    /// Memory of each in MiB.
    pub mib: u32,
    /// What each does.
    pub work: &'a str,
    /// Further sections of each in the machine's file.
    pub rules: &'a str,
}

/// A machine that can be switched on more than once.
pub struct Whole {
    disk: PathBuf,
    memory_mib: u32,
}

impl Whole {
    /// Makes its disk in `folder`.
    pub fn new(image: &Image, lab: &[u8], folder: &Path, guests: &Guests<'_>) -> Result<Self> {
        let Guests {
            count,
            mib,
            work,
            rules,
        } = *guests;
        let mut machine =
            "[machine]\nname = \"bench\"\n[store]\npath = \"disk:store\"\n".to_owned();
        for number in 1..=count {
            // Writing to a string cannot fail.
            let _ = write!(
                machine,
                "[[guest]]\nname = \"g{number}\"\nvcpus = 2\nmemory = {mib}\nkernel = \"disk:kernel\"\n\
                 initrd = \"disk:initrd\"\ncmdline = \"console=ttyS0 quiet {work}\"\n\
                 ready = {{ boot-timer = true }}\n{rules}[[guest.disk]]\nsource = \"disk:g{number}.img\"\n"
            );
        }
        let (kernel, initrd) = (image.read("vmlinux")?, laboratory::guest(lab)?);
        let spare = vec![0; 16 << 20];
        let spares: Vec<_> = (1..=count).map(|number| format!("g{number}.img")).collect();
        let mut files = vec![
            ("machine.toml", machine.as_bytes()),
            ("kernel", &kernel),
            ("initrd", &initrd),
        ];
        files.extend(spares.iter().map(|name| (name.as_str(), &spare[..])));
        Ok(Self {
            disk: image::machine_disk(folder, DISK_MIB, &files)?,
            memory_mib: HOST_MIB + count * mib,
        })
    }

    /// Switches it on.
    pub fn boot(&self, image: &Image) -> Result<Qemu> {
        image
            .trio()?
            .clock(Clock::Virtual)
            .memory_mib(self.memory_mib)
            .disk(&self.disk, true)
            .boot()
    }
}
