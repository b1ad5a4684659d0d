//! What devices that store count.

use std::time::Duration;

use super::{Counter, Gauge, Latency};
use crate::virtio::block::backend::Action;

crate::metrics! {
    /// What a disk counts.
    pub struct BlockMetrics {
        /// Starts of the device with queues that cannot be.
        activate_fails: Counter,
        /// Refused accesses to the configuration space.
        cfg_fails: Counter,
        /// Rings of a driver that had put nothing into the queue.
        no_avail_buffer: Counter,
        /// Turns that ended with the device stopped by what its driver had put into a queue.
        event_fails: Counter,
        /// Requests that the disk has failed.
        execute_fails: Counter,
        /// Requests that are none, or that the disk may not do.
        invalid_reqs_count: Counter,
        /// Flushes done.
        flush_count: Counter,
        /// Rings of the driver.
        queue_event_count: Counter,
        /// Wake-ups because the rate limiter is open again.
        rate_limiter_event_count: Counter,
        /// Changes of the disk or its limits by the host.
        update_count: Counter,
        /// Such changes that could not be made.
        update_fails: Counter,
        /// Bytes read.
        read_bytes: Counter,
        /// Bytes written.
        write_bytes: Counter,
        /// Reads done.
        read_count: Counter,
        /// Writes done.
        write_count: Counter,
        /// Ours: discards done.
        discard_count: Counter,
        /// Ours: ranges zeroed.
        write_zeroes_count: Counter,
        /// Times that the rate limiter held requests back.
        rate_limiter_throttled_events: Counter,
        /// Times that requests waited because too many were in flight.
        io_engine_throttled_events: Counter,
        /// Requests that were still in a queue when a turn on it ended.
        remaining_reqs_count: Counter,
        /// How long reads took.
        read_agg: Latency,
        /// How long writes took.
        write_agg: Latency,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => event_fails,
    }
}

crate::metrics! {
    /// What persistent memory counts.
    pub struct PmemMetrics {
        /// Starts of the device with queues that cannot be.
        activate_fails: Counter,
        /// Refused accesses to the configuration space.
        cfg_fails: Counter,
        /// Turns that ended with the device stopped, and flushes that failed.
        event_fails: Counter,
        /// Rings of the driver.
        queue_event_count: Counter,
        /// Ours: flushes done.
        flush_count: Counter,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => event_fails,
    }
}

crate::metrics! {
    /// What a device counts that another program serves.
    pub struct VhostUserMetrics {
        /// Starts of the device that failed: by queues that cannot be, or because the program refused.
        activate_fails: Counter,
        /// Refused accesses to the configuration space.
        cfg_fails: Counter,
        /// How long it took to get acquainted with the program, in microseconds.
        init_time_us: Gauge,
        /// How long the last start of a queue took, in microseconds.
        activate_time_us: Gauge,
        /// How long the program took for the last change of its configuration, in microseconds. Ours never change.
        config_change_time_us: Gauge,
        /// Ours: turns that ended with the device stopped by what its driver had put into a queue.
        event_fails: Counter,
        /// Ours: rings passed on to the program.
        queue_event_count: Counter,
        /// Ours: programs lost.
        backend_lost_count: Counter,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => event_fails,
    }
}

impl BlockMetrics {
    /// `action` on `len` bytes of the disk is done and took `time`.
    #[inline]
    pub fn done(&self, action: Action, len: u64, time: Duration) {
        match action {
            Action::Read => {
                self.read_count.count();
                self.read_bytes.add(len);
                self.read_agg.record(time);
            }
            Action::Write { .. } => {
                self.write_count.count();
                self.write_bytes.add(len);
                self.write_agg.record(time);
            }
            Action::Flush => self.flush_count.count(),
            Action::Discard => self.discard_count.count(),
            Action::WriteZeroes { .. } => self.write_zeroes_count.count(),
        }
    }
}
