//! Process 1 of the machine: makes a Linux of the bare kernel, runs the supervisor, switches the machine off.

mod boot_options;
mod load;
mod mounts;
mod rescue;

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};

use crate::console::{Console, Head};
use crate::power;
use crate::supervisor::{self, Ledger, Outcome, Settings, Supervisor};
use crate::timing;
use boot_options::BootOptions;

const RUN_FOLDER: &str = "/run/daruma";

/// Runs the machine. Never returns: process 1 has nowhere to go.
pub fn main() -> ! {
    let start = timing::counter();
    rescue::install();
    match run(start) {
        Ok(outcome) => switch_off(outcome),
        Err(error) => rescue::stand_up(&error),
    }
}

fn run(start: u64) -> std::io::Result<Outcome> {
    supervisor::block_signals()?;
    let left = rescue::handed_over();
    let left = left.map_or_else(Ledger::default, |text| Ledger::read(&text));
    if rescue::falls() > 0 {
        rescue::end_all_but(&left.processes());
    }
    let run_folder = PathBuf::from(RUN_FOLDER);
    let flash_folder = run_folder.join("flash");
    let mut remarks = if left.is_empty() {
        let remarks = mounts::mount_all();
        mounts::mount_flash_copies(&flash_folder);
        remarks
    } else {
        // All is mounted, and guests have their folders there.
        rescue::remove_copies(&flash_folder);
        Vec::new()
    };

    let options = BootOptions::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    // Ctrl-Alt-Del reaches us as SIGINT, so that guests are shut down first.
    if let Err(error) = set_cad_enabled(false) {
        remarks.push(format!("Ctrl-Alt-Del will reboot at once: {error}"));
    }
    if rescue::falls() > 0 {
        let guests = if left.is_empty() {
            "its guests start anew"
        } else {
            "its guests live on"
        };
        remarks.push(format!("process 1 fell and stands again; {guests}"));
    }
    remarks.extend(options.remarks.iter().cloned());

    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let settings = Settings {
        program: program.clone(),
        run_folder: run_folder.clone(),
        power_off_when_ready: options.power_off_when_ready,
        is_init: true,
        open_shell: options.recovery,
        timing_since: options.timing.then_some(start),
        buttons: power::buttons(),
        left,
    };
    let supervisor = Supervisor::new(settings, Console::new(heads()))?;
    Ok(supervisor.run(move || load::load(&options, program, &flash_folder, &run_folder, remarks)))
}

/// The serial line, the screen, and whatever else the kernel has its console on.
fn heads() -> Vec<Head> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let mut names = vec!["ttyS0", "tty1"];
    let others = active.split_whitespace().filter(|name| *name != "tty0");
    for name in others {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
        .into_iter()
        .filter_map(|name| Head::device(&Path::new("/dev").join(name)).ok())
        .collect()
}

fn switch_off(outcome: Outcome) -> ! {
    sync();
    // Whatever an orphan still holds open keeps file systems from being clean.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    sync();
    let mode = match outcome {
        Outcome::Reboot => RebootMode::RB_AUTOBOOT,
        Outcome::PowerOff | Outcome::Done { .. } => RebootMode::RB_POWER_OFF,
    };
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => rescue::stand_up(&error),
    }
}
