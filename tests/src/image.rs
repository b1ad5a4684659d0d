//! The built image, and variations of it for one test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use firmware_glue::cbfs::Cbfs;
use firmware_glue::fmap::Fmap;
use firmware_glue::layout::{AREA_CBFS, BOOTBLOCK, CMDLINE, KERNEL, MACHINE};
use firmware_glue::rom::RomBuilder;

use crate::qemu::Builder;

/// What `cargo xtask image` built.
pub struct Image {
    folder: PathBuf,
}

/// The workspace's root folder.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

impl Image {
    /// The image in `target/image`, or in the folder that `DARUMA_IMAGE` names.
    pub fn built() -> Result<Self> {
        let folder = std::env::var_os("DARUMA_IMAGE")
            .map_or_else(|| workspace().join("target/image"), PathBuf::from);
        if !folder.join("daruma.rom").exists() {
            bail!(
                "No image in {}; make it with `cargo xtask image`",
                folder.display()
            );
        }
        Ok(Self { folder })
    }

    /// One of the image's files, e.g. `daruma.rom`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The bytes of one of the image's files.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))
    }

    /// The ROM taken apart, to be assembled again with something changed.
    pub fn parts(&self) -> Result<Parts> {
        let rom = self.read("daruma.rom")?;
        let cbfs = Cbfs::new(Fmap::find(&rom)?.region(AREA_CBFS)?);
        let mut files = BTreeMap::new();
        for file in cbfs.files() {
            let file = file?;
            if !file.kind().is_free() {
                files.insert(file.name().to_owned(), file.data().to_vec());
            }
        }
        let bootblock = files
            .remove(BOOTBLOCK)
            .context("The ROM has no ROM stage")?;
        Ok(Parts { bootblock, files })
    }

    /// The root file system of the guest `pocket`, as it lies in flash.
    pub fn pocket_root(&self) -> Result<Vec<u8>> {
        let rom = self.read("daruma.rom")?;
        let (offset, len) = place(&rom, "guest/pocket/root.erofs")?;
        Ok(rom[offset..offset + len].to_vec())
    }

    /// That file system, as a tree in `folder` that can be added to.
    pub fn pocket_tree(&self, folder: &Path) -> Result<PathBuf> {
        let (packed, tree) = (folder.join("root.erofs"), folder.join("root"));
        fs::write(&packed, self.pocket_root()?)?;
        let mut extract = Command::new("fsck.erofs");
        extract.arg(format!("--extract={}", tree.display()));
        run(extract.arg(&packed))?;
        Ok(tree)
    }

    /// A machine that another firmware than our ROM stage loads the host into.
    pub fn trio(&self) -> Result<Builder> {
        let cmdline = String::from_utf8(self.read("cmdline")?)?;
        let (kernel, initramfs) = (self.path("bzImage"), self.path("initramfs"));
        Ok(Builder::trio(&kernel, &initramfs, cmdline.trim()))
    }

    /// A copy of the default machine's disk that a test may write to.
    pub fn private_disk(&self, folder: &Path) -> Result<PathBuf> {
        let copy = folder.join("disk.img");
        let mut command = Command::new("cp");
        command
            .args(["--sparse=always", "--reflink=auto"])
            .arg(self.path("disk.img"))
            .arg(&copy);
        run(&mut command)?;
        Ok(copy)
    }
}

/// The files of a ROM, by name.
pub struct Parts {
    bootblock: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Parts {
    /// Sets one file by its name in flash.
    pub fn file(mut self, name: &str, data: Vec<u8>) -> Self {
        self.files.insert(name.to_owned(), data);
        self
    }

    /// Sets the host's kernel.
    pub fn kernel(self, kernel: Vec<u8>) -> Self {
        self.file(KERNEL, kernel)
    }

    /// Sets the machine's TOML.
    pub fn machine(self, toml: &str) -> Self {
        self.file(MACHINE, toml.as_bytes().to_vec())
    }

    /// Adds words to the end of the host's command line.
    pub fn cmdline(mut self, more: &str) -> Self {
        self.files
            .entry(CMDLINE.to_owned())
            .or_default()
            .extend_from_slice(more.as_bytes());
        self
    }

    /// The ROM of these files. Nothing of them is checked: a bad one is for the machine to refuse.
    pub fn rom(self) -> Result<Vec<u8>> {
        let mut builder = RomBuilder::new(self.bootblock).unchecked();
        for (name, data) in self.files {
            builder = builder.file(&name, data);
        }
        Ok(builder.build()?.bytes)
    }
}

/// Where the data of the file `name` lies in a ROM: offset and length in bytes.
pub fn place(rom: &[u8], name: &str) -> Result<(usize, usize)> {
    let map = Fmap::find(rom)?;
    let area = map.area(AREA_CBFS)?.range();
    let range = Cbfs::new(map.region(AREA_CBFS)?).find(name)?.data_range();
    Ok((area.start + range.start, range.len()))
}

/// Makes a machine's disk of `mib` MiB with `files` in `folder`.
pub fn machine_disk(folder: &Path, mib: u64, files: &[(&str, &[u8])]) -> Result<PathBuf> {
    let tree = folder.join("tree");
    fs::create_dir(&tree).with_context(|| format!("Cannot create {}", tree.display()))?;
    for (name, content) in files {
        let path = tree.join(name);
        fs::write(&path, content).with_context(|| format!("Cannot write {}", path.display()))?;
    }
    let disk = folder.join("machine.img");
    ext4(&tree, "daruma", mib, &disk)?;
    Ok(disk)
}

/// Makes an ext4 image of `mib` MiB with the label `label` and the contents of `folder`.
pub fn ext4(folder: &Path, label: &str, mib: u64, image: &Path) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("mke2fs");
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-L", label, "-d"])
        .arg(folder)
        .arg(image)
        .arg(format!("{mib}M"));
    run(&mut command)
}

/// Runs a tool to its end; its output becomes the error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("Cannot start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{program} failed with {}: {}", output.status, said.trim());
    }
    Ok(())
}
