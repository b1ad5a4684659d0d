//! Writes to memory and to the disk all the time, so that there is no good moment for a snapshot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use anyhow::{Context, Result};

use crate::system;

/// Bytes of memory that are written to again and again.
const WORKING_SET: usize = 32 << 20;
const PAGE: usize = 4096;
/// Bytes of the disk that are.
const DISK: u64 = 8 << 20;

/// Never comes back.
pub fn work() -> Result<()> {
    system::mount_devices()?;
    let disk = File::options()
        .write(true)
        .open("/dev/vda")
        .context("Cannot open the disk")?;
    thread::spawn(move || {
        let mut block = [0_u8; PAGE];
        for number in 0_u64.. {
            block[0] = block[0].wrapping_add(1);
            let offset = number * PAGE as u64 % DISK;
            let written = disk
                .write_all_at(&block, offset)
                .and_then(|()| disk.sync_data());
            if let Err(error) = written {
                println!("@error {error}");
                return;
            }
        }
    });
    let mut memory = vec![0_u8; WORKING_SET];
    loop {
        for page in memory.chunks_exact_mut(PAGE) {
            page[0] = page[0].wrapping_add(1);
        }
        std::hint::black_box(&mut memory);
    }
}
