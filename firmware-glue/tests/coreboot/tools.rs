//! coreboot's tools, and files for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A folder with an image in it, and the tools that work on it.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// An image of `size` bytes with these lines of areas, as `fmaptool` and `cbfstool create` make it.
    pub fn create(&self, name: &str, size: usize, areas: &str, regions: &str) {
        let base = (1_u64 << 32) - size as u64;
        let text = format!("FLASH@{base:#x} {size:#x} {{\n{areas}\n}}\n");
        let fmd = self.write("areas.fmd", text.as_bytes());
        let map = self.path("areas.fmap");
        tool("fmaptool", &[&fmd, &map], &[]).unwrap();
        let map = map.to_str().unwrap();
        self.cbfstool(name, &["create", "-M", map, "-r", regions]);
    }

    /// Runs `cbfstool` on the image `name`; its output, or a failed test.
    pub fn cbfstool(&self, name: &str, arguments: &[&str]) -> String {
        self.try_cbfstool(name, arguments).unwrap()
    }

    /// The same; all it said if it failed.
    pub fn try_cbfstool(&self, name: &str, arguments: &[&str]) -> Result<String, String> {
        tool("cbfstool", &[&self.path(name)], arguments)
    }

    /// Adds a file to the image's main CBFS.
    pub fn add(&self, image: &str, name: &str, kind: &str, data: &[u8], more: &[&str]) {
        let file = self.write("add", data);
        let file = file.to_str().unwrap();
        let arguments = ["add", "-f", file, "-n", name, "-t", kind];
        self.cbfstool(image, &[&arguments[..], more].concat());
    }

    /// A file of the image, unpacked.
    pub fn extract(&self, image: &str, name: &str, more: &[&str]) -> Vec<u8> {
        let file = self.path("extracted");
        let arguments = ["extract", "-n", name, "-f", file.to_str().unwrap()];
        self.cbfstool(image, &[&arguments[..], more].concat());
        fs::read(&file).unwrap()
    }
}

fn tool(program: &str, paths: &[&Path], arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(paths)
        .args(arguments)
        .output()
        .expect("Debian's coreboot-utils must be installed: cargo xtask test installs them");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{program} {arguments:?}: {text}{error}"))
    }
}

/// Bytes that no compressor makes smaller.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    for _ in 0..len {
        // Xorshift: any will do, the same each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push(state.to_le_bytes()[4]);
    }
    bytes
}

/// Bytes that any compressor makes smaller.
pub fn text(len: usize, seed: u64) -> Vec<u8> {
    let words = noise(64, seed);
    (0..len).map(|at| words[at % 61 % (1 + at % 7)]).collect()
}

/// The smallest file that is a sound bzImage by its header; it could not run.
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image.extend_from_slice(code);
    image.resize(image.len().next_multiple_of(16), 0);
    let paragraphs = u32::try_from((image.len() - 1024) / 16).unwrap();
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &paragraphs.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 1, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x24c, &16_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x200_0000_u32.to_le_bytes());
    image
}
