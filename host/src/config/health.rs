//! Reading `[guest.health]`: what a guest has fallen by, and how far it goes back to stand up again.

use std::time::Duration;

use super::checkpoints::{Checkpoints, number};
use super::error::ConfigError;
use super::reader::{Located, Section};
use super::{Ready, Restart};

const KEYS: &[&str] = &[
    "good-after",
    "ready-within",
    "heartbeat",
    "heartbeat-console",
    "fallen-console",
    "restores",
    "cold-boots",
    "factory-reset",
];
/// A day, in seconds.
const DAY: u64 = 24 * 3600;
/// Steps back double: the 16th would be 16384 checkpoints back.
const MAX_RESTORES: u64 = 16;
const MAX_COLD_BOOTS: u64 = 16;
/// The text is searched for in every byte that a guest prints.
const MAX_TEXT: usize = 256;

/// When a guest has fallen, and what is done then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// A snapshot is good when the guest was healthy for so long after it.
    pub good_after: Duration,
    /// A guest that is not ready so long after its start has fallen.
    pub ready_within: Option<Duration>,
    /// A guest that once gave a sign of life and gives none for two of these has fallen.
    pub heartbeat: Duration,
    /// A text on its console that is a sign of life as well, expected from when it is ready.
    pub heartbeat_console: Option<String>,
    /// A text on its console that says that it has fallen.
    pub fallen_console: Option<String>,
    /// Falls in a row after which it goes back to a good snapshot: 0, 1, 2, 4 … good ones back from the newest.
    pub restores: u32,
    /// Falls in a row, after those, after which it boots from its disks as it left them.
    pub cold_boots: u32,
    /// Whether it then begins anew from its images.
    pub factory_reset: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            good_after: Duration::from_secs(10),
            ready_within: None,
            heartbeat: Duration::from_secs(10),
            heartbeat_console: None,
            fallen_console: None,
            restores: 4,
            cold_boots: 1,
            factory_reset: false,
        }
    }
}

/// What the other keys of the guest say about the same.
pub struct Rest<'a> {
    /// `ready`.
    pub ready: &'a Ready,
    /// `restart`.
    pub restart: Restart,
    /// `[guest.checkpoints]`.
    pub checkpoints: Option<&'a Checkpoints>,
}

/// Reads `[guest.health]` of `guest`; without it, the defaults.
pub fn read_health(guest: &Section<'_, '_>, rest: &Rest<'_>) -> Result<Health, ConfigError> {
    let Some(section) = guest.table("health", "health")? else {
        return Ok(Health::default());
    };
    section.refuse_unknown(KEYS)?;
    let or = Health::default();
    let seconds = |key, least, or: Duration| {
        Ok(number(&section, key, least, DAY)?.map_or(or, Duration::from_secs))
    };
    let count = |key, most, or: u32| {
        let found = number(&section, key, 0, most)?;
        Ok(found.and_then(|n| u32::try_from(n).ok()).unwrap_or(or))
    };
    let health = Health {
        good_after: seconds("good-after", 1, or.good_after)?,
        ready_within: number(&section, "ready-within", 1, DAY)?.map(Duration::from_secs),
        heartbeat: seconds("heartbeat", 1, or.heartbeat)?,
        heartbeat_console: text(&section, "heartbeat-console")?,
        fallen_console: text(&section, "fallen-console")?,
        restores: count("restores", MAX_RESTORES, or.restores)?,
        cold_boots: count("cold-boots", MAX_COLD_BOOTS, or.cold_boots)?,
        factory_reset: section
            .boolean("factory-reset")?
            .unwrap_or(or.factory_reset),
    };
    contradictions(&section, &health, rest)?;
    Ok(health)
}

fn contradictions(
    section: &Section<'_, '_>,
    health: &Health,
    rest: &Rest<'_>,
) -> Result<(), ConfigError> {
    let bad = |key, value: String, reason: &str| {
        Err(section.bad_value(key, section.span(), value, reason))
    };
    if let Some(fallen) = &health.fallen_console {
        if matches!(rest.ready, Ready::Console(ready) if ready.contains(fallen.as_str())) {
            let reason = "the guest would fall by what makes it ready; write another text";
            return bad("fallen-console", format!("{fallen:?}"), reason);
        }
        let beat = health.heartbeat_console.as_ref();
        if beat.is_some_and(|beat| beat.contains(fallen.as_str())) {
            let reason = "the guest would fall by its sign of life; write another text";
            return bad("fallen-console", format!("{fallen:?}"), reason);
        }
    }
    if rest.restart == Restart::Never && section.has("restores") && health.restores > 0 {
        let reason = "restart = \"never\" leaves a fallen guest down; leave one of both out";
        return bad("restores", health.restores.to_string(), reason);
    }
    let Some(checkpoints) = rest.checkpoints else {
        if section.has("restores") && health.restores > 0 {
            let reason = "there is nothing to go back to without [guest.checkpoints]";
            return bad("restores", health.restores.to_string(), reason);
        }
        return Ok(());
    };
    let thinning = checkpoints.thinning;
    let kept = thinning
        .seconds
        .max(thinning.minutes.saturating_mul(60))
        .max(thinning.hours.saturating_mul(3600));
    // The newest is always kept, and is as old as the interval when the next one comes.
    if health.good_after > checkpoints.every.max(Duration::from_secs(kept)) {
        let seconds = health.good_after.as_secs();
        let reason = format!(
            "checkpoints are kept for {kept} s, so none would live to be good; keep them longer or write less"
        );
        return bad("good-after", seconds.to_string(), &reason);
    }
    Ok(())
}

fn text(section: &Section<'_, '_>, key: &'static str) -> Result<Option<String>, ConfigError> {
    let Some(Located { value, span }) = section.string(key)? else {
        return Ok(None);
    };
    if value.is_empty() || value.len() > MAX_TEXT {
        let reason = format!("write 1 to {MAX_TEXT} bytes that the guest prints");
        return Err(section.bad_value(key, span, format!("{value:?}"), reason));
    }
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limits, Machine};

    fn read(rest: &str) -> Result<Health, String> {
        let text = format!(
            "[[guest]]\nname = \"g\"\nmemory = 64\nkernel = \"k\"\nready = {{ console = \"login:\" }}\n{rest}"
        );
        let mut machine = Machine::parse("m", &text, Limits::default()).unwrap();
        let config = machine.guests.remove(0).config;
        Ok(config.map_err(|error| error.to_string())?.health)
    }

    const CHECKPOINTS: &str = "[guest.checkpoints]\nevery = 5\n";

    #[test]
    fn every_key_is_read_and_has_a_default() {
        assert_eq!(read(""), Ok(Health::default()));
        let text = format!(
            "{CHECKPOINTS}[guest.health]\ngood-after = 3\nready-within = 60\nheartbeat = 2\nheartbeat-console = \"tick\"\n\
             fallen-console = \"Oops\"\nrestores = 2\ncold-boots = 0\nfactory-reset = true\n"
        );
        let expected = Health {
            good_after: Duration::from_secs(3),
            ready_within: Some(Duration::from_secs(60)),
            heartbeat: Duration::from_secs(2),
            heartbeat_console: Some("tick".to_owned()),
            fallen_console: Some("Oops".to_owned()),
            restores: 2,
            cold_boots: 0,
            factory_reset: true,
        };
        assert_eq!(read(&text), Ok(expected));
    }

    #[test]
    fn rules_that_contradict_each_other_and_numbers_that_mean_nothing_are_refused_with_what_to_write()
     {
        let never = format!("restart = \"never\"\n{CHECKPOINTS}");
        let short = "[guest.checkpoints]\nevery = 5\nseconds = 5\nminutes = 0\nhours = 0\n";
        for (before, rule, expected) in [
            ("", "heartbeat = 0", "1 to 86400"),
            ("", "good-after = 0", "1 to 86400"),
            ("", "restores = 3", "[guest.checkpoints]"),
            (&*never, "restores = 3", "never"),
            (CHECKPOINTS, "restores = 99", "0 to 16"),
            ("", "fallen-console = \"\"", "1 to 256"),
            ("", "fallen-console = \"login\"", "ready"),
            (
                "",
                "heartbeat-console = \"tick tock\"\nfallen-console = \"tock\"",
                "sign of life",
            ),
            ("", "hearbeat = 3", "heartbeat"),
            (short, "good-after = 60", "kept for 5 s"),
        ] {
            let error = read(&format!("{before}[guest.health]\n{rule}\n")).unwrap_err();
            assert!(error.contains(expected), "{rule}: {error}");
        }
    }
}
