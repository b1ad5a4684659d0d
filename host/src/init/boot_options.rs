//! The host's words on the kernel command line.

use crate::config::{Source, nearest};

const KEYS: [&str; 4] = ["machine", "onready", "recovery", "timing"];
const PREFIX: &str = "daruma.";

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BootOptions {
    /// `daruma.machine=`: the machine file.
    pub machine: Option<Source>,
    /// `daruma.onready=poweroff`.
    pub power_off_when_ready: bool,
    /// `daruma.recovery`: a shell, no guests.
    pub recovery: bool,
    /// `daruma.timing`: benchmarks' points in time on the console.
    pub timing: bool,
    /// Words that were not understood, each with the nearest right one.
    pub remarks: Vec<String>,
}

impl BootOptions {
    /// Reads a kernel command line. What is wrong is reported and passed over: the machine must come up.
    #[must_use]
    pub fn parse(cmdline: &str) -> Self {
        let mut options = Self::default();
        for word in cmdline.split_whitespace() {
            let Some(word) = word.strip_prefix(PREFIX) else {
                continue;
            };
            let (key, value) = word
                .split_once('=')
                .map_or((word, None), |(k, v)| (k, Some(v)));
            match (key, value) {
                ("machine", Some(value)) if !value.is_empty() => {
                    options.machine = machine(value);
                    if options.machine.is_none() {
                        options.remarks.push(format!("{PREFIX}machine={value} names no file"));
                    }
                }
                ("onready", Some("poweroff")) => options.power_off_when_ready = true,
                ("recovery", None) => options.recovery = true,
                ("timing", None) => options.timing = true,
                ("machine", _) => options.remarks.push(format!(
                    "{PREFIX}machine needs a value: a flash name, disk:PATH or an absolute path"
                )),
                ("onready", _) => options
                    .remarks
                    .push(format!("{PREFIX}{word}: the only value is {PREFIX}onready=poweroff")),
                ("recovery" | "timing", _) => {
                    options.remarks.push(format!("{PREFIX}{word}: {PREFIX}{key} takes no value"));
                }
                (other, _) => options.remarks.push(match nearest(other, KEYS) {
                    Some(meant) => {
                        format!("unknown word {PREFIX}{other} on the kernel command line; did you mean {PREFIX}{meant}?")
                    }
                    None => format!("unknown word {PREFIX}{other} on the kernel command line"),
                }),
            }
        }
        options
    }
}

/// `disk:PATH`, an absolute path, or else the name of a flash file.
fn machine(value: &str) -> Option<Source> {
    match Source::parse(value)? {
        Source::Path(name) if !name.starts_with('/') => Some(Source::Flash(name)),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_read_among_others() {
        let options = BootOptions::parse(
            "console=ttyS0 daruma.machine=disk:machine.toml quiet daruma.onready=poweroff daruma.recovery\n",
        );
        assert_eq!(
            options.machine,
            Some(Source::Disk("machine.toml".to_owned()))
        );
        assert!(options.power_off_when_ready && options.recovery);
        assert!(options.remarks.is_empty());
    }

    #[test]
    fn machine_is_a_flash_name_unless_it_says_otherwise() {
        let machine = |value: &str| BootOptions::parse(&format!("daruma.machine={value}")).machine;
        assert_eq!(
            machine("machine/b.toml"),
            Some(Source::Flash("machine/b.toml".to_owned()))
        );
        assert_eq!(machine("flash:m"), Some(Source::Flash("m".to_owned())));
        assert_eq!(
            machine("/etc/m.toml"),
            Some(Source::Path("/etc/m.toml".to_owned()))
        );
    }

    #[test]
    fn mistakes_are_reported_with_the_nearest_word() {
        let remarks =
            BootOptions::parse("daruma.machnie=x daruma.onready=reboot daruma.zzz").remarks;
        assert_eq!(remarks.len(), 3);
        assert!(
            remarks[0].ends_with("did you mean daruma.machine?"),
            "{}",
            remarks[0]
        );
        assert!(remarks[1].contains("daruma.onready=poweroff"));
    }

    proptest! {
        #[test]
        fn any_command_line_is_read(text in "(daruma\\.)?.{0,80}") {
            let _ = BootOptions::parse(&text);
        }
    }
}
