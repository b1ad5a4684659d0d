//! The QEMU that emulates the machine where no hardware can be lent to it.
//!
//! Its emulation of AMD-V has good and bad versions ([`tests::emulation`] knows them). Where the installed one is bad,
//! that of Debian 12 is unpacked into the cache; what is installed stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::emulation;
use anyhow::{Context, Result};

use crate::apt::{self, Apt};
use crate::cache::{self, Origin};
use crate::paths::Paths;
use crate::tool;
use crate::ui::{self, Step};
use crate::world::{Acceleration, World};

pub const QEMU: &str = "qemu-system-x86_64";

/// What is unpacked: QEMU, its firmware and the ROMs of its cards. Those of QEMU itself need a version that is good.
const PACKAGES: [(&str, bool); 5] = [
    ("qemu-system-x86", true),
    ("qemu-system-common", true),
    ("qemu-system-data", true),
    ("seabios", false),
    ("ipxe-qemu", false),
];

/// Where distributions put virtiofsd, which is on nobody's search path: its own package, and QEMU's up to 7.
const VIRTIOFSD: [&str; 2] = ["/usr/libexec", "/usr/lib/qemu"];

/// Which QEMU is to be used, and the virtiofsd that tests use.
pub struct Emulator {
    /// Debian's packages, unpacked; `None` if what is installed will do.
    unpacked: Option<PathBuf>,
}

impl Emulator {
    /// For a machine to be run in.
    pub fn for_machine(paths: &Paths) -> Result<Self> {
        let wanted = World::detect().acceleration() == Acceleration::Tcg && !installed_is_sound()?;
        Self::new(paths, wanted)
    }

    /// For tests, which start virtiofsd too.
    pub fn for_tests(paths: &Paths) -> Result<Self> {
        let has_virtiofsd = VIRTIOFSD
            .iter()
            .any(|folder| Path::new(folder).join("virtiofsd").exists());
        if has_virtiofsd {
            return Self::for_machine(paths);
        }
        Self::new(paths, true)
    }

    fn new(paths: &Paths, wanted: bool) -> Result<Self> {
        let unpacked = if wanted { unpacked(paths)? } else { None };
        Ok(Self { unpacked })
    }

    /// QEMU: a path, or its name if the installed one is to be used.
    pub fn program(&self) -> PathBuf {
        self.unpacked
            .as_ref()
            .map_or_else(|| QEMU.into(), |folder| folder.join("usr/bin").join(QEMU))
    }

    /// The search path on which programs find that QEMU and virtiofsd first.
    pub fn search_path(&self) -> String {
        let unpacked = self
            .unpacked
            .iter()
            .flat_map(|folder| ["usr/bin", "usr/lib/qemu"].map(|part| folder.join(part)))
            .map(|path| path.display().to_string());
        let path = unpacked.chain([tool::search_path()]);
        path.chain(VIRTIOFSD.map(str::to_owned))
            .collect::<Vec<_>>()
            .join(":")
    }
}

/// Whether the emulation of the installed QEMU holds.
pub fn installed_is_sound() -> Result<bool> {
    emulation::is_sound(Path::new(QEMU))
}

/// The packages in the cache, fetched if they are not there; `None` where no mirror has a good version.
fn unpacked(paths: &Paths) -> Result<Option<PathBuf>> {
    let step = Step::begin("emulator");
    let names: Vec<&str> = PACKAGES.iter().map(|&(name, _)| name).collect();
    let key = cache::key(&names);
    let kind = "emulator";
    let place = paths.cache.join(kind).join(&key);
    if place.is_dir() {
        return Ok(Some(place));
    }
    apt::check_present()?;
    let apt = Apt::open(paths)?;
    apt.update(&step)?;
    let Some(versions) = versions(&apt)? else {
        ui::say(
            "emulator   no mirror of this computer has QEMU 7.2, whose emulation holds: guests may stop for no reason of theirs",
        );
        return Ok(None);
    };
    let (place, origin) = cache::entry(&paths.cache, kind, &key, &step, |folder| {
        for (package, version) in &versions {
            unpack(paths, &apt, package, version, folder, &step)?;
        }
        Ok(())
    })?;
    if origin == Origin::Built {
        step.done("unpacked Debian's QEMU 7.2 into the cache, as the installed one loses guests");
    }
    Ok(Some(place))
}

/// The version to take of each package, if there is one of each.
fn versions(apt: &Apt) -> Result<Option<Vec<(&'static str, String)>>> {
    let mut versions = Vec::new();
    for (package, of_qemu) in PACKAGES {
        let mut offers = apt.offers(package)?.into_iter();
        let good = offers.find(|offer| !of_qemu || is_sound_package(&offer.version));
        match good {
            Some(offer) => versions.push((package, offer.version)),
            None => return Ok(None),
        }
    }
    Ok(Some(versions))
}

/// Whether the package version `1:7.2+dfsg-7+deb12u18` is one of a good QEMU.
fn is_sound_package(version: &str) -> bool {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let major = upstream
        .split('.')
        .next()
        .and_then(|text| text.parse().ok());
    major.is_some_and(emulation::is_sound_version)
}

fn unpack(
    paths: &Paths,
    apt: &Apt,
    package: &str,
    version: &str,
    folder: &Path,
    step: &Step,
) -> Result<()> {
    step.set(format!("downloading {package} {version}"));
    let download = folder.join("download");
    fs::create_dir(&download)
        .with_context(|| format!("Could not create {}", download.display()))?;
    let file = apt.download(package, Some(version), &download)?;
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").arg(&file).arg(folder);
    tool::run(&mut command, &paths.log("emulator"), |_| {})?;
    fs::remove_dir_all(&download)
        .with_context(|| format!("Could not remove {}", download.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_12_has_a_good_version_and_its_backports_a_bad_one() {
        assert!(is_sound_package("1:7.2+dfsg-7+deb12u18+b3"));
        assert!(!is_sound_package("1:10.0.2+ds-2+deb13u1~bpo12+1"));
        assert!(!is_sound_package("unknown"));
    }

    #[test]
    fn what_is_unpacked_is_found_before_what_is_installed() {
        let folder = PathBuf::from("/cache/emulator/1");
        let emulator = Emulator {
            unpacked: Some(folder),
        };
        assert!(
            emulator
                .search_path()
                .starts_with("/cache/emulator/1/usr/bin:/cache/emulator/1/usr/lib/qemu:")
        );
        let installed = Emulator { unpacked: None };
        assert_eq!(installed.program(), Path::new(QEMU));
        assert!(installed.search_path().starts_with(&tool::search_path()));
    }
}
