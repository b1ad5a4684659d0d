//! The one loop that runs the guests: it waits for the console, for every VMM's pipes, for signals and for timers, and
//! never blocks anywhere else. What may take long (reading flash, waiting for disks) is done by threads that report here.

mod commands;
mod control;
mod guest;
mod launch;
mod lifecycle;
mod ready;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::clock;
use crate::config::{GuestConfig, Machine, Source};
use crate::console::{Console, Request};
use crate::errors::chain;
use crate::images::{ImageError, Images, Prepared};
use crate::power;
use crate::shell::Shell;
use crate::timing;
use control::Event;
use guest::{Guest, Phase, Pipe};
pub use launch::{VMM_NAME, set_nonblocking};
use lifecycle::{End, Next, State};

/// What the loader found: the machine, and where its images are.
pub struct Loaded {
    /// `None` when no guests are wanted; an error leaves the console alone.
    pub machine: Option<Result<Machine, String>>,
    /// Where images are found.
    pub images: Images,
    /// Lines for the console.
    pub remarks: Vec<String>,
}

/// How the supervisor is to work.
pub struct Settings {
    /// The executable that is a VMM when it is called [`VMM_NAME`].
    pub program: PathBuf,
    /// A folder for sockets and configurations of guests.
    pub run_folder: PathBuf,
    /// Power off once every autostart guest is ready (or failed for good).
    pub power_off_when_ready: bool,
    /// We are process 1: there is no way out but poweroff and reboot.
    pub is_init: bool,
    /// Open the recovery shell at once.
    pub open_shell: bool,
    /// Say benchmarks' points in time; the counter's value when this process began.
    pub timing_since: Option<u64>,
    /// Power buttons, as event devices.
    pub buttons: Vec<OwnedFd>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The machine is to be switched off.
    PowerOff,
    /// The machine is to start anew.
    Reboot,
    /// No guest runs any more; whether one failed.
    Done {
        /// At least one guest is `failed`.
        failed: bool,
    },
}

/// News from a thread.
enum Message {
    Loaded(Box<Loaded>),
    Prepared {
        guest: usize,
        result: Result<Prepared, ImageError>,
    },
}

/// A thread's way to the loop.
#[derive(Clone)]
struct Mailbox {
    sender: Sender<Message>,
    bell: Arc<EventFd>,
}

impl Mailbox {
    fn send(&self, message: Message) {
        // Without a receiver the machine is going down; a bell that cannot be rung is ringing already.
        let _ = self.sender.send(message);
        let _ = self.bell.write(1);
    }
}

/// What can wake the loop.
#[derive(Debug, Clone, Copy)]
enum Token {
    Signal,
    Mail,
    Button(usize),
    HeadInput(usize),
    HeadOutput(usize),
    Guest(usize, Pipe),
    Shell,
}

/// The supervisor.
pub struct Supervisor {
    settings: Settings,
    console: Console,
    signals: SignalFd,
    mailbox: Mailbox,
    mail: Receiver<Message>,
    images: Arc<OnceLock<Images>>,
    guests: Vec<Guest>,
    shell: Option<Shell>,
    /// Guests were started; what `power_off_when_ready` and `Done` wait for.
    loaded: bool,
    going_down: Option<Outcome>,
}

/// Blocks the signals that the supervisor reads from a descriptor. To be called before any thread is started.
///
/// # Errors
/// The kernel refused.
pub fn block_signals() -> io::Result<()> {
    Ok(signals().thread_block()?)
}

fn signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ] {
        set.add(signal);
    }
    set
}

impl Supervisor {
    /// A supervisor without guests.
    ///
    /// # Errors
    /// The kernel refused a descriptor.
    pub fn new(settings: Settings, console: Console) -> io::Result<Self> {
        let (sender, mail) = channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            settings,
            console,
            signals: SignalFd::with_flags(
                &signals(),
                SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
            )?,
            mailbox: Mailbox {
                sender,
                bell: Arc::new(bell),
            },
            mail,
            images: Arc::default(),
            guests: Vec::new(),
            shell: None,
            loaded: false,
            going_down: None,
        })
    }

    /// Has `load` find the machine, starts its guests and runs them until the machine goes down.
    pub fn run(mut self, load: impl FnOnce() -> Loaded + Send + 'static) -> Outcome {
        let mailbox = self.mailbox.clone();
        let load = move || mailbox.send(Message::Loaded(Box::new(load())));
        if let Err(error) = thread::Builder::new().spawn(load) {
            self.console
                .say(&format!("host: cannot start a thread: {error}"));
        }
        loop {
            for token in self.wait() {
                self.handle(token);
            }
            self.timers();
            if let Some(outcome) = self.finished() {
                self.close();
                return outcome;
            }
        }
    }

    /// Waits until something can be done without blocking.
    fn wait(&self) -> Vec<Token> {
        let mut waiting: Vec<(Token, BorrowedFd<'_>, bool)> = vec![
            (Token::Signal, self.signals.as_fd(), false),
            (Token::Mail, self.mailbox.bell.as_fd(), false),
        ];
        for (index, button) in self.settings.buttons.iter().enumerate() {
            waiting.push((Token::Button(index), button.as_fd(), false));
        }
        for (index, head) in self.console.heads().iter().enumerate() {
            waiting.extend(head.input().map(|fd| (Token::HeadInput(index), fd, false)));
            waiting.extend(
                head.blocked_output()
                    .map(|fd| (Token::HeadOutput(index), fd, true)),
            );
        }
        for (index, guest) in self.guests.iter().enumerate() {
            let pipes = guest.pipes();
            waiting.extend(pipes.map(|(pipe, fd, write)| (Token::Guest(index, pipe), fd, write)));
        }
        waiting.extend(
            self.shell
                .as_ref()
                .map(|shell| (Token::Shell, shell.fd(), false)),
        );

        let mut fds: Vec<_> = waiting
            .iter()
            .map(|(_, fd, write)| {
                PollFd::new(
                    *fd,
                    if *write {
                        PollFlags::POLLOUT
                    } else {
                        PollFlags::POLLIN
                    },
                )
            })
            .collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) => fds
                .iter()
                .zip(&waiting)
                .filter(|(fd, _)| fd.any() == Some(true))
                .map(|(_, (token, ..))| *token)
                .collect(),
            // Interrupted, or out of memory for a moment: look again.
            Err(_) => Vec::new(),
        }
    }

    fn timeout(&self) -> PollTimeout {
        let Some(due) = self.guests.iter().filter_map(Guest::due).min() else {
            return PollTimeout::NONE;
        };
        // Rounded up, so that the loop does not spin through the last millisecond.
        let left = due
            .saturating_sub(clock::now())
            .as_millis()
            .saturating_add(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Signal => self.read_signals(),
            Token::Mail => {
                let _ = self.mailbox.bell.read();
                while let Ok(message) = self.mail.try_recv() {
                    match message {
                        Message::Loaded(loaded) => self.install(*loaded),
                        Message::Prepared { guest, result } => self.prepared(guest, result),
                    }
                }
            }
            Token::Button(index) => match self.settings.buttons.get(index).map(power::pressed) {
                Some(Ok(true)) => {
                    self.console.say("host: power button");
                    self.go_down(Outcome::PowerOff);
                }
                // Unplugged. The indices of the others in this round shift: they are found again in the next.
                Some(Err(_)) => drop(self.settings.buttons.remove(index)),
                Some(Ok(false)) | None => {}
            },
            Token::HeadInput(index) => {
                let Some(head) = self.console.head_mut(index) else {
                    return;
                };
                let keys = head.read();
                for request in self.console.keys(index, &keys) {
                    self.request(request);
                }
            }
            Token::HeadOutput(index) => {
                if let Some(head) = self.console.head_mut(index) {
                    head.flush();
                }
            }
            Token::Guest(index, pipe) => self.guest_pipe(index, pipe),
            Token::Shell => {
                let Some(shell) = &mut self.shell else { return };
                let channel = self.console.shell_channel();
                match shell.read() {
                    Some(bytes) => self.console.output(channel, &bytes),
                    None => self.shell = None,
                }
            }
        }
    }

    fn guest_pipe(&mut self, index: usize, pipe: Pipe) {
        let guest = &mut self.guests[index];
        match pipe {
            Pipe::Output => self.guest_output(index),
            Pipe::Log => drop(guest.read_log()),
            Pipe::Input => {
                if let Some(vm) = guest.vm() {
                    vm.write_input();
                }
            }
            Pipe::Control => {
                for event in guest.read_control() {
                    self.event(index, &event);
                }
            }
        }
    }

    fn guest_output(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        let (bytes, ready) = guest.read_output();
        let channel = guest.channel;
        self.console.output(channel, &bytes);
        if ready {
            self.became_ready(index);
        }
    }

    fn event(&mut self, index: usize, event: &Event) {
        let guest = &mut self.guests[index];
        match event {
            Event::Running { us } => guest.log(format!("first instruction after {us} us")),
            Event::BootTimer { us } => {
                guest.log(format!("boot timer after {us} us"));
                let by_timer = guest
                    .config
                    .as_ref()
                    .is_some_and(|config| config.ready == crate::config::Ready::BootTimer);
                if by_timer {
                    self.became_ready(index);
                }
            }
            Event::Exit { reason, .. } => guest.log(format!("end: {reason}")),
        }
    }

    fn became_ready(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        if guest.state == State::Starting {
            guest.life.ready();
            let counter = timing::counter();
            self.set_state(
                index,
                State::Ready,
                &format!("{} ms", clock::now().as_millis()),
            );
            if self.settings.timing_since.is_some() {
                let point = format!("{} ready", self.guests[index].name);
                self.console.say(&timing::point(&point, counter));
            }
        }
    }

    /// Says a guest's new state. Nothing else prints lines of this form.
    fn set_state(&mut self, index: usize, state: State, detail: &str) {
        let guest = &mut self.guests[index];
        guest.state = state;
        guest.detail = detail.replace(char::is_control, " ");
        let mut line = format!("daruma: {}: {state}", guest.name);
        if !guest.detail.is_empty() {
            line.push_str(": ");
            line.push_str(&guest.detail);
        }
        self.console.say(&line);
    }

    fn install(&mut self, loaded: Loaded) {
        if let Some(start) = self.settings.timing_since {
            self.console.say(&timing::point("host", start));
            let kib = timing::memory_in_use_kib().unwrap_or(0);
            self.console
                .say(&format!("daruma-timing: host memory_kib={kib}"));
        }
        for remark in &loaded.remarks {
            self.console.say(&format!("host: {remark}"));
        }
        // Only the loader's one message sets it.
        let _ = self.images.set(loaded.images);
        let machine = match loaded.machine {
            Some(Ok(machine)) => machine,
            Some(Err(reason)) => {
                self.console
                    .say(&format!("host: no machine to run: {reason}"));
                self.console.say("host: this console stays; type 'help'");
                return;
            }
            None => return self.open_shell_everywhere(),
        };
        for remark in &machine.remarks {
            self.console.say(&format!("host: {remark}"));
        }
        let mut autostart = Vec::new();
        let mut failures = Vec::new();
        for entry in machine.guests {
            let channel = self.console.add_channel(&entry.name);
            let index = self.guests.len();
            let (config, error) = match entry.config {
                Ok(config) => (Some(config), None),
                Err(error) => (None, Some(error)),
            };
            if config.as_ref().is_some_and(|config| config.autostart) {
                autostart.push(index);
            }
            self.guests.push(Guest::new(entry.name, config, channel));
            failures.extend(error.map(|error| (index, chain(&error))));
        }
        // Before the first state line: nothing stands between those.
        self.console.say(&format!(
            "host: machine {}; keys: Ctrl-] and then",
            machine.name
        ));
        let guests = self.console.guests();
        self.console.say(&format!("host: {guests}, n next, ? help"));
        for (index, reason) in failures {
            self.set_state(index, State::Failed, &reason);
        }
        self.start(&autostart, "");
        self.loaded = true;
    }

    fn open_shell_everywhere(&mut self) {
        match self.open_shell() {
            Ok(()) => {
                let channel = self.console.shell_channel();
                self.console.show_everywhere(channel);
            }
            Err(reason) => self.console.say(&format!("host: no shell: {reason}")),
        }
    }

    fn open_shell(&mut self) -> Result<(), String> {
        if self.shell.is_some() {
            return Ok(());
        }
        if !self.settings.is_init {
            return Err("this is an ordinary Linux, use one of its own".to_owned());
        }
        let flash = self.images.get().and_then(|images| images.flash.as_ref());
        let flash = flash.ok_or("it is in flash, and this machine has no Daruma flash image")?;
        self.shell = Some(Shell::open(flash).map_err(|error| chain(&error))?);
        self.console.shell_channel();
        Ok(())
    }

    /// Starts guests, all at once. Those whose images are certain to be there do not wait for disks.
    fn start(&mut self, indices: &[usize], why: &str) {
        let mut on_disks = Vec::new();
        for index in indices {
            let guest = &mut self.guests[*index];
            let Some(config) = guest.config.clone() else {
                continue;
            };
            guest.phase = Phase::Preparing;
            self.set_state(*index, State::Starting, why);
            if needs_disk(&config) {
                on_disks.push((*index, config));
            } else {
                self.prepare(vec![(*index, config)]);
            }
        }
        if !on_disks.is_empty() {
            self.prepare(on_disks);
        }
    }

    fn prepare(&mut self, guests: Vec<(usize, GuestConfig)>) {
        let mailbox = self.mailbox.clone();
        let images = Arc::clone(&self.images);
        let indices: Vec<_> = guests.iter().map(|(index, _)| *index).collect();
        let work = move || {
            // The loader set it before there was any guest.
            if let Some(images) = images.get() {
                images.prepare(guests, |guest, result| {
                    mailbox.send(Message::Prepared { guest, result });
                });
            }
        };
        if let Err(error) = thread::Builder::new().spawn(work) {
            for index in indices {
                self.guests[index].phase = Phase::Down;
                self.set_state(
                    index,
                    State::Failed,
                    &format!("cannot start a thread: {error}"),
                );
            }
        }
    }

    fn prepared(&mut self, index: usize, result: Result<Prepared, ImageError>) {
        for remark in self
            .images
            .get()
            .map(|images| images.disks.remarks())
            .unwrap_or_default()
        {
            self.console.say(&format!("host: {remark}"));
        }
        if !matches!(self.guests[index].phase, Phase::Preparing) {
            // Stopped while it was waiting for its images.
            return;
        }
        match result
            .map_err(|error| chain(&error))
            .and_then(|images| self.launch(index, images))
        {
            Ok(()) => {}
            Err(reason) => {
                self.guests[index].phase = Phase::Down;
                self.set_state(index, State::Failed, &reason);
            }
        }
    }

    fn launch(&mut self, index: usize, images: Prepared) -> Result<(), String> {
        let rivals = self
            .guests
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        for (_, other) in rivals {
            if let Some(drive) = other
                .images
                .as_ref()
                .and_then(|theirs| images.conflict(theirs))
            {
                return Err(format!(
                    "disk {} is already used by guest '{}', and one of them writes to it",
                    drive.path.display(),
                    other.name
                ));
            }
        }
        let guest = &mut self.guests[index];
        let Some(config) = &guest.config else {
            return Ok(());
        };
        let ends = launch::launch(
            &self.settings.program,
            &self.settings.run_folder,
            config,
            &images,
        )
        .map_err(|error| chain(&error))?;
        guest.images = Some(images);
        guest.up(ends);
        Ok(())
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|n| Signal::try_from(n).ok());
            match signal {
                Some(Signal::SIGCHLD) => self.reap(),
                // Ctrl-Alt-Del, when we are process 1.
                Some(Signal::SIGINT) if self.settings.is_init => {
                    self.console.say("host: Ctrl-Alt-Del");
                    self.go_down(Outcome::Reboot);
                }
                Some(_) => self.go_down(Outcome::PowerOff),
                None => {}
            }
        }
    }

    /// Takes in every child that ended; as process 1, the orphans of others too.
    fn reap(&mut self) {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let (Some(pid), Some(end)) = (status.pid(), End::from_status(status)) else {
                continue;
            };
            let index = self
                .guests
                .iter_mut()
                .position(|guest| guest.vm().is_some_and(|vm| vm.pid() == pid));
            if let Some(index) = index {
                self.ended(index, end);
            } else if self.shell.as_ref().is_some_and(|shell| shell.pid() == pid) {
                self.shell = None;
                let channel = self.console.shell_channel();
                self.console
                    .output(channel, b"\r\n(the shell ended; Ctrl-] 0 for the host)\r\n");
            }
        }
    }

    fn ended(&mut self, index: usize, end: End) {
        // What the guest printed last comes before the line that says how it ended.
        loop {
            let (bytes, ready) = self.guests[index].read_output();
            if bytes.is_empty() {
                break;
            }
            let channel = self.guests[index].channel;
            self.console.output(channel, &bytes);
            if ready {
                self.became_ready(index);
            }
        }
        for event in self.guests[index].read_control() {
            self.event(index, &event);
        }
        let guest = &mut self.guests[index];
        let (text, asked) = guest.over(end);
        let policy = guest.config.as_ref().map(|config| config.restart);
        let Some(policy) = policy.filter(|_| !asked && self.going_down.is_none()) else {
            let start = std::mem::take(&mut guest.start_when_down) && self.going_down.is_none();
            self.set_state(index, State::Stopped, &text);
            if start {
                self.guests[index].life.forgive();
                self.start(&[index], "");
            }
            return;
        };
        match guest.life.ended(end, policy) {
            Next::Again(delay) => {
                let when = match delay.as_secs() {
                    0 => "at once".to_owned(),
                    seconds => format!("in {seconds} s"),
                };
                guest.phase = Phase::Waiting(clock::now() + delay);
                self.set_state(
                    index,
                    State::Stopped,
                    &format!("{text}; starts again {when}"),
                );
            }
            Next::Rest => self.set_state(index, State::Stopped, &text),
            Next::GiveUp => {
                let falls = guest.life.falls();
                let detail = if falls >= lifecycle::MAX_FALLS {
                    format!("ended {falls} times without getting ready, last: {text}")
                } else {
                    text
                };
                self.set_state(index, State::Failed, &detail);
            }
        }
    }

    fn timers(&mut self) {
        let now = clock::now();
        for index in 0..self.guests.len() {
            let guest = &mut self.guests[index];
            match &mut guest.phase {
                Phase::Waiting(until) if *until <= now => self.start(&[index], "again"),
                Phase::Up(vm) => {
                    if let Some(step) = vm.press(now) {
                        let line = format!("host: {}: {step}", guest.name);
                        self.console.say(&line);
                    }
                }
                _ => {}
            }
        }
    }

    /// Begins to shut every guest down. A second call takes them down at once.
    fn go_down(&mut self, outcome: Outcome) {
        let now = clock::now();
        if self.going_down.is_some() {
            self.console.say("host: asked twice, every guest is killed");
            self.guests
                .iter_mut()
                .filter_map(Guest::vm)
                .for_each(|vm| vm.kill(now));
            return;
        }
        self.going_down = Some(outcome);
        for index in 0..self.guests.len() {
            self.stop(index, now);
        }
    }

    /// Has one guest stop, in order.
    fn stop(&mut self, index: usize, now: Duration) {
        let guest = &mut self.guests[index];
        let limit = guest
            .config
            .as_ref()
            .map_or(Duration::ZERO, |config| config.stop_timeout);
        match &mut guest.phase {
            Phase::Up(vm) => vm.ask(now, limit),
            Phase::Preparing | Phase::Waiting(_) => {
                guest.phase = Phase::Down;
                self.set_state(index, State::Stopped, "before it ran");
            }
            Phase::Down => {}
        }
    }

    fn finished(&mut self) -> Option<Outcome> {
        if self.going_down.is_none() && self.settings.power_off_when_ready && self.loaded {
            let wanted = self
                .guests
                .iter()
                .filter(|guest| guest.config.as_ref().is_none_or(|config| config.autostart));
            let over = |guest: &Guest| {
                matches!(guest.state, State::Failed | State::Stopped)
                    && matches!(guest.phase, Phase::Down)
            };
            if wanted
                .clone()
                .all(|guest| guest.state == State::Ready || over(guest))
            {
                let failed = wanted.filter(|guest| over(guest)).count();
                if failed > 0 {
                    self.console
                        .say(&format!("host: {failed} of the guests will never be ready"));
                }
                self.go_down(Outcome::PowerOff);
            }
        }
        let down = self
            .guests
            .iter()
            .all(|guest| matches!(guest.phase, Phase::Down));
        if !down {
            return None;
        }
        let failed = self.guests.iter().any(|guest| guest.state == State::Failed);
        match self.going_down {
            Some(outcome) => Some(outcome),
            None if self.loaded && !self.settings.is_init => Some(Outcome::Done { failed }),
            None => None,
        }
    }

    fn close(&mut self) {
        self.shell = None;
        if let Some(images) = self.images.get() {
            images.disks.unmount();
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Input {
                head,
                channel,
                bytes,
            } => {
                let taken = match self
                    .guests
                    .iter_mut()
                    .find(|guest| guest.channel == channel)
                {
                    Some(guest) => guest.vm().is_some_and(|vm| vm.type_in(&bytes)),
                    None => self
                        .shell
                        .as_mut()
                        .is_some_and(|shell| shell.type_in(&bytes)),
                };
                if !taken {
                    self.console.bell(head);
                }
            }
            Request::Command { head, line } => self.command(head, &line),
            Request::Interrupt { head } if self.settings.is_init => {
                self.console
                    .reply(head, "type 'poweroff' or 'reboot' to end, 'help' for more");
            }
            Request::Interrupt { .. } => self.go_down(Outcome::PowerOff),
        }
    }
}

/// Whether a guest has an image on a disk that may have to be waited for, or one that others may write to as well: those
/// are found one after another, so that the first in the file is the one that keeps a disk.
fn needs_disk(config: &GuestConfig) -> bool {
    let on_disk = |source: &Source| matches!(source, Source::Disk(_));
    on_disk(&config.kernel)
        || config.initrd.as_ref().is_some_and(on_disk)
        || config
            .disks
            .iter()
            .any(|disk| !matches!(disk.source, Source::Flash(_)))
}
