//! `cargo xtask image`: puts everything together in target/image.

mod disk;
mod manifest;
pub mod product;
mod slim;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use firmware_glue::branches;
use firmware_glue::compress::Method;
use firmware_glue::initramfs;
use firmware_glue::layout::HOST_PROGRAM;
use firmware_glue::payload::linux::Trio;
use firmware_glue::rom::{Rom, RomBuilder};
use guest_images::{agent, web};

use self::manifest::{Artefact, Manifest};
use self::product::Product;
use crate::apt::Apt;
use crate::kernel::{self, Kernel};
use crate::paths::Paths;
use crate::ui::{self, Step};
use crate::{guests, setup};

/// Kernel, initramfs and command line may have this many bytes together in flash.
const MAX_PAYLOAD_BYTES: u64 = 5 << 20;

/// Both consoles; only what the kernel dies of, so that the host's own lines stand alone; and a machine that fell over
/// stands up again. The last two save time at boot: 4 MiB of bounce buffers instead of 64 to clear, and no wait of
/// 200 ms for each SATA port, which QEMU's do not need.
const CMDLINE: &str = "console=tty0 console=ttyS0,115200 quiet loglevel=3 oops=panic panic=10 \
                       swiotlb=2048 libata.force=nodbdelay";

/// The agent's program among the image's files: for whoever has other guests than ours.
const AGENT: &str = "agent/daruma-agent";

/// zstd's strongest: it costs a second here and nothing there.
const COMPRESSION: i32 = 22;

#[derive(Args)]
pub struct Options {
    /// Makes disk.img anew: what guests wrote to it is lost
    #[arg(long)]
    reset_disk: bool,
    /// Also makes the guests that only the tests boot
    #[arg(long)]
    test_guests: bool,
}

impl Options {
    /// As other commands build it: keeping the disk.
    pub fn keep() -> Self {
        Self {
            reset_disk: false,
            test_guests: false,
        }
    }

    /// As the tests need it.
    pub fn for_tests() -> Self {
        Self {
            test_guests: true,
            ..Self::keep()
        }
    }
}

/// What goes into the image.
struct Parts {
    kernel: Kernel,
    product: Product,
    pocket_root: PathBuf,
    debian_disk: (PathBuf, String),
    agent: PathBuf,
}

/// Builds the image and returns its folder.
pub fn build(paths: &Paths, options: &Options) -> Result<PathBuf> {
    setup::run(paths)?;
    let image = paths.image();
    fs::create_dir_all(&image).with_context(|| format!("Could not create {}", image.display()))?;
    let parts = gather(paths)?;
    disk::make(paths, &image, &parts.debian_disk, options.reset_disk)?;

    let step = Step::begin("image");
    step.set("compressing");
    let host = host_initramfs(&parts.product)?;
    let web = web_initrd(&parts.product)?;
    step.set("assembling daruma.rom");
    let kernel = read(&parts.kernel.bzimage)?;
    let machine = paths.root.join("configs/default.toml");
    let rom = RomBuilder::new(parts.product.bootblock.clone())
        .kernel(kernel.clone())
        .initramfs(host.clone())
        .cmdline(CMDLINE)
        .machine(
            &fs::read_to_string(&machine)
                .with_context(|| format!("Could not read {}", machine.display()))?,
        )
        .guest_file("pocket/root.erofs", read(&parts.pocket_root)?)
        .guest_file("web/initrd", web)
        .build()?;
    let payload = Trio {
        kernel: &kernel,
        initramfs: Some(&host),
        cmdline: CMDLINE,
        // Both are compressed already.
        method: Method::None,
    };
    let payload = payload.payload()?;
    let vmlinux = read(&parts.kernel.vmlinux)?;
    let agent = read(&parts.agent)?;
    let files: [(&str, &[u8]); 9] = [
        (AGENT, &agent),
        ("agent/daruma-agent.service", agent::UNIT.as_bytes()),
        ("bzImage", &kernel),
        ("cmdline", CMDLINE.as_bytes()),
        ("daruma", &parts.product.daruma),
        ("daruma.payload", &payload.bytes),
        ("daruma.rom", &rom.bytes),
        ("initramfs", &host),
        ("vmlinux", &vmlinux),
    ];
    step.set("writing");
    let manifest = write(&image, &files, &rom, &parts.kernel)?;
    let program = image.join(AGENT);
    fs::set_permissions(&program, Permissions::from_mode(0o755))
        .with_context(|| format!("Could not set the mode of {}", program.display()))?;
    step.done(&format!("all in {}", image.display()));
    println!("{}", table(&manifest));
    if options.test_guests {
        test_guests(paths, &image, &parts.agent)?;
    }
    if manifest.payload_bytes > MAX_PAYLOAD_BYTES {
        bail!(
            "Kernel, initramfs and command line have {} bytes in flash, more than the {MAX_PAYLOAD_BYTES} they may have",
            manifest.payload_bytes
        );
    }
    Ok(image)
}

/// Makes or finds all parts. What waits for the network and what needs the processors go side by side.
fn gather(paths: &Paths) -> Result<Parts> {
    let apt = Apt::open(paths)?;
    thread::scope(|scope| {
        let guests = scope.spawn(|| -> Result<_> {
            let agent = product::agent(paths)?;
            Ok((
                guests::pocket_root(paths, &apt, &agent)?,
                guests::debian_disk(paths, &apt, &agent)?,
                agent,
            ))
        });
        let product = scope.spawn(|| Product::build(paths));
        let kernel = kernel::get(paths, &apt);
        let product = product
            .join()
            .map_err(|_| anyhow!("Building the programs panicked"))?;
        let guests = guests
            .join()
            .map_err(|_| anyhow!("Making the guests' images panicked"))?;
        let (pocket_root, debian_disk, agent) = guests?;
        Ok(Parts {
            kernel: kernel?,
            product: product?,
            pocket_root,
            debian_disk,
            agent,
        })
    })
}

/// Links the guests that only tests boot into the image's folder `test`.
fn test_guests(paths: &Paths, image: &Path, agent: &Path) -> Result<()> {
    let disk = guests::two_kernels(paths, &Apt::open(paths)?, agent)?;
    let step = Step::begin("hostile");
    let hostile = product::hostile_guest(paths, &step)?;
    step.done("built");
    let folder = image.join("test");
    fs::create_dir_all(&folder)
        .with_context(|| format!("Could not create {}", folder.display()))?;
    for (name, guest) in [("debian-two-kernels.img", disk), ("hostile", hostile)] {
        let link = folder.join(name);
        if link.is_symlink() {
            fs::remove_file(&link)
                .with_context(|| format!("Could not replace {}", link.display()))?;
        }
        symlink(&guest, &link).with_context(|| format!("Could not create {}", link.display()))?;
    }
    Ok(())
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

fn write(image: &Path, files: &[(&str, &[u8])], rom: &Rom, kernel: &Kernel) -> Result<Manifest> {
    let mut artefacts = BTreeMap::new();
    for (name, bytes) in files {
        let path = image.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("Could not create {}", folder.display()))?;
        }
        fs::write(&path, bytes).with_context(|| format!("Could not write {}", path.display()))?;
        artefacts.insert((*name).to_owned(), Artefact::of(bytes));
    }
    let disk = image.join("disk.img");
    let disk = fs::metadata(&disk).with_context(|| format!("Could not find {}", disk.display()))?;
    artefacts.insert(
        "disk.img".to_owned(),
        Artefact {
            size: disk.len(),
            sha256: None,
        },
    );
    let payload = ["bzImage", "initramfs", "cmdline"];
    let manifest = Manifest {
        payload_bytes: payload
            .iter()
            .filter_map(|name| artefacts.get(*name))
            .map(|file| file.size)
            .sum(),
        kernel_xz_bytes: kernel.xz_bytes,
        kernel_source: kernel.source.clone(),
        artefacts,
        flash: rom
            .parts
            .iter()
            .map(|part| (part.name.clone(), part.size as u64))
            .collect(),
        flash_free_bytes: rom.free as u64,
    };
    manifest.write(image)?;
    Ok(manifest)
}

fn table(manifest: &Manifest) -> String {
    let mut lines = Vec::new();
    let mut line =
        |name: &str, size: u64| lines.push(format!("  {name:<28} {:>12}", ui::size(size)));
    for (name, size) in &manifest.flash {
        line(name, *size);
    }
    line("free in flash", manifest.flash_free_bytes);
    for (name, artefact) in &manifest.artefacts {
        line(name, artefact.size);
    }
    line("payload (limit 5 MiB)", manifest.payload_bytes);
    line("kernel, if it were xz", manifest.kernel_xz_bytes);
    lines.join("\n")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Could not read {}", path.display()))
}
