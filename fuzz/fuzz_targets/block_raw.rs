//! The queues of a disk on a raw file, in memory.
#![no_main]

use devices::virtio::block::engine::Preference;
use devices::virtio::block::{Block, Engine, Options, RawFile};
use fuzz::disk::{Requests, file_of};
use fuzz::driver::drive;

/// Sectors of the disk.
const SECTORS: u64 = 128;

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    let [flags, data @ ..] = data else {
        return fuzz::Corpus::Reject;
    };
    let read_only = flags & 1 != 0;
    let disk =
        RawFile::new(file_of(&[], SECTORS * 512), read_only).expect("a disk of whole sectors");
    let options = Options {
        serial: "fuzz".into(),
        queues: u16::from(flags >> 1 & 1) + 1,
        ..Options::default()
    };
    let engine = Engine::new(Preference::Synchronous);
    let device = Block::new(Box::new(disk), engine, options).expect("a disk");
    drive(Box::new(device), &mut Requests::new(SECTORS), data)
});
