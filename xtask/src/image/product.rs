//! The programs that go into the image, built by cargo.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use firmware_glue::stage;
use guest_images::agent;

use super::slim::without_unwinding;
use crate::cargo::{self, cargo};
use crate::paths::Paths;
use crate::ui::{self, Step};

/// Named, so that build scripts and macros are not built static.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// No shared libraries in flash, and nothing that only takes room there: tables for unwinding, which a panic does not do;
/// a relocation for each address where a bit is enough; functions that are the same byte for byte.
const STATIC: (&str, &str) = (
    "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
    "-C target-feature=+crt-static -C force-unwind-tables=no -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--icf=all",
);
const PROFILE: &str = "rom";
/// Of zstd's ways to decompress one each: the others are for other processors and for streams that repeat from far away.
const LEAN_ZSTD: (&str, &str) = (
    "CFLAGS_x86_64_unknown_linux_gnu",
    "-DDYNAMIC_BMI2=0 -DHUF_FORCE_DECOMPRESS_X1 -DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT",
);

/// The programs, as bytes.
pub struct Product {
    /// Host and VMM in one.
    pub daruma: Vec<u8>,
    /// What starts it from flash.
    pub starter: Vec<u8>,
    /// The `web` guest.
    pub web: Vec<u8>,
    /// The ROM stage as it lies in flash.
    pub bootblock: Vec<u8>,
}

impl Product {
    pub fn build(paths: &Paths) -> Result<Self> {
        let step = Step::begin("programs");
        let mut programs = cargo(&["build", "--profile", PROFILE, "--target", TARGET]);
        programs.args([
            "--package",
            "host",
            "--bin",
            "daruma",
            "--package",
            "web",
            "--bin",
            "web",
        ]);
        programs.envs([STATIC, LEAN_ZSTD]);
        cargo::run(&mut programs, paths, &step)?;
        let folder = paths.target.join(TARGET).join(PROFILE);
        let daruma = without_unwinding(read(&folder.join("daruma"))?)?;
        let web = without_unwinding(read(&folder.join("web"))?)?;

        let mut starter = cargo(&["build", "--profile", PROFILE, "--package", "starter"]);
        starter.args(["--features", "program", "--bin", "starter"]);
        cargo::run(&mut starter, paths, &step)?;
        let starter = read(&paths.target.join(PROFILE).join("starter"))?;

        let mut bootblock = cargo(&["build", "--profile", PROFILE, "--package", "bootblock"]);
        bootblock.args(["--features", "stage", "--bin", "bootblock"]);
        cargo::run(&mut bootblock, paths, &step)?;
        let elf = read(&paths.target.join(PROFILE).join("bootblock"))?;
        let bootblock = stage::flatten(&elf)?;
        step.done(&format!(
            "daruma {}, web {}, ROM stage {}",
            ui::size(daruma.len() as u64),
            ui::size(web.len() as u64),
            ui::size(bootblock.len() as u64)
        ));
        Ok(Self {
            daruma,
            starter,
            web,
            bootblock,
        })
    }
}

/// Builds one more static program and says where it is.
pub fn static_program(paths: &Paths, package: &str, name: &str, step: &Step) -> Result<PathBuf> {
    let mut build = cargo(&["build", "--profile", PROFILE, "--target", TARGET]);
    build.args(["--package", package, "--bin", name]);
    // The same variables every time, or cargo would build all again.
    cargo::run(build.envs([STATIC, LEAN_ZSTD]), paths, step)?;
    Ok(paths.target.join(TARGET).join(PROFILE).join(name))
}

/// Builds the guests' agent and says where it is.
pub fn agent(paths: &Paths) -> Result<PathBuf> {
    let step = Step::begin("agent");
    let built = static_program(paths, "agent", agent::NAME, &step)?;
    let program = without_unwinding(read(&built)?)?;
    let place = built.with_extension("slim");
    fs::write(&place, &program).with_context(|| format!("Could not write {}", place.display()))?;
    step.done(&format!("built, {}", ui::size(program.len() as u64)));
    Ok(place)
}

/// Builds the guest that breaks every rule and says where it is.
///
/// Without the vector registers: nobody has switched them on, and a KVM that only emulates does not know them. That the
/// compiler warns of the calling convention is right, and of no matter to a program that calls nobody else's code.
pub fn hostile_guest(paths: &Paths, step: &Step) -> Result<PathBuf> {
    let mut build = cargo(&["rustc", "--profile", PROFILE, "--package", "hostile"]);
    build.args(["--features", "program", "--bin", "hostile"]);
    build.args(["--", "-C", "target-feature=-sse,-sse2"]);
    cargo::run(&mut build, paths, step)?;
    Ok(paths.target.join(PROFILE).join("hostile"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| {
        format!(
            "Could not read {}, which cargo has just built",
            path.display()
        )
    })
}
