//! The index's file, as the database wants it.

use std::io;
use std::sync::Arc;

use redb::StorageBackend;

use crate::medium::{MediumFile, read_exact};

/// A file of the medium under the database.
#[derive(Debug)]
pub struct File(pub Arc<dyn MediumFile>);

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact(&*self.0, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_size(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
