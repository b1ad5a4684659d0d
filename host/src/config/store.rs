//! Reading `[store]`: where the machine keeps snapshots and what guests write to their disks.

use super::Source;
use super::error::ConfigError;
use super::reader::Section;

/// Where it is without a word.
const DEFAULT_PATH: &str = "store";

/// The machine's store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreConfig {
    /// There is none: guests write to their images, and there are no snapshots.
    #[default]
    Off,
    /// A folder: `disk:PATH` or a path of the host. In memory where no disk appears.
    At(Source),
    /// The section is wrong, as a remark says. Guests must not write to their images as if there were none.
    Wrong,
}

/// Reads `[store]`.
pub fn read_store(section: &Section<'_, '_>) -> Result<StoreConfig, ConfigError> {
    section.refuse_unknown(&["path"])?;
    let Some(path) = section.string("path")? else {
        return Ok(StoreConfig::At(Source::Disk(DEFAULT_PATH.to_owned())));
    };
    match Source::parse(&path.value) {
        Some(source @ (Source::Disk(_) | Source::Path(_))) => Ok(StoreConfig::At(source)),
        Some(Source::Flash(_)) | None => {
            let reason = "write disk:PATH (without '..') or a path: a folder that can be written";
            let value = format!("{:?}", path.value);
            Err(section.bad_value("path", path.span, value, reason))
        }
    }
}
