//! The guest's side: says that an init was reached, then does the work that its command line names.
//!
//! Work is a list of phases. Before a phase the guest says `@ready <phase>` on its console and waits for a line, so
//! that the laboratory can look at its counters; after it, `@done <JSON>`; after the last, `@end`. With the word `alone`
//! it waits for nobody.

mod aio;
mod blk;
mod dirty;
mod net;
mod phase;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::phase::Phases;
use crate::{MARKER, system};

/// I/O port of the boot timer and the byte that stops it (Firecracker's boot timer device).
const BOOT_TIMER: (u64, u8) = (0x3f0, 123);

/// How long a guest lives that falls.
const BEFORE_FALL: Duration = Duration::from_secs(30);

/// Between two words of a guest that talks all the time.
const TICK: Duration = Duration::from_micros(50);

/// Says that init was reached, stops the boot timer, works, powers off.
pub fn main() -> ! {
    if let Ok(mut port) = OpenOptions::new().write(true).open("/dev/port")
        && port.seek(SeekFrom::Start(BOOT_TIMER.0)).is_ok()
    {
        // A VMM without a boot timer ignores the port; the marker below serves for it.
        let _ = port.write_all(&[BOOT_TIMER.1]);
    }
    if let Ok(mut console) = File::create("/dev/console") {
        let _ = console.write_all(MARKER.as_bytes());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    match work(&words) {
        Ok(()) => println!("@end"),
        Err(error) => println!("@error {error:#}"),
    }
    if words.iter().any(|word| word == "stay") {
        loop {
            std::thread::park();
        }
    }
    system::power_off();
}

/// Says something all the time, and so as soon as it goes on from a snapshot.
fn tick() -> Result<()> {
    let mut console = File::create("/dev/console")?;
    loop {
        console.write_all(b".")?;
        let start = Instant::now();
        while start.elapsed() < TICK {}
    }
}

/// Ends process 1 after a while, and with it the kernel.
#[expect(clippy::exit, reason = "to end is the work")]
fn fall() -> ! {
    std::thread::sleep(BEFORE_FALL);
    std::process::exit(1)
}

fn work(words: &[String]) -> Result<()> {
    let mut phases = Phases::new(words.iter().any(|word| word == "alone"));
    for word in words {
        match word.as_str() {
            "blk" => blk::work(&mut phases)?,
            "net" => net::work(&mut phases)?,
            "tick" => tick()?,
            "dirty" => dirty::work()?,
            "fall" => fall(),
            "alone" | "stay" => {}
            other => bail!("No work is called {other}"),
        }
    }
    Ok(())
}
