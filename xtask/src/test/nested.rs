//! Counts the nested boots that really ran.
//!
//! The harness in `tests/` writes one JSON file for each boot, with the name of the test that booted. A nested test that
//! passes without such a record has proved nothing, and is counted as failed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What is known of one test's boots.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    boots: usize,
    /// An emulated machine stood still: it said nothing more, for minutes.
    stood_still: bool,
}

/// Boots by the name of the test that ran them, with `::` written as `-`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Boots(BTreeMap<String, Known>);

impl Boots {
    /// Reads the records in `folder`; no folder means no boots.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut boots = Self::default();
        let Ok(files) = fs::read_dir(folder) else {
            return Ok(boots);
        };
        for path in files.flatten().map(|file| file.path()) {
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let text = fs::read(&path)
                    .with_context(|| format!("Could not read {}", path.display()))?;
                let record: serde_json::Value = serde_json::from_slice(&text)
                    .with_context(|| format!("{} is damaged", path.display()))?;
                let test = record["test"]
                    .as_str()
                    .with_context(|| format!("{} names no test", path.display()))?;
                let known = boots.0.entry(test.to_owned()).or_default();
                known.boots += 1;
                known.stood_still |=
                    record["stood_still"] == true && record["accelerator"] == "tcg";
            }
        }
        Ok(boots)
    }

    pub fn total(&self) -> usize {
        self.0.values().map(|known| known.boots).sum()
    }

    /// Tests out of `failed` whose emulated machine stood still.
    pub fn still(&self, failed: &[String]) -> Vec<String> {
        let still = |name: &&String| {
            let known = self.0.get(&name.replace("::", "-"));
            known.is_some_and(|known| known.stood_still)
        };
        failed.iter().filter(still).cloned().collect()
    }

    /// Tests out of `passed` that booted nothing.
    pub fn unproved<'a>(&self, passed: &'a [String]) -> Vec<&'a str> {
        let proved = |name: &str| self.0.contains_key(&name.replace("::", "-"));
        passed
            .iter()
            .map(String::as_str)
            .filter(|name| !proved(name))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_test_without_a_boot_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        for (file, test) in [
            ("1.json", "boot-three"),
            ("2.json", "boot-three"),
            ("3.json", "other"),
        ] {
            fs::write(
                folder.path().join(file),
                format!(r#"{{"test": "{test}", "ready_lines": 3}}"#),
            )
            .unwrap();
        }
        fs::write(folder.path().join("1.log"), "console").unwrap();
        let boots = Boots::read(folder.path()).unwrap();
        assert_eq!(boots.total(), 3);
        let passed = ["boot::three".to_owned(), "boot::four".to_owned()];
        assert_eq!(boots.unproved(&passed), ["boot::four"]);
    }

    #[test]
    fn only_emulated_machines_stand_still_for_no_reason_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        for (test, accelerator, stood_still) in [
            ("a-hangs", "tcg", true),
            ("b-hangs", "kvm", true),
            ("c-fails", "tcg", false),
            ("d-passes", "tcg", true),
        ] {
            let record = format!(
                r#"{{"test": "{test}", "accelerator": "{accelerator}", "stood_still": {stood_still}}}"#
            );
            fs::write(folder.path().join(test).with_extension("json"), record).unwrap();
        }
        let boots = Boots::read(folder.path()).unwrap();
        let failed = ["a::hangs", "b::hangs", "c::fails"].map(str::to_owned);
        assert_eq!(boots.still(&failed), ["a::hangs"]);
    }

    #[test]
    fn a_damaged_record_is_no_boot() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("1.json"), "{").unwrap();
        assert!(Boots::read(folder.path()).is_err());
        assert_eq!(
            Boots::read(&folder.path().join("none")).unwrap(),
            Boots::default()
        );
    }
}
