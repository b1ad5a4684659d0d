//! The command line: what to run, and how.

mod args;
mod confine;
mod descriptor;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use api::model::Document;
use clap::Parser;
use clap::error::ErrorKind;
use log::LevelFilter;
use nix::sys::socket::{setsockopt, sockopt};

use self::args::Args;
use self::descriptor::take_socket;
use crate::api_thread::ApiSocket;
use crate::clock::StartTime;
use crate::config::{NetConfig, VmConfig, firecracker};
use crate::controller::{Controller, Load, Settings};
use crate::events::Events;
use crate::exit::{CODE_BAD_ARGUMENTS, CODE_BAD_CONFIGURATION, ExitReason};
use crate::jail::seccomp::{self, Seccomp, SeccompError, ThreadKind};
use crate::live::{self, protocol::MAX_DATA};
use crate::logger::{self, LogError, chain};
use crate::machine::MemorySource;
use crate::{metrics, mmds, snapshot, terminal, userfault};

/// An error and the exit code for it.
#[derive(Debug)]
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

/// What the command line says of the guest.
enum Guest {
    /// The API will tell.
    Later,
    /// It is to be started.
    Boot {
        document: Box<Document>,
        /// For a jail.
        config: Option<Box<VmConfig>>,
    },
    /// It goes on.
    GoOn(Box<Load>),
}

impl Guest {
    fn read(args: &Args) -> Result<Self, Failure> {
        let wrong = |error: &dyn Error| Failure::new(CODE_BAD_CONFIGURATION, error);
        if let Some(path) = &args.config_file {
            let document = firecracker::load(path).map_err(|error| wrong(&error))?;
            let config = match args.jail {
                true => Some(firecracker::guest(&document, args.enable_pci)),
                false => None,
            };
            let config = config.transpose().map_err(|error| wrong(&error))?;
            return Ok(Self::Boot {
                document: Box::new(document),
                config: config.map(Box::new),
            });
        }
        let Some(path) = &args.load_file else {
            return Ok(Self::Later);
        };
        let request = firecracker::load(path).map_err(|error| wrong(&error))?;
        let load = Load::read(&request).map_err(|error| Failure::new(error.code(), &error))?;
        if args.no_api && !load.resumes() {
            let path = path.display();
            return Err(Failure {
                message: format!(
                    "{path} does not say \"resume_vm\": true, and without an API nobody could let the guest go on"
                ),
                code: CODE_BAD_CONFIGURATION,
            });
        }
        Ok(Self::GoOn(Box::new(load)))
    }

    /// What is known of how it is to be run.
    fn document(&self) -> Option<&Document> {
        match self {
            Self::Boot { document, .. } => Some(document),
            // How the process logs that made the snapshot was its own business.
            Self::GoOn(_) | Self::Later => None,
        }
    }

    /// What is opened for it ahead of a jail.
    fn config(&self) -> Option<&VmConfig> {
        match self {
            Self::Boot { config, .. } => config.as_deref(),
            Self::GoOn(load) => Some(load.config()),
            Self::Later => None,
        }
    }

    /// Network interfaces that it is given later, of which the host's ends are opened now.
    fn successors(&self) -> impl Iterator<Item = &NetConfig> {
        let load = match self {
            Self::GoOn(load) => Some(load),
            Self::Boot { .. } | Self::Later => None,
        };
        load.into_iter().flat_map(|load| load.successors())
    }

    /// Whether its memory may come from a program: now, or when the API says so.
    fn may_be_restored(&self, args: &Args) -> bool {
        match self {
            Self::Boot { .. } => false,
            Self::GoOn(load) => matches!(load.memory(), MemorySource::Program(_)),
            Self::Later => !args.no_api,
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
    if let Some(path) = &args.describe_snapshot {
        return describe(&args.id, path);
    }
    // Before anything else: the parent's clock runs.
    let start = StartTime::new(args.start_time_us, args.start_time_cpu_us);
    let (control, store) = match take_sockets(&args) {
        Ok(sockets) => sockets,
        Err(failure) => return report(&args.id, &failure, None),
    };
    // A copy for what goes wrong before the machine has its own.
    let early = control.as_ref().and_then(|socket| socket.try_clone().ok());
    match run(&args, start, (control, store), early.as_ref()) {
        Ok(reason) => ExitCode::from(&reason),
        Err(failure) => report(
            &args.id,
            &failure,
            early.map(|s| Events::new(Some(s), start)),
        ),
    }
}

/// The control socket, and that to the store.
type Sockets = (Option<UnixStream>, Option<UnixStream>);

fn take_sockets(args: &Args) -> Result<Sockets, Failure> {
    let (control, store) = (args.control_fd, args.store_fd);
    if control.is_some() && control == store {
        let what = "--control-fd and --store-fd are the same descriptor";
        return Err(Failure::arguments(what));
    }
    let control = control.map(|fd| take_socket("--control-fd", fd));
    let store = store.map(|fd| take_socket("--store-fd", fd)).transpose()?;
    if let Some(store) = &store {
        // As much as the host permits: nothing but speed depends on it.
        let _ = setsockopt(store, sockopt::SndBuf, &MAX_DATA);
    }
    Ok((control.transpose()?, store))
}

/// Says of which version the snapshot is whose state is at `path`.
fn describe(id: &str, path: &Path) -> ExitCode {
    match snapshot::file::version(path) {
        Ok(version) => {
            // There is nobody to tell if this cannot be written.
            let _ = writeln!(io::stdout(), "v{version}.0.0");
            ExitCode::SUCCESS
        }
        Err(error) => report(id, &Failure::new(1, &error), None),
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

fn run(
    args: &Args,
    start: StartTime,
    (control, store): Sockets,
    early: Option<&UnixStream>,
) -> Result<ExitReason, Failure> {
    let guest = Guest::read(args)?;
    if args.jail {
        let kept = confine::numbers(control.iter().chain(early).chain(&store));
        confine::close_others(&kept, &guest)?;
    }
    if guest.may_be_restored(args) {
        userfault::open_ahead();
    }
    // Before all that takes time: a client may connect, and waits for its answer.
    let api = match args.no_api {
        true => None,
        false => Some(bind(args)?),
    };
    let document = guest.document();
    open_log(args, document)?;
    let section = document.and_then(|all| all.metrics.as_ref());
    let path = section.map(|section| &section.metrics_path);
    if let Some(path) = args.metrics_path.as_ref().or(path) {
        let opened = metrics::process().write_to(path);
        opened.map_err(|error| Failure::new(CODE_BAD_CONFIGURATION, &error))?;
    }
    let limit = args.mmds_size_limit;
    let limit = limit.unwrap_or(args.http_api_max_payload_size);
    mmds::process().store().set_limit(limit);
    if let Some(path) = &args.metadata {
        mmds::load(mmds::process(), path)
            .map_err(|error| Failure::new(CODE_BAD_CONFIGURATION, &error))?;
    }
    let startup = &metrics::process().api.server;
    startup.process_startup_time_us.set(start.elapsed_us());
    startup.process_startup_time_cpu_us.set(start.cpu_us());
    if let Some(socket) = &control {
        seccomp::set_parent(socket.as_raw_fd());
    }
    if args.jail {
        confine::enter(args, &guest, early)?;
    }
    if guest.may_be_restored(args) {
        userfault::make_ahead();
    }
    let store = store.map(live::Channel::new);
    let (control, event_socket) = split(control)?;
    let events = Arc::new(Events::new(event_socket, start));
    end_on_panic(events.clone());
    let settings = Settings {
        id: args.id.clone(),
        pci: args.enable_pci,
        report_boot_time: args.boot_timer,
        seccomp: filters(args).map_err(|error| Failure::new(1, &error))?,
        events: events.clone(),
    };
    let seccomp = settings.seccomp.clone();
    let (mut controller, desk) =
        Controller::new(settings, control, store).map_err(|error| Failure::new(1, &error))?;
    // Before the start: this thread's filter is narrower from then on, and that of a thread it starts with it.
    let api = api.map(|api| api.serve(desk, seccomp)).transpose();
    let api = api.map_err(|error| Failure::new(1, &error))?;
    let started = match guest {
        Guest::Later => Ok(()),
        Guest::Boot { document, .. } => {
            controller.load(*document);
            let started = controller.start();
            started.map_err(|error| Failure::new(error.code(), &error))
        }
        Guest::GoOn(load) => {
            let started = controller.go_on(*load);
            started.map_err(|error| Failure::new(error.code(), &error))
        }
    };
    if let Err(failure) = started {
        // Who waits for an answer is told, and the socket goes.
        drop(controller);
        if let Some(api) = api {
            api.end();
        }
        return Err(failure);
    }
    let reason = controller.run();
    match &reason {
        ExitReason::Error(message) => log::error!("{message}"),
        reason => log::info!("{reason}"),
    }
    metrics::process().flush();
    events.exit(&reason);
    if let Some(api) = api {
        api.end();
    }
    Ok(reason)
}

fn bind(args: &Args) -> Result<ApiSocket, Failure> {
    let socket = ApiSocket::bind(&args.api_sock, args.http_api_max_payload_size);
    socket.map_err(|error| Failure::new(1, &error))
}

/// Starts logging as the command line says, or else the configuration.
fn open_log(args: &Args, document: Option<&Document>) -> Result<(), Failure> {
    let failure = |error: LogError| Failure::new(CODE_BAD_CONFIGURATION, &error);
    let section = document.and_then(|document| document.logger.clone());
    let section = logger::Change::try_from(&section.unwrap_or_default()).map_err(failure)?;
    let level = args.level.or(section.level).unwrap_or(LevelFilter::Info);
    let path = args.log_path.as_ref().or(section.path.as_ref());
    logger::init(&args.id, level, path.map(PathBuf::as_path)).map_err(failure)?;
    let rest = logger::Change {
        path: None,
        level: None,
        show_level: args.show_level.then_some(true).or(section.show_level),
        show_origin: args.show_log_origin.then_some(true).or(section.show_origin),
        module: args.module.clone().or(section.module),
        format: section.format,
    };
    logger::configure(&rest).map_err(failure)
}

/// The control socket's two directions, neither of which blocks.
fn split(socket: Option<UnixStream>) -> Result<(Option<UnixStream>, Option<UnixStream>), Failure> {
    let Some(socket) = socket else {
        return Ok((None, None));
    };
    let other = socket
        .set_nonblocking(true)
        .and_then(|()| socket.try_clone());
    let other = other.map_err(|error| Failure {
        message: format!("Cannot use the control socket: {error}"),
        code: 1,
    })?;
    Ok((Some(socket), Some(other)))
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
