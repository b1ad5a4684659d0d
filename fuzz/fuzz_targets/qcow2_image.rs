//! A qcow2 image that says anything, with requests to the disk that it is.
#![no_main]

use devices::virtio::block::engine::Preference;
use devices::virtio::block::qcow2::Qcow2Error;
use devices::virtio::block::{Backend, Block, Engine, Options, Qcow2File};
use fuzz::disk::{Requests, file_of, qcow2};
use fuzz::driver::drive;

/// Bytes of the input that are the image's first ones.
const IMAGE: usize = 2048;
/// Bytes of the image file; behind the first ones they are zero.
const FILE: u64 = 64 << 10;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (bits, len) in [(9, 128 << 9), (9, 1 << 20), (12, 1 << 30), (16, 1 << 40)] {
        for steps in fuzz::steps().iter().step_by(6) {
            let mut image = qcow2(bits, 128 << 9);
            image[24..32].copy_from_slice(&u64::to_be_bytes(len));
            image.resize(IMAGE, 0);
            seeds.push([vec![0], image, steps.clone()].concat());
        }
    }
    seeds
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| -> fuzz::Corpus {
    let [flags, data @ ..] = data else {
        return fuzz::Corpus::Reject;
    };
    let (image, steps) = data.split_at(data.len().min(IMAGE));
    let read_only = flags & 1 != 0;
    let refuse = &mut |name: &str| Err(Qcow2Error::BackingNotPermitted { name: name.into() });
    let disk = match Qcow2File::new(file_of(image, FILE), read_only, refuse) {
        Ok(disk) => disk,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return fuzz::Corpus::Keep;
        }
    };
    let sectors = disk.len() / 512;
    let engine = Engine::new(Preference::Synchronous);
    match Block::new(Box::new(disk), engine, Options::default()) {
        Ok(device) => drive(Box::new(device), &mut Requests::new(sectors), steps),
        Err(_) => fuzz::Corpus::Keep,
    }
});
