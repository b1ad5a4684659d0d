//! Work beside what the user waits for.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tool;

/// Of 19 steps that a program can stand back. Further back its children would look as if they hung while others work.
const STEPS: &str = "15";

/// Lets this thread and all that it starts have little more than the processors' time that nobody else wants.
pub fn stand_back() -> Result<()> {
    let thread = fs::read_link("/proc/thread-self").context("Could not read /proc/thread-self")?;
    let number = thread.file_name().context("/proc/thread-self is odd")?;
    let mut renice = Command::new("renice");
    renice.args(["-n", STEPS, "-p"]).arg(number);
    let output = tool::prepare(&mut renice)
        .output()
        .context("Could not start renice")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("renice failed: {}", said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn only_the_thread_that_asks_and_its_children_stand_back() {
        let niceness = || {
            let output = Command::new("nice").output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let before = niceness();
        let stood_back = move || {
            stand_back().unwrap();
            niceness()
        };
        assert_eq!(thread::spawn(stood_back).join().unwrap(), STEPS);
        assert_eq!(niceness(), before);
    }
}
