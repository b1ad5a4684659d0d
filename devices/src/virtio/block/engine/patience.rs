//! Whether it is worth asking for data that may not be at hand.

/// Misses in a row after which trying is not worth it for a while.
const MISSES: u8 = 4;
/// For how many jobs.
const PAUSE: u8 = 64;

/// How trying without waiting has fared so far with one file, in one direction.
///
/// What lies in the page cache is moved by one system call without any queue, which nothing beats; but where most is not
/// there, the attempts are wasted.
#[derive(Debug, Default)]
pub(super) struct Patience {
    impossible: bool,
    misses: u8,
    pause: u8,
}

/// What to do with the next job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Try whether it works at once.
    Try,
    /// It will probably wait: queue it.
    Queue,
    /// The file system cannot say.
    Unknown,
}

impl Patience {
    pub(super) fn advice(&mut self) -> Advice {
        if self.impossible {
            Advice::Unknown
        } else if self.pause > 0 {
            self.pause -= 1;
            Advice::Queue
        } else {
            Advice::Try
        }
    }

    /// It worked.
    pub(super) fn hit(&mut self) {
        self.misses = 0;
    }

    /// It would have waited.
    pub(super) fn miss(&mut self) {
        self.misses += 1;
        if self.misses == MISSES {
            // The next miss is enough for another pause.
            self.misses -= 1;
            self.pause = PAUSE;
        }
    }

    /// The file system does not know such requests.
    pub(super) fn give_up(&mut self) {
        self.impossible = true;
    }

    /// It was given up.
    pub(super) fn is_impossible(&self) -> bool {
        self.impossible
    }

    /// Never tries again: for tests of what comes then.
    #[cfg(test)]
    pub(super) fn exhausted() -> Self {
        Self {
            pause: u8::MAX,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_misses_in_a_row_trying_pauses_and_comes_back() {
        let mut patience = Patience::default();
        for _ in 0..MISSES {
            assert_eq!(patience.advice(), Advice::Try);
            patience.miss();
        }
        for _ in 0..PAUSE {
            assert_eq!(patience.advice(), Advice::Queue);
        }
        assert_eq!(patience.advice(), Advice::Try);
        patience.miss();
        assert_eq!(patience.advice(), Advice::Queue);
    }

    #[test]
    fn a_hit_forgives_all_misses() {
        let mut patience = Patience::default();
        for _ in 0..100 {
            patience.miss();
            patience.hit();
            assert_eq!(patience.advice(), Advice::Try);
        }
        patience.give_up();
        assert_eq!(patience.advice(), Advice::Unknown);
    }
}
