//! How far a guest goes back that has fallen: a little further at each fall, until nothing is left to try.

use crate::config::Health;

/// What a guest that has fallen stands up from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// A good snapshot, so many back from the newest.
    Back(u32),
    /// Its disks as it left them.
    Cold,
    /// Its images.
    Factory,
    /// Nothing: it stays down.
    Failed,
}

/// Counts the falls of a guest in a row.
#[derive(Debug, Default)]
pub struct Ladder {
    falls: u32,
}

impl Ladder {
    /// It fell once more: what is next.
    pub fn fell(&mut self, rules: &Health) -> Rung {
        self.falls = self.falls.saturating_add(1);
        let cold = rules.restores.saturating_add(1);
        let factory = cold.saturating_add(rules.cold_boots);
        match self.falls {
            fall if fall < cold => Rung::Back(steps(fall)),
            fall if fall < factory => Rung::Cold,
            fall if fall == factory && rules.factory_reset => Rung::Factory,
            _ => Rung::Failed,
        }
    }

    /// There is no good snapshot so far back: it boots from its disks instead, if that is still to be tried.
    pub fn nothing_further_back(&mut self, rules: &Health) {
        self.falls = self.falls.max(rules.restores.saturating_add(1));
    }

    /// It has been healthy for long enough, or somebody has it started by hand.
    pub fn forgive(&mut self) {
        self.falls = 0;
    }

    /// Falls in a row.
    #[must_use]
    pub fn falls(&self) -> u32 {
        self.falls
    }
}

/// 0, 1, 2, 4, 8 … for the first, second … fall.
fn steps(fall: u32) -> u32 {
    match fall.checked_sub(2) {
        None => 0,
        Some(doublings) => 1_u32.checked_shl(doublings).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn climb(rules: &Health, falls: usize) -> Vec<Rung> {
        let mut ladder = Ladder::default();
        (0..falls).map(|_| ladder.fell(rules)).collect()
    }

    #[test]
    fn a_guest_that_keeps_falling_goes_further_back_each_time_and_ends_failed() {
        let rules = Health {
            restores: 5,
            cold_boots: 2,
            factory_reset: true,
            ..Health::default()
        };
        let back = [0, 1, 2, 4, 8].map(Rung::Back);
        let rest = [
            Rung::Cold,
            Rung::Cold,
            Rung::Factory,
            Rung::Failed,
            Rung::Failed,
        ];
        assert_eq!(climb(&rules, 10), [&back[..], &rest].concat());
    }

    #[test]
    fn what_is_switched_off_is_left_out() {
        let rules = Health {
            restores: 0,
            cold_boots: 0,
            ..Health::default()
        };
        assert_eq!(climb(&rules, 2), [Rung::Failed, Rung::Failed]);
        let rules = Health {
            restores: 0,
            cold_boots: 0,
            factory_reset: true,
            ..Health::default()
        };
        assert_eq!(climb(&rules, 2), [Rung::Factory, Rung::Failed]);
    }

    #[test]
    fn one_without_snapshots_so_far_back_boots_from_its_disks_once() {
        let rules = Health::default();
        let mut ladder = Ladder::default();
        assert_eq!(ladder.fell(&rules), Rung::Back(0));
        ladder.nothing_further_back(&rules);
        assert_eq!(ladder.fell(&rules), Rung::Failed);
        ladder.forgive();
        assert_eq!(ladder.fell(&rules), Rung::Back(0));
    }

    #[test]
    fn any_number_of_falls_ends_in_words_not_in_a_panic() {
        let rules = Health {
            restores: u32::MAX,
            ..Health::default()
        };
        let mut ladder = Ladder {
            falls: u32::MAX - 2,
        };
        assert_eq!(ladder.fell(&rules), Rung::Back(u32::MAX));
        ladder.fell(&rules);
        assert_eq!(ladder.fell(&rules), Rung::Failed);
    }
}
