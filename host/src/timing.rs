//! Points in time for benchmarks, said on the console when the kernel command line has `daruma.timing`.
//!
//! They are values of the time-stamp counter, which starts at reset: the one clock that the ROM stage, the kernel and
//! process 1 share. Where the machine's clock counts instructions, it counts in nanoseconds.

use std::fs;

/// The time-stamp counter now.
#[must_use]
#[expect(unsafe_code, reason = "the intrinsic has no safe form")]
pub fn counter() -> u64 {
    // SAFETY: RDTSC reads no memory, exists on every x86-64 and is not disabled for processes by Linux unless asked.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Memory of the host that is in use and could not be given away, in KiB.
#[must_use]
pub fn memory_in_use_kib() -> Option<u64> {
    in_use(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn in_use(meminfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    field("MemTotal:")?.checked_sub(field("MemAvailable:")?)
}

/// One point, as benchmarks read it.
#[must_use]
pub fn point(what: &str, counter: u64) -> String {
    format!("daruma-timing: {what} tsc={counter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let text = "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   400 kB\n";
        assert_eq!(in_use(text), Some(600));
        assert_eq!(in_use("MemTotal: 1000 kB\n"), None);
    }

    #[test]
    fn counter_goes_on() {
        let first = counter();
        assert!(counter() > first);
    }
}
