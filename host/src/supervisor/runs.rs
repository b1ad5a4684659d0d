//! The runs of the guests: how one is started, what becomes of it, what follows its end.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::control::Event;
use super::guest::Phase;
use super::lifecycle::{self, End, Next, State};
use super::{Message, Supervisor, launch};
use crate::clock;
use crate::config::{GuestConfig, Kernel, Ready, Source};
use crate::errors::chain;
use crate::images::{ImageError, Prepared};
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
            Event::Panicked => guest.log("the kernel has panicked".to_owned()),
            Event::CrashLoaded => {
                guest.log("the kernel has panicked and starts its crash kernel".to_owned());
            }
            Event::Metrics { metrics } => self.counted(index, metrics),
            Event::Exit { reason, .. } => guest.log(format!("end: {reason}")),
        }
    }

    pub(super) fn became_ready(&mut self, index: usize) {
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
    pub(super) fn set_state(&mut self, index: usize, state: State, detail: &str) {
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

    /// Starts guests, all at once. Those whose images are certain to be there do not wait for disks.
    pub(super) fn start(&mut self, indices: &[usize], why: &str) {
        let mut on_disks = Vec::new();
        for index in indices {
            let guest = &mut self.guests[*index];
            let Some(config) = guest.config.clone() else {
                continue;
            };
            guest.phase = Phase::Preparing;
            guest.preparations += 1;
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
        let numbers: Vec<_> = self.guests.iter().map(|guest| guest.preparations).collect();
        let work = move || {
            // The loader set it before there was any guest.
            if let Some(images) = images.get() {
                images.prepare(guests, |guest, result| {
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
            self.networks.taps(index),
        )
        .map_err(|error| chain(&error))?;
        guest.images = Some(images);
        guest.up(ends);
        Ok(())
    }

    pub(super) fn ended(&mut self, index: usize, end: End) {
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
        guest.remove_copies();
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

    pub(super) fn timers(&mut self) {
        self.settle_inquiries();
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

    /// Has one guest stop, in order.
    pub(super) fn stop(&mut self, index: usize, now: Duration) {
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
