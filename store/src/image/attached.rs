//! An image that is where somebody says: each page is checked as it is read.

use std::sync::Arc;

use super::{Image, List};
use crate::PAGE;
use crate::error::{Fault, Result};
use crate::hash::{self, Digest};

/// Pages that are read and hashed together.
const BATCH: usize = 8 * hash::LANES;

pub struct Attached {
    pub list: Arc<List>,
    pub image: Arc<dyn Image>,
}

impl Attached {
    /// Reads whole pages. Those behind the end are zero.
    pub fn pages(&self, first: u64, pages: &mut [[u8; PAGE]]) -> Result<()> {
        for (batch, first) in pages.chunks_mut(BATCH).zip((first..).step_by(BATCH)) {
            self.batch(first, batch)?;
        }
        Ok(())
    }

    fn batch(&self, first: u64, pages: &mut [[u8; PAGE]]) -> Result<()> {
        let digests = (first..).take(pages.len());
        let digests = digests.map(|page| self.list.digest(page));
        let digests: Vec<Option<Digest>> = digests.collect::<Result<_>>()?;
        let mut at = 0;
        // Runs of pages that are zero, which need no reading, and of others.
        for run in digests.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let part = &mut pages[at..at + run.len()];
            let page = first + at as u64;
            at += run.len();
            if run[0].is_some() {
                self.run(page, part, run)?;
            } else {
                part.as_flattened_mut().fill(0);
            }
        }
        Ok(())
    }

    fn run(&self, first: u64, pages: &mut [[u8; PAGE]], digests: &[Option<Digest>]) -> Result<()> {
        let offset = first * PAGE as u64;
        let there = usize::try_from(self.list.len() - offset).unwrap_or(usize::MAX);
        let bytes = pages.as_flattened_mut();
        let (there, behind) = bytes.split_at_mut(there.min(bytes.len()));
        behind.fill(0);
        let read = self.image.read_at(offset, there);
        read.map_err(|error| self.list.wrong(first, Fault::Io(error.to_string())))?;
        let refs: Vec<&[u8; PAGE]> = pages.iter().collect();
        for ((wanted, found), page) in digests.iter().zip(hash::pages(&refs)).zip(first..) {
            if let Some(wanted) = wanted
                && *wanted != found
            {
                let expected = wanted.to_string();
                return Err(self.list.wrong(page, Fault::Hash { expected }));
            }
        }
        Ok(())
    }

    /// Reads any bytes. Those behind the end are zero.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut page = offset / PAGE as u64;
        let skip = usize::try_from(offset % PAGE as u64).unwrap_or(0);
        let mut whole = [[0; PAGE]];
        let head = (PAGE - skip) % PAGE;
        let (head, rest) = bytes.split_at_mut(head.min(bytes.len()));
        if !head.is_empty() {
            self.pages(page, &mut whole)?;
            head.copy_from_slice(&whole[0][skip..skip + head.len()]);
            page += 1;
        }
        let (pages, tail) = rest.as_chunks_mut::<PAGE>();
        self.pages(page, pages)?;
        if !tail.is_empty() {
            self.pages(page + pages.len() as u64, &mut whole)?;
            tail.copy_from_slice(&whole[0][..tail.len()]);
        }
        Ok(())
    }
}
