//! Answers about snapshots as people read them.

use std::fmt::Write;
use std::time::Duration;

use devices::calendar::Utc;
use serde_json::Value;

use super::{NOTE, READY};
use crate::remote::metrics_as_text;
use crate::remote::text::{guests_as_text, log_as_text};

/// What an answer says, in words; that of a VMM's counters too.
pub fn as_text(value: &Value) -> String {
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    if let Some(all) = value.get("snapshots").and_then(Value::as_array) {
        return table(all);
    }
    if value.get("guests").is_some() {
        return guests_as_text(value);
    }
    if value.get("log").is_some() {
        return log_as_text(value);
    }
    if let (guest, Some(asked)) = (text("guest"), value.get("asked").and_then(Value::as_str)) {
        return format!("{guest}: {asked} asked for");
    }
    if let (Some(id), Some(pause)) = (number("id"), number("pause_us")) {
        let mib = number("pages").unwrap_or(0) * 4 / 1024;
        let (ms, us) = (pause / 1000, pause % 1000);
        let guest = text("guest");
        return format!(
            "snapshot {id} of {guest}: {mib} MiB of memory, paused for {ms}.{us:03} ms"
        );
    }
    if let Some(id) = number("id") {
        return format!("snapshot {id} of {}", text("guest"));
    }
    if let (Some(stored), Some(referenced)) = (number("stored_bytes"), number("referenced_bytes")) {
        return status(value, stored, referenced);
    }
    if let Some(problems) = value.get("problems").and_then(Value::as_array) {
        let (snapshots, chunks) = (number("snapshots"), number("chunks"));
        let mut out = format!(
            "{} snapshots, {} chunks read and checked: ",
            snapshots.unwrap_or(0),
            chunks.unwrap_or(0)
        );
        match problems.len() {
            0 => out.push_str("nothing wrong"),
            count => out.push_str(&format!("{count} problems")),
        }
        for problem in problems.iter().filter_map(Value::as_str) {
            out.push_str("\n  ");
            out.push_str(problem);
        }
        return out;
    }
    if let Some(freed) = number("freed_bytes") {
        return format!("{} freed", size(freed));
    }
    if let (Some(old), Some(new), Some(bytes)) = (number("old"), number("new"), number("bytes")) {
        return difference(value, old, new, bytes);
    }
    if let (Some(id), Some(bytes)) = (number("exported"), number("bytes")) {
        return format!("snapshot {id}: {} in {}", size(bytes), text("path"));
    }
    if let Some(id) = number("deleted") {
        return format!("snapshot {id} deleted; 'daruma store gc' frees its bytes");
    }
    if let (Some(forks), Some(id)) = (value.get("forks"), number("snapshot")) {
        let names = forks.as_array().into_iter().flatten();
        let names: Vec<_> = names.filter_map(Value::as_str).collect();
        return format!("forks from snapshot {id}: {}", names.join(", "));
    }
    if let Some(id) = number("snapshot") {
        return format!("{} goes on from snapshot {id}", text("guest"));
    }
    match metrics_as_text(value) {
        text if text.is_empty() => "no guest runs".to_owned(),
        text => text,
    }
}

/// Progress, in words.
pub fn amount(what: &str, done: u64, total: u64) -> String {
    match (done, total) {
        (0, 0) => format!("{what} ..."),
        (done, 0) => format!("{what}: {}", size(done)),
        (done, total) => format!("{what}: {} of {}", size(done), size(total)),
    }
}

/// Bytes in a unit of two to four digits.
pub fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        if bytes >= 10 << shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

fn table(all: &[Value]) -> String {
    if all.is_empty() {
        return "no snapshots".to_owned();
    }
    let mut out = format!(
        "{:>5} {:>6} {:16} {:24} what",
        "id", "after", "guest", "taken (UTC)"
    );
    for one in all {
        let number = |key: &str| one.get(key).and_then(Value::as_u64);
        let label = |key: &str| one.get("labels")?.get(key)?.as_str();
        let parent = number("parent").map_or_else(|| "-".to_owned(), |id| id.to_string());
        let mut what = Vec::new();
        if label(READY).is_some() {
            what.push("ready".to_owned());
        }
        if one.get("good").and_then(Value::as_bool) == Some(true) {
            what.push("good".to_owned());
        }
        what.extend(label(NOTE).map(str::to_owned));
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "\n{:>5} {parent:>6} {:16} {:24} {}",
            number("id").unwrap_or(0),
            one.get("guest").and_then(Value::as_str).unwrap_or_default(),
            utc(number("time_ms").unwrap_or(0)),
            what.join(", ")
        );
    }
    out
}

fn status(value: &Value, stored: u64, referenced: u64) -> String {
    let number = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mut out = format!(
        "{} snapshots, {} stored in {} segments ({} of it needed), index {}",
        number("snapshots"),
        size(stored),
        number("segments"),
        size(referenced),
        size(number("index_bytes")),
    );
    let foreign = value.get("foreign_files").and_then(Value::as_array);
    let foreign = foreign.into_iter().flatten().filter_map(Value::as_str);
    let names: Vec<_> = foreign.collect();
    if !names.is_empty() {
        out.push_str("\nnot the store's, left alone: ");
        out.push_str(&names.join(", "));
    }
    out
}

fn difference(value: &Value, old: u64, new: u64, bytes: u64) -> String {
    let mut out = format!("snapshots {old} and {new} differ in {}", size(bytes));
    let ranges = value.get("changed").and_then(Value::as_array);
    let mut objects: Vec<(&str, u64, u64)> = Vec::new();
    for range in ranges.into_iter().flatten() {
        let name = range
            .get("object")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let bytes = range.get("bytes").and_then(Value::as_u64).unwrap_or(0);
        match objects.last_mut() {
            Some((last, count, sum)) if *last == name => {
                *count += 1;
                *sum += bytes;
            }
            _ => objects.push((name, 1, bytes)),
        }
    }
    for (name, count, bytes) in objects {
        let _ = write!(out, "\n  {name:16} {} in {count} ranges", size(bytes));
    }
    out
}

/// A time as `2026-11-22 21:34:54`.
fn utc(ms: u64) -> String {
    let it = Utc::since_1970(Duration::from_millis(ms));
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        it.year, it.month, it.day, it.hour, it.minute, it.second
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_399_000), "2000-02-28 23:59:59");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(utc(1_795_383_294_000), "2026-11-22 21:34:54");
    }

    #[test]
    fn answers_are_told_in_words() {
        let taken = json!({"id": 7, "guest": "web", "pause_us": 1234, "pages": 512});
        let text = "snapshot 7 of web: 2 MiB of memory, paused for 1.234 ms";
        assert_eq!(as_text(&taken), text);
        let list = json!({"snapshots": [{
            "id": 7, "guest": "web", "parent": 5, "time_ms": 0, "good": true,
            "labels": {"ready": "yes", "note": "before the upgrade"},
        }]});
        let text = as_text(&list);
        assert!(
            text.contains("\n    7      5 web              1970-01-01 00:00:00"),
            "{text}"
        );
        assert!(text.ends_with("ready, good, before the upgrade"), "{text}");
        assert_eq!(as_text(&json!({"snapshots": []})), "no snapshots");
        let verified = json!({"snapshots": 2, "chunks": 9, "problems": ["page 3 is damaged"]});
        assert!(as_text(&verified).ends_with("1 problems\n  page 3 is damaged"));
        let forks = json!({"forks": ["web-1", "web-2"], "snapshot": 7});
        assert_eq!(as_text(&forks), "forks from snapshot 7: web-1, web-2");
        assert_eq!(as_text(&json!({})), "no guest runs");
        assert_eq!(
            amount("verifying", 20 << 20, 40 << 20),
            "verifying: 20 MiB of 40 MiB"
        );
    }
}
