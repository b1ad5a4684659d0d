//! Files that this program writes: whole or not at all, and never over what somebody has.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tempfile::NamedTempFile;

/// Writes `bytes` to `path` by a temporary file beside it. What is there already is replaced only with `force`, and one of
/// `inputs` never.
pub fn write(path: &Path, bytes: &[u8], force: bool, inputs: &[&Path]) -> Result<()> {
    for input in inputs {
        if same(path, input) {
            bail!(
                "{} is what is read, and stays as it is: name another file by -o",
                path.display()
            );
        }
    }
    if !force && path.symlink_metadata().is_ok() {
        bail!("{} exists; --force replaces it", path.display());
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let name = || format!("Cannot write {}", path.display());
    let mut file = NamedTempFile::new_in(folder).with_context(name)?;
    file.write_all(bytes).with_context(name)?;
    file.as_file().sync_all().with_context(name)?;
    #[cfg(unix)]
    readable(&file).with_context(name)?;
    let written = if force {
        file.persist(path)
    } else {
        // Somebody may have made it in the meantime.
        file.persist_noclobber(path)
    };
    written
        .map(drop)
        .map_err(|error| error.error)
        .with_context(name)
}

/// Temporary files are their owner's only; images are for whoever may read the folder.
#[cfg(unix)]
fn readable(file: &NamedTempFile) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = std::fs::Permissions::from_mode(0o644);
    file.as_file().set_permissions(permissions)
}

fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}
