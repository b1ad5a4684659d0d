//! Process 1 must not end: the kernel would panic. If the supervisor falls nevertheless, it stands up again as a new
//! program in the same process, ends the guests of the old one and starts them anew.

use std::fmt::Display;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;
use std::{env, panic};

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};

/// Environment variable that counts the falls of process 1.
const COUNT: &str = "DARUMA_FALLS";
/// After so many the machine starts anew from firmware.
const MAX_FALLS: u32 = 3;

/// How often process 1 fell since the kernel started.
pub fn falls() -> u32 {
    env::var(COUNT)
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// Makes every panic stand up again. What an earlier program left running is ended.
pub fn install() {
    panic::set_hook(Box::new(|info| {
        stand_up(&info);
    }));
    if falls() > 0 {
        // All processes but this one.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    }
}

/// Says what happened on the kernel's console and begins anew.
pub fn stand_up(reason: &dyn Display) -> ! {
    let falls = falls() + 1;
    say(&format!(
        "host: process 1 fell ({falls} of {MAX_FALLS}): {reason}"
    ));
    if falls < MAX_FALLS {
        let error = Command::new("/proc/self/exe")
            .env(COUNT, falls.to_string())
            .exec();
        say(&format!("host: cannot start again: {error}"));
    }
    sync();
    say("host: the machine starts anew in 10 s");
    sleep(Duration::from_secs(10));
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Nothing is left to try; at least the kernel lives on and so do the guests.
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// The console may be what fell: this goes around it.
#[expect(
    clippy::print_stderr,
    reason = "the last resort of process 1; its standard error is the kernel's console"
)]
fn say(line: &str) {
    eprintln!("\r\n{line}\r");
}
