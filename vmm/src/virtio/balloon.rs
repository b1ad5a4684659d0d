//! The balloon: from the configuration to the device, and what the host can do with it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use devices::virtio::balloon::{Balloon, Interval, Options, Poll, Statistics, Target};

use super::VirtioError;
use crate::config::{BalloonConfig, MemorySize};
use crate::events::Events;
use crate::metrics;

/// Pages of 4096 bytes in a MiB.
const PAGES_PER_MIB: u32 = 256;

/// Why something cannot be done with a balloon.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// It would be larger than the guest.
    #[error(
        "A balloon of {asked_mib} MiB does not fit into the guest's memory of {memory_mib} MiB"
    )]
    LargerThanGuest {
        /// MiB that the balloon should have.
        asked_mib: u32,
        /// MiB that the guest has.
        memory_mib: u32,
    },
    /// The device cannot be told.
    #[error("The balloon device cannot be woken")]
    Wake(#[source] io::Error),
    /// It was made without them.
    #[error("Statistics for the balloon device are not enabled")]
    NoStatistics,
    /// They cannot be switched on or off.
    #[error("Cannot enable/disable the statistics after boot.")]
    StatisticsSwitch,
}

/// What can be done with a balloon while a guest has it.
#[derive(Clone)]
pub struct Handle {
    target: Target,
    memory: MemorySize,
    statistics: Option<(Interval, Latest)>,
}

/// What the guest said last.
type Latest = Arc<Mutex<Statistics>>;

impl Handle {
    /// What the guest said last; of itself it has said nothing yet where there is nothing of it.
    pub fn statistics(&self) -> Result<Statistics, BalloonError> {
        let (_, latest) = self.statistics.as_ref().ok_or(BalloonError::NoStatistics)?;
        let mut latest = latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        latest.target_pages = self.target.pages();
        Ok(latest)
    }

    /// Asks the guest every `seconds` from now on.
    pub fn set_interval(&self, seconds: u16) -> Result<(), BalloonError> {
        match &self.statistics {
            Some((interval, _)) if seconds > 0 => interval
                .set(Duration::from_secs(seconds.into()))
                .map_err(BalloonError::Wake),
            None if seconds == 0 => Ok(()),
            _ => Err(BalloonError::StatisticsSwitch),
        }
    }

    /// The balloon shall have `amount_mib` of the guest's memory.
    pub fn set(&self, amount_mib: u32) -> Result<(), BalloonError> {
        if amount_mib > self.memory.mib() {
            return Err(BalloonError::LargerThanGuest {
                asked_mib: amount_mib,
                memory_mib: self.memory.mib(),
            });
        }
        self.target
            .set(pages(amount_mib))
            .map_err(BalloonError::Wake)
    }
}

/// The most memory of a guest is 2²⁸ pages.
fn pages(mib: u32) -> u32 {
    mib.saturating_mul(PAGES_PER_MIB)
}

/// Makes the device for a guest with `memory`; its statistics go to `events`.
pub(crate) fn make(
    config: &BalloonConfig,
    memory: MemorySize,
    events: &Arc<Events>,
) -> Result<(Balloon, Handle), VirtioError> {
    let latest = Latest::default();
    let poll = config.statistics_interval.map(|interval| {
        let (events, latest) = (events.clone(), latest.clone());
        Poll::new(interval, move |statistics| {
            events.balloon_statistics(statistics);
            statistics.clone_into(&mut latest.lock().unwrap_or_else(PoisonError::into_inner));
        })
    });
    let poll = poll.transpose().map_err(VirtioError::Balloon)?;
    let interval = poll.as_ref().map(Poll::interval);
    let balloon = Balloon::new(Options {
        target_pages: pages(config.amount_mib),
        deflate_on_oom: config.deflate_on_oom,
        page_reporting: config.free_page_reporting,
        poll,
    })
    .map_err(VirtioError::Balloon)?;
    metrics::process().watch("balloon", None, &balloon);
    let handle = Handle {
        target: balloon.target(),
        memory,
        statistics: interval.map(|interval| (interval, latest)),
    };
    Ok((balloon, handle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::StartTime;
    use devices::virtio::device::VirtioDevice;

    fn target_of(device: &Balloon) -> u32 {
        let mut field = [0; 4];
        device.read_config(0, &mut field);
        u32::from_le_bytes(field)
    }

    #[test]
    fn amounts_are_pages_and_end_at_the_guests_memory() {
        let events = Arc::new(Events::new(None, StartTime::new(None, None)));
        let memory = MemorySize::from_mib("m", MemorySize::MAX_MIB).unwrap();
        let config = BalloonConfig {
            amount_mib: 3,
            ..BalloonConfig::default()
        };
        let (mut device, handle) = make(&config, memory, &events).unwrap();
        assert_eq!(target_of(&device), 3 * 256);
        handle.set(memory.mib()).unwrap();
        let _ = device.wake(0).unwrap();
        assert_eq!(target_of(&device), 1 << 28);
        let text = handle.set(memory.mib() + 1).unwrap_err().to_string();
        assert_eq!(
            text,
            "A balloon of 1048577 MiB does not fit into the guest's memory of 1048576 MiB"
        );
        let _ = device.wake(0).unwrap();
        assert_eq!(target_of(&device), 1 << 28);
    }
}
