//! Counts the nested boots that really ran.
//!
//! The harness in `tests/` writes one JSON file for each boot, with the name of the test that booted. A nested test that
//! passes without such a record has proved nothing, and is counted as failed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What a failure in any emulated machine may be due to.
const ANY_DOUBT: &str = "it loses an interrupt now and then";

/// What is known of one test's boots.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    boots: usize,
    /// What a failure may be due to, if the machine was emulated.
    doubt: Option<String>,
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
                if record["accelerator"] == "tcg" {
                    let lost = record["lost"].as_str().map(str::to_owned);
                    let doubt = lost.or_else(|| known.doubt.take());
                    known.doubt = doubt.or_else(|| Some(ANY_DOUBT.to_owned()));
                }
            }
        }
        Ok(boots)
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: Self) {
        for (test, known) in other.0 {
            self.0.entry(test).or_default().boots += known.boots;
        }
    }

    pub fn total(&self) -> usize {
        self.0.values().map(|known| known.boots).sum()
    }

    /// Tests out of `failed` that prove nothing yet, as their machine was emulated, and what is known of it.
    pub fn doubtful(&self, failed: &[String]) -> Vec<(String, String)> {
        let doubtful = |name: &String| {
            let known = self.0.get(&name.replace("::", "-"))?;
            Some((name.clone(), known.doubt.clone()?))
        };
        failed.iter().filter_map(doubtful).collect()
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
    fn only_a_failure_in_an_emulated_machine_is_doubtful() {
        let folder = tempfile::tempdir().unwrap();
        for (test, accelerator, lost) in [
            ("a-hangs", "tcg", "\"it hangs\""),
            ("b-hangs", "kvm", "\"it hangs\""),
            ("c-fails", "tcg", "null"),
            ("d-passes", "tcg", "\"it hangs\""),
        ] {
            let record =
                format!(r#"{{"test": "{test}", "accelerator": "{accelerator}", "lost": {lost}}}"#);
            fs::write(folder.path().join(test).with_extension("json"), record).unwrap();
        }
        let boots = Boots::read(folder.path()).unwrap();
        let failed = ["a::hangs", "b::hangs", "c::fails"].map(str::to_owned);
        let doubtful = [("a::hangs", "it hangs"), ("c::fails", ANY_DOUBT)];
        let doubtful = doubtful.map(|(test, how)| (test.to_owned(), how.to_owned()));
        assert_eq!(boots.doubtful(&failed), doubtful);
        let mut all = Boots::default();
        all.add(boots);
        assert_eq!((all.total(), all.doubtful(&failed)), (4, Vec::new()));
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
