//! flashrom, which knows the chips.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use firmware_glue::image::Region;
use tempfile::TempDir;

/// Where Debian has it, which is not in everybody's PATH.
const ELSEWHERE: &str = "/usr/sbin/flashrom";

/// The program with its programmer and chip.
pub struct Flashrom {
    program: &'static str,
    arguments: Vec<String>,
    /// For what it reads and writes.
    folder: TempDir,
}

impl Flashrom {
    pub fn new(programmer: &str, chip: Option<&str>) -> Result<Self> {
        let found = |program: &str| Command::new(program).arg("--version").output().is_ok();
        let program = ["flashrom", ELSEWHERE]
            .into_iter()
            .find(|program| found(program));
        let mut arguments = vec!["-p".to_owned(), programmer.to_owned()];
        if let Some(chip) = chip {
            arguments.extend(["-c".to_owned(), chip.to_owned()]);
        }
        Ok(Self {
            program: program.context("flashrom is not installed (apt-get install flashrom)")?,
            arguments,
            folder: tempfile::tempdir().context("Cannot make a temporary folder")?,
        })
    }

    /// All of the chip.
    pub fn read(&self) -> Result<Vec<u8>> {
        let path = self.folder.path().join("read");
        self.run(&[Path::new("-r"), &path])?;
        std::fs::read(&path).context("flashrom has read nothing")
    }

    /// Writes the area from `image`, which has the size of the chip, and nothing else.
    pub fn write(&self, region: &Region, image: &[u8]) -> Result<()> {
        let (layout, file) = (
            self.folder.path().join("layout"),
            self.folder.path().join("image"),
        );
        let last = region
            .range
            .end
            .checked_sub(1)
            .context("The area is empty")?;
        let line = format!("{:08x}:{last:08x} {}\n", region.range.start, region.name);
        std::fs::write(&layout, line).context("Cannot write flashrom's layout")?;
        std::fs::write(&file, image).context("Cannot write flashrom's image")?;
        let name = Path::new(&region.name);
        // It verifies what it wrote (-N: and not the rest, which we do).
        let [l, i, w, n] = ["-l", "-i", "-w", "-N"].map(Path::new);
        self.run(&[l, &layout, i, name, n, w, &file])
    }

    /// For people: how to write all of the chip.
    pub fn command_to_write(&self, file: &Path) -> String {
        format!(
            "{} {} -w {}",
            self.program,
            self.arguments.join(" "),
            file.display()
        )
    }

    fn run(&self, arguments: &[&Path]) -> Result<()> {
        let output = Command::new(self.program)
            .args(&self.arguments)
            .args(arguments)
            .output()
            .context("flashrom cannot be started")?;
        ensure!(
            output.status.success(),
            "flashrom failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
