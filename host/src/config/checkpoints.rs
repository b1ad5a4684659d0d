//! Reading `[guest.checkpoints]`: how often a snapshot is taken without a word, and which of them are kept.

use std::time::Duration;

use super::error::ConfigError;
use super::guest::parse_mib;
use super::reader::Section;
use crate::snapshots::Thinning;

const KEYS: &[&str] = &["every", "seconds", "minutes", "hours", "budget"];
/// Less often is not a checkpoint but a backup.
const MAX_EVERY: u64 = 24 * 3600;
/// Ten years.
const MAX_HOURS: u64 = 10 * 366 * 24;

/// Checkpoints of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoints {
    /// Time between two of them, while the guest is ready.
    pub every: Duration,
    /// Which are kept.
    pub thinning: Thinning,
}

/// Reads `[guest.checkpoints]` of `guest`, if there is one.
pub fn read_checkpoints(guest: &Section<'_, '_>) -> Result<Option<Checkpoints>, ConfigError> {
    let Some(section) = guest.table("checkpoints", "checkpoints")? else {
        return Ok(None);
    };
    section.refuse_unknown(KEYS)?;
    let Some(every) = number(&section, "every", 1, MAX_EVERY)? else {
        return Err(section.missing("every", "write the seconds between two checkpoints"));
    };
    let or = |key, default| Ok(number(&section, key, 0, MAX_HOURS * 3600)?.unwrap_or(default));
    Ok(Some(Checkpoints {
        every: Duration::from_secs(every),
        thinning: Thinning {
            seconds: or("seconds", 60)?,
            minutes: or("minutes", 60)?,
            hours: or("hours", 168)?,
            budget: read_budget(&section)?,
        },
    }))
}

/// Bytes of `"500M"` or `"2G"`.
fn read_budget(section: &Section<'_, '_>) -> Result<Option<u64>, ConfigError> {
    let Some(text) = section.string("budget")? else {
        return Ok(None);
    };
    let mib = parse_mib(&text.value).filter(|mib| *mib > 0);
    match mib.and_then(|mib| mib.checked_mul(1 << 20)) {
        Some(bytes) => Ok(Some(bytes)),
        None => {
            let reason = "write a string such as \"500M\" or \"2G\"";
            Err(section.bad_value("budget", text.span, format!("{:?}", text.value), reason))
        }
    }
}

pub(super) fn number(
    section: &Section<'_, '_>,
    key: &'static str,
    least: u64,
    most: u64,
) -> Result<Option<u64>, ConfigError> {
    let Some(found) = section.integer(key)? else {
        return Ok(None);
    };
    let value = u64::try_from(found.value).ok();
    match value.filter(|value| (least..=most).contains(value)) {
        Some(value) => Ok(Some(value)),
        None => Err(section.bad_value(
            key,
            found.span,
            found.value.to_string(),
            format!("write a number from {least} to {most}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limits, Machine};

    fn read(section: &str) -> Result<Option<Checkpoints>, String> {
        let text = format!(
            "[[guest]]\nname = \"g\"\nmemory = 64\nkernel = \"k\"\nready = {{ boot-timer = true }}\n{section}"
        );
        let mut machine = Machine::parse("m", &text, Limits::default()).unwrap();
        let config = machine.guests.remove(0).config;
        let config = config.map_err(|error| error.to_string())?;
        Ok(config.checkpoints)
    }

    #[test]
    fn without_a_word_there_are_none_and_with_one_word_the_rest_has_defaults() {
        assert_eq!(read(""), Ok(None));
        let rule = read("[guest.checkpoints]\nevery = 5\nhours = 0\n");
        let rule = rule.unwrap().unwrap();
        assert_eq!(rule.every, Duration::from_secs(5));
        let Thinning {
            seconds,
            minutes,
            hours,
            budget,
        } = rule.thinning;
        assert_eq!((seconds, minutes, hours, budget), (60, 60, 0, None));
        let rule = read("[guest.checkpoints]\nevery = 5\nbudget = \"2G\"\n");
        assert_eq!(rule.unwrap().unwrap().thinning.budget, Some(2 << 30));
    }

    #[test]
    fn an_interval_of_zero_a_missing_one_and_unknown_words_are_refused_with_what_to_write() {
        for (section, expected) in [
            ("every = 0", "1 to 86400"),
            ("minutes = 3", "seconds between two"),
            ("every = 1\nhours = -1", "0 to"),
            ("every = 1\nhour = 3", "hour"),
            ("every = \"1s\"", "every"),
            ("every = 1\nbudget = \"2X\"", "500M"),
            ("every = 1\nbudget = \"0M\"", "500M"),
        ] {
            let error = read(&format!("[guest.checkpoints]\n{section}\n")).unwrap_err();
            assert!(error.contains(expected), "{section}: {error}");
        }
    }
}
