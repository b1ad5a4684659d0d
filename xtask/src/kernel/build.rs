//! Configures and compiles a kernel in its source tree.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use super::config::Wanted;
use crate::tool;
use crate::ui::Step;

/// Steps that `make` announces for our configuration, for the first progress display; later ones know from the time
/// before.
const FIRST_GUESS: usize = 2_200;

/// Everything that would otherwise be different each time.
const REPRODUCIBLE: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
    ("KBUILD_BUILD_USER", "daruma"),
    ("KBUILD_BUILD_HOST", "daruma"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// What a build leaves behind.
pub const BZIMAGE: &str = "bzImage";
pub const VMLINUX: &str = "vmlinux";
pub const CONFIG: &str = "config";
/// Text: bytes that a bzImage of this kernel compressed by xz would have.
pub const XZ_BYTES: &str = "xz_bytes";

/// Builds in `tree` by `wanted` and puts the results into `out`. `log` is a folder.
pub fn build(tree: &Path, wanted: &Wanted, out: &Path, log: &Path, step: &Step) -> Result<()> {
    step.set("configuring");
    configure(tree, wanted, &log.join("kernel-config.log"))?;
    compile(tree, &log.join("kernel.log"), step)?;
    step.set("measuring");
    collect(tree, out, &log.join("kernel-strip.log"))
}

fn configure(tree: &Path, wanted: &Wanted, log: &Path) -> Result<()> {
    let path = tree.join(".config");
    let read =
        || fs::read_to_string(&path).with_context(|| format!("Could not read {}", path.display()));
    tool::run(make(tree).arg("tinyconfig"), log, |_| {})?;
    let merged = wanted.merge_over(&read()?);
    fs::write(&path, merged).with_context(|| format!("Could not write {}", path.display()))?;
    tool::run(make(tree).arg("olddefconfig"), log, |_| {})?;
    wanted.check(&read()?)
}

fn compile(tree: &Path, log: &Path, step: &Step) -> Result<()> {
    let count_file = tree.join(".daruma-steps");
    let expected = fs::read_to_string(&count_file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let mut progress = Progress::new(expected.unwrap_or(FIRST_GUESS));
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    step.set(format!("compiling with {jobs} jobs"));
    let mut command = make(tree);
    command.arg(format!("-j{jobs}")).arg("bzImage");
    tool::run(&mut command, log, |line| {
        if let Some(detail) = progress.line(line) {
            step.set(detail);
        }
    })?;
    // A second build in the same tree compiles only what changed: the largest count is the whole.
    if progress.done > expected.unwrap_or(0) {
        fs::write(&count_file, progress.done.to_string())
            .with_context(|| format!("Could not write {}", count_file.display()))?;
    }
    Ok(())
}

fn collect(tree: &Path, out: &Path, log: &Path) -> Result<()> {
    let copy = |from: &str, to: &str| {
        let (from, to) = (tree.join(from), out.join(to));
        fs::copy(&from, &to)
            .with_context(|| format!("Could not copy {} to {}", from.display(), to.display()))
    };
    let bzimage_bytes = copy("arch/x86/boot/bzImage", BZIMAGE)?;
    copy(".config", CONFIG)?;
    // Notes stay: the PVH entry is in one.
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-all")
        .arg("-o")
        .arg(out.join(VMLINUX))
        .arg(tree.join("vmlinux"));
    tool::run(&mut strip, log, |_| {})?;

    let payload = tree.join("arch/x86/boot/compressed/vmlinux.bin");
    let packed = tree.join("arch/x86/boot/compressed/vmlinux.bin.zst");
    let packed_bytes = fs::metadata(&packed)
        .with_context(|| {
            format!(
                "Could not find {}: the kernel is not compressed by zstd",
                packed.display()
            )
        })?
        .len();
    let xz_bytes = compressed_size(&payload)? + bzimage_bytes.saturating_sub(packed_bytes);
    fs::write(out.join(XZ_BYTES), xz_bytes.to_string()).context("Could not write the kernel's size")
}

/// Bytes of `file` compressed as the kernel's own build does for CONFIG_KERNEL_XZ (scripts/xz_wrap.sh).
fn compressed_size(file: &Path) -> Result<u64> {
    let mut command = Command::new("xz");
    command
        .args([
            "--check=crc32",
            "--x86",
            "--lzma2=preset=9,dict=128MiB",
            "--stdout",
        ])
        .arg(file);
    let output = tool::prepare(&mut command)
        .output()
        .context("Could not start xz")?;
    if !output.status.success() {
        bail!(
            "xz failed on {}: {}",
            file.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout.len() as u64)
}

fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    // Variables of a `make` that called cargo must not reach the kernel's.
    command
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env_remove("CARGO_MAKEFLAGS");
    command.arg("-C").arg(tree).envs(REPRODUCIBLE);
    command
}

/// Counts what `make` announces.
struct Progress {
    expected: usize,
    done: usize,
}

impl Progress {
    fn new(expected: usize) -> Self {
        Self { expected, done: 0 }
    }

    /// Takes a line of output; says how far it is if the line is a step.
    fn line(&mut self, line: &str) -> Option<String> {
        let mut words = line.strip_prefix("  ")?.split_whitespace();
        let (action, file) = (words.next()?, words.next()?);
        if !action
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
        {
            return None;
        }
        // The tools' objects come with their whole path.
        let file = file.rsplit('/').next().unwrap_or(file);
        self.done += 1;
        // More steps than expected: the display must not go beyond its end before the end.
        let expected = self.expected.max(self.done + 1);
        let percent = self.done * 100 / expected;
        Some(format!(
            "{percent}% ({} of about {expected} steps) {file}",
            self.done
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_steps_only() {
        let mut progress = Progress::new(4);
        assert_eq!(progress.line("make: Entering directory '/x'"), None);
        assert_eq!(progress.line("kernel/fork.c:1: warning: x"), None);
        assert_eq!(
            progress.line("  CC      init/main.o").unwrap(),
            "25% (1 of about 4 steps) main.o"
        );
        assert_eq!(
            progress.line("  ZSTD22  a.zst").unwrap(),
            "50% (2 of about 4 steps) a.zst"
        );
    }

    #[test]
    fn progress_never_reaches_the_end_before_the_end() {
        let mut progress = Progress::new(1);
        for _ in 0..10 {
            let text = progress.line("  CC x.o").unwrap();
            assert!(!text.starts_with("100%"), "{text}");
        }
    }
}
