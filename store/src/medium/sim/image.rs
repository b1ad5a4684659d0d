//! What is on a simulated medium. Copies share what they have in common.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::Operation;

/// Bytes that are written whole or not at all.
pub const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// Files and names.
#[derive(Clone, Debug, Default)]
pub struct Image {
    names: BTreeMap<String, usize>,
    files: Vec<Content>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    size: u64,
    /// `None` is zeros.
    blocks: Vec<Option<Arc<[u8; BLOCK]>>>,
}

#[expect(clippy::cast_possible_truncation, reason = "all of it is in memory")]
fn place(offset: u64) -> (usize, usize) {
    (offset as usize / BLOCK, offset as usize % BLOCK)
}

impl Image {
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    pub(super) fn next_file(&self) -> usize {
        self.files.len()
    }

    pub(super) fn size(&self, file: usize) -> u64 {
        self.files.get(file).map_or(0, |content| content.size)
    }

    pub(super) fn read(&self, file: usize, offset: u64, buffer: &mut [u8]) -> usize {
        let Some(content) = self.files.get(file) else {
            return 0;
        };
        let left = content.size.saturating_sub(offset);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let mut done = 0;
        while done < len {
            let (block, at) = place(offset + done as u64);
            let count = (BLOCK - at).min(len - done);
            let target = &mut buffer[done..done + count];
            match content.blocks.get(block) {
                Some(Some(bytes)) => target.copy_from_slice(&bytes[at..at + count]),
                _ => target.fill(0),
            }
            done += count;
        }
        len
    }

    pub(super) fn write(&mut self, file: usize, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let content = self.content(file);
        content.size = content.size.max(offset + data.len() as u64);
        let mut done = 0;
        while done < data.len() {
            let (block, at) = place(offset + done as u64);
            let count = (BLOCK - at).min(data.len() - done);
            if content.blocks.len() <= block {
                content.blocks.resize(block + 1, None);
            }
            let bytes = content.blocks[block].get_or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(bytes)[at..at + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
    }

    pub(super) fn set_size(&mut self, file: usize, size: u64) {
        let content = self.content(file);
        content.size = size;
        let (block, at) = place(size);
        content.blocks.truncate(block + usize::from(at > 0));
        if at > 0
            && let Some(Some(bytes)) = content.blocks.get_mut(block)
        {
            Arc::make_mut(bytes)[at..].fill(0);
        }
    }

    fn content(&mut self, file: usize) -> &mut Content {
        if self.files.len() <= file {
            self.files.resize_with(file + 1, Content::default);
        }
        &mut self.files[file]
    }

    /// Does what an operation does if nothing goes wrong.
    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Write { file, offset, data } => self.write(*file, *offset, data),
            Operation::SetSize { file, size } => self.set_size(*file, *size),
            Operation::Create { name, file } => {
                self.content(*file);
                self.names.insert(name.clone(), *file);
            }
            Operation::Remove { name } => {
                self.names.remove(name);
            }
            Operation::Sync { .. } | Operation::SyncNames => {}
        }
    }

    pub(super) fn flip(&mut self, name: &str, offset: u64, mask: u8) {
        if let Some(file) = self.find(name) {
            let mut byte = [0];
            self.read(file, offset, &mut byte);
            self.write(file, offset, &[byte[0] ^ mask]);
        }
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let file = self.find(name)?;
        let mut bytes = vec![0; usize::try_from(self.size(file)).ok()?];
        self.read(file, 0, &mut bytes);
        Some(bytes)
    }

    /// Puts a file there.
    pub fn put(&mut self, name: &str, bytes: &[u8]) {
        let file = self.files.len();
        self.names.insert(name.to_owned(), file);
        self.content(file);
        self.write(file, 0, bytes);
    }

    /// Takes a file away.
    pub fn take(&mut self, name: &str) {
        self.names.remove(name);
    }

    /// A number for what can be read: to tell whether two images are the same.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, file) in &self.names {
            name.hash(&mut hasher);
            let content = &self.files[*file];
            content.size.hash(&mut hasher);
            for (at, block) in content.blocks.iter().enumerate() {
                if let Some(block) = block {
                    at.hash(&mut hasher);
                    // Eight bytes at a time: blocks of the same content must be the same, whoever owns them.
                    for word in block.as_chunks::<8>().0 {
                        hasher.write_u64(u64::from_le_bytes(*word));
                    }
                }
            }
        }
        hasher.finish()
    }
}
