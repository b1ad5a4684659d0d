//! `daruma.img`: a stick for a UEFI PC. What is made from the same parts once is kept: nothing writes to it here.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use guest_images::ext4::Content;
use guest_images::stick;
use sha2::{Digest, Sha256};

use super::manifest::Artefact;
use crate::cache;
use crate::paths::Paths;
use crate::ui::Step;

pub const NAME: &str = "daruma.img";
/// Beside it: what it was made from, and its SHA-256.
const RECIPE: &str = "daruma.img.recipe";

/// What lies in the guests' partition.
pub enum Source<'a> {
    /// Bytes that were just made.
    Bytes(&'a [u8]),
    /// A large file, and what names its content.
    File(&'a Path, &'a str),
}

/// Makes the image unless there is one of the same parts.
pub fn make(
    paths: &Paths,
    image: &Path,
    program: &[u8],
    files: &[(&str, Source<'_>)],
    step: &Step,
) -> Result<Artefact> {
    let mut parts = vec![stick::recipe(), cache::sha256(program)];
    for (name, source) in files {
        parts.push((*name).to_owned());
        parts.push(match source {
            Source::Bytes(bytes) => cache::sha256(bytes),
            Source::File(_, key) => (*key).to_owned(),
        });
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let key = cache::key(&parts);
    let (path, recipe) = (image.join(NAME), image.join(RECIPE));
    let found = fs::read_to_string(&recipe).unwrap_or_default();
    if let Some((known, sha256)) = found.trim().split_once(' ')
        && known == key
        && let Ok(metadata) = fs::metadata(&path)
    {
        return Ok(Artefact {
            size: metadata.len(),
            sha256: Some(sha256.to_owned()),
        });
    }
    step.set(format!("making {NAME}"));
    fs::remove_file(&recipe).ok();
    build(paths, program, files, &path)?;
    step.set(format!("hashing {NAME}"));
    let artefact = hash(&path)?;
    let sha256 = artefact.sha256.as_deref().unwrap_or_default();
    fs::write(&recipe, format!("{key} {sha256}\n"))
        .with_context(|| format!("Could not write {}", recipe.display()))?;
    Ok(artefact)
}

/// Makes the image at `out`, whatever is there.
pub fn build(
    paths: &Paths,
    program: &[u8],
    files: &[(&str, Source<'_>)],
    out: &Path,
) -> Result<()> {
    let scratch = paths.scratch("stick");
    fs::create_dir_all(&scratch)
        .with_context(|| format!("Could not create {}", scratch.display()))?;
    let mut sources = Vec::new();
    for (index, (_, source)) in files.iter().enumerate() {
        sources.push(match source {
            Source::File(path, _) => path.to_path_buf(),
            Source::Bytes(bytes) => {
                let path = scratch.join(index.to_string());
                fs::write(&path, bytes)
                    .with_context(|| format!("Could not write {}", path.display()))?;
                path
            }
        });
    }
    let contents: Vec<_> = files
        .iter()
        .zip(&sources)
        .map(|((path, _), source)| Content { path, source })
        .collect();
    let log = paths.log("stick");
    fs::remove_file(&log).ok();
    stick::build(program, &contents, &scratch, &log, out)?;
    fs::remove_dir_all(&scratch).with_context(|| format!("Could not remove {}", scratch.display()))
}

/// Size and SHA-256 of a file.
pub fn hash(path: &Path) -> Result<Artefact> {
    let read = || format!("Could not read {}", path.display());
    let mut file = fs::File::open(path).with_context(read)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = io::Read::read(&mut file, &mut buffer).with_context(read)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
    Ok(Artefact {
        size,
        sha256: Some(cache::hex(&hash.finalize())),
    })
}
