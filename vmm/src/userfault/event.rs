//! What a userfaultfd has to say.

use std::ops::Range;

use super::abi::{self, Message};

/// Something that happened to memory that is under control. Addresses are those of the process whose memory it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Fault(Fault),
    /// Pages were given back (`MADV_DONTNEED`, `MADV_REMOVE`): who reads them next is to find zeroes. The thread that gave
    /// them back goes on once this was read.
    Remove(Range<u64>),
    /// The mapping of these addresses is gone.
    Unmap(Range<u64>),
    /// What was not asked for, by its number.
    Other(u8),
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Of the page.
    pub address: u64,
    /// It was a write.
    pub write: bool,
    /// The page is there and write-protected; if not, it is missing.
    pub protected: bool,
}

impl From<&Message> for Event {
    fn from(message: &Message) -> Self {
        let [first, second, _] = message.argument;
        match message.event {
            abi::EVENT_PAGEFAULT => Self::Fault(Fault {
                address: second & !(super::PAGE - 1),
                write: first & abi::PAGEFAULT_WRITE != 0,
                protected: first & abi::PAGEFAULT_WP != 0,
            }),
            abi::EVENT_REMOVE => Self::Remove(first..second),
            abi::EVENT_UNMAP => Self::Unmap(first..second),
            other => Self::Other(other),
        }
    }
}
