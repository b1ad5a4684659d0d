//! `docs/threat-model.md` names tests, one or more for each class of vulnerability: they must be there.

use std::collections::BTreeMap;
use std::fs;

use tests::image::workspace;

/// Every known one, by a part of its name as the table writes it.
const CLASSES: [&str; 19] = [
    "CVE-2019-18960",
    "CH 664431f",
    "CVE-2020-16843",
    "FC#2177",
    "FC#3149",
    "CVE-2020-13759",
    "CVE-2023-41051",
    "CVE-2023-28448, CVE-2023-50711",
    "RUSTSEC-2024-0428",
    "GHSA-52h2-m2cf-9jh6",
    "CVE-2026-1386",
    "CVE-2026-27211",
    "CVE-2026-5747",
    "CVE-2026-45782",
    "CVE-2026-24834",
    "CVE-2026-16457",
    "OV#4045",
    "CH 2026",
    "FC 2026",
];

/// The names in backquotes that say where a test is: `file.rs::name`.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|word| word.split_once("::"))
        .filter(|(file, _)| file.ends_with(".rs"))
}

/// Whether `source` has a function `name` that a test program runs.
fn has_test(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}(")) else {
        return false;
    };
    let before: Vec<_> = source[..at].lines().rev().take(6).collect();
    before.iter().any(|line| line.trim() == "#[test]")
}

fn rows(text: &str) -> BTreeMap<&str, &str> {
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| class "))
        .skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.trim_matches('|').split_once(" | "))
        .collect()
}

#[test]
fn every_class_of_vulnerability_has_a_test_that_exists() {
    let text = fs::read_to_string(workspace().join("docs/threat-model.md")).unwrap();
    let rows = rows(&text);
    assert_eq!(rows.len(), CLASSES.len(), "{:#?}", rows.keys());
    for class in CLASSES {
        let row = rows.iter().find(|(name, _)| name.contains(class));
        let (_, tests) = row.unwrap_or_else(|| panic!("no row is about {class}"));
        let excused = tests.contains("none") && tests.contains(": ");
        assert!(named(tests).count() > 0 || excused, "{class} has no test");
    }
    let mut count = 0;
    for (file, name) in named(&text) {
        let source = fs::read_to_string(workspace().join(file)).unwrap_or_default();
        assert!(has_test(&source, name), "{file} has no test {name}");
        count += 1;
    }
    println!("{count} tests for {} classes", rows.len());
}

#[test]
fn a_test_that_does_not_exist_is_found_out() {
    let source = "#[test]\nfn there() {}\n\nfn helper() {}\n";
    assert!(has_test(source, "there"));
    assert!(!has_test(source, "gone"));
    assert!(!has_test("fn helper() {}\n", "helper"));
    let names: Vec<_> = named("x `a/b.rs::c` y `d` `e::f`").collect();
    assert_eq!(names, [("a/b.rs", "c")]);
}
