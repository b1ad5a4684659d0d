//! The one loop that runs the guests: it waits for the console, for every VMM's pipes, for signals and for timers, and
//! never blocks anywhere else. What may take long (reading flash, waiting for disks) is done by threads that report here.

mod agents;
mod commands;
mod control;
mod forks;
mod guest;
mod healing;
mod history;
mod inquiry;
mod keeping;
mod ladder;
mod launch;
mod ledger;
mod lifecycle;
mod ready;
mod reports;
mod runs;
mod sampling;
mod taking;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::clock;
use crate::config::Machine;
use crate::console::{Console, Request};
use crate::errors::chain;
use crate::images::{ImageError, Images, Prepared};
use crate::net::{Networks, News, Place};
use crate::own_kernel::OwnKernel;
use crate::remote::{self, Server};
use crate::shell::Shell;
use crate::snapshots::Opened;
use crate::timing;
use guest::{Guest, Phase};
use inquiry::Inquiry;
use keeping::{Keeping, StorePlace};
pub use launch::{VMM_NAME, set_nonblocking};
pub use ledger::Ledger;
use lifecycle::State;

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
    /// What an earlier supervisor in the same process has left running.
    pub left: Ledger,
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
        /// Which of the guest's preparations this was.
        preparation: u64,
        result: Result<Prepared, ImageError>,
    },
    Network(News),
    Store(StorePlace),
    /// What a guest boots whose disk is in the store.
    Own {
        guest: usize,
        preparation: u64,
        opened: Box<Opened>,
        result: Result<OwnKernel, ImageError>,
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

/// The supervisor.
pub struct Supervisor {
    settings: Settings,
    console: Console,
    signals: SignalFd,
    mailbox: Mailbox,
    mail: Receiver<Message>,
    images: Arc<OnceLock<Images>>,
    guests: Vec<Guest>,
    networks: Networks,
    /// The networks in words.
    network_state: String,
    shell: Option<Shell>,
    /// Takes commands of other processes; `None` if the host refused it.
    server: Option<Server>,
    inquiries: Vec<Inquiry>,
    /// Snapshots.
    keeping: Keeping,
    /// When heads that show all guests show them anew.
    next_picture: Duration,
    /// What is left of an earlier supervisor and not gone on with yet.
    left: Ledger,
    /// What the next supervisor is to know has changed.
    changed: bool,
    /// What befell the guests, and when.
    journal: VecDeque<(Duration, String)>,
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
    pub fn new(mut settings: Settings, console: Console) -> io::Result<Self> {
        let (sender, mail) = channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            changed: !settings.left.is_empty(),
            left: std::mem::take(&mut settings.left),
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
            networks: Networks::default(),
            network_state: String::new(),
            shell: None,
            server: None,
            inquiries: Vec::new(),
            keeping: Keeping::default(),
            next_picture: Duration::ZERO,
            journal: VecDeque::new(),
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
        self.listen();
        loop {
            for token in self.wait() {
                self.handle(token);
            }
            self.timers();
            self.write_ledger();
            if let Some(outcome) = self.finished() {
                self.close();
                return outcome;
            }
        }
    }

    /// Takes commands of other processes from now on.
    fn listen(&mut self) {
        let path = remote::socket_in(&self.settings.run_folder);
        let folder = std::fs::create_dir_all(&self.settings.run_folder);
        match folder.and_then(|()| Server::bind(&path)) {
            Ok(server) => self.server = Some(server),
            Err(error) => self.console.say(&format!(
                "host: commands come from the console only, {} cannot be had: {error}",
                path.display()
            )),
        }
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
        self.open_store(&machine.name, &machine.store);
        let mailbox = self.mailbox.clone();
        let place = if self.settings.is_init {
            Place::Rom
        } else {
            Place::Linux
        };
        let taps = self.left.taps();
        self.networks = Networks::start(&machine, place, taps, move |news| {
            mailbox.send(Message::Network(news));
        });
        let mut failures = Vec::new();
        for entry in machine.guests {
            let channel = self.console.add_channel(&entry.name);
            let index = self.guests.len();
            let (config, error) = match entry.config {
                Ok(config) => (Some(config), None),
                Err(error) => (None, Some(error)),
            };
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
        let mut wanted = self.wanted();
        wanted.extend(self.know_forks());
        self.start(&wanted, "");
        self.loaded = true;
        self.changed = true;
    }

    fn network(&mut self, news: News) {
        match news {
            News::Address {
                guest,
                mac,
                address,
            } => {
                if let Some(guest) = self.guests.get_mut(guest) {
                    guest.addresses.retain(|(other, _)| *other != mac);
                    guest
                        .addresses
                        .extend(address.map(|address| (mac, address)));
                }
            }
            News::State(state) => self.network_state = state,
            News::Remark(remark) => self.console.say(&format!("host: {remark}")),
        }
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
        // What becomes of each guest is said in lines.
        self.console.leave_tables();
        for index in 0..self.guests.len() {
            self.put_down(index, now);
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
        self.keeping = Keeping::default();
        self.networks = Networks::default();
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
