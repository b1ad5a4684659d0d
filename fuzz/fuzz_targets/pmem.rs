//! The queue of persistent memory.
#![no_main]

use std::io;

use devices::virtio::pmem::{Backing, Pmem};
use fuzz::driver::{Nothing, drive};

/// A medium that fails now and then.
struct Medium(u32);

impl Backing for Medium {
    fn flush(&mut self) -> io::Result<()> {
        self.0 += 1;
        if self.0.is_multiple_of(3) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }
}

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    let device = Pmem::new(1 << 32, 2 << 20, Medium(0));
    drive(Box::new(device), &mut Nothing, data)
});
