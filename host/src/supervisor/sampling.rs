//! What the guests are at just now, for those who watch them.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Supervisor;
use super::guest::Guest;
use super::inquiry::{Asker, Inquiry, Question};
use crate::clock;

/// How long VMMs have to say what they have counted: a sample goes out without those that do not answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two pictures on the console.
const PICTURES: Duration = Duration::from_secs(1);

/// What the devices of a guest have counted since its VMM started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    when: Duration,
    disk_read: u64,
    disk_written: u64,
    net_received: u64,
    net_sent: u64,
}

impl Counted {
    /// Of a VMM's metrics.
    pub(super) fn read(metrics: &Value, when: Duration) -> Self {
        let bytes = |group: &str, name: &str| {
            let count = metrics.get(group).and_then(|group| group.get(name));
            count.and_then(Value::as_u64).unwrap_or(0)
        };
        Self {
            when,
            disk_read: bytes("block", "read_bytes"),
            disk_written: bytes("block", "write_bytes"),
            net_received: bytes("net", "rx_bytes_count"),
            net_sent: bytes("net", "tx_bytes_count"),
        }
    }
}

impl Guest {
    /// What it uses, added to what is said of it.
    fn measure(&mut self, value: &mut Value) {
        value["history"] = self.history.points();
        let counted = self.counted;
        let Some(vm) = self.vm() else { return };
        let usage = vm.usage();
        value["run"] = json!(vm.pid().as_raw());
        value["vcpu_ms"] = milliseconds(usage.vcpu_time);
        value["resident_kib"] = json!(usage.resident_kib);
        value["counted"] = counted.map_or(Value::Null, |counted| {
            json!({
                "ms": milliseconds(counted.when),
                "disk_read_bytes": counted.disk_read,
                "disk_written_bytes": counted.disk_written,
                "net_received_bytes": counted.net_received,
                "net_sent_bytes": counted.net_sent,
            })
        });
    }
}

impl Supervisor {
    /// Has the VMMs count; the answer is a sample.
    pub(super) fn ask_sample(&mut self, asker: Asker) {
        let missing = self.have_counted();
        self.inquiries.push(Inquiry {
            asker,
            question: Question::Sample,
            missing,
            answers: Map::new(),
            until: clock::now() + PATIENCE,
        });
        self.settle_inquiries();
    }

    /// Asks each VMM what it has counted, but those that have not answered the last time. Returns whom.
    pub(super) fn have_counted(&mut self) -> Vec<usize> {
        self.ask_history();
        let guests = self.guests.iter_mut().enumerate();
        let asked = guests.filter_map(|(index, guest)| {
            let vm = guest.vm().filter(|vm| vm.has_answered())?;
            vm.ask_metrics();
            Some(index)
        });
        asked.collect()
    }

    /// Shows all guests on a head of the console.
    pub(super) fn show_table(&mut self, head: usize) {
        self.console.show_table(head);
        self.next_picture = clock::now();
    }

    /// What is due of the console's pictures, and when that is.
    pub(super) fn pictures(&mut self, now: Duration) {
        for request in self.console.timers(now) {
            self.request(request);
        }
        if self.console.has_tables() && self.next_picture <= now {
            self.next_picture = now + PICTURES;
            let sample = self.sample();
            self.console.update_tables(&sample);
            // For the next one.
            self.have_counted();
        }
    }

    /// When there is something for [`Self::pictures`].
    pub(super) fn pictures_due(&self) -> Option<Duration> {
        let next = self.console.has_tables().then_some(self.next_picture);
        next.into_iter().chain(self.console.due()).min()
    }

    /// All that is known of the guests now.
    pub(super) fn sample(&mut self) -> Value {
        let now = clock::now();
        let indices = 0..self.guests.len();
        let describe = |index| {
            let mut value = self.describe(index);
            self.guests[index].measure(&mut value);
            value
        };
        let guests: Vec<_> = indices.map(describe).collect();
        json!({ "ms": milliseconds(now), "guests": guests })
    }
}

fn milliseconds(time: Duration) -> Value {
    json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_a_vmm_does_not_have_are_zero() {
        let metrics = json!({
            "block": { "read_bytes": 512, "write_bytes": 7 },
            "block_disk0": { "read_bytes": 512 },
            "net": { "rx_bytes_count": 3, "tx_bytes_count": "many" },
        });
        let counted = Counted::read(&metrics, Duration::from_secs(1));
        let disk = (counted.disk_read, counted.disk_written);
        assert_eq!(disk, (512, 7));
        assert_eq!((counted.net_received, counted.net_sent), (3, 0));
        assert_eq!(Counted::read(&json!(null), Duration::ZERO).disk_read, 0);
    }
}
