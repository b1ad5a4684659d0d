//! Installs what is missing, and says what and why before it does.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt};
use crate::paths::Paths;
use crate::requirements::{self, Requirement};
use crate::tool;
use crate::ui::{self, Step};

/// Makes sure that every required package is installed. Runs nothing if so.
pub fn run(paths: &Paths) -> Result<()> {
    let missing = requirements::missing();
    if missing.is_empty() {
        return Ok(());
    }
    apt::check_present()?;
    ui::say("These packages are missing and will be installed:");
    for Requirement { package, why, .. } in &missing {
        ui::say(&format!("  {package:<24} {why}"));
    }
    become_administrator()?;
    let step = Step::begin("setup");
    let apt = Apt::open(paths)?;
    apt.update(&step)?;
    let packages: Vec<&str> = missing
        .iter()
        .map(|requirement| requirement.package)
        .collect();
    for (suite, packages) in plan(&apt, &packages, &step)? {
        apt.install(&packages, suite.as_deref(), &step)
            .with_context(|| format!("Could not install {}", packages.join(", ")))?;
    }
    let still: Vec<_> = requirements::missing()
        .iter()
        .map(|requirement| requirement.package)
        .collect();
    if !still.is_empty() {
        bail!("Installed, and yet not there: {}", still.join(", "));
    }
    step.done(&format!("installed {} packages", packages.len()));
    Ok(())
}

/// Which packages to install from which suite; `None` is apt's own choice.
///
/// A package may not fit to one of the same source that is installed in a newer version (from backports, say): then it
/// comes from the suite that the installed one came from.
fn plan<'a>(
    apt: &Apt,
    packages: &[&'a str],
    step: &Step,
) -> Result<Vec<(Option<String>, Vec<&'a str>)>> {
    step.set("checking versions");
    if apt.can_install(packages, None) {
        return Ok(vec![(None, packages.to_vec())]);
    }
    let (plain, odd): (Vec<&str>, Vec<&str>) = packages
        .iter()
        .partition(|package| apt.can_install(&[package], None));
    let mut plan = Vec::new();
    for package in odd {
        let suite = suite_that_fits(apt, package)?;
        ui::say(&format!(
            "  {package} comes from {suite}, as the packages it must fit to"
        ));
        plan.push((Some(suite), vec![package]));
    }
    if !plain.is_empty() {
        plan.insert(0, (None, plain));
    }
    Ok(plan)
}

fn suite_that_fits(apt: &Apt, package: &str) -> Result<String> {
    let siblings = apt.installed_siblings(package)?;
    for (sibling, version) in &siblings {
        let offers = apt.offers(sibling)?;
        let from = offers.iter().filter(|offer| offer.version == *version);
        for offer in from {
            if apt.can_install(&[package], Some(&offer.suite)) {
                return Ok(offer.suite.clone());
            }
        }
    }
    let installed: Vec<_> = siblings
        .iter()
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    if installed.is_empty() {
        bail!("{package} cannot be installed: `apt-get install {package}` says why");
    }
    bail!(
        "{package} fits to none of what is installed ({}), and no suite of the mirror has a version that does: \
         install it by hand",
        installed.join(", ")
    )
}

/// Asks for the password now, while the user is looking.
fn become_administrator() -> Result<()> {
    if requirements::is_root() {
        return Ok(());
    }
    if tool::which("sudo").is_none() {
        bail!("Installing needs root, and there is no sudo: run `cargo xtask setup` as root once");
    }
    let _pause = ui::pause();
    let status = Command::new("sudo")
        .arg("--validate")
        .status()
        .context("Could not start sudo")?;
    if !status.success() {
        bail!("sudo refused: run `cargo xtask setup` as root once");
    }
    Ok(())
}
