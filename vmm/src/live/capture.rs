//! One snapshot after the other, as the store asks for them.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use api::model::Document;

use super::changes::Changes;
use super::error::{CaptureError, WireError};
use super::frames::{Frames, Zeroes};
use super::guard::{Guard, GuardError};
use super::protocol::{
    End, Failure, HEADER, Kept, Memory, Message, Order, PAGE, Report, Take, encode_state,
};
use super::wire::{PATIENCE, Wire};
use crate::controller::{Desk, Order as MainOrder};
use crate::logger::chain;
use crate::machine::{Brake, Holder};
use crate::metrics;
use crate::snapshot::state::State;
use crate::snapshot::{About, Subject, file, memory};

/// So many pages are copied while the guest stands still: a millisecond's work.
const FEW: usize = (4 << 20) / PAGE;
/// So many, where they cannot be protected: better a longer pause than no snapshot.
const MANY: usize = (64 << 20) / PAGE;
/// How often what has changed meanwhile is sent while the guest runs.
const ROUNDS: usize = 4;
/// How long the store has to freeze the disks: the guest stands still.
const FREEZE_PATIENCE: Duration = Duration::from_secs(1);
/// How long the store has to read what was sent before the guest is stopped: that it freezes the disks comes behind.
const READ_PATIENCE: Duration = Duration::from_millis(100);
/// How long it waits at a time for the store to take something.
const TURN: Duration = Duration::from_secs(1);
/// How long the main thread has to say what the guest is made of.
const DESCRIBE_PATIENCE: Duration = Duration::from_secs(10);

/// Takes snapshots for the store.
pub(super) struct Live {
    wire: Wire,
    subject: Arc<Subject>,
    brake: Arc<Brake>,
    desk: Desk,
    device: Option<File>,
    /// What was sent and is not kept yet, by its number.
    pending: Option<(u64, Changes)>,
    /// How many times the store has yet to say that disks are frozen.
    unfrozen: u32,
}

/// A snapshot under way.
struct Capture {
    take: Take,
    changes: Changes,
    pages: u64,
    /// The store has given it up.
    lost: Option<String>,
}

/// Pages that are sent when the guest goes on.
enum Rest {
    /// With what could have protected them, whose end takes time.
    Copied(Frames, Option<Guard>),
    Protected(Guard),
}

/// What there is when the guest goes on.
struct Instantly {
    state: State,
    rest: Rest,
    pause: Duration,
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Live {
    /// Over `wire`, of `subject`, which `brake` stops. The main thread at `desk` knows what it is made of. With `device`,
    /// memory can be write-protected.
    pub fn new(
        wire: Wire,
        subject: Arc<Subject>,
        brake: Arc<Brake>,
        desk: Desk,
        device: Option<File>,
    ) -> Self {
        Self {
            wire,
            subject,
            brake,
            desk,
            device,
            pending: None,
            unfrozen: 0,
        }
    }

    /// Does what the store asks for, until that is no longer possible; says why.
    pub fn run(&mut self) -> WireError {
        loop {
            let done = match self.wire.receive(None) {
                Ok(Some(order)) => self.obey(order),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                // What was sent is nobody's any more.
                self.pending = None;
                self.wire.end();
                return error;
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), WireError> {
        match order {
            Order::Take(take) => {
                // The store does not want the one before, or it would have said so.
                self.pending = None;
                self.answer(take)
            }
            Order::Frozen => self.thaw(),
            Order::Kept(Kept { number }) => {
                if let Some((_, changes)) = self.pending.take_if(|pending| pending.0 == number) {
                    changes.settle();
                }
                Ok(())
            }
            Order::Lost(Failure { number, reason }) => {
                if self
                    .pending
                    .take_if(|pending| pending.0 == number)
                    .is_some()
                {
                    log::warn!("Snapshot {number} is lost: {reason}");
                }
                Ok(())
            }
        }
    }

    /// The store says that disks are frozen, sooner or later.
    fn thaw(&mut self) -> Result<(), WireError> {
        let left = self.unfrozen.checked_sub(1);
        self.unfrozen = left.ok_or(WireError::OutOfTurn { what: "FROZEN" })?;
        Ok(())
    }

    fn answer(&mut self, take: Take) -> Result<(), WireError> {
        let number = take.number;
        match self.capture(take) {
            Ok(changes) => {
                self.pending = Some((number, changes));
                Ok(())
            }
            Err(CaptureError::Wire(error)) => Err(error),
            Err(CaptureError::Lost { reason }) => {
                log::warn!("Snapshot {number} is lost: {reason}");
                Ok(())
            }
            Err(error) => {
                let reason = chain(&error);
                log::warn!("There is no snapshot {number}: {reason}");
                self.say(&Report::Failed(Failure { number, reason }))
            }
        }
    }

    /// Sends a short message; what the store says meanwhile is for later.
    fn say(&mut self, report: &Report) -> Result<(), WireError> {
        self.say_within(report, PATIENCE)
    }

    fn say_within(&mut self, report: &Report, patience: Duration) -> Result<(), WireError> {
        let bytes = report.encode();
        let start = Instant::now();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = self.wire.write_now(rest)?;
            rest = rest.get(written..).unwrap_or_default();
            if written == 0 {
                let left = left(start, rest.len(), patience)?;
                self.wire.wait(true, Some(left))?;
            }
        }
        Ok(())
    }

    fn capture(&mut self, take: Take) -> Result<Changes, CaptureError> {
        let start = Instant::now();
        let document = self.describe()?;
        let changes = Changes::begin(&self.subject)?;
        let full = take.full || !changes.is_based();
        let mut capture = Capture {
            take,
            changes,
            pages: 0,
            lost: None,
        };
        let number = take.number;
        let len = memory::len(&self.subject.memory);
        self.say(&Report::Memory(Memory { number, full, len }))?;
        let left = self.send_while_it_runs(&mut capture, full)?;
        let Instantly { state, rest, pause } = self.stand_still(&mut capture, &document, left)?;

        let state = file::encode(&state).map_err(crate::snapshot::SnapshotError::from)?;
        let (copied, protected) = match &rest {
            Rest::Copied(frames, _) => (frames.pages(), 0),
            Rest::Protected(guard) => (0, guard.blocks()),
        };
        match rest {
            Rest::Copied(frames, guard) => {
                drop(guard);
                self.send(&mut capture, &frames, None)?;
            }
            Rest::Protected(mut guard) => {
                self.wire.watch(guard.fd()).map_err(WireError::Io)?;
                let sent = self.send_protected(&mut capture, &mut guard);
                self.wire.leave_out(guard.fd());
                sent?;
            }
        }
        for frame in encode_state(&state) {
            self.send_bytes(&mut capture, &frame, None)?;
        }
        if self.describe()? != document {
            return Err(CaptureError::Changed);
        }
        let (pause_us, pages) = (microseconds(pause), capture.pages);
        self.say(&Report::End(End {
            number,
            pause_us,
            pages,
        }))?;
        count(full, start.elapsed());
        log::info!(
            "Snapshot {number}: the guest stood still for {pause_us} us; {pages} pages of 4 KiB were sent, of which \
             {copied} were copied then and {protected} blocks of 2 MiB protected"
        );
        Ok(capture.changes)
    }

    /// What the guest is made of, now.
    fn describe(&mut self) -> Result<Document, CaptureError> {
        let (sender, document) = mpsc::channel();
        let late = || CaptureError::NotDescribed {
            seconds: DESCRIBE_PATIENCE.as_secs(),
        };
        let asked = self.desk.put(MainOrder::Describe(sender));
        asked.map_err(|_| WireError::Ended)?;
        document.recv_timeout(DESCRIBE_PATIENCE).map_err(|_| late())
    }

    /// Sends all that has changed, or all there is, and again what the guest changes meanwhile, until little is left or it
    /// does not become less. Returns how many pages are left.
    fn send_while_it_runs(
        &mut self,
        capture: &mut Capture,
        full: bool,
    ) -> Result<usize, CaptureError> {
        let mut left = capture.changes.look()?;
        if full {
            capture.changes.want_all();
            left = usize::MAX;
        }
        let mut zeroes = if full { Zeroes::Skip } else { Zeroes::Send };
        let mut frames = Frames::default();
        for _ in 0..ROUNDS {
            if left <= FEW {
                break;
            }
            for place in capture.changes.places() {
                frames.clear();
                capture.changes.copy(place, &mut frames, zeroes)?;
                self.send(capture, &frames, None)?;
            }
            zeroes = Zeroes::Send;
            let before = left;
            left = capture.changes.look()?;
            if left > before / 2 {
                break;
            }
        }
        Ok(left)
    }

    /// Stops the guest for the instant of the snapshot. `left` pages were left a moment ago.
    fn stand_still(
        &mut self,
        capture: &mut Capture,
        document: &Document,
        left: usize,
    ) -> Result<Instantly, CaptureError> {
        let subject = self.subject.clone();
        let brake = self.brake.clone();
        // What is touched for the first time costs most.
        let room = left.saturating_mul(2).clamp(256, FEW);
        let frames = Frames::with_room(room);
        self.wire.wait_until_read(READ_PATIENCE)?;
        let guard = self.prepare(capture, left);
        let _standing = subject.standing.lock();
        let start = Instant::now();
        brake.hold(Holder::Capture)?;
        let instant = self.instant(capture, document.clone(), (frames, guard));
        brake.release(Holder::Capture);
        let pause = start.elapsed();
        let (state, rest) = instant?;
        let latencies = &metrics::process().latencies;
        latencies.vmm_pause_vm.set(microseconds(pause));
        Ok(Instantly { state, rest, pause })
    }

    /// What is done while the guest stands still.
    fn instant(
        &mut self,
        capture: &mut Capture,
        document: Document,
        means: (Frames, Option<Result<Guard, GuardError>>),
    ) -> Result<(State, Rest), CaptureError> {
        let subject = self.subject.clone();
        let watchdog = self.brake.watchdog();
        let about = About {
            document,
            watchdog: watchdog.ok_or(WireError::Ended)?,
        };
        let wire = std::cell::RefCell::new(self);
        let freeze = || {
            let mut live = wire.borrow_mut();
            live.freeze()
        };
        subject.with_state(about, freeze, |state| {
            let mut live = wire.borrow_mut();
            let rest = live.keep(capture, means)?;
            live.wait_until_frozen(capture)?;
            Ok((state, rest))
        })
    }

    /// Copies what is left, or protects it.
    fn keep(
        &mut self,
        capture: &mut Capture,
        (mut frames, guard): (Frames, Option<Result<Guard, GuardError>>),
    ) -> Result<Rest, CaptureError> {
        let changes = &mut capture.changes;
        let left = changes.look()?;
        let mut idle = None;
        if left > FEW {
            let guard = guard.unwrap_or_else(|| Guard::new(self.device.as_ref(), &self.subject));
            let protected = guard.and_then(|mut guard| {
                guard.protect(&changes.places())?;
                Ok(guard)
            });
            match protected {
                Ok(guard) => {
                    changes.pass();
                    return Ok(Rest::Protected(guard));
                }
                Err(error) if left > MANY => {
                    let why = chain(&error);
                    return Err(CaptureError::TooMuch { pages: left, why });
                }
                Err(error) => log::debug!("Nothing is protected: {}", chain(&error)),
            }
        } else {
            idle = guard.and_then(Result::ok);
        }
        changes.copy_all(&mut frames)?;
        changes.pass();
        Ok(Rest::Copied(frames, idle))
    }

    /// Prepares to protect pages, if it looks as if that was needed.
    fn prepare(&self, capture: &Capture, left: usize) -> Option<Result<Guard, GuardError>> {
        (left > FEW).then(|| {
            let guard = Guard::new(self.device.as_ref(), &self.subject)?;
            guard.rehearse(&capture.changes.places())?;
            Ok(guard)
        })
    }

    /// Asks for the disks to be frozen. Where the store is still busy with what came before, there is no snapshot.
    fn freeze(&mut self) -> Result<(), CaptureError> {
        match self.say_within(&Report::Freeze, FREEZE_PATIENCE) {
            Ok(()) => {
                self.unfrozen += 1;
                Ok(())
            }
            // Nothing of it is on its way.
            Err(WireError::Stalled { bytes: HEADER, .. }) => Err(not_frozen()),
            Err(error) => Err(error.into()),
        }
    }

    fn wait_until_frozen(&mut self, capture: &mut Capture) -> Result<(), CaptureError> {
        let start = Instant::now();
        while self.unfrozen > 0 {
            let left = FREEZE_PATIENCE.saturating_sub(start.elapsed());
            let Some(order) = self.wire.receive(Some(left))? else {
                return Err(not_frozen());
            };
            self.hear(capture, order)?;
            capture.check()?;
        }
        Ok(())
    }

    /// What the store says while a snapshot is under way.
    fn hear(&mut self, capture: &mut Capture, order: Order) -> Result<(), WireError> {
        match order {
            Order::Frozen => self.thaw(),
            Order::Lost(Failure { number, reason }) => {
                // One of before was given up by both sides.
                if number == capture.take.number {
                    capture.lost = Some(reason);
                }
                Ok(())
            }
            Order::Take(_) => Err(WireError::OutOfTurn { what: "TAKE" }),
            Order::Kept(_) => Err(WireError::OutOfTurn { what: "KEPT" }),
        }
    }

    fn send_protected(
        &mut self,
        capture: &mut Capture,
        guard: &mut Guard,
    ) -> Result<(), CaptureError> {
        while let Some(frames) = guard.next(&mut capture.changes)? {
            self.send(capture, &frames, Some(guard))?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        capture: &mut Capture,
        frames: &Frames,
        mut guard: Option<&mut Guard>,
    ) -> Result<(), CaptureError> {
        capture.pages += frames.pages();
        for part in frames.each() {
            self.send_bytes(capture, part, guard.as_deref_mut())?;
        }
        Ok(())
    }

    /// Sends a whole frame. Meanwhile it hears what the store says, and serves who waits for protected pages.
    fn send_bytes(
        &mut self,
        capture: &mut Capture,
        frame: &[u8],
        mut guard: Option<&mut Guard>,
    ) -> Result<(), CaptureError> {
        let start = Instant::now();
        let mut rest = frame;
        // What goes wrong in between must not leave half a frame.
        let mut failed = None;
        while !rest.is_empty() {
            let written = self.wire.write_now(rest)?;
            rest = rest.get(written..).unwrap_or_default();
            if written == 0 {
                let left = left(start, rest.len(), PATIENCE)?;
                self.wire.wait(true, Some(left.min(TURN)))?;
                // What comes after the end of this one is for later.
                while capture.lost.is_none()
                    && let Some(order) = self.wire.receive_now()?
                {
                    self.hear(capture, order)?;
                }
            }
            if let Some(guard) = guard.as_deref_mut()
                && failed.is_none()
            {
                failed = guard.serve(&mut capture.changes).err();
                if failed.is_some() {
                    guard.end();
                }
            }
        }
        failed.map_or_else(|| capture.check(), Err)
    }
}

impl Capture {
    /// Whether the store still wants it.
    fn check(&mut self) -> Result<(), CaptureError> {
        match self.lost.take() {
            Some(reason) => Err(CaptureError::Lost { reason }),
            None => Ok(()),
        }
    }
}

fn not_frozen() -> CaptureError {
    CaptureError::NotFrozen {
        milliseconds: FREEZE_PATIENCE.as_millis(),
    }
}

/// How much time is left of `patience` to send a frame that was begun at `start` and of which there are `bytes` left.
fn left(start: Instant, bytes: usize, patience: Duration) -> Result<Duration, WireError> {
    match patience.checked_sub(start.elapsed()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(WireError::Stalled {
            bytes,
            seconds: patience.as_secs(),
        }),
    }
}

/// Notes in the metrics how long a snapshot took.
fn count(full: bool, took: Duration) {
    let latencies = &metrics::process().latencies;
    let gauge = if full {
        &latencies.vmm_full_create_snapshot
    } else {
        &latencies.vmm_diff_create_snapshot
    };
    gauge.set(microseconds(took));
}
