//! An ext4 file system in an image, the same bytes for the same contents.
//!
//! `debugfs` puts the files in: `mke2fs -d` would take the times of the files it is given, and no tool can set all of
//! those.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::{Error, tool};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// When everything was made, as far as the file system knows: 2023-06-10, in seconds since 1970.
const EPOCH: u64 = 1_686_355_200;

/// A file to put into the file system.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Path in the file system, relative to its root: `guests/debian/root.img`.
    pub path: &'a str,
    /// The file to copy; holes stay holes.
    pub source: &'a Path,
}

/// Where in an image a file system lies, and what names it.
pub struct Place<'a> {
    /// Its label.
    pub label: &'a str,
    /// Its UUID, which is also the seed of its folders' hashes.
    pub uuid: &'a str,
    /// Bytes of the image before it.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// Makes a file system with `contents` in `image`. `scratch` is a folder to work in; `log` takes the tools' output.
pub fn make(
    place: &Place<'_>,
    contents: &[Content<'_>],
    scratch: &Path,
    log: &Path,
    image: &Path,
) -> Result<(), Error> {
    let Place {
        label,
        uuid,
        offset,
        size,
    } = place;
    let options = format!(
        "offset={offset},hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    );
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", label, "-U", uuid])
        .args(["-b", &BLOCK.to_string(), "-E", &options])
        .arg(image)
        .arg((size / BLOCK).to_string())
        .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string());
    tool::run(&mut mke2fs, log)?;

    fs::create_dir_all(scratch).map_err(Error::io("create", scratch))?;
    let script = scratch.join("debugfs.script");
    fs::write(&script, commands(contents)?).map_err(Error::io("write", &script))?;
    let mut device = image.as_os_str().to_owned();
    device.push(format!("?offset={offset}"));
    let mut debugfs = Command::new("debugfs");
    debugfs
        .args(["-w", "-f"])
        .arg(&script)
        .arg(device)
        .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string());
    let said = tool::run_said(&mut debugfs, log)?;
    // It succeeds whatever comes of the commands.
    let harmless = |line: &str| {
        ["debugfs", "Allocated inode: "]
            .iter()
            .any(|start| line.starts_with(start))
    };
    match said
        .lines()
        .find(|line| !line.is_empty() && !harmless(line))
    {
        Some(line) => Err(Error::io("write the files of", image)(io::Error::other(
            format!("debugfs said: {line}"),
        ))),
        None => fs::remove_file(&script).map_err(Error::io("remove", &script)),
    }
}

/// What `debugfs` is to do: folders before what is in them, then the files.
fn commands(contents: &[Content<'_>]) -> Result<String, Error> {
    let mut folders: Vec<&Path> = contents
        .iter()
        .flat_map(|content| Path::new(content.path).ancestors().skip(1))
        .filter(|folder| !folder.as_os_str().is_empty())
        .collect();
    folders.sort();
    folders.dedup();
    let mut commands = String::new();
    for folder in folders {
        commands.push_str(&format!("mkdir {}\n", quoted(folder)?));
    }
    for Content { path, source } in contents {
        let (source, path) = (quoted(source)?, quoted(Path::new(path))?);
        commands.push_str(&format!("write {source} {path}\n"));
    }
    Ok(commands)
}

fn quoted(path: &Path) -> Result<String, Error> {
    match path.to_str() {
        Some(text) if !text.contains(['"', '\n']) => Ok(format!("\"{text}\"")),
        _ => Err(Error::io("name to debugfs", path)(io::Error::other(
            "the path has a quotation mark, a line end, or is no text",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let source = Path::new("/x y/root.img");
        let content = |path| Content { path, source };
        let commands = commands(&[content("a/b/root.img"), content("a/c"), content("d")]).unwrap();
        assert_eq!(
            commands,
            "mkdir \"a\"\nmkdir \"a/b\"\nwrite \"/x y/root.img\" \"a/b/root.img\"\n\
             write \"/x y/root.img\" \"a/c\"\nwrite \"/x y/root.img\" \"d\"\n"
        );
        assert!(quoted(Path::new("a\"b")).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_copied_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        tool::sparse_file(&image, 8 << 20).unwrap();
        let place = Place {
            label: "test",
            uuid: "7f1c1e0a-5f27-4d3a-9c55-6469736b0002",
            offset: 1 << 20,
            size: 6 << 20,
        };
        let missing = Content {
            path: "file",
            source: Path::new("/no/such/file"),
        };
        let log = folder.path().join("log");
        let error = make(&place, &[missing], folder.path(), &log, &image).unwrap_err();
        let Error::Io { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains("No such file"), "{source}");
    }
}
