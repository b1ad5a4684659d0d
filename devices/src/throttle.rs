//! Logging what a guest does wrong, without letting the guest fill the log.

use std::fmt::Display;

use crate::metrics::Counter;

/// Lines that all throttles of the process have kept from the log.
static SUPPRESSED: Counter = Counter::new();

/// How many lines all throttles of the process have kept from the log.
pub fn suppressed() -> u64 {
    SUPPRESSED.get()
}

/// Counts a guest's offences and logs the first, second, fourth, eighth … of them.
///
/// A guest decides how often it misbehaves; the log grows with the logarithm of that. No clock is
/// involved, so the same run logs the same lines. Each line says how many there were: the others are not lost, but
/// counted, also in [`suppressed`].
#[derive(Debug, Default)]
pub struct Throttle {
    count: u64,
}

impl Throttle {
    /// Counts one more offence and logs it if its turn has come.
    pub fn warn(&mut self, what: impl Display) {
        self.count = self.count.saturating_add(1);
        if self.count.is_power_of_two() {
            log::warn!("{what} (occurrence {})", self.count);
        } else {
            SUPPRESSED.count();
        }
    }

    /// How many offences there were so far.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fmt;

    use super::*;

    /// Counts how often it is written out.
    struct Written<'a>(&'a Cell<u32>);

    impl Display for Written<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            f.write_str("offence")
        }
    }

    struct Formatting;

    impl log::Log for Formatting {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let _ = record.args().to_string();
        }

        fn flush(&self) {}
    }

    #[test]
    fn log_grows_with_the_logarithm() {
        log::set_boxed_logger(Box::new(Formatting)).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        let lines = Cell::new(0);
        let mut throttle = Throttle::default();
        let before = suppressed();
        for _ in 0..1000 {
            throttle.warn(Written(&lines));
        }
        assert_eq!((throttle.count(), lines.get()), (1000, 10));
        // Other tests of the process may add to it.
        assert!(suppressed() - before >= 990);
    }
}
