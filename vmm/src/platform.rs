//! The devices every guest has: serial port, clock, reset, power, boot timer, generation ID, panic device, watchdog.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::{Bus, BusError};
use devices::legacy::acpi::{AcpiPower, GED_LEN, Ged, POWER_LEN};
use devices::legacy::boot_timer::{self, BootTimer};
use devices::legacy::generation_id::{GenerationId, GenerationIdError};
use devices::legacy::i8042::{self, I8042};
use devices::legacy::pvpanic::{self, PvPanic};
use devices::legacy::rtc::{self, Rtc};
use devices::legacy::serial::{self, Serial, SerialError, SerialInput};
use devices::legacy::watchdog::{self, Watchdog};
use devices::platform::{EventSink, PlatformEvent};
use vm_memory::GuestAddress;

use crate::acpi::{GED_PORT, POWER_PORT, WATCHDOG_PORT};
use crate::events::Events;
use crate::exit::ExitReason;
use crate::jail::opened;
use crate::jail::seccomp::Seccomp;
use crate::latch::ExitLatch;
use crate::layout::{GED_IRQ, GENERATION_ID};
use crate::memory::GuestMemory;
use crate::metrics;
use crate::output::Output;
use crate::snapshot::state::PlatformState;
use crate::vm::{Vm, VmError};

/// Why the platform cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("Cannot connect the serial port to standard input and output")]
    Serial(#[source] io::Error),
    #[error("Cannot open {path} for the serial port's output", path = .path.display())]
    SerialOutput {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    SerialState(#[from] SerialError),
    #[error("Cannot tell the guest of what it had not read")]
    Notify(#[source] io::Error),
    #[error("Cannot make the watchdog")]
    Watchdog(#[source] io::Error),
    #[error("Cannot give the guest its generation ID")]
    GenerationId(#[source] GenerationIdError),
    #[error("Cannot place a device")]
    Bus(#[source] BusError),
    #[error("Cannot connect a device's interrupt")]
    Interrupt(#[source] VmError),
}

impl From<BusError> for PlatformError {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

/// What of the platform others work with.
pub struct Platform {
    /// The serial port.
    pub serial: Arc<Mutex<Serial>>,
    /// The real-time clock.
    pub rtc: Arc<Mutex<Rtc>>,
    /// Feeds the serial port.
    pub serial_input: SerialInput,
    /// Presses the power button.
    pub ged: Arc<Mutex<Ged>>,
    /// Tells the guest that it is another one now.
    pub generation_id: GenerationId,
    /// Sees that the guest hangs.
    pub watchdog: Arc<Mutex<Watchdog>>,
}

/// Puts the devices on the buses. The serial port prints to `output` and reads from `input`.
pub fn build(
    vm: &Vm,
    memory: &Arc<GuestMemory>,
    ports: &mut Bus,
    mmio: &mut Bus,
    sink: &EventSink,
    output: &Output,
    input: File,
) -> Result<Platform, PlatformError> {
    let line = |irq| {
        vm.interrupt_line(irq)
            .map(Arc::new)
            .map_err(PlatformError::Interrupt)
    };

    let serial = Serial::new(line(serial::COM1_IRQ)?, Box::new(output.clone()))
        .map_err(PlatformError::Serial)?;
    let telemetry = metrics::process();
    telemetry.add("uart", None, serial.metrics());
    let serial = Arc::new(Mutex::new(serial));
    ports.insert(serial::COM1_PORT, serial::LEN, serial.clone())?;
    let serial_input = SerialInput::new(serial.clone(), input).map_err(PlatformError::Serial)?;

    let clock = Rtc::new();
    telemetry.add("rtc", None, clock.metrics());
    let clock = Arc::new(Mutex::new(clock));
    ports.insert(rtc::PORT, rtc::LEN, clock.clone())?;
    let keyboard = I8042::new(sink.clone());
    telemetry.add("i8042", None, keyboard.metrics());
    ports.insert(i8042::PORT, i8042::LEN, Arc::new(Mutex::new(keyboard)))?;
    let power = AcpiPower::new(sink.clone());
    ports.insert(POWER_PORT.into(), POWER_LEN, Arc::new(Mutex::new(power)))?;
    let ged = Arc::new(Mutex::new(Ged::new(line(GED_IRQ)?)));
    ports.insert(GED_PORT.into(), GED_LEN, ged.clone())?;

    let generation_id = GenerationId::new(memory.clone(), GuestAddress(GENERATION_ID), ged.clone())
        .map_err(PlatformError::GenerationId)?;
    let panic = PvPanic::new(sink.clone());
    ports.insert(pvpanic::PORT, pvpanic::LEN, Arc::new(Mutex::new(panic)))?;
    let watchdog = Watchdog::new(sink.clone()).map_err(PlatformError::Watchdog)?;
    let watchdog = Arc::new(Mutex::new(watchdog));
    ports.insert(WATCHDOG_PORT.into(), watchdog::LEN, watchdog.clone())?;

    let timer = Arc::new(Mutex::new(BootTimer::new(sink.clone())));
    ports.insert(boot_timer::PORT, boot_timer::LEN, timer.clone())?;
    mmio.insert(boot_timer::MMIO_BASE, boot_timer::LEN, timer)?;
    Ok(Platform {
        serial,
        rtc: clock,
        serial_input,
        ged,
        generation_id,
        watchdog,
    })
}

impl Platform {
    /// Lets the devices go on from `state`, but for the watchdog: the guest is still paused. The serial port prints to
    /// `output`.
    pub fn restore(&self, state: &PlatformState, output: &Output) -> Result<(), PlatformError> {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        serial
            .restore(&state.serial, Box::new(output.clone()))
            .map_err(PlatformError::SerialState)?;
        self.rtc
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .restore(&state.rtc);
        let mut ged = self.ged.lock().unwrap_or_else(PoisonError::into_inner);
        ged.restore(state.ged).map_err(PlatformError::Notify)
    }
}

/// Where the guest prints to: standard output.
pub fn output(seccomp: &Seccomp) -> Result<Output, PlatformError> {
    duplicate(&io::stdout())
        .and_then(|file| Output::new(file, seccomp.clone()))
        .map_err(PlatformError::Serial)
}

/// Where the serial port prints to: the end of the file or FIFO at `path`, which is made if there is nothing.
pub fn output_to(path: &Path, seccomp: &Seccomp) -> Result<Output, PlatformError> {
    let file = match opened::take(opened::Kind::Write, path) {
        Some(descriptor) => Ok(descriptor.into()),
        None => open_output(path),
    };
    file.and_then(|file| Output::new(file, seccomp.clone()))
        .map_err(|source| PlatformError::SerialOutput {
            path: path.into(),
            source,
        })
}

/// Opens what a later [`output_to`] needs.
pub fn open_output_ahead(path: &Path) -> Result<(), PlatformError> {
    let file = open_output(path).map_err(|source| PlatformError::SerialOutput {
        path: path.into(),
        source,
    })?;
    opened::keep(opened::Kind::Write, path, file);
    Ok(())
}

fn open_output(path: &Path) -> io::Result<File> {
    // Also for reading: so a FIFO can be opened before its reader comes.
    File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
}

/// What has no bytes.
const NULL: &str = "/dev/null";

/// Opens what a later [`serial_input`] of a port without input needs.
pub fn open_ahead() -> Result<(), PlatformError> {
    opened::keep_file(Path::new(NULL), false).map_err(PlatformError::Serial)
}

/// What is typed into the serial port: standard input, unless somebody else has it.
pub fn serial_input(taken: bool) -> Result<File, PlatformError> {
    let input = if taken {
        opened::file(Path::new(NULL), false)
    } else {
        duplicate(&io::stdin())
    };
    input.map_err(PlatformError::Serial)
}

/// A file of our own for a standard stream, without the standard library's buffer and lock.
pub fn duplicate(stream: &impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

/// What happens when the guest says that it is off, resets itself, has booted or panicked, or when it hangs.
pub fn sink(latch: Arc<ExitLatch>, events: Arc<Events>, report_boot_time: bool) -> EventSink {
    // A guest may knock as often as it likes: only the first time means anything, and only that reaches the host.
    let [booted, panicked, crashed] = [const { AtomicBool::new(false) }; 3];
    let first = |said: &AtomicBool| !said.swap(true, Ordering::Relaxed);
    Arc::new(move |event| match event {
        PlatformEvent::PowerOff => latch.set(ExitReason::PowerOff),
        PlatformEvent::Reset => latch.set(ExitReason::Reboot),
        PlatformEvent::WatchdogExpired => latch.set(ExitReason::Watchdog),
        PlatformEvent::Panicked if first(&panicked) => {
            log::warn!("The guest's kernel has panicked");
            events.panicked();
        }
        PlatformEvent::CrashLoaded if first(&crashed) => {
            log::warn!("The guest's kernel has panicked and starts its crash kernel");
            events.crash_loaded();
        }
        PlatformEvent::BootTimer if first(&booted) => {
            let us = events.boot_timer();
            if report_boot_time {
                let cpu_us = events.start().cpu_us();
                log::info!(
                    "Guest-boot-time = {us:>6} us {} ms, {cpu_us:>6} CPU us {} CPU ms",
                    us / 1000,
                    cpu_us / 1000
                );
            }
        }
        PlatformEvent::Panicked | PlatformEvent::CrashLoaded | PlatformEvent::BootTimer => {}
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::clock::StartTime;
    use crate::layout;

    #[test]
    fn the_layout_and_the_devices_agree() {
        assert_eq!(boot_timer::MMIO_BASE, layout::BOOT_TIMER);
        assert_eq!(serial::COM1_IRQ, layout::SERIAL_IRQ);
    }

    #[test]
    fn what_the_guest_says_about_itself_ends_the_run() {
        for (event, reason) in [
            (PlatformEvent::PowerOff, Some(ExitReason::PowerOff)),
            (PlatformEvent::Reset, Some(ExitReason::Reboot)),
            (PlatformEvent::WatchdogExpired, Some(ExitReason::Watchdog)),
            (PlatformEvent::BootTimer, None),
            (PlatformEvent::Panicked, None),
            (PlatformEvent::CrashLoaded, None),
        ] {
            let latch = Arc::new(ExitLatch::new().unwrap());
            let events = Arc::new(Events::new(None, StartTime::new(None, None)));
            sink(latch.clone(), events, true)(event);
            assert_eq!(latch.reason(), reason.as_ref());
        }
    }

    #[test]
    fn only_the_first_of_many_equal_words_reaches_the_host() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let events = Arc::new(Events::new(Some(theirs), StartTime::new(None, None)));
        let latch = Arc::new(ExitLatch::new().unwrap());
        let sink = sink(latch, events, false);
        for _ in 0..1000 {
            sink(PlatformEvent::BootTimer);
            sink(PlatformEvent::Panicked);
            sink(PlatformEvent::CrashLoaded);
        }
        drop(sink);
        let lines: Vec<_> = BufReader::new(ours).lines().map(Result::unwrap).collect();
        assert!(lines[0].starts_with(r#"{"event":"boot-timer""#));
        assert_eq!(
            lines[1..],
            [r#"{"event":"panicked"}"#, r#"{"event":"crash-loaded"}"#]
        );
    }
}
