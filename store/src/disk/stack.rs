//! What a disk is made of, and where each of its blocks is.

use std::iter;
use std::sync::Arc;

use super::{Ground, Layer, Place};
use crate::PAGE;
use crate::error::Result;

/// Layers on what they stand on.
pub struct Stack {
    pub base: Ground,
    /// Frozen ones, the oldest first.
    pub frozen: Vec<Arc<Layer>>,
    pub active: Arc<Layer>,
    /// The next active one.
    pub spare: Option<Arc<Layer>>,
}

/// Where a block is to be read.
#[derive(Clone, Copy)]
enum Source<'a> {
    Layer(&'a Layer),
    Zeros,
    Ground(&'a Ground),
}

impl Source<'_> {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Layer(one), Self::Layer(other)) => one.id == other.id,
            (Self::Zeros, Self::Zeros) | (Self::Ground(_), Self::Ground(_)) => true,
            _ => false,
        }
    }

    /// Reads bytes that are all here.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Layer(layer) => {
                let skip = usize::try_from(offset % PAGE as u64).unwrap_or(0);
                layer.read(offset / PAGE as u64, skip, bytes)
            }
            Self::Zeros => {
                bytes.fill(0);
                Ok(())
            }
            Self::Ground(ground) => {
                // It may be smaller than the disk.
                let there = ground.len().saturating_sub(offset);
                let there = usize::try_from(there).unwrap_or(usize::MAX);
                let (there, beyond) = bytes.split_at_mut(there.min(bytes.len()));
                beyond.fill(0);
                if there.is_empty() {
                    return Ok(());
                }
                ground.read(offset, there)
            }
        }
    }
}

impl Stack {
    /// Where a block is, if these layers are above the base: the upper first.
    fn source<'a>(
        &'a self,
        layers: impl Iterator<Item = &'a Arc<Layer>>,
        block: u64,
    ) -> Source<'a> {
        for layer in layers {
            match layer.place(block) {
                Place::Here => return Source::Layer(layer),
                Place::Zero => return Source::Zeros,
                Place::Below => {}
            }
        }
        Source::Ground(&self.base)
    }

    /// Reads a block as it is below the active layer.
    pub fn below(&self, block: u64, page: &mut [u8; PAGE]) -> Result<()> {
        let source = self.source(self.frozen.iter().rev(), block);
        source.read(block * PAGE as u64, page)
    }

    /// Reads any bytes. Neighbours that lie in one place are read together.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut parts = parts(offset, bytes.len())
            .map(|(block, count)| {
                let layers = iter::once(&self.active).chain(self.frozen.iter().rev());
                (self.source(layers, block), count)
            })
            .peekable();
        let mut at = offset;
        let mut rest = bytes;
        while let Some((source, mut count)) = parts.next() {
            while let Some((_, more)) = parts.next_if(|(next, _)| next.is(&source)) {
                count += more;
            }
            let (part, others) = rest.split_at_mut(count);
            source.read(at, part)?;
            at += count as u64;
            rest = others;
        }
        Ok(())
    }
}

/// Blocks that `len` bytes at `offset` touch, each with the number of bytes in it.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    iter::from_fn(move || {
        let at = offset + done as u64;
        let skip = usize::try_from(at % PAGE as u64).unwrap_or(0);
        let count = (PAGE - skip).min(len - done);
        done += count;
        (count > 0).then_some((at / PAGE as u64, count))
    })
}
