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
    /// How an emulated machine was lost.
    lost: Option<String>,
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
                let lost = record["lost"]
                    .as_str()
                    .filter(|_| record["accelerator"] == "tcg");
                known.lost = lost.map(str::to_owned).or_else(|| known.lost.take());
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

    /// Tests out of `failed` whose emulated machine was lost, and how.
    pub fn lost(&self, failed: &[String]) -> Vec<(String, String)> {
        let lost = |name: &String| {
            let known = self.0.get(&name.replace("::", "-"))?;
            Some((name.clone(), known.lost.clone()?))
        };
        failed.iter().filter_map(lost).collect()
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
    fn only_emulated_machines_are_lost_for_no_reason_of_ours() {
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
        let lost = [("a::hangs".to_owned(), "it hangs".to_owned())];
        assert_eq!(boots.lost(&failed), lost);
        let mut all = Boots::default();
        all.add(boots);
        assert_eq!((all.total(), all.lost(&failed)), (4, Vec::new()));
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
