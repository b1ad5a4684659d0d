//! What the guests are at, as the supervisor says it, and what follows from two of these.

use serde_json::Value;

/// Counters older than this say nothing about now.
const STALE_MS: u64 = 5000;

/// What the guests are at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, by the host's clock.
    pub ms: u64,
    /// All of them, by number.
    pub guests: Vec<Guest>,
}

/// One guest. Texts have characters only that can be shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// Number of its console.
    pub number: u64,
    /// Name.
    pub name: String,
    /// State.
    pub state: String,
    /// More about that.
    pub detail: String,
    /// How it is, as far as it is known.
    pub health: String,
    /// Memory that it was given.
    pub memory_mib: u64,
    /// Memory that its VMM has.
    pub resident_kib: Option<u64>,
    /// The process that is its VMM.
    run: Option<u64>,
    /// How long its vCPUs ran.
    vcpu_ms: u64,
    counted: Option<Counted>,
    /// The newest good snapshot and its age in seconds.
    pub good: Option<(u64, u64)>,
    /// Its falls since the host started.
    pub falls: u64,
    /// How often it stood up.
    pub stands: u64,
    /// Its snapshots and falls, oldest first.
    pub history: Vec<Point>,
}

/// Bytes, since its VMM started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    ms: u64,
    bytes: [u64; 4],
}

/// What a guest has been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A snapshot that is not known to be good.
    Taken,
    /// A good snapshot.
    Good,
    /// It was suspended.
    Suspended,
    /// It fell.
    Fell,
}

/// What a guest does in a second. What is not known is `None`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Of its vCPUs together: 100 is one that never rests.
    pub cpu_percent: Option<u64>,
    /// Bytes read from disks, written to them, received and sent by network cards.
    pub bytes: Option<[u64; 4]>,
}

impl Sample {
    /// Reads what the supervisor says.
    #[must_use]
    pub fn read(value: &Value) -> Self {
        let guests = value.get("guests").and_then(Value::as_array);
        Self {
            ms: number(value, "ms"),
            guests: guests.into_iter().flatten().map(Guest::read).collect(),
        }
    }
}

impl Guest {
    fn read(value: &Value) -> Self {
        let good = value.get("last_good").filter(|good| good.is_object());
        let counted = value.get("counted").filter(|counted| counted.is_object());
        let history = value.get("history").and_then(Value::as_array);
        let point = |value: &Value| match value.get("point").and_then(Value::as_str)? {
            "good" => Some(Point::Good),
            "suspended" => Some(Point::Suspended),
            "fell" => Some(Point::Fell),
            _ => Some(Point::Taken),
        };
        Self {
            number: number(value, "number"),
            name: text(value, "name"),
            state: text(value, "state"),
            detail: text(value, "detail"),
            health: text(value, "health"),
            memory_mib: number(value, "memory_mib"),
            resident_kib: value.get("resident_kib").and_then(Value::as_u64),
            run: value.get("run").and_then(Value::as_u64),
            vcpu_ms: number(value, "vcpu_ms"),
            counted: counted.map(|counted| Counted {
                ms: number(counted, "ms"),
                bytes: [
                    number(counted, "disk_read_bytes"),
                    number(counted, "disk_written_bytes"),
                    number(counted, "net_received_bytes"),
                    number(counted, "net_sent_bytes"),
                ],
            }),
            good: good.map(|good| (number(good, "snapshot"), number(good, "age_s"))),
            falls: number(value, "falls"),
            stands: number(value, "stands"),
            history: history.into_iter().flatten().filter_map(point).collect(),
        }
    }
}

impl Rates {
    /// Those that follow `self`, from two samples of a guest and their times.
    #[must_use]
    pub fn next(self, (then, old): (u64, &Guest), (now, new): (u64, &Guest)) -> Self {
        // Another process counts from zero.
        if new.run.is_none() || old.run != new.run {
            return Self::default();
        }
        let ran = new.vcpu_ms.saturating_sub(old.vcpu_ms);
        let bytes = match (old.counted, new.counted) {
            _ if new.counted.is_none_or(|it| it.ms + STALE_MS < now) => None,
            (Some(old), Some(new)) if old.ms < new.ms => {
                let each = |at: usize| {
                    let bytes = new.bytes[at].saturating_sub(old.bytes[at]);
                    per_second(bytes, new.ms - old.ms)
                };
                Some([each(0), each(1), each(2), each(3)])
            }
            _ => self.bytes,
        };
        Self {
            cpu_percent: (then < now).then(|| per_second(ran, now - then) / 10),
            bytes,
        }
    }
}

fn per_second(count: u64, ms: u64) -> u64 {
    let rate = u128::from(count) * 1000 / u128::from(ms.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn text(value: &Value, key: &str) -> String {
    clean(value.get(key).and_then(Value::as_str).unwrap_or_default())
}

/// What can be shown on any terminal: guests and their VMMs have a say in these texts, and none in what a terminal does.
#[must_use]
pub fn clean(text: &str) -> String {
    let shown =
        |c: char| c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && c.is_alphanumeric());
    let clean = |c| if shown(c) { c } else { '?' };
    text.chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn guest(run: u64, vcpu_ms: u64, counted: Option<(u64, u64)>) -> Guest {
        let counted = counted.map(|(ms, bytes)| {
            json!({ "ms": ms, "disk_read_bytes": bytes, "net_sent_bytes": 2 * bytes })
        });
        let value = json!({ "run": run, "vcpu_ms": vcpu_ms, "counted": counted });
        Guest::read(&value)
    }

    #[test]
    fn two_samples_are_rates() {
        let old = guest(7, 1000, Some((900, 4096)));
        let new = guest(7, 1500, Some((1900, 8192)));
        let rates = Rates::default().next((1000, &old), (2000, &new));
        assert_eq!(rates.cpu_percent, Some(50));
        assert_eq!(rates.bytes, Some([4096, 0, 0, 8192]));
        // Its VMM has not counted since.
        let rates = rates.next((2000, &new), (2500, &guest(7, 2500, Some((1900, 8192)))));
        assert_eq!(rates.cpu_percent, Some(200));
        assert_eq!(rates.bytes, Some([4096, 0, 0, 8192]));
        let late = rates.next((2500, &new), (9500, &new));
        assert_eq!(late.bytes, None);
    }

    #[test]
    fn what_is_not_known_is_none() {
        let (old, other) = (guest(7, 1000, Some((1, 1))), guest(8, 1, Some((2, 0))));
        let none = Rates::default();
        assert_eq!(none.next((0, &old), (9, &other)), none, "another process");
        assert_eq!(none.next((0, &old), (9, &Guest::default())), none, "none");
        assert_eq!(none.next((9, &old), (9, &old)).cpu_percent, None, "at once");
        // Counters that go back.
        let less = guest(7, 0, Some((2, 0)));
        let rates = none.next((0, &old), (9, &less));
        assert_eq!(
            rates,
            Rates {
                cpu_percent: Some(0),
                bytes: Some([0; 4])
            }
        );
    }

    #[test]
    fn nothing_in_a_text_drives_a_terminal() {
        let value = json!({ "guests": [{ "name": "a\u{1b}[2Jb", "detail": "\u{9b}2J\r\n\u{202e}\u{7}é", "state": 5 }] });
        let guest = &Sample::read(&value).guests[0];
        assert_eq!(guest.name, "a?[2Jb");
        assert_eq!(guest.detail, "?2J????é");
        assert_eq!(guest.state, "");
        assert_eq!(Sample::read(&json!([1])), Sample::default());
    }
}
