//! Reads and writes of the guest's disk, past its page cache.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Result, bail};

use super::aio::{Buffers, Context, Kind};
use super::phase::{Done, Laps, Phases};
use crate::system;

const DISK: &str = "/dev/vda";

/// Random reads: size and how many, at depth 1 and at depth 32.
const SMALL: u64 = 4 << 10;
const SINGLE_READS: u64 = 1000;
const DEEP: usize = 32;
const DEEP_READS: u64 = 8 << 10;

/// Sequential reads and writes: size of one, and of all.
const LARGE: u64 = 64 << 10;
const STREAM: u64 = 32 << 20;

/// All phases of block I/O.
pub fn work(phases: &mut Phases) -> Result<()> {
    system::mount_devices()?;
    let mut disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(DISK)?;
    let len = disk.seek(SeekFrom::End(0))?;
    if len < STREAM {
        bail!("{DISK} has {len} bytes, the work needs {STREAM}");
    }
    // What the first requests set up is nobody's cost of a request.
    random(&disk, len, 1, 64, &mut Laps::new())?;
    random(&disk, len, DEEP, 512, &mut Laps::new())?;

    // What the agreement over the console itself costs in exits.
    phases.run("blk.nothing", |_| {
        Ok(Done {
            requests: 0,
            bytes: 0,
        })
    })?;
    phases.run("blk.read4k_qd1", |laps| {
        single(&disk, len, SINGLE_READS, laps)
    })?;
    phases.run("blk.read4k_qd32", |laps| {
        random(&disk, len, DEEP, DEEP_READS, laps)
    })?;
    for depth in [1, DEEP] {
        phases.run(&format!("blk.seq_read_qd{depth}"), |laps| {
            stream(&disk, Kind::Read, depth, laps)
        })?;
        phases.run(&format!("blk.seq_write_qd{depth}"), |laps| {
            stream(&disk, Kind::Write, depth, laps)
        })?;
    }
    Ok(())
}

/// Reads one block after the other with `pread`.
fn single(disk: &File, len: u64, count: u64, laps: &mut Laps) -> Result<Done> {
    let mut buffers = Buffers::new(1, SMALL);
    let mut random = Random::new();
    laps.begin();
    for _ in 0..count {
        disk.read_exact_at(buffers.bytes(), random.below(len / SMALL) * SMALL)?;
        laps.lap();
    }
    Ok(done(count, SMALL))
}

/// Reads blocks at random places, `depth` at a time.
fn random(disk: &File, len: u64, depth: usize, count: u64, laps: &mut Laps) -> Result<Done> {
    let mut random = Random::new();
    let places = (0..count).map(|_| random.below(len / SMALL) * SMALL);
    Context::new(depth)?.run(disk, Kind::Read, Buffers::new(depth, SMALL), places, laps)?;
    Ok(done(count, SMALL))
}

/// Goes through the disk from its start, `depth` requests at a time.
fn stream(disk: &File, kind: Kind, depth: usize, laps: &mut Laps) -> Result<Done> {
    let places = (0..STREAM / LARGE).map(|index| index * LARGE);
    Context::new(depth)?.run(disk, kind, Buffers::new(depth, LARGE), places, laps)?;
    Ok(done(STREAM / LARGE, LARGE))
}

fn done(requests: u64, size: u64) -> Done {
    Done {
        requests,
        bytes: requests * size,
    }
}

/// Xorshift (Marsaglia 2003): the same places in every run.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
