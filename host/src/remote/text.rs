//! Answers about guests as people read them.

use std::fmt::Write;

use serde_json::Value;

/// The guests as a table; one that was asked for alone, line by line.
pub fn guests_as_text(value: &Value) -> String {
    let guests = value.get("guests").and_then(Value::as_array);
    let guests = guests.map(Vec::as_slice).unwrap_or_default();
    match guests {
        [guest] if value.get("in_full") == Some(&Value::Bool(true)) => in_full(guest),
        guests => table(guests),
    }
}

fn text<'v>(guest: &'v Value, key: &str) -> &'v str {
    guest.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(guest: &Value, key: &str) -> u64 {
    guest.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn table(guests: &[Value]) -> String {
    let names = guests.iter().map(|guest| text(guest, "name").len());
    let width = names.max().unwrap_or(0).max(5);
    let mut table = format!(
        "no {:width$} state     vcpus memory  address         good    falls",
        "guest"
    );
    for guest in guests {
        let good = guest.get("last_good").filter(|good| !good.is_null());
        let good = good.map_or_else(|| "-".to_owned(), |good| age(number(good, "age_s")));
        // Writing to a string cannot fail.
        let _ = write!(
            table,
            "\n{:2} {:width$} {:9} {:5} {:4} M  {:15} {good:7} {:5}  {}",
            number(guest, "number"),
            text(guest, "name"),
            text(guest, "state"),
            number(guest, "vcpus"),
            number(guest, "memory_mib"),
            text(guest, "address"),
            number(guest, "falls"),
            text(guest, "detail"),
        );
    }
    table
}

fn in_full(guest: &Value) -> String {
    let mut lines = vec![
        format!(
            "{} (guest {})",
            text(guest, "name"),
            number(guest, "number")
        ),
        format!(
            "  state      {} {}",
            text(guest, "state"),
            text(guest, "detail")
        ),
        format!(
            "  machine    {} vCPUs, {} MiB of memory",
            number(guest, "vcpus"),
            number(guest, "memory_mib")
        ),
    ];
    let mut line = |name: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("  {name:10} {text}"));
        }
    };
    line("address", text(guest, "address").to_owned());
    line("health", text(guest, "health").to_owned());
    let falls = (number(guest, "falls"), number(guest, "stands"));
    line("falls", format!("{}, stood up {} times", falls.0, falls.1));
    let heals = guest.get("heals") == Some(&Value::Bool(true));
    line(
        "heals",
        match (
            heals,
            guest.get("checkpoint_seconds").and_then(Value::as_u64),
        ) {
            (true, Some(every)) => format!("from checkpoints, one every {every} s"),
            _ => "by starting anew: it has no [guest.checkpoints] and a store for them".to_owned(),
        },
    );
    if let Some(good) = guest.get("last_good").filter(|good| !good.is_null()) {
        let (id, ago) = (number(good, "snapshot"), age(number(good, "age_s")));
        line("good", format!("snapshot {id}, {ago} old"));
    }
    lines.join("\n")
}

/// Seconds as people say them.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86400),
    }
}

/// A log, oldest line first.
pub fn log_as_text(value: &Value) -> String {
    let lines = value.get("log").and_then(Value::as_array);
    let lines = lines.map(Vec::as_slice).unwrap_or_default();
    if lines.is_empty() {
        return "(empty)".to_owned();
    }
    let line = |line: &Value| match line.get("ms").and_then(Value::as_u64) {
        Some(ms) => format!("{:>8}.{:03} {}", ms / 1000, ms % 1000, text(line, "text")),
        None => text(line, "text").to_owned(),
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn guest() -> Value {
        json!({
            "number": 1, "name": "web", "state": "ready", "detail": "812 ms", "vcpus": 2, "memory_mib": 64,
            "address": "10.0.0.7", "health": "watched from outside only", "falls": 3, "stands": 2, "heals": true,
            "checkpoint_seconds": 10, "last_good": {"snapshot": 17, "age_s": 125},
        })
    }

    #[test]
    fn guests_are_a_table_with_falls_and_the_age_of_what_they_would_go_back_to() {
        let text = guests_as_text(&json!({"guests": [guest(), {"name": "b"}]}));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let words: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(
            words,
            [
                "1", "web", "ready", "2", "64", "M", "10.0.0.7", "2", "min", "3", "812", "ms"
            ]
        );
        assert!(lines[2].contains(" - "), "none is known to be good");
    }

    #[test]
    fn one_guest_is_shown_in_full() {
        let text = guests_as_text(&json!({"guests": [guest()], "in_full": true}));
        for words in [
            "snapshot 17",
            "every 10 s",
            "3, stood up 2 times",
            "outside only",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn a_log_has_times_where_they_are_known() {
        let log = json!({"log": [{"ms": 61_007, "text": "web: fell"}, {"text": "plain"}]});
        assert_eq!(log_as_text(&log), "      61.007 web: fell\nplain");
        assert_eq!(log_as_text(&json!({"log": []})), "(empty)");
    }

    #[test]
    fn ages_are_short() {
        let ages = [5, 119, 120, 7200, 172_800].map(age);
        assert_eq!(ages, ["5 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
