//! The queue of the entropy device.
#![no_main]

use devices::virtio::rng::Rng;
use fuzz::driver::{Nothing, drive};

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    drive(Box::new(Rng::new()), &mut Nothing, data)
});
