//! What the VMM counts beside its devices.

use devices::metrics::{Counter, Gauge, Metric, Metrics, Value};
use devices::throttle;

devices::metrics! {
    /// What the VMM as a whole counts.
    pub struct VmmMetrics {
        /// Events that its threads have served.
        device_events: Counter,
        /// Panics.
        panic_count: Counter,
    }
}

devices::metrics! {
    /// What vCPUs left the guest for, as far as the VMM had to answer it.
    pub struct VcpuMetrics {
        /// Reads of I/O ports.
        exit_io_in: Counter,
        /// Writes to I/O ports.
        exit_io_out: Counter,
        /// Reads of registers in memory.
        exit_mmio_read: Counter,
        /// Writes to registers in memory.
        exit_mmio_write: Counter,
        /// Exits that no guest comes back from.
        failures: Counter,
        /// Ours: signals to the vCPU, and wake-ups for no reason.
        exit_interrupted: Counter,
    }
}

devices::metrics! {
    /// How long the last operation of its kind took, in microseconds. Those with `vmm` do not count the way to the VMM.
    pub struct LatencyMetrics {
        /// A full snapshot.
        full_create_snapshot: Gauge,
        /// A snapshot of what has changed.
        diff_create_snapshot: Gauge,
        /// Going on from a snapshot.
        load_snapshot: Gauge,
        /// A pause.
        pause_vm: Gauge,
        /// The end of one.
        resume_vm: Gauge,
        /// A full snapshot.
        vmm_full_create_snapshot: Gauge,
        /// A snapshot of what has changed.
        vmm_diff_create_snapshot: Gauge,
        /// Going on from a snapshot.
        vmm_load_snapshot: Gauge,
        /// A pause.
        vmm_pause_vm: Gauge,
        /// The end of one.
        vmm_resume_vm: Gauge,
    }
}

devices::metrics! {
    /// Violations of the system call filters: the process dies of the first, so whoever still reads this reads zero.
    pub struct SeccompMetrics {
        /// How many.
        num_faults: Counter,
    }
}

devices::metrics! {
    /// Signals that would be reported before they end the process: none are caught, so all are zero.
    pub struct SignalMetrics {
        /// SIGBUS.
        sigbus: Counter,
        /// SIGSEGV.
        sigsegv: Counter,
        /// SIGXFSZ.
        sigxfsz: Counter,
        /// SIGXCPU.
        sigxcpu: Counter,
        /// SIGPIPE.
        sigpipe: Counter,
        /// SIGHUP.
        sighup: Counter,
        /// SIGILL.
        sigill: Counter,
    }
}

/// What is known of lines that nobody will read.
#[derive(Debug, Default)]
pub struct LoggerMetrics {
    /// Lines of metrics for which there was no room.
    pub missed_metrics_count: Counter,
    /// Lines of metrics that could not be written.
    pub metrics_fails: Counter,
    /// Records of the log for which there was no room.
    pub missed_log_count: Counter,
    /// Records of the log that could not be written.
    pub log_fails: Counter,
    /// Ours: records that were written.
    pub log_count: Counter,
}

impl Metrics for LoggerMetrics {
    fn each(&self, visit: &mut dyn FnMut(&'static str, Value)) {
        visit("missed_metrics_count", self.missed_metrics_count.value());
        visit("metrics_fails", self.metrics_fails.value());
        // Held back because one line was enough, or because there was no room: missed in either case.
        let throttled = throttle::suppressed();
        let missed = self.missed_log_count.get().wrapping_add(throttled);
        visit("missed_log_count", Value::Count(missed));
        visit("log_fails", self.log_fails.value());
        visit("log_count", self.log_count.value());
        visit("throttled_log_count", Value::Count(throttled));
    }
}
