//! Which pages a driver gives back: its lists and ranges, checked, and as few calls of the host as that takes.

use std::ops::Range;

use vm_memory::GuestAddress;

use crate::memory::GuestMemory;
use crate::memory::discard::{DiscardError, PAGE, discard};
use crate::throttle::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;

/// Most pages of one list. Linux sends 256, other drivers up to 1024; what is beyond stays with the guest.
pub(super) const MAX_LIST: usize = 4096;
/// Bytes of an entry of a list (virtio 1.2 §5.5.6).
const ENTRY: usize = 4;

/// Gives pages back to the host, and counts.
#[derive(Debug, Default)]
pub(super) struct Pages {
    list: Vec<u8>,
    numbers: Vec<u32>,
    /// Pages the host has got, each time anew.
    pub(super) discarded: u64,
    /// Pages and pieces of pages that the host did not get: not the guest's, or too many at once.
    pub(super) refused: u64,
    offences: Throttle,
    failures: Throttle,
}

impl Pages {
    /// Gives back the pages whose numbers, 32 bits each, are the readable part of `chain`.
    pub(super) fn take_list(
        &mut self,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        let bytes = chain.readable.len() as usize;
        let entries = (bytes / ENTRY).min(MAX_LIST);
        if bytes != entries * ENTRY {
            let beyond = bytes.div_ceil(ENTRY) - entries;
            self.refuse(beyond as u64, format_args!("{bytes} bytes in a list"));
        }
        self.list.resize(entries * ENTRY, 0);
        // Copied once: the driver may change it at any time.
        chain.readable.read(memory, &mut self.list)?;
        let numbers = self.list.as_chunks().0.iter();
        self.numbers.clear();
        self.numbers
            .extend(numbers.map(|entry| u32::from_le_bytes(*entry)));
        // Drivers send pages as they get them, most of them next to each other in some order.
        self.numbers.sort_unstable();
        self.numbers.dedup();
        let numbers = std::mem::take(&mut self.numbers);
        for run in numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            if let [first, ..] = run {
                let first = u64::from(*first) * PAGE;
                self.discard_each(memory, first..first + run.len() as u64 * PAGE);
            }
        }
        self.numbers = numbers;
        Ok(())
    }

    /// Gives back the whole pages within the writable buffers of `chain`.
    pub(super) fn take_ranges(&mut self, memory: &GuestMemory, chain: &Chain) {
        if !chain.readable.is_empty() {
            self.refuse(1, format_args!("a range that may not be written"));
        }
        for (address, len) in chain.writable.ranges() {
            // The buffer is in guest memory, so its end is an address.
            let (start, end) = (address.0, address.0 + u64::from(*len));
            let (first, last) = (start.next_multiple_of(PAGE), end - end % PAGE);
            if first != start || last != end {
                self.refuse(1, format_args!("{len:#x} bytes at {start:#x}"));
            }
            if first < last {
                self.discard_each(memory, first..last);
            }
        }
    }

    /// Gives `pages` back. Where not all of them are the guest's, those that are.
    fn discard_each(&mut self, memory: &GuestMemory, pages: Range<u64>) {
        let len = pages.end - pages.start;
        match discard(memory, GuestAddress(pages.start), len) {
            Ok(()) => self.discarded += len / PAGE,
            // No run is longer than a list, so that this takes bounded time.
            Err(DiscardError::Outside { .. }) if len > PAGE => {
                let half = pages.start + (len / PAGE).div_ceil(2) * PAGE;
                self.discard_each(memory, pages.start..half);
                self.discard_each(memory, half..pages.end);
            }
            Err(DiscardError::Host { source, .. }) => {
                self.refused += len / PAGE;
                self.failures.warn(format_args!(
                    "The host does not take {len:#x} bytes at {:#x} back: {source}",
                    pages.start
                ));
            }
            Err(error) => self.refuse(len / PAGE, error),
        }
    }

    fn refuse(&mut self, pages: u64, what: impl std::fmt::Display) {
        self.refused = self.refused.saturating_add(pages);
        self.offences
            .warn(format_args!("The guest's balloon is given {what}"));
    }
}
