//! The balloon device (virtio 1.2 §5.5): memory that the guest does without goes back to the host.
//!
//! Two ways: the host sets a target and the driver fills a balloon of that many pages, or the driver reports what is free
//! of its own accord. Both end in [`discard`](crate::memory::discard::discard). What the guest takes back it touches, and
//! the host gives it new pages: taking back needs no work.

mod pages;
mod statistics;
mod target;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use self::pages::Pages;
use self::statistics::StatisticsQueue;
pub use self::statistics::{Interval, Poll, Sink, Statistics, TAGS};
pub use self::target::Target;
use super::chain::Chain;
use super::device::{DeviceTraits, Progress, Source, VirtioDevice, copy_config};
use super::queue::{QueueError, QueueState, Virtqueue};
use super::saved::{DeviceState, RestoreError};
use crate::metrics::{BalloonMetrics, Metrics};

/// The driver can be asked for statistics (`VIRTIO_BALLOON_F_STATS_VQ`).
pub const F_STATS_VQ: u64 = 1 << 1;
/// The driver takes pages back when the guest is short of memory (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The driver reports free pages (`VIRTIO_BALLOON_F_PAGE_REPORTING`).
pub const F_PAGE_REPORTING: u64 = 1 << 5;

/// Linux has one list in flight in each of the queues.
const QUEUE_SIZE: u16 = 128;
/// Queues by the specification: inflate, deflate, statistics, free page hints, reports (§5.5.2).
const QUEUES: usize = 5;
/// `num_pages` and `actual`, 32 bits each (§5.5.4).
const CONFIG_LEN: usize = 8;
const ACTUAL: u64 = 4;

/// What the driver sends by a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Report,
}

impl Role {
    /// The role of queue `index` where `features` are accepted.
    ///
    /// By the specification each queue has its number; many versions of Linux leave no gap for queues
    /// without a feature. Free page hints are never offered, so no number has two meanings.
    fn of(index: u16, features: u64) -> Self {
        match index {
            0 => Self::Inflate,
            1 => Self::Deflate,
            2 if features & F_STATS_VQ != 0 => Self::Statistics,
            _ => Self::Report,
        }
    }
}

/// What a balloon is asked to do.
#[derive(Default)]
pub struct Options {
    /// Pages of 4096 bytes that it shall have from the start.
    pub target_pages: u32,
    /// Let the driver take pages back when the guest is short of memory.
    pub deflate_on_oom: bool,
    /// Let the driver report free pages.
    pub page_reporting: bool,
    /// Ask for statistics.
    pub poll: Option<Poll>,
}

/// A balloon device.
pub struct Balloon {
    features: u64,
    accepted: u64,
    target: Target,
    target_pages: u32,
    actual: [u8; 4],
    config_changed: bool,
    /// The queues but that of statistics.
    queues: [Option<Virtqueue>; QUEUES],
    statistics: StatisticsQueue,
    chain: Chain,
    pages: Pages,
    metrics: Arc<BalloonMetrics>,
}

impl Balloon {
    /// A device without a driver.
    pub fn new(options: Options) -> io::Result<Self> {
        let mut features = F_STATS_VQ;
        if options.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if options.page_reporting {
            features |= F_PAGE_REPORTING;
        }
        let metrics = Arc::<BalloonMetrics>::default();
        Ok(Self {
            features,
            accepted: 0,
            target: Target::new(options.target_pages)?,
            target_pages: options.target_pages,
            actual: [0; 4],
            config_changed: false,
            queues: Default::default(),
            statistics: StatisticsQueue::new(options.poll, metrics.clone()),
            chain: Chain::default(),
            pages: Pages::default(),
            metrics,
        })
    }

    /// Changes the balloon's size later.
    pub fn target(&self) -> Target {
        self.target.clone()
    }

    /// What the host knows of it.
    fn host_statistics(&self) -> Statistics {
        Statistics {
            target_pages: self.target_pages,
            actual_pages: u32::from_le_bytes(self.actual),
            discarded_pages: self.pages.discarded,
            refused_pages: self.pages.refused,
            ..Statistics::default()
        }
    }
}

impl VirtioDevice for Balloon {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: VIRTIO_ID_BALLOON,
            features: self.features,
            queue_sizes: vec![QUEUE_SIZE; QUEUES],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.metrics.clone())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_LEN];
        space[..4].copy_from_slice(&self.target_pages.to_le_bytes());
        space[4..].copy_from_slice(&self.actual);
        copy_config(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The target is the host's; only what the balloon has is the driver's to say.
        for (at, byte) in (offset..).zip(data) {
            let place = at
                .checked_sub(ACTUAL)
                .and_then(|at| self.actual.get_mut(usize::try_from(at).ok()?));
            if let Some(place) = place {
                *place = *byte;
            }
        }
    }

    fn start_queue(&mut self, index: u16, queue: Virtqueue, features: u64) {
        self.accepted = features;
        if Role::of(index, features) == Role::Statistics {
            self.statistics.queue = Some(queue);
        } else if let Some(place) = self.queues.get_mut(usize::from(index)) {
            *place = Some(queue);
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        if Role::of(index, self.accepted) == Role::Statistics {
            return self.statistics.stop();
        }
        let queue = self.queues.get_mut(usize::from(index))?.take();
        queue.map(|queue| queue.state())
    }

    fn process(&mut self, index: u16) -> Result<Progress, QueueError> {
        let role = Role::of(index, self.accepted);
        if role == Role::Statistics {
            let host = self.host_statistics();
            return self.statistics.process(&host);
        }
        let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else {
            return Ok(Progress::Idle);
        };
        let pages = &mut self.pages;
        let metrics = &*self.metrics;
        let reporting = self.accepted & F_PAGE_REPORTING != 0;
        if role == Role::Deflate {
            metrics.deflate_count.count();
        }
        let progress = queue.serve(&mut self.chain, |memory, chain| {
            match role {
                Role::Inflate => {
                    metrics.inflate_count.count();
                    pages.take_list(memory, chain)?;
                }
                Role::Report if reporting => {
                    metrics.free_page_report_count.count();
                    pages.take_ranges(memory, chain);
                }
                _ => {}
            }
            Ok(0)
        });
        metrics.discarded_pages.set(pages.discarded);
        metrics.refused_pages.set(pages.refused);
        progress
    }

    fn sources(&self) -> Vec<Source> {
        let timer = self.statistics.source();
        [self.target.source()].into_iter().chain(timer).collect()
    }

    fn wake(&mut self, index: usize) -> Result<Progress, QueueError> {
        if index == 0 {
            let pages = self.target.take();
            self.config_changed |= pages != self.target_pages;
            self.target_pages = pages;
        } else {
            self.statistics.ask()?;
        }
        Ok(Progress::Idle)
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn reset(&mut self) {
        // Its pages are the guest's again: a driver that starts anew has no balloon.
        self.actual = [0; 4];
        self.accepted = 0;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon {
            // What it shall have: that its thread has not come to it yet must not lose it.
            target_pages: self.target.pages(),
            actual_pages: u32::from_le_bytes(self.actual),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Balloon {
                target_pages,
                actual_pages,
            } => {
                let what = "the balloon's size";
                let set = self.target.set(*target_pages);
                set.map_err(|source| RestoreError::Host { what, source })?;
                self.target_pages = *target_pages;
                // The driver may not have been told of it; if it has been, it looks once more.
                self.config_changed = true;
                self.actual = actual_pages.to_le_bytes();
                Ok(())
            }
            other => Err(RestoreError::kind(VIRTIO_ID_BALLOON, other)),
        }
    }
}

#[cfg(test)]
mod tests;
