//! Kernel configuration: fragments merged over `tinyconfig`, and the check that each line took effect.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};

/// One option of a fragment and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    value: String,
    /// `base.config:17`.
    place: String,
}

/// What a list of fragments asks for; a later fragment overrides an earlier one.
#[derive(Debug, Default)]
pub struct Wanted(BTreeMap<String, Setting>);

impl Wanted {
    /// Adds the fragment `text`, named `name` in errors.
    pub fn add(&mut self, name: &str, text: &str) -> Result<()> {
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            let is_option = line.starts_with("CONFIG_") || line.starts_with("# CONFIG_");
            match parse_line(line) {
                Some((option, value)) => {
                    let setting = Setting {
                        value: value.to_owned(),
                        place: format!("{name}:{number}"),
                    };
                    self.0.insert(option.to_owned(), setting);
                }
                None if is_option || !(line.is_empty() || line.starts_with('#')) => {
                    bail!("{name}:{number} is no kernel option: {line}");
                }
                None => {}
            }
        }
        Ok(())
    }

    /// `config` with everything that is asked for here instead of what it says.
    pub fn merge_over(&self, config: &str) -> String {
        let mut merged = String::new();
        for line in config.lines() {
            if parse_line(line).is_none_or(|(option, _)| !self.0.contains_key(option)) {
                writeln!(merged, "{line}").ok();
            }
        }
        for (option, Setting { value, .. }) in &self.0 {
            if value == "n" {
                writeln!(merged, "# {option} is not set").ok();
            } else {
                writeln!(merged, "{option}={value}").ok();
            }
        }
        merged
    }

    /// Checks that the kernel's own tool kept every line; names those that it dropped or changed.
    pub fn check(&self, config: &str) -> Result<()> {
        let actual: BTreeMap<_, _> = config.lines().filter_map(parse_line).collect();
        let mut lost = String::new();
        for (option, Setting { value, place }) in &self.0 {
            let is = actual.get(option.as_str()).copied().unwrap_or("n");
            if is != value {
                write!(
                    lost,
                    "\n  {place}: {option}={value}, but the kernel's configuration has {is}"
                )
                .ok();
            }
        }
        if !lost.is_empty() {
            bail!(
                "These lines of configs/kernel did not take effect (an option they depend on is off, or this kernel has \
                 no such option):{lost}"
            );
        }
        Ok(())
    }
}

/// `CONFIG_X=value` or `# CONFIG_X is not set`, which is `n`.
fn parse_line(line: &str) -> Option<(&str, &str)> {
    let (option, value) = match line.strip_prefix("# ") {
        Some(rest) => (rest.strip_suffix(" is not set")?, "n"),
        None => line.split_once('=')?,
    };
    let name = option.strip_prefix("CONFIG_")?;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(valid) && !value.is_empty()).then_some((option, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(fragments: &[&str]) -> Wanted {
        let mut wanted = Wanted::default();
        for (index, text) in fragments.iter().enumerate() {
            wanted.add(&format!("{index}.config"), text).unwrap();
        }
        wanted
    }

    #[test]
    fn a_later_fragment_overrides_an_earlier_one() {
        let wanted = wanted(&["CONFIG_A=y\nCONFIG_B=\"x=y\"\n", "# why\n\nCONFIG_A=n\n"]);
        let merged = wanted.merge_over("# CONFIG_A is not set\nCONFIG_C=y\nCONFIG_B=\"\"\n");
        assert_eq!(
            merged,
            "CONFIG_C=y\n# CONFIG_A is not set\nCONFIG_B=\"x=y\"\n"
        );
        wanted.check(&merged).unwrap();
    }

    #[test]
    fn a_line_without_effect_is_named_with_its_place() {
        let wanted = wanted(&["CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=5\n"]);
        let error = wanted
            .check("# CONFIG_A is not set\nCONFIG_C=4\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("0.config:1: CONFIG_A=y, but the kernel's configuration has n"),
            "{error}"
        );
        assert!(
            error.contains("0.config:3: CONFIG_C=5, but the kernel's configuration has 4"),
            "{error}"
        );
        assert!(
            !error.contains("CONFIG_B"),
            "an absent option is off: {error}"
        );
    }

    #[test]
    fn a_line_that_is_no_option_is_refused() {
        for line in [
            "CONFIG_A",
            "CONFIG_A=",
            "config_A=y",
            "# CONFIG_A is not",
            "CONFIG_A B=y",
        ] {
            let error = Wanted::default().add("f", line);
            assert!(error.is_err(), "{line}");
        }
    }
}
