//! What devices count: numbers that a device adds to while it works, and that anybody reads at any time.
//!
//! A counter is one atomic number, shared by [`Arc`](std::sync::Arc) between the device and who reads it. Counting is one
//! relaxed addition; there is no lock, no clock and no allocation. Each kind of device has one structure here; names are
//! those of Firecracker's metrics where the meaning is the same, so that what evaluates those evaluates ours.
//!
//! Counters never go back. Who wants increments keeps the last reading and subtracts.

mod legacy;
mod network;
mod storage;
mod virtio;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use legacy::{I8042Metrics, RtcMetrics, SerialMetrics};
pub use network::{MmdsMetrics, NetMetrics, VsockMetrics};
pub use storage::{BlockMetrics, PmemMetrics, VhostUserMetrics};
pub use virtio::{BalloonMetrics, ConsoleMetrics, EntropyMetrics};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter that stands at zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    #[inline]
    pub fn count(&self) {
        self.add(1);
    }

    /// `amount` more.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that is as it was last set.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is `value` now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, each time: the shortest, the longest, and all together.
#[derive(Debug)]
pub struct Latency {
    /// Nothing was ever as short as this where nothing was measured.
    shortest_us: AtomicU64,
    longest_us: AtomicU64,
    sum_us: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            shortest_us: AtomicU64::new(u64::MAX),
            longest_us: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }
}

impl Latency {
    /// It took `time`.
    #[inline]
    pub fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        // Looked at before they are written: after the first few times neither changes any more.
        if us < self.shortest_us.load(Ordering::Relaxed) {
            self.shortest_us.fetch_min(us, Ordering::Relaxed);
        }
        if us > self.longest_us.load(Ordering::Relaxed) {
            self.longest_us.fetch_max(us, Ordering::Relaxed);
        }
    }
}

/// What a metric says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// How often or how much since the start.
    Count(u64),
    /// How it is now.
    Level(u64),
    /// How long it took, in microseconds; all zero where nothing was measured.
    Latency {
        /// The shortest.
        min_us: u64,
        /// The longest.
        max_us: u64,
        /// All together.
        sum_us: u64,
    },
}

impl Value {
    /// What both say together: of two devices of a kind, or of one before and after it was replaced.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Count(a), Self::Count(b)) => Self::Count(a.wrapping_add(b)),
            (
                Self::Latency {
                    min_us,
                    max_us,
                    sum_us,
                },
                Self::Latency {
                    min_us: other_min,
                    max_us: other_max,
                    sum_us: other_sum,
                },
            ) => Self::Latency {
                // Zero is "never measured", unless both are.
                min_us: match (min_us, other_min) {
                    (0, other) => other,
                    (us, 0) => us,
                    (a, b) => a.min(b),
                },
                max_us: max_us.max(other_max),
                sum_us: sum_us.wrapping_add(other_sum),
            },
            (_, newer) => newer,
        }
    }

    /// What was added since it was `before`. Levels, the shortest and the longest are as they are.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        match (self, before) {
            (Self::Count(now), Self::Count(then)) => Self::Count(now.wrapping_sub(then)),
            (
                Self::Latency {
                    min_us,
                    max_us,
                    sum_us,
                },
                Self::Latency { sum_us: then, .. },
            ) => Self::Latency {
                min_us,
                max_us,
                sum_us: sum_us.wrapping_sub(then),
            },
            (now, _) => now,
        }
    }
}

/// One of the numbers of a device.
pub trait Metric {
    /// What it says now.
    fn value(&self) -> Value;
}

impl Metric for Counter {
    fn value(&self) -> Value {
        Value::Count(self.get())
    }
}

impl Metric for Gauge {
    fn value(&self) -> Value {
        Value::Level(self.get())
    }
}

impl Metric for Latency {
    fn value(&self) -> Value {
        let min_us = match self.shortest_us.load(Ordering::Relaxed) {
            u64::MAX => 0,
            us => us,
        };
        Value::Latency {
            min_us,
            max_us: self.longest_us.load(Ordering::Relaxed),
            sum_us: self.sum_us.load(Ordering::Relaxed),
        }
    }
}

/// What can go wrong with any virtio device, and is noticed outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A driver has started it with queues that cannot be.
    Activation,
    /// A driver has written to its configuration space what or when it may not.
    Configuration,
    /// A driver has put something into a queue that stops the device.
    Event,
}

/// All numbers of one device.
pub trait Metrics: Send + Sync {
    /// Shows each with its name.
    fn each(&self, visit: &mut dyn FnMut(&'static str, Value));

    /// Counts a fault that somebody else has noticed.
    fn fault(&self, fault: Fault) {
        let _ = fault;
    }
}

/// Declares the numbers of a kind of device: a structure of them that shows each by the name of its field, and which of
/// them count faults.
#[macro_export]
macro_rules! metrics {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $kind:ty,)*
        }
        $(faults { $($fault:ident => $counter:ident,)* })?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
        }

        impl $crate::metrics::Metrics for $name {
            fn each(&self, visit: &mut dyn FnMut(&'static str, $crate::metrics::Value)) {
                $(visit(stringify!($field), $crate::metrics::Metric::value(&self.$field));)*
            }

            $(fn fault(&self, fault: $crate::metrics::Fault) {
                match fault {
                    $($crate::metrics::Fault::$fault => self.$counter.count(),)*
                }
            })?
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metrics: &dyn Metrics) -> Vec<(&'static str, Value)> {
        let mut values = Vec::new();
        metrics.each(&mut |name, value| values.push((name, value)));
        values
    }

    fn latency(min_us: u64, max_us: u64, sum_us: u64) -> Value {
        Value::Latency {
            min_us,
            max_us,
            sum_us,
        }
    }

    #[test]
    fn each_number_is_shown_by_its_name() {
        let metrics = BlockMetrics::default();
        metrics.read_count.count();
        metrics.read_bytes.add(4096);
        metrics.read_agg.record(Duration::from_micros(7));
        metrics.fault(Fault::Event);
        let values = read(&metrics);
        for (name, expected) in [
            ("read_count", Value::Count(1)),
            ("read_bytes", Value::Count(4096)),
            ("write_count", Value::Count(0)),
            ("event_fails", Value::Count(1)),
            ("read_agg", latency(7, 7, 7)),
            ("write_agg", latency(0, 0, 0)),
        ] {
            let found = values.iter().find(|(known, _)| *known == name);
            assert_eq!(found.map(|(_, value)| *value), Some(expected), "{name}");
        }
    }

    #[test]
    fn latencies_know_the_shortest_the_longest_and_all() {
        let metric = Latency::default();
        for us in [5, 3, 11, 4] {
            metric.record(Duration::from_micros(us));
        }
        assert_eq!(metric.value(), latency(3, 11, 23));
        assert_eq!(metric.value().since(latency(5, 5, 5)), latency(3, 11, 18));
    }

    #[test]
    fn values_of_two_devices_add_up() {
        assert_eq!(Value::Count(2).and(Value::Count(3)), Value::Count(5));
        assert_eq!(Value::Level(2).and(Value::Level(3)), Value::Level(3));
        assert_eq!(latency(0, 0, 0).and(latency(2, 9, 30)), latency(2, 9, 30));
        assert_eq!(latency(4, 7, 11).and(latency(2, 5, 9)), latency(2, 7, 20));
    }

    #[test]
    fn increments_survive_the_end_of_the_numbers() {
        let near_the_end = Value::Count(u64::MAX);
        assert_eq!(Value::Count(3).since(near_the_end), Value::Count(4));
    }
}
