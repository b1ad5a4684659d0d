//! The command line: Firecracker's flags that make sense here, and `--control-fd`.
#![expect(
    unsafe_code,
    reason = "takes over the control socket, which comes as a number"
)]

use std::error::Error;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use log::LevelFilter;

use crate::clock::StartTime;
use crate::config::firecracker;
use crate::events::Events;
use crate::exit::{CODE_BAD_ARGUMENTS, CODE_BAD_CONFIGURATION, ExitReason};
use crate::jail::seccomp::{self, Seccomp, SeccompError, ThreadKind};
use crate::logger::{self, chain};
use crate::machine::{Machine, Options};
use crate::metrics;
use crate::terminal::{self, RawMode};

/// Runs one guest on KVM. The guest's serial port is standard input and output.
#[derive(Debug, Parser)]
#[command(name = "daruma-vmm", version, disable_help_subcommand = true)]
struct Args {
    /// Name of the guest, for the log
    #[arg(long, default_value = "anonymous-instance", value_parser = parse_id)]
    id: String,

    /// The guest's configuration: JSON in Firecracker's format
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,

    /// Serve no API socket
    #[arg(long)]
    no_api: bool,

    /// Path of the API socket (comes later: refused)
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,

    /// Put virtio devices on PCI, with MSI-X, instead of MMIO
    #[arg(long)]
    enable_pci: bool,

    /// Log the time at which the guest writes to the boot timer
    #[arg(long)]
    boot_timer: bool,

    /// When the start was asked for: CLOCK_MONOTONIC in microseconds
    #[arg(long, value_name = "US")]
    start_time_us: Option<u64>,

    /// CPU time in microseconds that the parent spent on the start
    #[arg(long, value_name = "US")]
    start_time_cpu_us: Option<u64>,

    /// Log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    log_path: Option<PathBuf>,

    /// Log level: off, error, warning, info, debug or trace
    #[arg(long, value_parser = parse_level)]
    level: Option<LevelFilter>,

    /// Show the level in log lines (they have it unless the configuration says otherwise)
    #[arg(long, hide = true)]
    show_level: bool,

    /// Show the place in the source that log lines come from
    #[arg(long)]
    show_log_origin: bool,

    /// Log only records of modules whose path begins so
    #[arg(long, value_name = "PATH")]
    module: Option<String>,

    /// Filter no system calls
    #[arg(long)]
    no_seccomp: bool,

    /// Write metrics to this file or FIFO: one line of JSON a minute, and one at the end
    #[arg(long, value_name = "FILE")]
    metrics_path: Option<PathBuf>,

    /// Descriptor of a connected Unix stream socket: events out and actions in, as JSON lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    control_fd: Option<RawFd>,
}

fn parse_id(text: &str) -> Result<String, String> {
    let permitted = |character: char| character.is_ascii_alphanumeric() || character == '-';
    if text.is_empty() || text.len() > 64 || !text.chars().all(permitted) {
        return Err("permitted are 1 to 64 letters, digits and \"-\"".into());
    }
    Ok(text.into())
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    logger::parse_level(text)
        .ok_or_else(|| "permitted are off, error, warning, info, debug and trace".to_owned())
}

/// An error and the exit code for it.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(code: u8, error: &dyn Error) -> Self {
        Self {
            message: chain(error),
            code,
        }
    }

    fn arguments(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: CODE_BAD_ARGUMENTS,
        }
    }
}

/// The whole program: `arguments` as a process gets them, with its name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            // There is nobody to tell if this cannot be written.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(CODE_BAD_ARGUMENTS),
            };
        }
    };
    // Before anything else: the parent's clock runs.
    let start = StartTime::new(args.start_time_us, args.start_time_cpu_us);
    let control = match args.control_fd.map(take_socket).transpose() {
        Ok(control) => control,
        Err(failure) => return report(&args.id, &failure, None),
    };
    // A copy for what goes wrong before the machine has its own.
    let early = control.as_ref().and_then(|socket| socket.try_clone().ok());
    match run(&args, start, control) {
        Ok(reason) => ExitCode::from(&reason),
        Err(failure) => report(
            &args.id,
            &failure,
            early.map(|s| Events::new(Some(s), start)),
        ),
    }
}

/// Says once, in the log and to the parent, why there is no guest.
fn report(id: &str, failure: &Failure, events: Option<Events>) -> ExitCode {
    // Without effect if the log is open already.
    let _ = logger::init(id, LevelFilter::Info, None);
    log::error!("{}", failure.message);
    if let Some(events) = events {
        events.exit(&ExitReason::Error(failure.message.clone()));
    }
    ExitCode::from(failure.code)
}

fn run(args: &Args, start: StartTime, control: Option<UnixStream>) -> Result<ExitReason, Failure> {
    if args.api_sock.is_some() || !args.no_api {
        return Err(Failure::arguments(
            "The API socket is not built yet: use --no-api together with --config-file",
        ));
    }
    let Some(path) = &args.config_file else {
        return Err(Failure::arguments(
            "--no-api needs --config-file: there is no other way to say what to run",
        ));
    };
    let document =
        firecracker::load(path).map_err(|error| Failure::new(CODE_BAD_CONFIGURATION, &error))?;
    let config = firecracker::guest(&document, args.enable_pci)
        .map_err(|error| Failure::new(CODE_BAD_CONFIGURATION, &error))?;
    let logger_section = document.logger.unwrap_or_default();
    let level = match (args.level, &logger_section.level) {
        (Some(level), _) => level,
        (None, Some(text)) => parse_level(text).map_err(|permitted| Failure {
            message: format!("logger.level is \"{text}\", {permitted}"),
            code: CODE_BAD_CONFIGURATION,
        })?,
        (None, None) => LevelFilter::Info,
    };
    let log_path = args.log_path.as_ref().or(logger_section.log_path.as_ref());
    logger::init(&args.id, level, log_path.map(PathBuf::as_path))
        .map_err(|error| Failure::new(CODE_BAD_CONFIGURATION, &error))?;
    let change = logger::Change {
        show_level: args.show_level.then_some(true),
        show_origin: args.show_log_origin.then_some(true),
        module: args.module.clone(),
        ..logger::Change::default()
    };
    let from_file = api::model::Logger {
        log_path: None,
        level: None,
        ..logger_section
    };
    logger::Change::try_from(&from_file)
        .and_then(|section| logger::configure(&section))
        .and_then(|()| logger::configure(&change))
        .map_err(|error| Failure::new(CODE_BAD_CONFIGURATION, &error))?;

    let section = document.metrics.as_ref();
    let metrics_path = args.metrics_path.as_ref();
    if let Some(path) = metrics_path.or_else(|| section.map(|section| &section.metrics_path)) {
        let opened = metrics::process().write_to(path);
        opened.map_err(|error| Failure::new(CODE_BAD_CONFIGURATION, &error))?;
    }
    let startup = &metrics::process().api.server;
    startup.process_startup_time_us.set(start.elapsed_us());
    startup.process_startup_time_cpu_us.set(start.cpu_us());

    if let Some(socket) = &control {
        seccomp::set_parent(socket.as_raw_fd());
    }
    let seccomp = filters(args).map_err(|error| Failure::new(1, &error))?;
    let options = Options {
        start,
        seccomp,
        control,
        report_boot_time: args.boot_timer,
    };
    let failure = |error: crate::machine::MachineError| {
        let code = if error.is_configuration() {
            CODE_BAD_CONFIGURATION
        } else {
            1
        };
        Failure::new(code, &error)
    };
    let machine = Machine::new(&config, options).map_err(failure)?;
    let events = machine.events();
    end_on_panic(events.clone());
    let raw_mode = RawMode::enter().map_err(|error| Failure {
        message: format!("Cannot switch the terminal to raw mode: {error}"),
        code: 1,
    })?;
    let result = machine.run();
    drop(raw_mode);
    let reason = result.map_err(failure)?;
    match &reason {
        ExitReason::Error(message) => log::error!("{message}"),
        reason => log::info!("{reason}"),
    }
    metrics::process().flush();
    events.exit(&reason);
    Ok(reason)
}

/// The filters of system calls, of which that of the whole process is in force from now on.
fn filters(args: &Args) -> Result<Seccomp, SeccompError> {
    if args.no_seccomp {
        log::warn!("System calls are not filtered");
        return Ok(Seccomp::off());
    }
    let seccomp = Seccomp::on()?;
    seccomp.enter(ThreadKind::Process)?;
    Ok(seccomp)
}

/// Takes over the control socket from the parent.
fn take_socket(fd: RawFd) -> Result<UnixStream, Failure> {
    let mut kind: libc::c_int = 0;
    let mut length: libc::socklen_t = 4;
    // SAFETY: `kind` is a valid place of `length` bytes for the answer.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    if result != 0 || kind != libc::SOCK_STREAM {
        return Err(Failure::arguments(format!(
            "--control-fd {fd} is not a connected stream socket"
        )));
    }
    // SAFETY: it is open, it is above the standard streams, and the parent gave it to this process for this use: nothing
    // else here owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned.into())
}

/// A panic on any thread ends the process, gives the terminal back and tells the parent: no guest with half a VMM.
fn end_on_panic(events: Arc<Events>) {
    panic::set_hook(Box::new(move |info| {
        terminal::restore();
        let message = format!("The VMM panicked: {info}");
        log::error!("{message}");
        metrics::process().vmm.panic_count.count();
        metrics::process().flush_without_waiting();
        events.exit_without_waiting(&ExitReason::Error(message));
        #[expect(
            clippy::exit,
            reason = "other threads still run the guest, and nothing may unwind past this point"
        )]
        std::process::exit(1)
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn ids_follow_firecrackers_rule() {
        assert!(parse_id("guest-1").is_ok());
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(parse_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels_are_firecrackers() {
        assert_eq!(parse_level("Warning"), Ok(LevelFilter::Warn));
        assert_eq!(parse_level("Info"), Ok(LevelFilter::Info));
        assert!(parse_level("loud").is_err());
    }

    #[test]
    fn a_descriptor_that_is_no_socket_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let failure = take_socket(file.as_raw_fd()).unwrap_err();
        assert_eq!(failure.code, CODE_BAD_ARGUMENTS);
    }

    #[test]
    fn causes_are_told_once() {
        let error = crate::machine::MachineError::Boot(crate::boot::BootError::NotAFile {
            path: "k".into(),
        });
        assert_eq!(
            chain(&error),
            "Cannot boot the guest: k is not a regular file"
        );
    }
}
