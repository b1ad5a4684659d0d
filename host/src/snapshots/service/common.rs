//! Memory that forks have in common: a snapshot's, as a file in the host's memory. Each VMM maps it privately, so that a
//! page is there once until a fork writes to it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use store::PAGE;

use super::guest::GuestError;
use super::restore::Candidate;
use super::stored::Tell;

/// The memories that are in use, by snapshot.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<u64, Weak<Memory>>>);

/// The file. It is gone when no fork uses it any more.
pub struct Memory(PathBuf);

impl Memory {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The folder goes with the machine.
        let _ = fs::remove_file(&self.0);
    }
}

impl Memories {
    /// The memory of a snapshot, as a file in `folder`: written for the first fork, checked by hash.
    pub fn of(
        &self,
        found: &Candidate,
        folder: &Path,
        tell: &mut Tell<'_>,
    ) -> Result<Arc<Memory>, GuestError> {
        // The next fork waits for it: what it needs is the same.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, memory| memory.strong_count() > 0);
        let id = found.info.id;
        if let Some(memory) = known.get(&id).and_then(Weak::upgrade) {
            return Ok(memory);
        }
        let memory = Arc::new(Memory(folder.join(format!("snapshot-{id}.memory"))));
        let file = File::create(memory.path()).map_err(at(&memory))?;
        let len = found.ram.info().len;
        file.set_len(len).map_err(at(&memory))?;
        let mut page = [0; PAGE];
        for number in 0..len.div_ceil(PAGE as u64) {
            let offset = number * PAGE as u64;
            tell("laying out memory", offset, len);
            // Zeroes take no room.
            if found.ram.page(number, &mut page)? {
                file.write_all_at(&page, offset).map_err(at(&memory))?;
            }
        }
        known.insert(id, Arc::downgrade(&memory));
        Ok(memory)
    }
}

fn at(memory: &Arc<Memory>) -> impl FnOnce(io::Error) -> GuestError {
    let path = memory.path().to_owned();
    move |source| GuestError::File {
        doing: "write",
        path,
        source,
    }
}
