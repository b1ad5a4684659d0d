//! `configs/budgets.toml`: how large each part may be, so that whoever makes one larger hears of it at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Fails if a part is larger than its budget, or has none; names each.
pub fn check(path: &Path, parts: &BTreeMap<String, u64>) -> Result<()> {
    let text =
        fs::read_to_string(path).with_context(|| format!("Could not read {}", path.display()))?;
    let budgets =
        toml::from_str(&text).with_context(|| format!("Could not read {}", path.display()))?;
    let grown = grown(&budgets, parts);
    if !grown.is_empty() {
        bail!(
            "Parts are larger than {} lets them be (if they should be, say so there):\n{}",
            path.display(),
            grown.join("\n")
        );
    }
    Ok(())
}

fn grown(budgets: &BTreeMap<String, u64>, parts: &BTreeMap<String, u64>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, size) in parts {
        match budgets.get(name) {
            None => lines.push(format!("  {name}: {size} bytes, and no budget")),
            Some(budget) if size > budget => lines.push(format!(
                "  {name}: {size} bytes, {} more than its {budget}",
                size - budget
            )),
            Some(_) => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_named_with_how_much() {
        let budgets = toml::from_str("kernel = 1_000\nhost = 500").unwrap();
        let parts = |kernel, host| {
            BTreeMap::from([("kernel".to_owned(), kernel), ("host".to_owned(), host)])
        };
        assert!(grown(&budgets, &parts(1000, 500)).is_empty());
        assert_eq!(
            grown(&budgets, &parts(1024, 500)),
            ["  kernel: 1024 bytes, 24 more than its 1000"]
        );
        let other = BTreeMap::from([("new".to_owned(), 7)]);
        assert_eq!(grown(&budgets, &other), ["  new: 7 bytes, and no budget"]);
    }

    #[test]
    fn the_budgets_of_this_checkout_can_be_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/budgets.toml");
        let text = fs::read_to_string(path).unwrap();
        let budgets: BTreeMap<String, u64> = toml::from_str(&text).unwrap();
        assert!(budgets.contains_key("kernel"));
    }
}
