//! Telemetry: gathers what devices and the VMM itself count, in the shape of Firecracker's metrics.
//!
//! ```text
//!   devices::metrics (atomics) ──► Telemetry ──► Snapshot ──► GET /metrics, control socket: since the start
//!   vmm's own counters ──────────►                 │
//!                                                  └─ since the last ──► Output: one line in a file or FIFO
//! ```
//!
//! A process runs one guest, so there is one [`Telemetry`], as there is one log: see [`process`]. What is here never waits
//! for who reads it: a FIFO that nobody reads loses lines, the guest loses nothing.

mod api;
mod output;
mod snapshot;
mod timer;
mod vmm;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError};

use devices::metrics::{
    BalloonMetrics, BlockMetrics, ConsoleMetrics, EntropyMetrics, I8042Metrics, Metrics,
    MmdsMetrics, NetMetrics, PmemMetrics, RtcMetrics, SerialMetrics, Value, VsockMetrics,
};
use devices::virtio::device::VirtioDevice;

pub use self::api::{ApiMetrics, ApiServerMetrics, RequestCounters};
use self::output::Output;
pub use self::output::OutputError;
pub use self::snapshot::Snapshot;
pub use self::timer::FlushTimer;
pub use self::vmm::{LatencyMetrics, LoggerMetrics, VcpuMetrics, VmmMetrics};

/// The telemetry of this process.
pub fn process() -> &'static Telemetry {
    static PROCESS: LazyLock<Telemetry> = LazyLock::new(Telemetry::default);
    &PROCESS
}

/// Numbers by their names, of one group.
type Group = BTreeMap<&'static str, Value>;

/// A device that counts.
struct Watched {
    group: &'static str,
    id: Option<String>,
    metrics: Arc<dyn Metrics>,
}

impl Watched {
    /// Whether the device is gone: nobody else has its counters.
    fn is_gone(&self) -> bool {
        Arc::strong_count(&self.metrics) == 1
    }
}

/// What devices count, and have counted.
#[derive(Default)]
struct Devices {
    watched: Vec<Watched>,
    /// What those counted that are gone, by group.
    gone: BTreeMap<&'static str, Group>,
}

/// Everything that is counted in this process, and where it is written.
#[derive(Default)]
pub struct Telemetry {
    /// Requests of the API.
    pub api: ApiMetrics,
    /// The VMM as a whole.
    pub vmm: VmmMetrics,
    /// How long operations on the whole guest took.
    pub latencies: LatencyMetrics,
    /// Log and metrics themselves.
    pub logger: LoggerMetrics,
    devices: Mutex<Devices>,
    output: Mutex<Option<Output>>,
}

/// The data is numbers: whoever panicked with the lock has left none of them half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(metrics: &dyn Metrics) -> Group {
    let mut group = Group::new();
    metrics.each(&mut |name, value| {
        group.insert(name, value);
    });
    group
}

/// Adds the numbers of `other`.
fn merge(group: &mut Group, other: &Group) {
    for (name, value) in other {
        group
            .entry(name)
            .and_modify(|sum| *sum = sum.and(*value))
            .or_insert(*value);
    }
}

impl Telemetry {
    /// Has the numbers of `device` in `group` from now on; with `id` also by itself, as `group_id`. When the device is
    /// gone, what it counted stays in the group.
    pub fn watch(&self, group: &'static str, id: Option<&str>, device: &dyn VirtioDevice) {
        if let Some(metrics) = device.metrics() {
            self.add(group, id, metrics);
        }
    }

    /// As [`watch`](Self::watch), for anything that counts.
    pub fn add(&self, group: &'static str, id: Option<&str>, metrics: Arc<dyn Metrics>) {
        lock(&self.devices).watched.push(Watched {
            group,
            id: id.map(Into::into),
            metrics,
        });
    }

    /// All numbers as they are now, since the start of the process.
    pub fn snapshot(&self) -> Snapshot {
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        // Groups without a device are there as well, for who expects them.
        let empty: [(&str, &dyn Metrics); 12] = [
            ("balloon", &BalloonMetrics::default()),
            ("block", &BlockMetrics::default()),
            ("console", &ConsoleMetrics::default()),
            ("entropy", &EntropyMetrics::default()),
            ("i8042", &I8042Metrics::default()),
            ("mmds", &MmdsMetrics::default()),
            ("net", &NetMetrics::default()),
            ("pmem", &PmemMetrics::default()),
            ("rtc", &RtcMetrics::default()),
            ("uart", &SerialMetrics::default()),
            ("vcpu", &VcpuMetrics::default()),
            ("vsock", &VsockMetrics::default()),
        ];
        // What the process would not live to count.
        let (faults, signals) = (
            vmm::SeccompMetrics::default(),
            vmm::SignalMetrics::default(),
        );
        let own = self.api.groups().into_iter().chain([
            ("latencies_us", &self.latencies as &dyn Metrics),
            ("logger", &self.logger),
            ("seccomp", &faults),
            ("signals", &signals),
            ("vmm", &self.vmm),
        ]);
        for (name, metrics) in empty.into_iter().chain(own) {
            groups.insert(name.into(), read(metrics));
        }
        let mut devices = lock(&self.devices);
        let Devices { watched, gone } = &mut *devices;
        watched.retain(|device| {
            let last = device.is_gone();
            let numbers = read(&*device.metrics);
            if last {
                merge(gone.entry(device.group).or_default(), &numbers);
                return false;
            }
            match &device.id {
                Some(id) if device.group == "fs" => {
                    groups.insert(format!("vhost_user_fs_{id}"), numbers);
                }
                Some(id) => {
                    merge(groups.entry(device.group.into()).or_default(), &numbers);
                    groups.insert(format!("{}_{id}", device.group), numbers);
                }
                None => merge(groups.entry(device.group.into()).or_default(), &numbers),
            }
            true
        });
        for (group, numbers) in gone.iter().filter(|(group, _)| **group != "fs") {
            merge(groups.entry((*group).into()).or_default(), numbers);
        }
        Snapshot::new(groups)
    }

    /// Writes lines to the file or FIFO `path` from now on: what was added since the line before, at every
    /// [`flush`](Self::flush).
    pub fn write_to(&self, path: &Path) -> Result<(), OutputError> {
        let mut output = lock(&self.output);
        if output.is_some() {
            return Err(OutputError::Configured);
        }
        *output = Some(Output::open(path)?);
        Ok(())
    }

    /// Whether somebody has said where to write to.
    pub fn is_written(&self) -> bool {
        lock(&self.output).is_some()
    }

    /// Writes a line now, if it is known where to. `false` where that failed: the next line has what this one had.
    pub fn flush(&self) -> bool {
        self.flush_to(&mut lock(&self.output))
    }

    /// As [`flush`](Self::flush), unless somebody is at it: for a thread that may be that one.
    pub fn flush_without_waiting(&self) {
        match self.output.try_lock() {
            Ok(mut output) => drop(self.flush_to(&mut output)),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => {}
        }
    }

    fn flush_to(&self, output: &mut Option<Output>) -> bool {
        let Some(output) = output else { return true };
        match output.write(self.snapshot()) {
            Ok(true) => true,
            Ok(false) => {
                self.logger.missed_metrics_count.count();
                false
            }
            Err(error) => {
                self.logger.metrics_fails.count();
                output.failed(&error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
