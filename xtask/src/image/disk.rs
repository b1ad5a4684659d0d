//! `disk.img`, which belongs to the user once it is made: guests write to it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use guest_images::disk;
use guest_images::ext4::Content;

use crate::cache;
use crate::paths::Paths;
use crate::ui::{self, Step};

const DISK: &str = "disk.img";
/// Beside the disk: the recipe it was made by.
const RECIPE: &str = "disk.recipe";
/// Where the last disk goes when a new recipe makes another; a number follows if that is taken.
const OLD_DISK: &str = "disk.img.old";
/// More old disks than this are not piled up without asking.
const MAX_OLD_DISKS: u32 = 100;

/// Makes the disk unless there is one of the same recipe; `reset` makes it anew in any case.
pub fn make(
    paths: &Paths,
    image: &Path,
    debian: &(impl AsRef<Path>, String),
    reset: bool,
) -> Result<()> {
    let (root, root_key) = debian;
    let recipe = cache::key(&[&disk::recipe(), root_key, "with a list"]);
    let path = image.join(DISK);
    let recipe_path = image.join(RECIPE);
    let found = fs::read_to_string(&recipe_path).unwrap_or_default();
    if !reset && path.exists() && found == recipe {
        ui::say(
            "disk       kept, with what guests wrote to it (`cargo xtask image --reset-disk` makes it anew)",
        );
        return Ok(());
    }
    let step = Step::begin("disk");
    step.set("making disk.img");
    let mut note = String::new();
    if !reset && path.exists() {
        let old = unused_name(image)?;
        fs::rename(&path, image.join(&old))
            .with_context(|| format!("Could not move {}", path.display()))?;
        note = format!("; its recipe has changed, the last one is {old}");
    }
    let list = list_of(root.as_ref(), &step)?;
    // The list is the younger one, or it would not count.
    let contents = [
        Content {
            path: "guests/debian/root.img",
            source: root.as_ref(),
        },
        Content {
            path: "guests/debian/root.img.list",
            source: &list,
        },
    ];
    let log = paths.log("disk");
    fs::remove_file(&log).ok();
    // The recipe first: with it and without a disk the next run makes one; the other way round it would take the new
    // disk for one of another recipe.
    fs::write(&recipe_path, recipe)
        .with_context(|| format!("Could not write {}", recipe_path.display()))?;
    disk::build(&contents, &paths.scratch("disk"), &log, &path)?;
    step.done(&format!("made disk.img{note}"));
    Ok(())
}

/// The list of what is in `root`, beside it: with it the host's store knows the image without reading it.
pub fn list_of(root: &Path, step: &Step) -> Result<PathBuf> {
    let path = root.with_extension("img.list");
    if path.exists() {
        return Ok(path);
    }
    step.set("listing the pages of root.img");
    let image =
        fs::File::open(root).with_context(|| format!("Could not open {}", root.display()))?;
    let list = store::image_list(&image, &mut |_, _| {})
        .with_context(|| format!("Could not list {}", root.display()))?;
    let unfinished = root.with_extension("img.list.new");
    fs::write(&unfinished, list)
        .and_then(|()| fs::rename(&unfinished, &path))
        .with_context(|| format!("Could not write {}", path.display()))?;
    Ok(path)
}

/// A name for an old disk that no other has: what guests wrote is never overwritten.
fn unused_name(image: &Path) -> Result<String> {
    (0..MAX_OLD_DISKS)
        .map(|number| match number {
            0 => OLD_DISK.to_owned(),
            number => format!("{OLD_DISK}.{number}"),
        })
        .find(|name| !image.join(name).exists())
        .with_context(|| {
            format!(
                "{} holds {MAX_OLD_DISKS} old disks: remove some of {OLD_DISK}*",
                image.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_disk_is_never_overwritten() {
        let folder = std::env::temp_dir().join(format!("daruma-disk-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(unused_name(&folder).unwrap(), "disk.img.old");
        fs::write(folder.join("disk.img.old"), "mine").unwrap();
        assert_eq!(unused_name(&folder).unwrap(), "disk.img.old.1");
        fs::remove_dir_all(&folder).unwrap();
    }
}
