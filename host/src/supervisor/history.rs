//! What a guest has been through, as a line of points: its snapshots and its falls.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::Supervisor;
use super::guest::Guest;
use super::keeping::Asked;
use crate::snapshots::{FALLEN, SUSPENDED, StoreCommand, What};

/// Most points that are kept of a guest: as many as a wide terminal shows.
const MAX_POINTS: usize = 120;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// A snapshot was taken, and whether it is good is not known, or it was not.
    Taken(u64),
    /// A snapshot after which it was healthy.
    Good(u64),
    /// It was suspended as this snapshot.
    Suspended(u64),
    /// It fell.
    Fell,
}

impl Point {
    fn snapshot(self) -> Option<u64> {
        match self {
            Self::Taken(id) | Self::Good(id) | Self::Suspended(id) => Some(id),
            Self::Fell => None,
        }
    }

    /// What a snapshot of the store's list is.
    fn of(listed: &Value) -> Option<(u64, Self)> {
        let id = listed.get("id").and_then(Value::as_u64)?;
        let has = |label| {
            listed
                .get("labels")
                .is_some_and(|it| it.get(label).is_some())
        };
        let is_good = listed
            .get("good")
            .is_some_and(|good| *good == Value::Bool(true));
        let point = match is_good {
            _ if has(FALLEN) => Self::Fell,
            _ if has(SUSPENDED) => Self::Suspended(id),
            true => Self::Good(id),
            false => Self::Taken(id),
        };
        Some((id, point))
    }
}

/// The points of a guest, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    points: VecDeque<Point>,
    past: Past,
}

/// What was before this host started.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Past {
    #[default]
    Unknown,
    /// The store was asked. Once, whatever comes of it.
    Asked,
    /// It is there, as far as the store has it.
    Known,
}

impl History {
    fn push(&mut self, point: Point) {
        if self.points.len() == MAX_POINTS {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// A snapshot was taken.
    pub(super) fn taken(&mut self, snapshot: u64) {
        self.push(Point::Taken(snapshot));
    }

    /// It is good.
    pub(super) fn good(&mut self, snapshot: u64) {
        let taken = Point::Taken(snapshot);
        let found = self.points.iter_mut().rev().find(|point| **point == taken);
        if let Some(point) = found {
            *point = Point::Good(snapshot);
        }
    }

    /// The guest was suspended.
    pub(super) fn suspended(&mut self, snapshot: u64) {
        self.push(Point::Suspended(snapshot));
    }

    /// The guest fell.
    pub(super) fn fell(&mut self) {
        self.push(Point::Fell);
    }

    /// Puts before all that is known what the store has of the time before.
    fn precede(&mut self, mut listed: Vec<(u64, Point)>) {
        self.past = Past::Known;
        listed.sort_by_key(|(id, _)| *id);
        // A fall that left its disks in the store is known here already: it came after the first snapshot, or there is none.
        let first = self.points.iter().find_map(|point| point.snapshot());
        let fell_since = self.points.contains(&Point::Fell);
        let before = |(id, point): &(u64, Point)| match first {
            Some(first) => *id < first,
            None => !(fell_since && *point == Point::Fell),
        };
        for (_, point) in listed.into_iter().filter(before).rev() {
            if self.points.len() == MAX_POINTS {
                break;
            }
            self.points.push_front(point);
        }
    }

    /// For programs.
    pub(super) fn points(&self) -> Value {
        let points = self.points.iter().map(|point| match point {
            Point::Taken(id) => json!({ "point": "taken", "snapshot": id }),
            Point::Good(id) => json!({ "point": "good", "snapshot": id }),
            Point::Suspended(id) => json!({ "point": "suspended", "snapshot": id }),
            Point::Fell => json!({ "point": "fell" }),
        });
        points.collect()
    }
}

impl Supervisor {
    /// Has the store list what was before this host started, if that is not known yet.
    pub(super) fn ask_history(&mut self) {
        let unknown = |guest: &Guest| guest.history.past == Past::Unknown;
        if !self.guests.iter().any(unknown) {
            return;
        }
        let command = StoreCommand::List { guest: None };
        let what = What::Stored { command };
        if self.keeping.ask(what, Asked::History).is_ok() {
            let asked = self.guests.iter_mut().filter(|guest| unknown(guest));
            asked.for_each(|guest| guest.history.past = Past::Asked);
        }
    }

    /// The store has listed it.
    pub(super) fn history_listed(&mut self, list: &Value) {
        let all = list.get("snapshots").and_then(Value::as_array);
        let guests = self.guests.iter_mut();
        for guest in guests.filter(|guest| guest.history.past == Past::Asked) {
            let all = all.into_iter().flatten();
            let own =
                all.filter(|one| one.get("guest").and_then(Value::as_str) == Some(&guest.name));
            guest.history.precede(own.filter_map(Point::of).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(history: &History) -> Vec<String> {
        let points = history.points();
        let kind = |point: &Value| {
            let id = point
                .get("snapshot")
                .map_or(String::new(), ToString::to_string);
            format!("{}{id}", point["point"].as_str().unwrap())
        };
        points.as_array().unwrap().iter().map(kind).collect()
    }

    #[test]
    fn snapshots_become_good_and_the_past_comes_before() {
        let mut history = History::default();
        for id in 7..10 {
            history.taken(id);
        }
        history.good(8);
        // One that was thinned away from here.
        history.good(1);
        history.fell();
        history.suspended(11);
        let listed = json!([
            { "id": 7, "good": false },
            { "id": 10, "labels": { FALLEN: "panic" } },
            { "id": 5, "good": true },
            { "id": 6, "labels": { SUSPENDED: "yes" }, "good": true },
            { "id": 4, "labels": { FALLEN: "panic" } },
            { "name": "none" },
        ]);
        let listed = listed.as_array().unwrap().iter();
        history.precede(listed.filter_map(Point::of).collect());
        let expected = [
            "fell",
            "good5",
            "suspended6",
            "taken7",
            "good8",
            "taken9",
            "fell",
            "suspended11",
        ];
        assert_eq!(kinds(&history), expected);
    }

    #[test]
    fn the_newest_points_stay() {
        let mut history = History::default();
        for id in 0..1000 {
            history.taken(id);
        }
        history.precede(vec![(0, Point::Fell)]);
        let kinds = kinds(&history);
        assert_eq!(kinds.len(), MAX_POINTS);
        assert_eq!(kinds.last().unwrap(), "taken999");
    }
}
