//! What devices that talk count.

use super::{Counter, Latency};

crate::metrics! {
    /// What a network interface counts. Directions are the guest's: it receives what comes from the tap.
    pub struct NetMetrics {
        /// Starts of the device with queues that cannot be.
        activate_fails: Counter,
        /// Refused accesses to the configuration space.
        cfg_fails: Counter,
        /// Changes of the address by the driver: a driver of ours cannot, the space is read-only.
        mac_address_updates: Counter,
        /// Times that frames may have waited because the driver had no buffer for them.
        no_rx_avail_buffer: Counter,
        /// Rings of a driver that had put no frame into the queue.
        no_tx_avail_buffer: Counter,
        /// Turns that ended with the device stopped by what its driver had put into a queue.
        event_fails: Counter,
        /// Rings of the driver after it has added receive buffers.
        rx_queue_event_count: Counter,
        /// Wake-ups because the limiter of what the guest receives is open again.
        rx_event_rate_limiter_count: Counter,
        /// Frames given to the guest in part: none, a frame goes whole or not at all.
        rx_partial_writes: Counter,
        /// Times that the limiter held back what the guest receives.
        rx_rate_limiter_throttled: Counter,
        /// Wake-ups by the tap.
        rx_tap_event_count: Counter,
        /// Bytes received, without the virtio header.
        rx_bytes_count: Counter,
        /// Frames received.
        rx_packets_count: Counter,
        /// Frames dropped because they do not fit the driver's buffers.
        rx_fails: Counter,
        /// Turns in which frames were received.
        rx_count: Counter,
        /// Reads of the tap that failed.
        tap_read_fails: Counter,
        /// Writes to the tap that failed.
        tap_write_fails: Counter,
        /// How long frames took to the tap, from the moment the queue was looked at.
        tap_write_agg: Latency,
        /// Bytes sent, without the virtio header.
        tx_bytes_count: Counter,
        /// Frames dropped because they are none.
        tx_malformed_frames: Counter,
        /// Frames that nobody took.
        tx_fails: Counter,
        /// Turns in which frames were sent.
        tx_count: Counter,
        /// Frames sent.
        tx_packets_count: Counter,
        /// Frames taken from the driver in part: none, a frame goes whole or not at all.
        tx_partial_reads: Counter,
        /// Rings of the driver after it has added frames.
        tx_queue_event_count: Counter,
        /// Wake-ups because the limiter of what the guest sends is open again.
        tx_rate_limiter_event_count: Counter,
        /// Times that the limiter held back what the guest sends.
        tx_rate_limiter_throttled: Counter,
        /// Frames from another address than the guest's.
        tx_spoofed_mac_count: Counter,
        /// Frames that were still in the queue when a turn on it ended.
        tx_remaining_reqs_count: Counter,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => event_fails,
    }
}

crate::metrics! {
    /// What the metadata service counts. Directions are the service's: it receives what guests send.
    pub struct MmdsMetrics {
        /// Frames that were for the service.
        rx_accepted: Counter,
        /// Frames for the service that make no sense.
        rx_accepted_err: Counter,
        /// Frames for the service to a port where nothing is.
        rx_accepted_unusual: Counter,
        /// Frames that are not even Ethernet.
        rx_bad_eth: Counter,
        /// Frames looked at.
        rx_count: Counter,
        /// Bytes sent to guests.
        tx_bytes: Counter,
        /// Turns in which something was sent.
        tx_count: Counter,
        /// Frames that could not be sent.
        tx_errors: Counter,
        /// Frames sent.
        tx_frames: Counter,
        /// Connections of guests.
        connections_created: Counter,
        /// Connections that have ended.
        connections_destroyed: Counter,
    }
}

crate::metrics! {
    /// What a socket device counts. Directions are the guest's: it receives what programs of the host send.
    pub struct VsockMetrics {
        /// Starts of the device with queues that cannot be.
        activate_fails: Counter,
        /// Refused accesses to the configuration space.
        cfg_fails: Counter,
        /// Turns that ended with the device stopped by what its driver had put into a queue, whichever it was.
        rx_queue_event_fails: Counter,
        /// Packets of the guest's that are none.
        tx_queue_event_fails: Counter,
        /// Events that could not be given to the guest.
        ev_queue_event_fails: Counter,
        /// Programs that could not be taken or watched.
        muxer_event_fails: Counter,
        /// Streams whose program has hung up or failed.
        conn_event_fails: Counter,
        /// Rings of the driver after it has added receive buffers.
        rx_queue_event_count: Counter,
        /// Rings of the driver after it has added packets.
        tx_queue_event_count: Counter,
        /// Bytes received by the guest, without headers.
        rx_bytes_count: Counter,
        /// Bytes sent by the guest, without headers.
        tx_bytes_count: Counter,
        /// Packets received by the guest.
        rx_packets_count: Counter,
        /// Packets sent by the guest.
        tx_packets_count: Counter,
        /// Streams that began.
        conns_added: Counter,
        /// Streams that were refused or ended by the device.
        conns_killed: Counter,
        /// Streams that ended.
        conns_removed: Counter,
        /// Rebuilds of a queue of streams to end: there is no such queue.
        killq_resync: Counter,
        /// Flushes of what waited for a program that failed: what fails ends the stream and counts there.
        tx_flush_fails: Counter,
        /// Writes to a program that failed: as above.
        tx_write_fails: Counter,
        /// Reads from a program that failed: as above.
        rx_read_fails: Counter,
    }
    faults {
        Activation => activate_fails,
        Configuration => cfg_fails,
        Event => rx_queue_event_fails,
    }
}
