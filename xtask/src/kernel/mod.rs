//! The kernel that is the host's and the guests': built from the distribution's source, kept in the cache.

pub mod build;
mod config;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::config::Wanted;
use self::source::Source;
use crate::apt::Apt;
use crate::cache::{self, Origin};
use crate::paths::Paths;
use crate::tool;
use crate::ui::{self, Step};

/// Raised when the way of building changes what comes out.
const BUILDER_VERSION: &str = "1";

/// What a kernel is made for.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Its name in messages.
    name: &'static str,
    /// Fragments in the order in which they are merged.
    fragments: &'static [&'static str],
    /// The largest that it may be, compressed by xz.
    max_xz_bytes: u64,
}

/// The kernel in flash, and of guests.
pub const FLASH: Profile = Profile {
    name: "kernel",
    fragments: &["base", "kvm", "virtio", "userland"],
    max_xz_bytes: 3_200_000,
};

/// The host's kernel where UEFI or a network starts it.
pub const PC: Profile = Profile {
    name: "kernel-pc",
    fragments: &["base", "kvm", "virtio", "userland", "pc"],
    max_xz_bytes: 4_000_000,
};

/// A built kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub bzimage: PathBuf,
    /// The ELF file, without symbols.
    pub vmlinux: PathBuf,
    /// Bytes that a bzImage of it compressed by xz would have.
    pub xz_bytes: u64,
    /// Package and version of its source.
    pub source: String,
}

/// The kernel of `profile`; built first if the cache has none.
pub fn get(paths: &Paths, apt: &Apt, profile: &Profile) -> Result<Kernel> {
    let step = Step::begin(profile.name);
    let folder = paths.root.join("configs/kernel");
    let (wanted, fragments) = read_fragments(&folder, profile.fragments)?;
    let compiler = compiler()?;
    let source = match Source::pinned(paths) {
        Some(source) => source,
        None => Source::choose(paths, apt, &step)?,
    };
    let key = cache::key(&[
        &source.package,
        &source.version,
        &fragments,
        BUILDER_VERSION,
        &compiler,
    ]);
    let (folder, origin) = cache::entry(&paths.cache, "kernel", &key, &step, |out| {
        let tree = source.tree(paths, apt, &step)?;
        // Kernels of different configurations share the tree, one after the other.
        let _lock = cache::lock(&paths.cache, "kernel-tree", &step)?;
        build::build(&tree, &wanted, out, &paths.target.join("log"), &step)
    })?;

    let xz = folder.join(build::XZ_BYTES);
    let xz_bytes = fs::read_to_string(&xz)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .with_context(|| format!("{} is damaged: remove {}", xz.display(), folder.display()))?;
    let max = profile.max_xz_bytes;
    if xz_bytes > max {
        bail!(
            "The kernel of {} has {xz_bytes} bytes compressed by xz, more than the {max} it may have: switch something \
             off there",
            profile.fragments.join(".config, ") + ".config in configs/kernel"
        );
    }
    let kernel = Kernel {
        bzimage: folder.join(build::BZIMAGE),
        vmlinux: folder.join(build::VMLINUX),
        xz_bytes,
        source: format!("{} {}", source.package, source.version),
    };
    let how = if origin == Origin::Built {
        "built from"
    } else {
        "in the cache,"
    };
    step.done(&format!(
        "{how} {}, {} compressed by xz",
        kernel.source,
        ui::size(xz_bytes)
    ));
    Ok(kernel)
}

fn read_fragments(folder: &Path, names: &[&str]) -> Result<(Wanted, String)> {
    let mut wanted = Wanted::default();
    let mut all = String::new();
    for name in names {
        let path = folder.join(format!("{name}.config"));
        let text = fs::read_to_string(&path)
            .with_context(|| format!("Could not read {}", path.display()))?;
        wanted.add(&format!("configs/kernel/{name}.config"), &text)?;
        all.push_str(&text);
    }
    Ok((wanted, all))
}

/// Names compiler and linker: another version gives other bytes.
fn compiler() -> Result<String> {
    let first_line = |program: &str| -> Result<String> {
        let text = tool::output(Command::new(program).arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    Ok(format!("{}, {}", first_line("gcc")?, first_line("ld")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fragments_of_this_checkout_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/kernel");
        for profile in [FLASH, PC] {
            let (_, text) = read_fragments(&folder, profile.fragments).unwrap();
            assert!(text.contains("CONFIG_KVM=y"));
        }
    }
}
