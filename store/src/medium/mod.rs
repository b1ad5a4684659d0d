//! What a store lies on: a flat folder of files, with exactly the operations that the store needs.
//!
//! Everything durable goes through [`Medium`], so that a simulated one can record each operation and cut the power
//! between any two of them. The contract is POSIX's and no stronger: a write, a new length, a creation and a removal may
//! each be lost or kept until the matching sync returns; a write may be kept in part, by sectors of 512 bytes.

mod dir;
#[cfg(any(test, feature = "test-utils"))]
pub mod sim;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

pub use dir::Directory;

/// A flat folder of files.
pub trait Medium: Debug + Send + Sync {
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;

    /// Makes a file that does not exist. Its name is durable after [`Medium::sync_names`].
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;

    /// Removes a file. Who has it open can go on reading. Durable after [`Medium::sync_names`].
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes creations and removals durable.
    fn sync_names(&self) -> io::Result<()>;

    /// Whether nothing can be written.
    fn read_only(&self) -> bool {
        false
    }
}

/// A file of a medium.
pub trait MediumFile: Debug + Send + Sync {
    /// Bytes in the file. The name is not `len`, because a file is not a collection.
    fn size(&self) -> io::Result<u64>;

    /// Reads at `offset`; fewer bytes than asked for only where the file ends.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data` at `offset`. A gap behind the old end reads as zeros.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts or extends with zeros.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Makes everything written to this file durable, its size too.
    fn sync(&self) -> io::Result<()>;
}

/// Reads exactly `buffer`.
pub(crate) fn read_exact(file: &dyn MediumFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let got = file.read_at(offset, buffer)?;
    if got < buffer.len() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "the file ends {} bytes into {} bytes at offset {offset}",
                got,
                buffer.len()
            ),
        ));
    }
    Ok(())
}
