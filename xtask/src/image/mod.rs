//! `cargo xtask image`: puts everything together in target/image.

mod assembly;
mod budget;
mod disk;
mod manifest;
mod netboot;
pub mod product;
mod slim;
mod stick;
mod uefi;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use self::assembly::{AGENT, Assembly, Inputs};
use self::manifest::{Artefact, Manifest};
use self::product::Product;
use crate::apt::Apt;
use crate::kernel::{self, Kernel};
use crate::paths::Paths;
use crate::ui::{self, Step};
use crate::{guests, setup};

/// Kernel, initramfs and command line may have this many bytes together in flash.
const MAX_PAYLOAD_BYTES: u64 = 5 << 20;

#[derive(Args)]
pub struct Options {
    /// Makes disk.img anew: what guests wrote to it is lost
    #[arg(long)]
    reset_disk: bool,
    /// Also makes the guests that only the tests boot
    #[arg(long)]
    test_guests: bool,
    /// Puts everything together a second time and compares
    #[arg(long)]
    twice: bool,
}

impl Options {
    /// As other commands build it: keeping the disk.
    pub fn keep() -> Self {
        Self {
            reset_disk: false,
            test_guests: false,
            twice: false,
        }
    }

    /// As the tests need it.
    pub fn for_tests() -> Self {
        Self {
            test_guests: true,
            twice: true,
            ..Self::keep()
        }
    }
}

/// What goes into the image.
struct Parts {
    kernel: Kernel,
    pc_kernel: Kernel,
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
    let inputs = Inputs::read(paths, &parts)?;
    step.set("putting everything together");
    let assembly = Assembly::of(&inputs)?;
    let list = disk::list_of(&parts.debian_disk.0, &step)?;
    let debian = (&*parts.debian_disk.0, &*list, &*parts.debian_disk.1);
    let on_stick = assembly.on_stick(&inputs, debian);
    let stick = stick::make(paths, &image, &assembly.uefi.with_stub, &on_stick, &step)?;
    step.set("writing");
    let manifest = write(&image, &inputs, &assembly, stick, &parts)?;
    let program = image.join(AGENT);
    fs::set_permissions(&program, Permissions::from_mode(0o755))
        .with_context(|| format!("Could not set the mode of {}", program.display()))?;
    step.done(&format!("all in {}", image.display()));
    println!("{}", table(&manifest));
    if options.twice {
        twice(paths, &image, &parts, debian)?;
    }
    if options.test_guests {
        test_guests(paths, &image, &parts.agent)?;
    }
    if manifest.payload_bytes > MAX_PAYLOAD_BYTES {
        bail!(
            "Kernel, initramfs and command line have {} bytes in flash, more than the {MAX_PAYLOAD_BYTES} they may have",
            manifest.payload_bytes
        );
    }
    let budgets = paths.root.join("configs/budgets.toml");
    budget::check(&budgets, &manifest.parts)?;
    Ok(image)
}

/// Puts everything together again and compares it with what lies in the image's folder.
fn twice(paths: &Paths, image: &Path, parts: &Parts, debian: (&Path, &Path, &str)) -> Result<()> {
    let step = Step::begin("the same");
    step.set("putting everything together again");
    let inputs = Inputs::read(paths, parts)?;
    let again = Assembly::of(&inputs)?;
    let mut different = Vec::new();
    for (name, bytes) in again.files(&inputs) {
        if read(&image.join(&name))? != bytes {
            different.push(name);
        }
    }
    step.set(format!("making {} again", stick::NAME));
    let second = image.join(format!("{}.again", stick::NAME));
    let on_stick = again.on_stick(&inputs, debian);
    stick::build(paths, &again.uefi.with_stub, &on_stick, &second)?;
    let same = stick::hash(&second)? == stick::hash(&image.join(stick::NAME))?;
    fs::remove_file(&second).with_context(|| format!("Could not remove {}", second.display()))?;
    if !same {
        different.push(stick::NAME.to_owned());
    }
    if !different.is_empty() {
        bail!(
            "From the same parts came other bytes the second time: {}",
            different.join(", ")
        );
    }
    step.done("everything that was put together twice has the same bytes");
    Ok(())
}

fn both_kernels(paths: &Paths, apt: &Apt) -> Result<(Kernel, Kernel)> {
    let flash = kernel::get(paths, apt, &kernel::FLASH)?;
    Ok((flash, kernel::get(paths, apt, &kernel::PC)?))
}

/// Builds what takes longest and waits for nothing else, if it is not there yet.
pub fn kernels(paths: &Paths) -> Result<()> {
    both_kernels(paths, &Apt::open(paths)?).map(drop)
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
        let kernels = both_kernels(paths, &apt);
        let product = product
            .join()
            .map_err(|_| anyhow!("Building the programs panicked"))?;
        let guests = guests
            .join()
            .map_err(|_| anyhow!("Making the guests' images panicked"))?;
        let (pocket_root, debian_disk, agent) = guests?;
        let (kernel, pc_kernel) = kernels?;
        Ok(Parts {
            kernel,
            pc_kernel,
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

fn write(
    image: &Path,
    inputs: &Inputs,
    assembly: &Assembly,
    stick: Artefact,
    parts: &Parts,
) -> Result<Manifest> {
    let mut artefacts = BTreeMap::from([(stick::NAME.to_owned(), stick)]);
    for (name, bytes) in assembly.files(inputs) {
        let path = image.join(&name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("Could not create {}", folder.display()))?;
        }
        fs::write(&path, bytes).with_context(|| format!("Could not write {}", path.display()))?;
        artefacts.insert(name, Artefact::of(bytes));
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
        kernel_xz_bytes: parts.kernel.xz_bytes,
        kernel_source: parts.kernel.source.clone(),
        artefacts,
        parts: assembly.sizes(inputs),
        flash: assembly
            .rom
            .parts
            .iter()
            .map(|part| (part.name.clone(), part.size as u64))
            .collect(),
        flash_free_bytes: assembly.rom.free as u64,
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
    for (name, size) in &manifest.parts {
        line(&format!("of it: {name}"), *size);
    }
    line("payload (limit 5 MiB)", manifest.payload_bytes);
    line("kernel, if it were xz", manifest.kernel_xz_bytes);
    lines.join("\n")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Could not read {}", path.display()))
}
