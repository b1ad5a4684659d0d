//! A guest that falls and stands up again, by the whole host.

use std::fs;

use anyhow::{Context, Result};
use tests::qemu::{Builder as Machine, Clock as MachineClock};
use tests::{Image, image};

use crate::laboratory;
use crate::metric::{Clock, Metric, median};

/// Memory of the guest in MiB.
const MIB: u32 = 512;
/// Falls: the ladder has a rung for each of them.
const FALLS: usize = 5;
/// MiB of the disk with the machine, the guest's images and the store.
const DISK_MIB: u64 = 512;
const HOST_MIB: u32 = 1024;

/// Measures `heal.detect_to_ready_ms`: from the moment at which the host knows that the guest's kernel has panicked until the
/// guest goes on from a good snapshot.
pub fn measure(image: &Image, lab: &[u8]) -> Result<Vec<Metric>> {
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("tree");
    fs::create_dir(&tree)?;
    let machine = format!(
        "[machine]\nname = \"bench\"\n[store]\npath = \"disk:store\"\n[[guest]]\nname = \"g\"\nvcpus = 2\n\
         memory = {MIB}\nkernel = \"disk:kernel\"\ninitrd = \"disk:initrd\"\n\
         cmdline = \"console=ttyS0 quiet fall\"\nready = {{ boot-timer = true }}\n\
         [guest.checkpoints]\nevery = 2\n[guest.health]\ngood-after = 3\nrestores = {FALLS}\n\
         [[guest.disk]]\nsource = \"disk:spare.img\"\n"
    );
    fs::write(tree.join("machine.toml"), machine)?;
    fs::write(tree.join("kernel"), image.read("vmlinux")?)?;
    fs::write(tree.join("initrd"), laboratory::guest(lab)?)?;
    fs::write(tree.join("spare.img"), vec![0; 16 << 20])?;
    let disk = folder.path().join("machine.img");
    image::ext4(&tree, "daruma", DISK_MIB, &disk)?;
    let cmdline = String::from_utf8(image.read("cmdline")?)?;
    let mut machine = Machine::trio(
        &image.path("bzImage"),
        &image.path("initramfs"),
        cmdline.trim(),
    )
    .clock(MachineClock::Virtual)
    .memory_mib(HOST_MIB + MIB)
    .disk(&disk, true)
    .boot()?;
    let console = &mut machine.console;
    let mut took = Vec::new();
    for _ in 0..FALLS {
        console.expect("host: g: fell (its kernel has panicked), stands ")?;
        let text = console.expect(" ms later on snapshot ")?;
        let ms = text.trim_end_matches(" ms later on snapshot ").parse();
        took.push(ms.with_context(|| format!("The console said {text:?}"))?);
    }
    console.send("kill g\r")?;
    console.send("poweroff\r")?;
    machine.wait_off()?;
    let took = median(took).context("It never stood")?;
    let metric = Metric::new("heal.detect_to_ready_ms", took, "ms", Clock::Virtual);
    Ok(vec![metric.at_most(1000.0)])
}
