//! `daruma-fw verify`: everything that can be checked in an image.

use anyhow::{Result, bail};
use firmware_glue::cbfs::{CbfsError, File, Kind};
use firmware_glue::compress::{Method, unpack};
use firmware_glue::image::Image;
use firmware_glue::payload::Payload;

/// An error that names all that is wrong; nothing if nothing is.
pub fn run(image: &Image) -> Result<()> {
    let mut wrong = Vec::new();
    let mut files = 0;
    if let Err(error) = image.check_anchor() {
        wrong.push(format!("{:#}", anyhow::Error::from(error)));
    }
    for region in image.cbfs_regions() {
        for file in image.cbfs(region).files() {
            let result = file
                .map_err(anyhow::Error::from)
                .and_then(|file| check(&file));
            match result {
                Ok(()) => files += 1,
                Err(error) => wrong.push(format!("{}: {error:#}", region.name)),
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    if files == 0 {
        bail!("There is not one file in it");
    }
    Ok(())
}

fn check(file: &File<'_>) -> Result<()> {
    match file.verify_all() {
        // coreboot has files without one by default.
        Ok(_) | Err(CbfsError::NoHash { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if file.kind() == Kind::SELF {
        let payload = Payload::parse(file.data())?;
        for segment in payload
            .segments()
            .filter(|segment| segment.kind.is_loaded())
        {
            let method = Method::of_number(segment.compression)?;
            if method != Method::None {
                unpack(method, segment.data, segment.mem_len as usize)?;
            }
        }
    }
    super::extract::unpacked(file).map(drop)
}
