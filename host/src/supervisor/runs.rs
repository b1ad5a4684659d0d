//! The runs of the guests: how one is started, what becomes of it, what follows its end.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::control::Event;
use super::guest::Phase;
use super::keeping::Asked;
use super::lifecycle::{self, End, Next, State};
use super::{Message, Supervisor, launch};
use crate::clock;
use crate::config::{GuestConfig, Kernel, Ready, Source};
use crate::errors::chain;
use crate::images::{ImageError, Prepared};
use crate::snapshots::{Begin, Opened, What};
use crate::timing;

impl Supervisor {
    pub(super) fn event(&mut self, index: usize, event: &Event) {
        let guest = &mut self.guests[index];
        match event {
            Event::Running { us } => {
                guest.log(format!("first instruction after {us} us"));
                // The VMM has loaded them: tens of megabytes of the host's memory are free again.
                guest.remove_copies();
            }
            Event::Restored { us } => {
                guest.log(format!("restored after {us} us"));
                if let Some((snapshot, ready)) = guest.restored {
                    self.restored(index, Ok(snapshot));
                    // It said so before the snapshot was taken.
                    if ready {
                        self.became_ready(index);
                    }
                }
            }
            Event::BootTimer { us } => {
                guest.log(format!("boot timer after {us} us"));
                let by_timer = guest
                    .config
                    .as_ref()
                    .is_some_and(|config| config.ready == Ready::BootTimer);
                if by_timer {
                    self.became_ready(index);
                }
            }
            Event::Panicked => {
                guest.log("the kernel has panicked".to_owned());
                self.fell(index, "its kernel has panicked");
            }
            Event::CrashLoaded => {
                guest.log("the kernel has panicked and starts its crash kernel".to_owned());
            }
            Event::Metrics { metrics } => self.counted(index, metrics),
            Event::Exit { reason, .. } => guest.log(format!("end: {reason}")),
        }
    }

    pub(super) fn became_ready(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        if matches!(guest.state, State::Starting | State::Restoring) {
            guest.life.ready();
            let every = guest.config.as_ref().and_then(|config| config.checkpoints);
            guest.next_checkpoint = every.map(|checkpoints| clock::now() + checkpoints.every);
            let counter = timing::counter();
            let mut detail = format!("{} ms", clock::now().as_millis());
            if let Some((snapshot, _)) = guest.restored {
                detail.push_str(&format!(", from snapshot {snapshot}"));
            }
            self.set_state(index, State::Ready, &detail);
            self.stands(index);
            self.expect_agent(index);
            if self.settings.timing_since.is_some() {
                let point = format!("{} ready", self.guests[index].name);
                self.console.say(&timing::point(&point, counter));
            }
        }
    }

    /// Says a guest's new state. Nothing else prints lines of this form.
    pub(super) fn set_state(&mut self, index: usize, state: State, detail: &str) {
        let guest = &mut self.guests[index];
        guest.state = state;
        self.changed = true;
        guest.detail = detail.replace(char::is_control, " ");
        let mut line = format!("daruma: {}: {state}", guest.name);
        if !guest.detail.is_empty() {
            line.push_str(": ");
            line.push_str(&guest.detail);
        }
        self.console.say(&line);
    }

    /// Starts guests, all at once. Those whose images are certain to be there do not wait for disks.
    pub(super) fn start(&mut self, indices: &[usize], why: &str) {
        let mut on_disks = Vec::new();
        for index in indices {
            let is_left = self.is_left(*index);
            let guest = &mut self.guests[*index];
            let Some(config) = guest.config.clone() else {
                continue;
            };
            guest.phase = Phase::Preparing;
            guest.preparations += 1;
            guest.restored = None;
            match &guest.begin {
                // It runs.
                _ if is_left => {}
                None | Some(Begin::Left | Begin::Resume | Begin::Factory { .. }) => {
                    self.set_state(*index, State::Starting, why);
                }
                // Which one is not known yet.
                Some(Begin::Back { .. }) => {}
                Some(Begin::From(origin)) => {
                    let mut detail = format!("snapshot {}", origin.snapshot);
                    if let Some(other) = &origin.fork_of {
                        detail.push_str(&format!(" of {other}"));
                    }
                    self.set_state(*index, State::Restoring, &detail);
                }
            }
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
        let has_store = self.keeping.has_disks();
        let numbers: Vec<_> = self.guests.iter().map(|guest| guest.preparations).collect();
        let work = move || {
            // The loader set it before there was any guest.
            if let Some(images) = images.get() {
                images.prepare(guests, has_store, |guest, result| {
                    mailbox.send(Message::Prepared {
                        guest,
                        preparation: numbers.get(guest).copied().unwrap_or_default(),
                        result,
                    });
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

    pub(super) fn prepared(
        &mut self,
        index: usize,
        preparation: u64,
        result: Result<Prepared, ImageError>,
    ) {
        for remark in self
            .images
            .get()
            .map(|images| images.disks.remarks())
            .unwrap_or_default()
        {
            self.console.say(&format!("host: {remark}"));
        }
        let guest = &self.guests[index];
        if !matches!(guest.phase, Phase::Preparing) || guest.preparations != preparation {
            // Stopped while it was waiting for its images, and perhaps started again since.
            return;
        }
        match result
            .map_err(|error| chain(&error))
            .and_then(|images| self.launch(index, images))
        {
            Ok(()) => {}
            Err(reason) => {
                self.disown(index);
                self.guests[index].phase = Phase::Down;
                self.set_state(index, State::Failed, &reason);
                self.restored(index, Err(reason));
            }
        }
    }

    fn launch(&mut self, index: usize, images: Prepared) -> Result<(), String> {
        let rivals = self
            .guests
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        let has_store = self.keeping.has_disks();
        for (_, other) in rivals {
            if let Some(drive) = other
                .images
                .as_ref()
                .and_then(|theirs| images.conflict(theirs, has_store))
            {
                return Err(format!(
                    "disk {} is already used by guest '{}', and one of them writes to it",
                    drive.path.display(),
                    other.name
                ));
            }
        }
        self.guests[index].images = Some(images);
        if self.adopt(index) {
            return Ok(());
        }
        if self.keeping.has_disks() && self.open_disks(index)? {
            // It goes on when they are ready.
            return Ok(());
        }
        self.launch_with(index, None)
    }

    /// Starts the VMM, with what the store has for it.
    pub(super) fn launch_with(
        &mut self,
        index: usize,
        opened: Option<Opened>,
    ) -> Result<(), String> {
        let heals = self.heals(index);
        let sockets = self.open_sockets(index)?;
        let guest = &mut self.guests[index];
        let (Some(config), Some(images)) = (&guest.config, &guest.images) else {
            return Ok(());
        };
        let kept = launch::Kept {
            opened: opened.as_ref(),
            channel: self.keeping.channel(&guest.name),
        };
        let outside = launch::Outside {
            taps: self.networks.taps(index),
            sockets,
        };
        let ends = launch::launch(
            &self.settings.program,
            &self.settings.run_folder,
            config,
            images,
            outside,
            kept,
        )
        .map_err(|error| chain(&error))?;
        let lost = opened.as_ref().and_then(|opened| opened.lost);
        let load = opened.and_then(|opened| opened.load);
        guest.agent.expected = load.as_ref().is_some_and(|load| load.agent);
        guest.restored = load.map(|load| (load.snapshot, load.ready));
        guest.healing.lost = lost;
        if let Some(rules) = guest.rules().cloned() {
            let restored = guest.restored.is_some();
            guest.healing.begun(clock::now(), &rules, restored, heals);
        }
        guest.up(ends);
        self.changed = true;
        Ok(())
    }

    pub(super) fn ended(&mut self, index: usize, end: End) {
        // What the guest printed last comes before the line that says how it ended.
        while self.guest_output(index) {}
        for event in self.guests[index].read_control() {
            self.event(index, &event);
        }
        self.close_disks(index);
        let guest = &mut self.guests[index];
        guest.remove_copies();
        let over = guest.over(end);
        let (was_ready, fallen) = (guest.state == State::Ready, guest.healing.fallen.take());
        let has_fallen = fallen.is_some();
        let text = fallen.unwrap_or(over.text);
        guest.healing.over();
        guest.agent.close();
        // While it is about to go on from a snapshot, this is the end of the run before.
        if guest.begin.is_none() {
            self.restored(index, Err(text.clone()));
        }
        let heals = self.heals(index);
        if heals && over.in_order && !has_fallen {
            let guest = self.guests[index].name.clone();
            // Noted or not, the next run begins as it should.
            let _ = self.keeping.ask(What::Left { guest }, Asked::Nothing);
        }
        let guest = &mut self.guests[index];
        let policy = guest.config.as_ref().map(|config| config.restart);
        let Some(policy) = policy.filter(|_| !over.asked && self.going_down.is_none()) else {
            let start = std::mem::take(&mut guest.start_when_down) && self.going_down.is_none();
            self.set_state(index, State::Stopped, &text);
            if start {
                self.forgive(index);
                self.start(&[index], "");
            }
            return;
        };
        let fell = match end {
            _ if has_fallen => true,
            End::Clean => false,
            // What the guest asks for is granted, but not time and again.
            End::Reboot => !was_ready,
            // There is another rung, unless this was the last.
            End::Refused => guest.restored.is_some(),
            End::TripleFault | End::Watchdog | End::Error(_) | End::Signal(_) => true,
        };
        if fell {
            guest.history.fell();
        }
        if heals && fell {
            return self.stand_up(index, text);
        }
        // Nothing is gone back to: it boots.
        guest.begin = heals.then_some(Begin::Left);
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

    /// Somebody has it started by hand: the count of its falls begins anew.
    pub(super) fn forgive(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        guest.life.forgive();
        guest.healing.forgive();
    }

    pub(super) fn timers(&mut self) {
        self.settle_inquiries();
        let now = clock::now();
        self.pictures(now);
        for index in 0..self.guests.len() {
            let guest = &mut self.guests[index];
            let due = guest.next_checkpoint.is_some_and(|due| due <= now);
            match &mut guest.phase {
                Phase::Waiting(until) if *until <= now => self.start(&[index], "again"),
                Phase::Up(vm) => {
                    if let Some(step) = vm.press(now) {
                        let line = format!("host: {}: {step}", guest.name);
                        self.console.say(&line);
                    }
                    if due {
                        self.checkpoint(index, now);
                    }
                    self.check_health(index, now);
                }
                _ => {}
            }
        }
    }

    /// The machine goes down, and a guest with it.
    pub(super) fn put_down(&mut self, index: usize, now: Duration) {
        if !self.suspend(index, now) {
            self.stop(index, now);
        }
    }

    /// Has one guest stop, in order.
    pub(super) fn stop(&mut self, index: usize, now: Duration) {
        let guest = &mut self.guests[index];
        let limit = guest
            .config
            .as_ref()
            .map_or(Duration::ZERO, |config| config.stop_timeout);
        match &mut guest.phase {
            Phase::Up(vm) => {
                guest.agent.power_off();
                vm.ask(now, limit);
            }
            Phase::Preparing | Phase::Waiting(_) => {
                guest.phase = Phase::Down;
                self.set_state(index, State::Stopped, "before it ran");
            }
            Phase::Down => {}
        }
    }
}

/// Whether a guest has an image on a disk that may have to be waited for, or one that others may write to as well: those
/// are found one after another, so that the first in the file is the one that keeps a disk.
fn needs_disk(config: &GuestConfig) -> bool {
    let on_disk = |source: &Source| matches!(source, Source::Disk(_));
    matches!(&config.kernel, Kernel::File(source) if on_disk(source))
        || config.initrd.as_ref().is_some_and(on_disk)
        || config
            .disks
            .iter()
            .any(|disk| !matches!(disk.source, Source::Flash(_)))
}
