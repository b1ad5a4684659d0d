//! Time since the guest's start was asked for.
#![expect(
    unsafe_code,
    reason = "the standard library does not tell the absolute value of the monotonic clock"
)]

/// A point of `CLOCK_MONOTONIC` that times are counted from.
#[derive(Clone, Copy, Debug)]
pub struct StartTime {
    monotonic_us: u64,
    /// CPU time of the parent up to its request, which the guest's CPU time is counted on top of.
    cpu_us: u64,
}

impl StartTime {
    /// From what the parent measured, or from now on.
    pub fn new(monotonic_us: Option<u64>, cpu_us: Option<u64>) -> Self {
        Self {
            monotonic_us: monotonic_us.unwrap_or_else(|| now_us(libc::CLOCK_MONOTONIC)),
            cpu_us: cpu_us.unwrap_or(0),
        }
    }

    /// Microseconds since then.
    pub fn elapsed_us(self) -> u64 {
        now_us(libc::CLOCK_MONOTONIC).saturating_sub(self.monotonic_us)
    }

    /// CPU microseconds of this process and of its parent's preparation.
    pub fn cpu_us(self) -> u64 {
        now_us(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_add(self.cpu_us)
    }
}

fn now_us(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer. Both clocks exist on every Linux; the answer stays 0 otherwise.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(nanoseconds / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_from_what_the_parent_measured() {
        let now = now_us(libc::CLOCK_MONOTONIC);
        assert!(StartTime::new(Some(now - 5_000_000), None).elapsed_us() >= 5_000_000);
        assert_eq!(
            StartTime::new(Some(u64::MAX), None).elapsed_us(),
            0,
            "a start in the future"
        );
    }

    #[test]
    fn cpu_time_of_the_parent_is_added() {
        assert!(StartTime::new(None, Some(7_000_000)).cpu_us() >= 7_000_000);
    }
}
