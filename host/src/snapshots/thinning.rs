//! Which checkpoints are kept: all young ones, then one a minute, then one an hour, as many of these as fit.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How many checkpoints of a guest are kept, and how old they get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thinning {
    /// Every checkpoint is kept for so many seconds.
    pub seconds: u64,
    /// The first checkpoint of a minute is kept for so many minutes.
    pub minutes: u64,
    /// The first checkpoint of an hour is kept for so many hours.
    pub hours: u64,
    /// Bytes that all of them may have added to the store.
    pub budget: Option<u64>,
}

/// A checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its number.
    pub id: u64,
    /// When it was taken, in milliseconds.
    pub time_ms: u64,
    /// Bytes that the store grew by with it.
    pub bytes: u64,
}

impl Thinning {
    /// The ids of those that are not kept. The newest always is, the newest good one, and one from the future: clocks are
    /// set.
    ///
    /// The *first* of a minute or an hour stays, so that a checkpoint that was kept once is kept until it is too old. Over
    /// the budget the oldest go first.
    pub fn unneeded(
        self,
        mut checkpoints: Vec<Taken>,
        newest_good: Option<u64>,
        now_ms: u64,
    ) -> Vec<u64> {
        checkpoints.sort_unstable_by_key(|taken| (taken.time_ms, taken.id));
        let mut bytes: u64 = checkpoints
            .iter()
            .fold(0, |sum, taken| sum.saturating_add(taken.bytes));
        checkpoints.pop();
        let (mut minutes, mut hours) = (BTreeSet::new(), BTreeSet::new());
        let mut unneeded = Vec::new();
        let mut wanted = Vec::new();
        for taken in checkpoints {
            let time = taken.time_ms;
            let age = now_ms.saturating_sub(time);
            // Both are counted for every checkpoint: what was the first stays the first.
            let first = (
                minutes.insert(time / MINUTE_MS),
                hours.insert(time / HOUR_MS),
            );
            let kept = age < self.seconds.saturating_mul(1000)
                || first.0 && age < self.minutes.saturating_mul(MINUTE_MS)
                || first.1 && age < self.hours.saturating_mul(HOUR_MS);
            if Some(taken.id) == newest_good {
                continue;
            }
            if kept {
                wanted.push(taken);
            } else {
                unneeded.push(taken.id);
                bytes = bytes.saturating_sub(taken.bytes);
            }
        }
        for taken in wanted {
            if self.budget.is_none_or(|budget| bytes <= budget) {
                break;
            }
            unneeded.push(taken.id);
            bytes = bytes.saturating_sub(taken.bytes);
        }
        unneeded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Thinning = Thinning {
        seconds: 60,
        minutes: 60,
        hours: 168,
        budget: None,
    };

    fn taken((id, time_ms): (u64, u64)) -> Taken {
        Taken {
            id,
            time_ms,
            bytes: 100,
        }
    }

    /// Ten days of a checkpoint every `every` seconds, thinned after each; what is there at the end, oldest first.
    fn lived(every: u64, rule: Thinning) -> (Vec<(u64, u64)>, u64) {
        let mut there: Vec<(u64, u64)> = Vec::new();
        let mut now = 0;
        for id in 0..10 * 24 * 3600 / every {
            now = 1_700_000_000_000 + id * every * 1000;
            there.push((id, now));
            let all = there.iter().copied().map(taken).collect();
            let unneeded = rule.unneeded(all, None, now);
            there.retain(|(id, _)| !unneeded.contains(id));
        }
        (there, now)
    }

    #[test]
    fn after_ten_days_there_is_a_minute_of_seconds_an_hour_of_minutes_and_a_week_of_hours() {
        let (there, now) = lived(7, RULE);
        let within = |ms: u64| there.iter().filter(|(_, time)| now - time < ms).count();
        assert_eq!(within(60_000), 9, "one every seven seconds");
        let hour = within(HOUR_MS);
        assert!((66..=70).contains(&hour), "{hour}");
        let all = there.len();
        assert!((hour + 165..=hour + 169).contains(&all), "{all}");
        let oldest = now - there[0].1;
        assert!(oldest < 168 * HOUR_MS && oldest > 166 * HOUR_MS);
        let gaps = there.windows(2).map(|two| two[1].1 - two[0].1);
        assert!(gaps.max().unwrap() < HOUR_MS + 7_000, "no hour is missing");
    }

    #[test]
    fn a_rule_that_keeps_nothing_keeps_the_newest() {
        let rule = Thinning {
            seconds: 0,
            minutes: 0,
            hours: 0,
            budget: None,
        };
        let three = || [(1, 10), (2, 20), (3, 30)].map(taken).to_vec();
        assert_eq!(rule.unneeded(three(), None, 40), [1, 2]);
        assert_eq!(
            rule.unneeded(three(), Some(1), 40),
            [2],
            "and the newest good one"
        );
        assert_eq!(rule.unneeded(vec![], None, 30), [0; 0]);
    }

    #[test]
    fn over_the_budget_the_oldest_go_but_the_newest_and_the_newest_good_one() {
        let rule = Thinning {
            budget: Some(250),
            ..RULE
        };
        let four = || [(1, 10), (2, 20), (3, 30), (4, 40)].map(taken).to_vec();
        assert_eq!(rule.unneeded(four(), None, 50), [1, 2]);
        assert_eq!(rule.unneeded(four(), Some(1), 50), [2, 3]);
        let rule = Thinning {
            budget: Some(1),
            ..RULE
        };
        assert_eq!(rule.unneeded(four(), Some(3), 50), [1, 2]);
    }

    proptest! {
        #[test]
        fn any_clock_leaves_the_newest_and_never_frees_twice(
            times in prop::collection::vec(any::<u64>(), 0..40),
            now in any::<u64>(),
            seconds in any::<u64>(), minutes in any::<u64>(), hours in any::<u64>(),
            budget in prop::option::of(0u64..5000),
            good in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let rule = Thinning { seconds, minutes, hours, budget };
            let all: Vec<_> = (0u64..).zip(times).map(taken).collect();
            let good = good.map(|index| index.index(all.len().max(1)) as u64);
            let unneeded = rule.unneeded(all.clone(), good, now);
            let newest = all.iter().max_by_key(|taken| (taken.time_ms, taken.id));
            prop_assert!(newest.is_none_or(|taken| !unneeded.contains(&taken.id)));
            prop_assert!(good.is_none_or(|good| !unneeded.contains(&good)));
            let left: Vec<_> = all.into_iter().filter(|taken| !unneeded.contains(&taken.id)).collect();
            prop_assert_eq!(rule.unneeded(left, good, now), Vec::<u64>::new());
        }
    }
}
