//! The `clock` guest: an appliance whose only process is this program.
//!
//! It runs as PID 1 from an initial RAM disk, reports ready through the boot-timer port, prints the time once a
//! second and powers the machine off when the power button is pressed.

mod button;
mod machine;
mod time;

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use machine::Console;
use time::Utc;

fn main() {
    let mount_errors = machine::mount_pseudo_file_systems();
    let mut console = Console::open();
    for error in mount_errors {
        console.say(&format!("clock: {error}"));
    }

    // The time is on the console before the guest calls itself ready.
    tick(&mut console);
    if let Err(error) = machine::signal_ready() {
        console.say(&format!("clock: could not signal ready: {error}"));
    }
    if let Err(error) = button::watch() {
        console.say(&format!("clock: the power button will not work: {error}"));
    }
    loop {
        thread::sleep(until_next_second(SystemTime::now()));
        tick(&mut console);
    }
}

fn tick(console: &mut Console) {
    let now = Utc::from(SystemTime::now());
    console.say(&format!(
        "clock: {now} UTC, {} CPUs online",
        machine::online_cpus()
    ));
}

/// How long to sleep so that the next line appears just after the second has changed.
fn until_next_second(now: SystemTime) -> Duration {
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(1) - Duration::from_nanos(u64::from(since_epoch.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_to_the_start_of_the_next_second() {
        let now = UNIX_EPOCH + Duration::from_millis(1_250);
        assert_eq!(until_next_second(now), Duration::from_millis(750));
        assert_eq!(until_next_second(UNIX_EPOCH), Duration::from_secs(1));
    }
}
