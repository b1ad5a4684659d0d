//! Where things lie: the checkout, cargo's target folder, the cache that outlives both.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folders that everything else is named relative to.
pub struct Paths {
    /// The checkout.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// What took long to make and does not depend on the checkout: kernels, packages, root file systems.
    pub cache: PathBuf,
}

impl Paths {
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies outside of the checkout")?
            .to_owned();
        if !root.join("configs/kernel").is_dir() {
            bail!(
                "The checkout is no longer at {}: build xtask again with `cargo build -p xtask`",
                root.display()
            );
        }
        let target = folder_from("CARGO_TARGET_DIR").unwrap_or_else(|| root.join("target"));
        let cache = folder_from("XDG_CACHE_HOME")
            .or_else(|| folder_from("HOME").map(|home| home.join(".cache")))
            .context("Neither XDG_CACHE_HOME nor HOME is set: there is no place for the cache")?
            .join("daruma");
        Ok(Self {
            root,
            target,
            cache,
        })
    }

    /// The artefacts.
    pub fn image(&self) -> PathBuf {
        self.target.join("image")
    }

    /// Records of nested boots, one JSON file for each that really ran.
    pub fn nested(&self) -> PathBuf {
        self.target.join("nested")
    }

    /// The system calls of the VMMs that tests start.
    pub fn traces(&self) -> PathBuf {
        self.target.join("traces")
    }

    /// The log of one step.
    pub fn log(&self, step: &str) -> PathBuf {
        self.target.join("log").join(format!("{step}.log"))
    }

    /// A folder for temporary files of one step, on the file system of the artefacts.
    pub fn scratch(&self, step: &str) -> PathBuf {
        self.target.join("scratch").join(step)
    }
}

/// An absolute folder named by an environment variable; empty counts as not set.
fn folder_from(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable).filter(|value| !value.is_empty())?;
    std::path::absolute(value).ok()
}
