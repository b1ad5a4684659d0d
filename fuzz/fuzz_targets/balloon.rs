//! The queues of the balloon, whose size the host changes.
#![no_main]

use std::time::Duration;

use devices::virtio::balloon::{Balloon, Interval, Options, Poll, Target};
use fuzz::Unstructured;
use fuzz::driver::{HIGH_BASE, World, drive};

/// The host.
struct Host {
    target: Target,
    interval: Interval,
}

impl World for Host {
    fn request(&mut self, index: u16, input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
        let mut list = Vec::new();
        for _ in 0..input.int_in_range(0..=8)? {
            if index == 2 {
                list.extend(u16::from(input.arbitrary::<u8>()? % 20).to_le_bytes());
                list.extend(input.arbitrary::<u64>()?.to_le_bytes());
            } else {
                let page = match input.arbitrary::<u8>()? {
                    0 => input.arbitrary::<u32>()?,
                    // Not those of the rings: they would be gone.
                    other => u32::try_from(HIGH_BASE >> 12).unwrap_or(0) + u32::from(other % 6),
                };
                list.extend(page.to_le_bytes());
            }
        }
        Ok(list)
    }

    fn happen(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let pages = input.arbitrary::<u16>()?;
        self.target.set(pages.into()).expect("an eventfd");
        if pages % 16 == 0 {
            let _ = self.interval.set(Duration::from_nanos(1));
        }
        Ok(())
    }
}

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    let poll = Poll::new(Duration::from_secs(1000), |_| {}).expect("a timer");
    let interval = poll.interval();
    let options = Options {
        target_pages: 1,
        deflate_on_oom: true,
        page_reporting: true,
        poll: Some(poll),
    };
    let device = Balloon::new(options).expect("an eventfd");
    let target = device.target();
    drive(Box::new(device), &mut Host { target, interval }, data)
});
