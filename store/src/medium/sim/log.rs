//! What was done to a simulated medium, and what a power cut leaves of it.

use std::sync::Arc;

use super::{Image, SECTOR};

/// Something that was done.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Bytes into a file.
    Write {
        /// Number of the file.
        file: usize,
        /// Where.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// A new size of a file.
    SetSize {
        /// Number of the file.
        file: usize,
        /// Bytes.
        size: u64,
    },
    /// A new name.
    Create {
        /// The name.
        name: String,
        /// Number of the file.
        file: usize,
    },
    /// A name that goes.
    Remove {
        /// The name.
        name: String,
    },
    /// A file's content is durable.
    Sync {
        /// Number of the file.
        file: usize,
    },
    /// All names are durable.
    SyncNames,
}

/// What was done, and what was there before.
#[derive(Clone, Debug)]
pub struct Log {
    before: Image,
    /// In order.
    pub operations: Vec<Operation>,
}

impl Log {
    pub(super) fn new(before: Image) -> Self {
        Self {
            before,
            operations: Vec::new(),
        }
    }
}

/// A walk along a log, which stops before each operation to cut the power.
#[derive(Debug)]
pub struct Power<'a> {
    log: &'a Log,
    durable: Image,
    pending: Vec<&'a Operation>,
    at: usize,
}

impl<'a> Power<'a> {
    /// Begins before the first operation.
    pub fn new(log: &'a Log) -> Self {
        Self {
            log,
            durable: log.before.clone(),
            pending: Vec::new(),
            at: 0,
        }
    }

    /// How many operations were done.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Operations that are done and may be lost.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Does the next operation. False at the end.
    pub fn step(&mut self) -> bool {
        let Some(operation) = self.log.operations.get(self.at) else {
            return false;
        };
        self.at += 1;
        let settles = |pending: &Operation| match (operation, pending) {
            (
                Operation::Sync { file },
                Operation::Write { file: other, .. } | Operation::SetSize { file: other, .. },
            ) => file == other,
            (Operation::SyncNames, Operation::Create { .. } | Operation::Remove { .. }) => true,
            _ => false,
        };
        match operation {
            Operation::Sync { .. } | Operation::SyncNames => {
                let durable = &mut self.durable;
                self.pending.retain(|pending| {
                    let settled = settles(pending);
                    if settled {
                        durable.apply(pending);
                    }
                    !settled
                });
            }
            operation => self.pending.push(operation),
        }
        true
    }

    /// All that was done is there, and the first `sectors` sectors of the next write.
    pub fn torn(&self, sectors: usize) -> Image {
        let mut image = self.everything();
        if let Some(Operation::Write { file, offset, data }) = self.log.operations.get(self.at) {
            let len = first(*offset, sectors).min(data.len());
            image.write(*file, *offset, &data[..len]);
        }
        image
    }

    /// Sectors of the next operation, if it is a write; otherwise 1.
    pub fn next_sectors(&self) -> usize {
        match self.log.operations.get(self.at) {
            Some(Operation::Write { offset, data, .. }) => sectors(*offset, data.len()),
            _ => 1,
        }
    }

    fn everything(&self) -> Image {
        let mut image = self.durable.clone();
        self.pending
            .iter()
            .for_each(|operation| image.apply(operation));
        image
    }

    /// Only what is durable is there.
    pub fn nothing(&self) -> Image {
        self.durable.clone()
    }

    /// Any part of what is pending is there, as `dice` says: each answer is a number below the one given.
    pub fn some(&self, dice: &mut dyn FnMut(u64) -> u64) -> Image {
        let mut image = self.durable.clone();
        // Whether most of it is there or little.
        let weight = [1, 8, 15][usize::try_from(dice(3)).unwrap_or(0)];
        for operation in &self.pending {
            match operation {
                Operation::Write { file, offset, data } if dice(4) == 0 => {
                    let mut start = 0;
                    for sector in 1..=sectors(*offset, data.len()) {
                        let end = first(*offset, sector).min(data.len());
                        if dice(16) < weight {
                            image.write(*file, offset + start as u64, &data[start..end]);
                        }
                        start = end;
                    }
                }
                operation if dice(16) < weight => image.apply(operation),
                _ => {}
            }
        }
        image
    }
}

fn in_sector(offset: u64) -> usize {
    usize::try_from(offset % SECTOR as u64).unwrap_or(0)
}

/// Sectors that bytes touch.
fn sectors(offset: u64, len: usize) -> usize {
    (in_sector(offset) + len).div_ceil(SECTOR)
}

/// Bytes of a write up to the end of its first `sectors` sectors.
fn first(offset: u64, sectors: usize) -> usize {
    (sectors * SECTOR).saturating_sub(in_sector(offset))
}
