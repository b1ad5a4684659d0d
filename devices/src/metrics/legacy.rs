//! What the devices of the PC count.

use super::Counter;

crate::metrics! {
    /// What the keyboard controller counts.
    pub struct I8042Metrics {
        /// Resets that could not be passed on: none, passing on cannot fail.
        error_count: Counter,
        /// Reads of a register that is not there.
        missed_read_count: Counter,
        /// Writes of something that is no command.
        missed_write_count: Counter,
        /// Reads.
        read_count: Counter,
        /// Resets asked for.
        reset_count: Counter,
        /// Commands.
        write_count: Counter,
    }
}

crate::metrics! {
    /// What the real-time clock counts.
    pub struct RtcMetrics {
        /// Accesses that failed: none, they cannot.
        error_count: Counter,
        /// Reads of the register that has nothing to read.
        missed_read_count: Counter,
        /// Writes that have no effect: the time cannot be set.
        missed_write_count: Counter,
        /// Ours: reads of a byte.
        read_count: Counter,
        /// Ours: writes of a byte.
        write_count: Counter,
    }
}

crate::metrics! {
    /// What a serial port counts.
    pub struct SerialMetrics {
        /// Output that is lost, input that could not be given.
        error_count: Counter,
        /// Flushes of the output.
        flush_count: Counter,
        /// Reads of a register that is not there.
        missed_read_count: Counter,
        /// Writes to a register that is not there.
        missed_write_count: Counter,
        /// Reads of a register.
        read_count: Counter,
        /// Writes to a register.
        write_count: Counter,
    }
}
