//! The index's file, as the database wants it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use redb::StorageBackend;

use crate::medium::{MediumFile, read_exact};

/// Bytes that are kept together of what did not get into the file.
const PAGE: usize = 4096;

/// A file of the medium under the database.
///
/// A database that learns that its file cannot be written does not read any more either, and guests whose disks are found
/// by it would be without them. So it does not learn it: from the first failure on all that it writes stays in memory, and
/// the file stays as that failure found it, as after a power cut. [`Failure`] says so to whoever asked for the change.
#[derive(Debug)]
pub struct File {
    file: Arc<dyn MediumFile>,
    failure: Failure,
}

/// Whether and how the file has failed.
#[derive(Clone, Debug, Default)]
pub struct Failure(Arc<RwLock<Option<Kept>>>);

/// What did not get into the file.
#[derive(Debug)]
struct Kept {
    why: io::Error,
    size: u64,
    /// By their offsets.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Failure {
    /// Why nothing gets into the file any more.
    pub fn why(&self) -> Option<io::Error> {
        let kept = self.kept();
        let why = &kept.as_ref()?.why;
        Some(match why.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(why.kind(), why.to_string()),
        })
    }

    fn kept(&self) -> RwLockReadGuard<'_, Option<Kept>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File {
    pub fn new(file: Arc<dyn MediumFile>) -> Self {
        Self {
            file,
            failure: Failure::default(),
        }
    }

    /// How it fails, for as long as there is somebody to ask.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Does it to the file, or to what is kept if the file has failed or fails now.
    fn change(
        &self,
        in_file: impl FnOnce(&dyn MediumFile) -> io::Result<()>,
        in_memory: impl FnOnce(&mut Kept, &dyn MediumFile) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut kept = (self.failure.0.write()).unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            let Err(why) = in_file(&*self.file) else {
                return Ok(());
            };
            *kept = Some(Kept {
                why,
                size: self.file.size()?,
                pages: BTreeMap::new(),
            });
        }
        match &mut *kept {
            Some(kept) => in_memory(kept, &*self.file),
            None => Ok(()),
        }
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        match &*self.failure.kept() {
            Some(kept) => Ok(kept.size),
            None => self.file.size(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.failure.kept() {
            Some(kept) => kept.read(&*self.file, offset, out),
            None => read_exact(&*self.file, offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(
            |file| file.set_size(len),
            |kept, _| {
                kept.size = len;
                Ok(())
            },
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|file| file.sync(), |_, _| Ok(()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(
            |file| file.write_at(offset, data),
            |kept, file| kept.write(file, offset, data),
        )
    }
}

impl Kept {
    fn read(&self, file: &dyn MediumFile, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset
            .checked_add(out.len() as u64)
            .is_none_or(|end| end > self.size)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pieces(offset, out.len(), |page, from, range| {
            let out = &mut out[range];
            match self.pages.get(&page) {
                Some(kept) => out.copy_from_slice(&kept[from..from + out.len()]),
                None => of_file(file, page + from as u64, out)?,
            }
            Ok(())
        })
    }

    fn write(&mut self, file: &dyn MediumFile, offset: u64, data: &[u8]) -> io::Result<()> {
        pieces(offset, data.len(), |page, from, range| {
            let data = &data[range];
            let kept = match self.pages.entry(page) {
                Entry::Occupied(kept) => kept.into_mut(),
                Entry::Vacant(none) => {
                    let mut whole = vec![0; PAGE].into_boxed_slice();
                    of_file(file, page, &mut whole)?;
                    none.insert(whole)
                }
            };
            kept[from..from + data.len()].copy_from_slice(data);
            Ok(())
        })?;
        self.size = self.size.max(offset.saturating_add(data.len() as u64));
        Ok(())
    }
}

/// Bytes of the file, zeros behind its end.
fn of_file(file: &dyn MediumFile, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let got = file.read_at(offset, out)?;
    out[got..].fill(0);
    Ok(())
}

/// Cuts `len` bytes at `offset` where pages end: offset of the page, place in it, range of the bytes.
fn pieces(
    offset: u64,
    len: usize,
    mut with: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let page = at - at % PAGE as u64;
        // Less than a page.
        let from = usize::try_from(at - page).unwrap_or_default();
        let end = len.min(done + PAGE - from);
        with(page, from, done..end)?;
        done = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use proptest::prelude::*;

    use super::*;
    use crate::medium::Medium;
    use crate::medium::sim::{Failing, Simulated};

    fn file(contents: &[u8]) -> (Simulated, File) {
        let medium = Simulated::default();
        let file = medium.create("index").unwrap();
        file.write_at(0, contents).unwrap();
        (medium, File::new(file))
    }

    fn fail(medium: &Simulated) {
        medium.fail(Some(Failing {
            after: 0,
            once: true,
            kind: ErrorKind::StorageFull,
        }));
    }

    #[test]
    fn a_file_that_works_is_written_to() {
        let (_medium, file) = file(b"before");
        file.write(3, b"after").unwrap();
        file.set_len(7).unwrap();
        file.sync_data().unwrap();
        assert!(file.failure().why().is_none());
        let mut bytes = [0; 7];
        file.file.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"befafte");
    }

    #[test]
    fn after_one_failure_nothing_gets_into_the_file() {
        let (medium, file) = file(b"before");
        fail(&medium);
        file.sync_data().unwrap();
        assert_eq!(file.failure().why().unwrap().kind(), ErrorKind::StorageFull);
        file.write(0, b"BE").unwrap();
        file.set_len(4).unwrap();
        let mut bytes = [0; 4];
        file.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"BEfo", "as it was written");
        assert!(file.read(0, &mut [0; 5]).is_err(), "behind the end");
        let mut bytes = [0; 6];
        assert_eq!(file.file.read_at(0, &mut bytes).unwrap(), 6);
        assert_eq!(&bytes, b"before", "as it was");
    }

    proptest! {
        #[test]
        fn what_is_kept_reads_as_it_was_written(
            contents in proptest::collection::vec(any::<u8>(), 0..20_000),
            writes in proptest::collection::vec((0_u64..30_000, proptest::collection::vec(any::<u8>(), 1..9000)), 1..6),
        ) {
            let (medium, file) = file(&contents);
            fail(&medium);
            let mut model = contents;
            for (offset, data) in &writes {
                file.write(*offset, data).unwrap();
                let at = usize::try_from(*offset).unwrap();
                model.resize(model.len().max(at + data.len()), 0);
                model[at..at + data.len()].copy_from_slice(data);
            }
            prop_assert_eq!(file.len().unwrap(), model.len() as u64);
            let mut bytes = vec![1; model.len()];
            file.read(0, &mut bytes).unwrap();
            prop_assert!(bytes == model);
        }
    }
}
