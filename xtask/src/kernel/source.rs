//! The kernel's source: the distribution's `linux-source` package, unpacked in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache;
use crate::paths::Paths;
use crate::tool;
use crate::ui::Step;

/// The series that the configuration is made for; elsewhere the newest on offer serves.
const PREFERRED: &str = "linux-source-6.12";

/// A version of a source package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub package: String,
    pub version: String,
}

impl Source {
    /// The version used here before. It stays until the cache is removed, so that a mirror's update does not cost
    /// everybody a kernel build.
    pub fn pinned(paths: &Paths) -> Option<Self> {
        Self::parse(&fs::read_to_string(pin(paths)).ok()?)
    }

    /// The version to use from now on.
    pub fn choose(paths: &Paths, apt: &Apt, step: &Step) -> Result<Self> {
        apt.update(step)?;
        let mut packages = vec![PREFERRED.to_owned()];
        let mut others: Vec<_> = apt
            .names("linux-source-")?
            .into_iter()
            .filter_map(|name| Some((series(&name)?, name)))
            .collect();
        others.sort();
        packages.extend(others.into_iter().rev().map(|(_, name)| name));
        for package in packages {
            if let Some(offer) = apt.offers(&package)?.into_iter().next() {
                let source = Self {
                    package,
                    version: offer.version,
                };
                let path = pin(paths);
                fs::create_dir_all(&paths.cache).context("Could not create the cache")?;
                fs::write(&path, source.text())
                    .with_context(|| format!("Could not write {}", path.display()))?;
                return Ok(source);
            }
        }
        anyhow::bail!("The mirrors offer no linux-source package")
    }

    /// The unpacked tree; fetched and unpacked first if it is not there.
    pub fn tree(&self, paths: &Paths, apt: &Apt, step: &Step) -> Result<PathBuf> {
        let key = format!("{}_{}", self.package, self.version.replace(['/', ':'], "_"));
        let (folder, _) = cache::entry(&paths.cache, "kernel-source", &key, step, |folder| {
            self.fetch(paths, apt, step, folder)
        })?;
        Ok(folder.join("linux"))
    }

    fn fetch(&self, paths: &Paths, apt: &Apt, step: &Step, folder: &Path) -> Result<()> {
        apt.update(step)?;
        step.set(format!(
            "downloading {} {} (about 150 MB)",
            self.package, self.version
        ));
        let package = apt.download(&self.package, Some(&self.version), folder).with_context(|| {
            format!(
                "Could not download {} {}; if the mirror has moved on, remove {} to take its newest",
                self.package,
                self.version,
                pin(paths).display()
            )
        })?;
        step.set("unpacking the source");
        let log = paths.log("kernel-source");
        let contents = folder.join("package");
        tool::run(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(&package)
                .arg(&contents),
            &log,
            |_| {},
        )?;
        let archive = find_archive(&contents.join("usr/src")).with_context(|| {
            format!(
                "{} has no linux-source archive in usr/src",
                package.display()
            )
        })?;
        let tree = folder.join("linux");
        fs::create_dir(&tree).with_context(|| format!("Could not create {}", tree.display()))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--directory"])
            .arg(&tree)
            .arg("--file")
            .arg(archive);
        tool::run(&mut tar, &log, |_| {})?;
        fs::remove_dir_all(&contents)
            .with_context(|| format!("Could not remove {}", contents.display()))?;
        fs::remove_file(&package).with_context(|| format!("Could not remove {}", package.display()))
    }

    fn text(&self) -> String {
        format!("{} {}\n", self.package, self.version)
    }

    fn parse(text: &str) -> Option<Self> {
        let (package, version) = text.trim().split_once(' ')?;
        Some(Self {
            package: package.to_owned(),
            version: version.to_owned(),
        })
    }
}

fn pin(paths: &Paths) -> PathBuf {
    paths.cache.join("kernel-source.pinned")
}

/// The numbers of `linux-source-6.12`; other packages begin like it.
fn series(name: &str) -> Option<Vec<u32>> {
    name.strip_prefix("linux-source-")?
        .split('.')
        .map(|part| part.parse().ok())
        .collect()
}

/// The archive in the package: Debian has it in usr/src, Ubuntu one folder below with a link to it.
fn find_archive(folder: &Path) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let kind = entry.file_type().ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && name.starts_with("linux-source-") && name.contains(".tar.")
            {
                return Some(entry.path());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_compare_as_numbers() {
        assert!(series("linux-source-6.12") > series("linux-source-6.8.0"));
        assert_eq!(series("linux-source-6.12-rt"), None);
    }

    #[test]
    fn a_pin_survives_writing_and_reading() {
        let source = Source {
            package: "linux-source-6.12".into(),
            version: "6.12.95-1~bpo12+1".into(),
        };
        assert_eq!(Source::parse(&source.text()), Some(source));
        assert_eq!(Source::parse("nonsense"), None);
    }

    #[test]
    fn the_archive_is_found_where_either_distribution_puts_it() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("linux-source-6.8.0");
        fs::create_dir(&below).unwrap();
        let archive = below.join("linux-source-6.8.0.tar.bz2");
        fs::write(&archive, "").unwrap();
        std::os::unix::fs::symlink(&archive, folder.path().join("linux-source-6.8.0.tar.bz2"))
            .unwrap();
        assert_eq!(find_archive(folder.path()), Some(archive));
    }
}
