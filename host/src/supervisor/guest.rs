//! One guest as the supervisor sees it: its VMM process, the ends of its pipes, its timers.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, read, write};

use super::agents::Agent;
use super::control::{Action, Event};
use super::healing::Healing;
use super::history::History;
use super::inquiry::Asker;
use super::launch::Launched;
use super::lifecycle::{End, Lifecycle, State};
use super::ready::ConsoleRule;
use super::sampling::Counted;
use crate::address::Mac;
use crate::config::{GuestConfig, Health, Ready};
use crate::images::Prepared;
use crate::lines::LineBuffer;
use crate::processes::{self, Usage};
use crate::snapshots::Begin;

/// Keys kept for a guest that does not read them yet.
const MAX_INPUT: usize = 4096;
/// Lines of a VMM's log kept for `log GUEST`.
const MAX_LOG: usize = 100;
const MAX_LOG_LINE: usize = 1024;
/// The longest report of a VMM: what all devices of a guest have counted.
const MAX_EVENT: usize = 256 * 1024;
/// Read in one go, so that one talkative guest does not hold up the others.
const MAX_READ: usize = 16 * 1024;
/// How long a VMM may take to end after it was told to, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// What a guest is doing.
#[derive(Debug)]
pub enum Phase {
    /// Nothing.
    Down,
    /// Its images are being found.
    Preparing,
    /// It is started again at this time.
    Waiting(Duration),
    /// Its VMM runs.
    Up(Box<Vm>),
}

/// How far the end of a run was brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    /// A snapshot is taken of it first; the time that it has for the power button, should that fail.
    Suspending(Duration),
    /// The power button was pressed.
    Asked,
    /// The VMM was told to stop.
    Told,
    /// It was killed.
    Killed,
}

/// A running VMM.
#[derive(Debug)]
pub struct Vm {
    ends: Launched,
    /// Which pipes have not ended.
    stdout_open: bool,
    stderr_open: bool,
    control_open: bool,
    input: VecDeque<u8>,
    log_line: LineBuffer,
    control_line: LineBuffer,
    rule: Option<ConsoleRule>,
    /// The text that is a sign of life, and the one that says that it has fallen.
    beat: Option<ConsoleRule>,
    fallen: Option<ConsoleRule>,
    /// How it is being stopped, and when the next means is taken.
    stopping: Option<(Stopping, Duration)>,
    /// It was asked what it has counted, and has not answered.
    is_asked: bool,
    /// Its processes, once they are known.
    processes: Vec<Pid>,
    /// What the VMM said about its end.
    last_words: Option<String>,
    /// The newest line that it logged; `log` holds lines of the host too.
    last_logged: Option<String>,
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    /// Its name, or the stand-in for one that is not usable.
    pub name: String,
    /// Its configuration; `None` if that is wrong.
    pub config: Option<GuestConfig>,
    /// Number of its console channel.
    pub channel: usize,
    /// State as last said on the console.
    pub state: State,
    /// Detail said with it.
    pub detail: String,
    /// What it is doing.
    pub phase: Phase,
    /// Its falls.
    pub life: Lifecycle,
    /// How many times its images were looked for: what comes of an earlier time is not used.
    pub preparations: u64,
    /// Its images as last found: what it claims.
    pub images: Option<Prepared>,
    /// It is to be started again when it is down, because a user asked for a restart.
    pub start_when_down: bool,
    /// What its next run begins with, if that is not as usual.
    pub begin: Option<Begin>,
    /// Its falls.
    pub(super) healing: Healing,
    /// What it says by vsock.
    pub(super) agent: Agent,
    /// The snapshot that its present run has gone on from, and whether it had said by then that it was ready.
    pub restored: Option<(u64, bool)>,
    /// Who wants to know how that goes.
    pub restore_asker: Option<Asker>,
    /// The guest that it is a fork of.
    pub fork_of: Option<String>,
    /// When the next checkpoint is due; not while one is taken.
    pub next_checkpoint: Option<Duration>,
    /// The last checkpoint failed, as was said.
    pub checkpoint_failed: bool,
    /// Addresses of its network cards, as far as they are known.
    pub addresses: Vec<(Mac, Ipv4Addr)>,
    /// Newest lines of its VMM's log.
    pub log: VecDeque<String>,
    /// What its devices have counted, as its present VMM said last.
    pub(super) counted: Option<Counted>,
    /// Its snapshots and its falls.
    pub(super) history: History,
}

/// A part of a guest's serial output, and what it says.
#[derive(Debug, Default)]
pub struct Output {
    /// The output.
    pub bytes: Vec<u8>,
    /// The guest is ready by its rule.
    pub ready: bool,
    /// It gave a sign of life.
    pub beats: bool,
    /// It says that it has fallen.
    pub fallen: bool,
}

/// How a run has ended.
#[derive(Debug)]
pub struct Over {
    /// In words.
    pub text: String,
    /// Somebody had asked for it.
    pub asked: bool,
    /// The guest itself has brought its disks in order.
    pub in_order: bool,
}

/// A pipe of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipe {
    /// Towards the guest's serial line.
    Input,
    /// From the guest's serial line.
    Output,
    /// The VMM's log.
    Log,
    /// The control socket.
    Control,
}

impl Guest {
    /// A guest that does not run.
    #[must_use]
    pub fn new(name: String, config: Option<GuestConfig>, channel: usize) -> Self {
        Self {
            name,
            config,
            channel,
            state: State::Stopped,
            detail: String::new(),
            phase: Phase::Down,
            life: Lifecycle::default(),
            preparations: 0,
            images: None,
            start_when_down: false,
            fork_of: None,
            next_checkpoint: None,
            checkpoint_failed: false,
            begin: None,
            healing: Healing::default(),
            agent: Agent::default(),
            restored: None,
            restore_asker: None,
            addresses: Vec::new(),
            log: VecDeque::new(),
            counted: None,
            history: History::default(),
        }
    }

    /// Removes the copies of what its own disk boots.
    pub fn remove_copies(&mut self) {
        if let Some(images) = &mut self.images {
            images.own = None;
        }
    }

    /// The running VMM.
    pub fn vm(&mut self) -> Option<&mut Vm> {
        match &mut self.phase {
            Phase::Up(vm) => Some(vm),
            _ => None,
        }
    }

    /// Descriptors to wait for, and what for; `true` waits for room to write.
    pub fn pipes(&self) -> impl Iterator<Item = (Pipe, BorrowedFd<'_>, bool)> {
        let vm = match &self.phase {
            Phase::Up(vm) => Some(vm.as_ref()),
            _ => None,
        };
        vm.into_iter().flat_map(|vm| {
            [
                (vm.stdout_open, Pipe::Output, vm.ends.stdout.as_fd(), false),
                (vm.stderr_open, Pipe::Log, vm.ends.stderr.as_fd(), false),
                (
                    vm.control_open,
                    Pipe::Control,
                    vm.ends.control.as_fd(),
                    false,
                ),
                (
                    !vm.input.is_empty(),
                    Pipe::Input,
                    vm.ends.stdin.as_fd(),
                    true,
                ),
            ]
            .into_iter()
            .filter_map(|(wanted, end, fd, writing)| wanted.then_some((end, fd, writing)))
        })
    }

    /// When something is due: a restart, the next means of stopping, a checkpoint, or a sign of health.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let healing = self.rules().and_then(|rules| self.healing.due(rules));
        match &self.phase {
            Phase::Waiting(until) => Some(*until),
            Phase::Up(vm) => match vm.stopping {
                Some((_, until)) => Some(until),
                None => {
                    let due = [self.next_checkpoint, healing, self.agent.due()];
                    due.into_iter().flatten().min()
                }
            },
            Phase::Down | Phase::Preparing => None,
        }
    }

    /// Appends a line to the log.
    pub fn log(&mut self, line: String) {
        if self.log.len() == MAX_LOG {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    /// Reads a part of the guest's serial output.
    pub fn read_output(&mut self) -> Output {
        let Some(vm) = self.vm() else {
            return Output::default();
        };
        let bytes = read_some(&vm.ends.stdout, &mut vm.stdout_open);
        let found =
            |rule: &mut Option<ConsoleRule>| rule.as_mut().is_some_and(|rule| rule.feed(&bytes));
        let (ready, beats, fallen) = (
            found(&mut vm.rule),
            found(&mut vm.beat),
            found(&mut vm.fallen),
        );
        if ready {
            vm.rule = None;
        }
        Output {
            bytes,
            ready,
            beats,
            fallen,
        }
    }

    /// Reads a part of the VMM's log; false when nothing was there.
    pub fn read_log(&mut self) -> bool {
        let Some(vm) = self.vm() else { return false };
        let bytes = read_some(&vm.ends.stderr, &mut vm.stderr_open);
        let mut lines = Vec::new();
        vm.log_line.push(&bytes, |line| lines.push(line));
        if let Some(line) = lines.last() {
            vm.last_logged = Some(line.clone());
        }
        lines.into_iter().for_each(|line| self.log(line));
        !bytes.is_empty()
    }

    /// Reads what the VMM reported. A line that is no event goes to the log.
    pub fn read_control(&mut self) -> Vec<Event> {
        let Some(vm) = self.vm() else {
            return Vec::new();
        };
        let bytes = read_some(&vm.ends.control, &mut vm.control_open);
        let mut lines = Vec::new();
        vm.control_line.push(&bytes, |line| lines.push(line));
        let mut events = Vec::new();
        for line in lines {
            match serde_json::from_str(&line) {
                Ok(Event::Exit { message, .. }) if !message.is_empty() => {
                    if let Some(vm) = self.vm() {
                        vm.last_words = Some(message.replace(char::is_control, " "));
                    }
                }
                Ok(event) => events.push(event),
                Err(error) => {
                    let start: String = line.chars().take(MAX_LOG_LINE).collect();
                    self.log(format!("unknown event {start:?}: {error}"));
                }
            }
        }
        events
    }

    /// The run is over.
    pub fn over(&mut self, end: End) -> Over {
        // What it wrote last is still in the pipes.
        while self.read_log() {}
        self.read_control();
        let mut last_line = None;
        let Phase::Up(mut vm) = std::mem::replace(&mut self.phase, Phase::Down) else {
            return Over {
                text: end.to_string(),
                asked: false,
                in_order: false,
            };
        };
        if let Some(line) = vm.log_line.finish() {
            vm.last_logged = Some(line.clone());
            self.log(line);
        }
        let asked = vm.stopping.is_some();
        if end != End::Clean && end != End::Reboot && !asked {
            last_line = vm.last_words.take().or_else(|| vm.last_logged.take());
        }
        let cause = match (end, vm.stopping) {
            (End::Clean, Some((Stopping::Told, _))) => "stopped".to_owned(),
            (End::Signal(_), Some((Stopping::Killed, _))) => match self.healing.suspended {
                Some(id) => format!("suspended as snapshot {id}"),
                None => "killed".to_owned(),
            },
            _ => end.to_string(),
        };
        let text = match last_line {
            Some(line) => format!("{cause}: {line}"),
            None => cause,
        };
        let by_itself = matches!(
            vm.stopping,
            None | Some((Stopping::Asked | Stopping::Suspending(_), _))
        );
        Over {
            text,
            asked,
            in_order: by_itself && matches!(end, End::Clean | End::Reboot),
        }
    }

    /// A new run began.
    pub fn up(&mut self, ends: Launched) {
        let rule = self.config.as_ref().and_then(|config| match &config.ready {
            Ready::Console(text) => Some(ConsoleRule::new(text)),
            Ready::BootTimer | Ready::Vsock(_) => None,
        });
        let rules = self.rules();
        let text = |of: fn(&Health) -> &Option<String>| {
            rules.and_then(|rules| of(rules).as_deref().map(ConsoleRule::new))
        };
        let (beat, fallen) = (
            text(|rules| &rules.heartbeat_console),
            text(|rules| &rules.fallen_console),
        );
        self.log.clear();
        self.counted = None;
        if let Some(own) = self.images.as_ref().and_then(|images| images.own.as_ref()) {
            let line = format!("boot entry {}: {}", own.origin, own.cmdline);
            self.log(line);
        }
        self.phase = Phase::Up(Box::new(Vm {
            ends,
            stdout_open: true,
            stderr_open: true,
            control_open: true,
            input: VecDeque::new(),
            log_line: LineBuffer::new(MAX_LOG_LINE),
            control_line: LineBuffer::new(MAX_EVENT),
            rule,
            beat,
            fallen,
            stopping: None,
            is_asked: false,
            processes: Vec::new(),
            last_words: None,
            last_logged: None,
        }));
    }
}

impl Vm {
    /// Our ends of it.
    #[must_use]
    pub fn ends(&self) -> &Launched {
        &self.ends
    }

    /// The VMM process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.ends.pid
    }

    /// Gives keys to the guest; false if it reads so little that some were dropped.
    pub fn type_in(&mut self, bytes: &[u8]) -> bool {
        let room = MAX_INPUT.saturating_sub(self.input.len());
        let taken = &bytes[..bytes.len().min(room)];
        self.input.extend(taken);
        self.write_input();
        taken.len() == bytes.len()
    }

    /// Writes what the guest takes.
    pub fn write_input(&mut self) {
        while !self.input.is_empty() {
            match write(&self.ends.stdin, self.input.as_slices().0) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(length) => {
                    self.input.drain(..length);
                }
                Err(Errno::EINTR) => {}
                // It is gone; the end of the process says so.
                Err(_) => self.input.clear(),
            }
        }
    }

    /// Whether its end is asked for already.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Begins to suspend: it is to be ended after a snapshot, `within` some time; if that does not come, the guest is asked
    /// and has the `limit`. False if its end was asked for before.
    pub fn suspend(&mut self, now: Duration, limit: Duration, within: Duration) -> bool {
        let first = self.stopping.is_none();
        if first {
            self.stopping = Some((Stopping::Suspending(limit), now + within));
        }
        first
    }

    /// Whether it is being suspended, and has not been told anything else since.
    #[must_use]
    pub fn is_suspending(&self) -> bool {
        matches!(self.stopping, Some((Stopping::Suspending(_), _)))
    }

    /// Begins to stop: the guest is asked, and has until `limit` after `now`.
    pub fn ask(&mut self, now: Duration, limit: Duration) {
        if matches!(self.stopping, None | Some((Stopping::Suspending(_), _))) {
            self.send(Action::PowerButton);
            self.stopping = Some((Stopping::Asked, now + limit));
        }
    }

    /// Ends the VMM at once, because something that it needs is gone: the guest has fallen, nobody has asked for that.
    pub fn fell(&mut self, now: Duration) {
        let stopping = self.stopping;
        self.kill(now);
        self.stopping = stopping;
    }

    /// Ends the VMM at once.
    pub fn kill(&mut self, now: Duration) {
        // Already gone is as good.
        let _ = killpg(self.ends.pid, Signal::SIGKILL);
        // A process in the kernel's hands dies when that lets go; nothing stronger can be done.
        self.stopping = Some((Stopping::Killed, now + Duration::from_secs(3600)));
    }

    /// The time of the present means is up: takes the next one, and says which.
    pub fn press(&mut self, now: Duration) -> Option<&'static str> {
        match self.stopping {
            Some((Stopping::Suspending(limit), until)) if until <= now => {
                self.ask(now, limit);
                Some("could not be suspended in time, its power button is pressed")
            }
            Some((Stopping::Asked, until)) if until <= now => {
                self.send(Action::Stop);
                self.stopping = Some((Stopping::Told, now + STOP_GRACE));
                Some("did not power off in time, its VMM is told to stop")
            }
            Some((Stopping::Told, until)) if until <= now => {
                self.kill(now);
                Some("its VMM did not stop, it is killed")
            }
            _ => None,
        }
    }

    /// Asks the VMM what it has counted.
    pub fn ask_metrics(&mut self) {
        self.is_asked = true;
        self.send(Action::Metrics);
    }

    /// It has answered.
    pub fn answered(&mut self) {
        self.is_asked = false;
    }

    /// Whether it has answered all that it was asked.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        !self.is_asked
    }

    /// What it uses.
    pub fn usage(&mut self) -> Usage {
        let usage = processes::usage(&self.processes);
        if usage.vcpus > 0 {
            return usage;
        }
        // It has just started.
        self.processes = processes::of_group(self.ends.pid);
        processes::usage(&self.processes)
    }

    fn send(&mut self, action: Action) {
        // A VMM that does not read its socket is told more firmly when its time is up.
        let _ = write(&self.ends.control, action.line());
    }
}

/// Reads what is there, up to [`MAX_READ`]; at the end or an error, `open` becomes false.
fn read_some(fd: impl AsFd, open: &mut bool) -> Vec<u8> {
    let mut bytes = vec![0; MAX_READ];
    let length = match read(fd, &mut bytes) {
        Ok(0) => {
            *open = false;
            0
        }
        Ok(length) => length,
        Err(Errno::EAGAIN | Errno::EINTR) => 0,
        Err(_) => {
            *open = false;
            0
        }
    };
    bytes.truncate(length);
    bytes
}
