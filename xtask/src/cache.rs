//! The cache outside the checkout: entries named by the hash of what went into them, made whole or not at all.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::ui::Step;

/// Hex digits of a key: enough to never meet by chance.
const KEY_DIGITS: usize = 16;

/// Names an entry by what goes into it.
pub fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut key = hex(&hash.finalize());
    key.truncate(KEY_DIGITS);
    key
}

/// SHA-256 of a file or other bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether an entry was there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Cached,
    Built,
}

/// The folder `cache/kind/key`, made by `build` in a folder beside it if it is not there yet.
///
/// Two processes that want the same entry build it once: the second waits for the first.
pub fn entry(
    cache: &Path,
    kind: &str,
    key: &str,
    step: &Step,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<(PathBuf, Origin)> {
    let folder = cache.join(kind);
    let place = folder.join(key);
    if place.is_dir() {
        return Ok((place, Origin::Cached));
    }
    let _lock = lock(cache, &format!("{kind}-{key}"), step)?;
    if place.is_dir() {
        return Ok((place, Origin::Cached));
    }
    let unfinished = folder.join(format!("{key}.new"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)
            .with_context(|| format!("Could not remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished)
        .with_context(|| format!("Could not create {}", unfinished.display()))?;
    build(&unfinished)?;
    fs::rename(&unfinished, &place)
        .with_context(|| format!("Could not move the finished {kind} to {}", place.display()))?;
    Ok((place, Origin::Built))
}

/// A lock between processes, by name; held until the file is dropped.
pub fn lock(cache: &Path, name: &str, step: &Step) -> Result<File> {
    let folder = cache.join("locks");
    fs::create_dir_all(&folder)
        .with_context(|| format!("Could not create {}", folder.display()))?;
    let path = folder.join(name);
    let file =
        File::create(&path).with_context(|| format!("Could not write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => step.set("waiting for another xtask that does the same"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("Could not lock {}", path.display()));
        }
    }
    file.lock()
        .with_context(|| format!("Could not lock {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn keys_depend_on_the_division_into_parts() {
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }

    #[test]
    fn an_entry_is_built_once_and_a_failed_build_leaves_none() {
        let cache = tempfile::tempdir().unwrap();
        let step = Step::begin("test");
        let fail = entry(cache.path(), "thing", "k", &step, |folder| {
            fs::write(folder.join("half"), "")?;
            bail!("no")
        });
        assert!(fail.is_err());
        let make = |folder: &Path| {
            assert!(!folder.join("half").exists(), "starts empty");
            Ok(fs::write(folder.join("whole"), "")?)
        };
        let (place, origin) = entry(cache.path(), "thing", "k", &step, make).unwrap();
        assert_eq!(origin, Origin::Built);
        assert!(place.join("whole").exists());
        let again = entry(cache.path(), "thing", "k", &step, |_| bail!("built twice")).unwrap();
        assert_eq!(again, (place, Origin::Cached));
    }
}
