//! `disk.img`, which belongs to the user once it is made: guests write to it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use guest_images::disk::{self, Content};

use crate::cache;
use crate::paths::Paths;
use crate::ui::{self, Step};

const DISK: &str = "disk.img";
/// Beside the disk: the recipe it was made by.
const RECIPE: &str = "disk.recipe";
/// Where the last disk goes when a new recipe makes another.
const OLD_DISK: &str = "disk.img.old";

/// Makes the disk unless there is one of the same recipe; `reset` makes it anew in any case.
pub fn make(
    paths: &Paths,
    image: &Path,
    debian: &(impl AsRef<Path>, String),
    reset: bool,
) -> Result<()> {
    let (root, root_key) = debian;
    let recipe = cache::key(&[&disk::recipe(), root_key]);
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
    let mut note = "";
    if !reset && path.exists() {
        let old = image.join(OLD_DISK);
        fs::rename(&path, &old).with_context(|| format!("Could not move {}", path.display()))?;
        note = "; its recipe has changed, the last one is disk.img.old";
    }
    let contents = [Content {
        path: "guests/debian/root.img",
        source: root.as_ref(),
    }];
    let log = paths.log("disk");
    fs::remove_file(&log).ok();
    disk::build(&contents, &paths.scratch("disk"), &log, &path)?;
    fs::write(&recipe_path, recipe)
        .with_context(|| format!("Could not write {}", recipe_path.display()))?;
    step.done(&format!("made disk.img{note}"));
    Ok(())
}
