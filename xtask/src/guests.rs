//! The guests' images, kept in the cache as long as their recipes stay.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use guest_images::busybox::BusyBox;
use guest_images::{debian, pocket};

use crate::apt::Apt;
use crate::cache::{self, Origin};
use crate::paths::Paths;
use crate::tool;
use crate::ui::{self, Step};

/// Downloads and unpacks Debian's or Ubuntu's static BusyBox; it is not installed on the machine.
fn busybox(paths: &Paths, apt: &Apt, step: &Step) -> Result<PathBuf> {
    const PACKAGE: &str = "busybox-static";
    let (folder, _) = cache::entry(&paths.cache, "busybox", PACKAGE, step, |folder| {
        apt.update(step)?;
        step.set("downloading BusyBox");
        let package = apt
            .download(PACKAGE, None, folder)
            .context("Could not download busybox-static")?;
        let contents = folder.join("package");
        let log = paths.log("busybox");
        tool::run(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(package)
                .arg(&contents),
            &log,
            |_| {},
        )?;
        let program = ["bin/busybox", "usr/bin/busybox"]
            .into_iter()
            .map(|path| contents.join(path))
            .find(|path| path.is_file())
            .context("The package busybox-static has no program `busybox`")?;
        let place = folder.join("busybox");
        fs::rename(&program, &place)
            .with_context(|| format!("Could not move {}", program.display()))
    })?;
    Ok(folder.join("busybox"))
}

/// The root of `pocket`.
pub fn pocket_root(paths: &Paths, apt: &Apt, agent: &Path) -> Result<PathBuf> {
    const NAME: &str = "root.erofs";
    let step = Step::begin("pocket");
    let program = busybox(paths, apt, &step)?;
    let hash = |path: &Path| -> Result<String> {
        let bytes = fs::read(path).with_context(|| format!("Could not read {}", path.display()))?;
        Ok(cache::sha256(&bytes))
    };
    let key = cache::key(&[&pocket::recipe(), &hash(&program)?, &hash(agent)?]);
    let (folder, origin) = cache::entry(&paths.cache, "pocket", &key, &step, |folder| {
        step.set("making its root");
        let busybox = BusyBox::open(&program)?;
        pocket::build(
            &busybox,
            agent,
            &paths.scratch("pocket"),
            &fresh_log(paths, "pocket")?,
            &folder.join(NAME),
        )?;
        Ok(())
    })?;
    finish(step, origin, folder.join(NAME))
}

/// The disk of `debian`, and the key that names it.
pub fn debian_disk(paths: &Paths, apt: &Apt, agent: &Path) -> Result<(PathBuf, String)> {
    debian(paths, apt, agent, "debian", &[debian::KERNEL])
}

/// The same Debian with a second, newer kernel: what tests boot either of.
pub fn two_kernels(paths: &Paths, apt: &Apt, agent: &Path) -> Result<PathBuf> {
    let kernels = [debian::KERNEL, debian::NEWER_KERNEL];
    Ok(debian(paths, apt, agent, "debian-two-kernels", &kernels)?.0)
}

fn debian(
    paths: &Paths,
    apt: &Apt,
    agent: &Path,
    name: &'static str,
    kernels: &[&str],
) -> Result<(PathBuf, String)> {
    const NAME: &str = "root.img";
    let step = Step::begin(name);
    let key = cache::key(&[&debian::recipe(kernels)]);
    let (folder, origin) = cache::entry(&paths.cache, name, &key, &step, |folder| {
        step.set("installing Debian into an image (about a minute)");
        let (sources, keyring) = apt.debian_sources(debian::SUITE);
        let log = fresh_log(paths, name)?;
        let scratch = folder.join("scratch");
        let inputs = debian::Inputs {
            sources: &sources,
            keyring: keyring.as_deref(),
            agent,
            kernels,
            scratch: &scratch,
            log: &log,
        };
        debian::build(&inputs, &folder.join(NAME))?;
        Ok(())
    })?;
    Ok((finish(step, origin, folder.join(NAME))?, key))
}

/// The recipes append to their logs: an old one must not be there.
fn fresh_log(paths: &Paths, name: &str) -> Result<PathBuf> {
    let log = paths.log(name);
    if log.exists() {
        fs::remove_file(&log).with_context(|| format!("Could not remove {}", log.display()))?;
    }
    Ok(log)
}

fn finish(step: Step, origin: Origin, file: PathBuf) -> Result<PathBuf> {
    let metadata = fs::metadata(&file).with_context(|| {
        format!(
            "Could not find {}: remove the folder it was in",
            file.display()
        )
    })?;
    // What it takes on the disk: images are sparse.
    let bytes = metadata.blocks() * 512;
    let how = if origin == Origin::Built {
        "made"
    } else {
        "in the cache"
    };
    step.done(&format!("{how}, {}", ui::size(bytes)));
    Ok(file)
}
