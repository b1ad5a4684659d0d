//! Putting the parts together: pure work on bytes, so that the same parts give the same artefacts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use firmware_glue::branches;
use firmware_glue::compress::Method;
use firmware_glue::initramfs;
use firmware_glue::layout::HOST_PROGRAM;
use firmware_glue::payload::linux::Trio;
use firmware_glue::rom::{Rom, RomBuilder};
use guest_images::{agent, web};

use super::netboot::{self, Kit};
use super::product::Product;
use super::stick::Source;
use super::uefi::Programs;
use super::{Parts, read};
use crate::paths::Paths;

/// Both consoles; only what the kernel dies of, so that the host's own lines stand alone; and a machine that fell over
/// stands up again. The last two save time at boot: 4 MiB of bounce buffers instead of 64 to clear, and no wait of
/// 200 ms for each SATA port, which QEMU's do not need.
const CMDLINE: &str = "console=tty0 console=ttyS0,115200 quiet loglevel=3 oops=panic panic=10 \
                       swiotlb=2048 libata.force=nodbdelay";
/// The same for a PC, whose devices may need more bounce buffers and whose disks may need the wait.
const PC_CMDLINE: &str = "console=ttyS0,115200 console=tty0 quiet loglevel=3 oops=panic panic=10";

/// The agent's program among the image's files: for whoever has other guests than ours.
pub const AGENT: &str = "agent/daruma-agent";

/// zstd's strongest: it costs a second here and nothing there.
const COMPRESSION: i32 = 22;

/// Everything that goes into the artefacts, read.
pub struct Inputs<'a> {
    product: &'a Product,
    kernel: Vec<u8>,
    pc_kernel: Vec<u8>,
    vmlinux: Vec<u8>,
    agent: Vec<u8>,
    pocket_root: Vec<u8>,
    /// The default machine's TOML, and the netboot kit's.
    machine: String,
    netboot_machine: String,
}

impl<'a> Inputs<'a> {
    pub fn read(paths: &Paths, parts: &'a Parts) -> Result<Self> {
        let machine = |name: &str| {
            let path = paths.root.join("configs").join(name);
            fs::read_to_string(&path).with_context(|| format!("Could not read {}", path.display()))
        };
        Ok(Self {
            product: &parts.product,
            kernel: read(&parts.kernel.bzimage)?,
            pc_kernel: read(&parts.pc_kernel.bzimage)?,
            vmlinux: read(&parts.kernel.vmlinux)?,
            agent: read(&parts.agent)?,
            pocket_root: read(&parts.pocket_root)?,
            machine: machine("default.toml")?,
            netboot_machine: machine("netboot.toml")?,
        })
    }
}

/// What came out.
pub struct Assembly {
    pub rom: Rom,
    pub uefi: Programs,
    payload: Vec<u8>,
    initramfs: Vec<u8>,
    web: Vec<u8>,
    netboot: Kit,
    /// The default machine's TOML for a disk.
    disk_machine: String,
}

impl Assembly {
    pub fn of(inputs: &Inputs<'_>) -> Result<Self> {
        let host = host_initramfs(inputs.product)?;
        let web = web_initrd(inputs.product)?;
        let rom = RomBuilder::new(inputs.product.bootblock.clone())
            .kernel(inputs.kernel.clone())
            .initramfs(host.clone())
            .cmdline(CMDLINE)
            .machine(&inputs.machine)
            .guest_file("pocket/root.erofs", inputs.pocket_root.clone())
            .guest_file("web/initrd", web.clone())
            .build()?;
        let payload = Trio {
            kernel: &inputs.kernel,
            initramfs: Some(&host),
            cmdline: CMDLINE,
            // Both are compressed already.
            method: Method::None,
        };
        let payload = payload.payload()?.bytes;
        let netboot = netboot::Parts {
            kernel: &inputs.pc_kernel,
            initramfs: &host,
            cmdline: PC_CMDLINE,
            machine: &inputs.netboot_machine,
            guests: &[
                (netboot::KERNEL, &inputs.kernel),
                (netboot::POCKET, &inputs.pocket_root),
                (netboot::WEB, &web),
            ],
        };
        Ok(Self {
            rom,
            uefi: Programs::assemble(&inputs.pc_kernel, &host, PC_CMDLINE)?,
            payload,
            netboot: netboot.assemble()?,
            disk_machine: for_disk(&inputs.machine),
            initramfs: host,
            web,
        })
    }

    /// The artefacts that are files of their own, by name.
    pub fn files<'a>(&'a self, inputs: &'a Inputs<'_>) -> Vec<(String, &'a [u8])> {
        let files: [(&str, &[u8]); 11] = [
            (AGENT, &inputs.agent),
            ("agent/daruma-agent.service", agent::UNIT.as_bytes()),
            ("bzImage", &inputs.kernel),
            ("cmdline", CMDLINE.as_bytes()),
            ("daruma", &inputs.product.daruma),
            ("daruma.efi", &self.uefi.with_stub),
            ("daruma-nostub.efi", &self.uefi.without_stub),
            ("daruma.payload", &self.payload),
            ("daruma.rom", &self.rom.bytes),
            ("initramfs", &self.initramfs),
            ("vmlinux", &inputs.vmlinux),
        ];
        let kit = self.netboot.files.iter();
        files
            .into_iter()
            .chain(kit.map(|(name, bytes)| (*name, &**bytes)))
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect()
    }

    /// What lies in the stick's partition for guests: the default machine, `debian` being its image, the list of what is
    /// in that, and what names both.
    pub fn on_stick<'a>(
        &'a self,
        inputs: &'a Inputs<'_>,
        debian: (&'a Path, &'a Path, &'a str),
    ) -> Vec<(&'static str, Source<'a>)> {
        let (root, list, key) = debian;
        vec![
            ("machine.toml", Source::Bytes(self.disk_machine.as_bytes())),
            ("daruma/kernel", Source::Bytes(&inputs.kernel)),
            (
                "guest/pocket/root.erofs",
                Source::Bytes(&inputs.pocket_root),
            ),
            ("guest/web/initrd", Source::Bytes(&self.web)),
            ("guests/debian/root.img", Source::File(root, key)),
            ("guests/debian/root.img.list", Source::File(list, key)),
        ]
    }

    /// Bytes of each part, compressed as it lies in the artefacts.
    pub fn sizes(&self, inputs: &Inputs<'_>) -> BTreeMap<String, u64> {
        let sizes: [(&str, usize); 6] = [
            ("host and VMM", self.initramfs.len()),
            ("kernel", inputs.kernel.len()),
            ("kernel for PCs", inputs.pc_kernel.len()),
            ("pocket", inputs.pocket_root.len()),
            ("ROM stage", inputs.product.bootblock.len()),
            ("web", self.web.len()),
        ];
        sizes
            .map(|(name, size)| (name.to_owned(), size as u64))
            .into()
    }
}

/// The machine file where what is in flash elsewhere lies on the disk, by the same names.
fn for_disk(machine: &str) -> String {
    machine.replace("\"flash:", "\"disk:")
}

fn host_initramfs(product: &Product) -> Result<Vec<u8>> {
    let mut builder = initramfs::Builder::new();
    let mut program = product.daruma.clone();
    let code = branches::code(&program).context("The host's program has no code")?;
    if let Some(code) = program.get_mut(code) {
        branches::apply(code);
    }
    builder.file("init", 0o755, product.starter.clone())?;
    builder.file(HOST_PROGRAM, 0o755, program)?;
    // Without this node the first words of PID 1 go nowhere.
    builder.char_device("dev/console", 0o600, 5, 1)?;
    for name in ["bin/daruma", "bin/daruma-vmm"] {
        builder.symlink(name, &format!("../{HOST_PROGRAM}"))?;
    }
    for folder in ["proc", "run", "sys", "tmp"] {
        builder.dir(folder, 0o755)?;
    }
    Ok(builder.build_zstd(COMPRESSION)?)
}

fn web_initrd(product: &Product) -> Result<Vec<u8>> {
    let mut builder = initramfs::Builder::new();
    builder.file(web::PROGRAM, 0o755, product.web.clone())?;
    for folder in web::MOUNT_POINTS {
        builder.dir(folder, 0o755)?;
    }
    Ok(builder.build_zstd(COMPRESSION)?)
}
