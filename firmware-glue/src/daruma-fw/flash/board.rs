//! Whether an image is for the board whose chip was read.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use firmware_glue::anchor;
use firmware_glue::image::Image;

use crate::extract::unpacked;

/// What coreboot's build writes of its configuration into CBFS, and which of it says for which board that is.
const CONFIG: &str = "config";
const BOARD: [&str; 3] = [
    "CONFIG_MAINBOARD_DIR=",
    "CONFIG_MAINBOARD_VENDOR=",
    "CONFIG_MAINBOARD_PART_NUMBER=",
];

/// An image is for a board if it has the size of the chip, its flash map, its board's name as far as both say one, and,
/// but for another build, the same firmware: all that coreboot itself runs on, byte for byte.
pub fn check(chip: &Image, image: &Image, other_build: bool) -> Result<()> {
    let (has, needs) = (chip.bytes().len(), image.bytes().len());
    ensure!(has == needs, "The chip has {has} bytes, the image {needs}");
    let map = |image: &Image| image.map().map(|map| (map.offset(), map.raw().to_vec()));
    ensure!(
        map(chip) == map(image) && chip.regions() == image.regions(),
        "The chip and the image have different flash maps"
    );
    let (here, there) = (board(chip), board(image));
    if let (Some(here), Some(there)) = (&here, &there)
        && here != there
    {
        bail!("The chip's coreboot is for {here}, the image's for {there}");
    }
    if other_build {
        ensure!(
            here.is_some() && here == there,
            "Which board the coreboots are for is not said in both, so --other-build cannot be allowed"
        );
        return Ok(());
    }
    let (here, mut there) = (firmware(chip)?, firmware(image)?);
    for (name, data) in here {
        match there.remove(&name) {
            Some(other) if other == data => {}
            Some(_) => bail!(
                "{name} on the chip is another than in the image: this is an image for another board or of another build (--other-build, if it is that)"
            ),
            None => bail!("{name} is on the chip and not in the image"),
        }
    }
    if let Some(name) = there.into_keys().next() {
        bail!("{name} is in the image and not on the chip");
    }
    Ok(())
}

/// The board that coreboot was built for, by its configuration.
fn board(image: &Image) -> Option<String> {
    let region = image.region(None).ok()?;
    let file = image.cbfs(region).find(CONFIG).ok()?;
    let text = String::from_utf8(unpacked(&file).ok()?).ok()?;
    let lines = BOARD
        .iter()
        .filter_map(|key| text.lines().find(|line| line.starts_with(key)));
    let words: Vec<&str> = lines
        .filter_map(|line| Some(line.split_once('=')?.1.trim_matches('"')))
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// All files of firmware by area and name. The hash in the boot block is of the files, not of the board.
fn firmware(image: &Image) -> Result<BTreeMap<String, Vec<u8>>> {
    let anchor = image.anchor()?.map(|(at, _)| at..at + anchor::SIZE);
    let mut found = BTreeMap::new();
    for region in image.cbfs_regions() {
        for file in image.cbfs(region).files() {
            let file = file?;
            if !file.kind().is_firmware() {
                continue;
            }
            let mut data = file.data().to_vec();
            let start = region.range.start + file.data_range().start;
            for at in anchor.clone().into_iter().flatten() {
                if let Some(byte) = at.checked_sub(start).and_then(|at| data.get_mut(at)) {
                    *byte = 0;
                }
            }
            found.insert(format!("{}: {}", region.name, file.name()), data);
        }
    }
    Ok(found)
}
