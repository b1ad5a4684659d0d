//! What the smaller virtio devices count.

use super::{Counter, Gauge};

crate::metrics! {
    /// What a balloon counts.
    pub struct BalloonMetrics {
        /// Starts of the device with queues that cannot be.
        activate_fails: Counter,
        /// Lists of pages taken.
        inflate_count: Counter,
        /// Statistics that the guest has sent.
        stats_updates_count: Counter,
        /// Statistics that could not be asked for.
        stats_update_fails: Counter,
        /// Rings of the driver after it has taken pages back.
        deflate_count: Counter,
        /// Turns that ended with the device stopped by what its driver had put into a queue.
        event_fails: Counter,
        /// Ours: refused accesses to the configuration space.
        cfg_fails: Counter,
        /// Ours: reports of free pages.
        free_page_report_count: Counter,
        /// Ours: pages that the host has got, each time anew.
        discarded_pages: Gauge,
        /// Ours: pages that the guest had no right to give, or that the host does not take.
        refused_pages: Gauge,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => event_fails,
    }
}

crate::metrics! {
    /// What an entropy device counts.
    pub struct EntropyMetrics {
        /// Starts of the device with queues that cannot be.
        activate_fails: Counter,
        /// Turns that ended with the device stopped by what its driver had put into a queue.
        entropy_event_fails: Counter,
        /// Requests answered.
        entropy_event_count: Counter,
        /// Bytes given.
        entropy_bytes: Counter,
        /// Requests for which the host gave no random bytes.
        host_rng_fails: Counter,
        /// Times that the rate limiter held requests back.
        entropy_rate_limiter_throttled: Counter,
        /// Wake-ups because the rate limiter is open again.
        rate_limiter_event_count: Counter,
        /// Ours: refused accesses to the configuration space, which is empty.
        cfg_fails: Counter,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => entropy_event_fails,
    }
}

crate::metrics! {
    /// What a virtio console counts. Directions are the guest's.
    pub struct ConsoleMetrics {
        /// Starts of the device with queues that cannot be.
        activate_fails: Counter,
        /// Refused accesses to the configuration space.
        cfg_fails: Counter,
        /// Turns that ended with the device stopped by what its driver had put into a queue.
        event_fails: Counter,
        /// Rings of the driver, whichever queue it was.
        queue_event_count: Counter,
        /// Bytes received.
        rx_bytes_count: Counter,
        /// Bytes sent.
        tx_bytes_count: Counter,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => event_fails,
    }
}
