//! Time in which the host let others run: no check has taken it.

use std::fs::File;
use std::time::Duration;

use crate::system;
use crate::words;

/// However busy the host is, so much of the time that passes counts: a guest that has fallen there is found out later, but
/// it is.
const COUNTS_AT_LEAST: u32 = 5;
/// Unit of the kernel's numbers, as every architecture shows them to programs.
const TICK: Duration = Duration::from_millis(10);

/// What the kernel says was stolen from its processors.
pub struct Stolen {
    stat: Option<File>,
    processors: u32,
    /// Ticks, of all processors.
    last: u64,
}

impl Stolen {
    /// Opens the kernel's account, as far as there is one.
    pub fn open() -> Self {
        let mut stolen = Self {
            stat: File::open("/proc/stat").ok(),
            processors: system::processors(),
            last: 0,
        };
        stolen.last = stolen.now().unwrap_or(0);
        stolen
    }

    /// How much of the time that has `passed` since the last call the guest had, as a mean over its processors.
    pub fn left(&mut self, passed: Duration) -> Duration {
        let Some(now) = self.now() else { return passed };
        let ticks = now.saturating_sub(std::mem::replace(&mut self.last, now));
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        let stolen = TICK.saturating_mul(ticks) / self.processors;
        passed.saturating_sub(stolen).max(passed / COUNTS_AT_LEAST)
    }

    fn now(&self) -> Option<u64> {
        let mut buffer = [0; 256];
        words::text(self.stat.as_ref(), &mut buffer).and_then(ticks)
    }
}

/// The eighth number of the line of all processors in `/proc/stat`.
fn ticks(text: &str) -> Option<u64> {
    let (line, _) = text.split_once('\n')?;
    let numbers = line.strip_prefix("cpu ")?;
    numbers.split_whitespace().nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_account_is_read_and_nothing_else_is() {
        let text = "cpu  71 2 3 44 5 6 7 890 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(ticks(text), Some(890));
        assert_eq!(ticks("cpu  71 2 3 44 5 6 7 89"), None);
        assert_eq!(ticks("cpu  1 2 3\n"), None);
        assert_eq!(ticks("intr 1\n"), None);
        assert!(Stolen::open().now().is_some());
    }

    #[test]
    fn what_was_stolen_does_not_count_but_for_a_fifth() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stat");
        let account = |ticks: u64| {
            let text = format!("cpu  1 2 3 4 5 6 7 {ticks} 0 0\n");
            std::fs::write(&path, text).unwrap();
        };
        account(1000);
        let mut stolen = Stolen {
            stat: File::open(&path).ok(),
            processors: 2,
            last: 1000,
        };
        let second = Duration::from_secs(1);
        assert_eq!(stolen.left(second), second);
        account(1080);
        assert_eq!(stolen.left(second), Duration::from_millis(600));
        account(1280);
        assert_eq!(stolen.left(second), Duration::from_millis(200));
        // An account that begins anew, after a restore.
        account(3);
        assert_eq!(stolen.left(second), second);
        account(u64::MAX);
        assert_eq!(stolen.left(second), Duration::from_millis(200));
    }
}
