//! Devices that come and go while the guest runs, on PCI, with the guest told by ACPI.
//!
//! ```text
//!   attach ─► (hot-plug thread) device made and connected to KVM ─► its own thread ─► on the bus ─► register "up" ─► GED
//!             ─► the guest looks
//!   detach ─► register "down" ─► GED ─► the guest's driver lets go ─► _EJ0 writes "eject" (vCPU thread): off the bus at
//!             once ─► (hot-plug thread) doorbells unbound ─► device's thread ends ─► all of it gone: the caller is told
//! ```
//!
//! The guest decides. It may let go of a drive or a network interface that nobody asked for (Linux: `echo 0 >
//! /sys/bus/pci/slots/N/power`), and it may keep what it is asked for: then the caller is told after [`PATIENCE`], and
//! the device stays. What was plugged in is not in the configuration: a guest that starts again starts without it.

mod error;
mod nursery;
mod replace;
mod slots;

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::legacy::acpi::{Ged, GedEvent};
use devices::pci::hotplug::HotplugState;
use devices::pci::{HotplugRegisters, PciBus, SLOTS};

pub use error::{DeviceId, HotplugError};
pub use replace::Successor;

use self::nursery::{Attachment, Job};
use self::slots::{Leaving, Request, Slot, Slots};
use crate::config::{DriveConfig, NetConfig, TapSource, VmConfig};
use crate::device_thread::{DeviceThread, RunningThread};
use crate::events::Events;
use crate::jail::seccomp::Seccomp;
use crate::latch::ExitLatch;
use crate::memory::GuestMemory;
use crate::pci::slot_limit;
use crate::virtio::{self, DeviceHandles, Made, VirtioError};
use crate::vm::Vm;

/// How long the guest has to let go of a device: its driver may have to write back what it has cached.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How often the guest is reminded of what it has not heard: it may not have listened yet.
const REMINDER: Duration = Duration::from_millis(250);
/// How long it is reminded that there is a new device. It finds the device by itself when it looks at its bus.
const REMIND_FOR: Duration = Duration::from_secs(10);
/// How often a device that leaves is looked after.
const LEAVING: Duration = Duration::from_millis(2);
/// Most devices that wait to be made: more than there are device numbers.
const MAX_WAITING: usize = 64;

/// Told once how a request ended. Called on whichever thread ends it; must not block.
pub type Reply = Box<dyn FnOnce(Result<(), HotplugError>) + Send>;

/// What devices are connected to.
pub struct Connections {
    /// The guest in KVM.
    pub vm: Arc<Vm>,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
    /// Its PCI bus.
    pub bus: Arc<PciBus>,
    /// Tells it that there is something in the hot-plug registers.
    pub ged: Arc<Mutex<Ged>>,
    /// Ends the run, and with it the devices' threads.
    pub latch: Arc<ExitLatch>,
    /// Told what comes and goes.
    pub events: Arc<Events>,
    /// What can be done with devices that are there.
    pub handles: DeviceHandles,
}

/// What has a device number when the guest starts.
pub struct Present {
    /// The device number.
    pub slot: usize,
    /// What it is called in a snapshot.
    pub name: String,
    /// Its name, if it can be removed.
    pub id: Option<DeviceId>,
}

/// What is where, and what the guest has not heard.
pub struct PlugState {
    /// The guest knows the slots below it.
    pub limit: usize,
    /// The registers.
    pub registers: HotplugState,
    /// What each device number's device is called in a snapshot.
    pub names: Vec<(usize, String)>,
}

struct Inner {
    /// What the guest has now.
    config: VmConfig,
    slots: Slots,
    patience: Duration,
    remind_until: Instant,
    /// Devices that wait to be made.
    waiting: usize,
    ended: bool,
}

/// Plugs and unplugs the devices of one guest. May be used from any thread.
pub struct Hotplug {
    connections: Connections,
    registers: Arc<Mutex<HotplugRegisters>>,
    jobs: Sender<Job>,
    /// Until the thread has it.
    receiver: Mutex<Option<Receiver<Job>>>,
    inner: Mutex<Inner>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hotplug {
    /// For a guest of `config`. `present` is what has a device number (the host bridge has one).
    pub fn new(connections: Connections, config: &VmConfig, present: Vec<Present>) -> Arc<Self> {
        let (jobs, receiver) = mpsc::channel();
        let mut slots = Slots {
            limit: slot_limit(present.len()),
            places: [const { None }; SLOTS],
        };
        let mut removable = 0;
        for Present { slot, name, id } in present {
            removable |= u32::from(id.is_some()) << slot;
            slots.places[slot] = Some(Slot {
                name,
                id,
                ..Slot::default()
            });
        }
        let eject = eject(connections.bus.clone(), jobs.clone());
        Arc::new(Self {
            connections,
            registers: Arc::new(Mutex::new(HotplugRegisters::new(removable, eject))),
            jobs,
            receiver: Mutex::new(Some(receiver)),
            inner: Mutex::new(Inner {
                config: config.clone(),
                slots,
                patience: PATIENCE,
                remind_until: Instant::now(),
                waiting: 0,
                ended: false,
            }),
        })
    }

    /// What a guest that goes on elsewhere has to find again. While something comes or goes there is none.
    pub fn state(&self) -> Option<PlugState> {
        let inner = lock(&self.inner);
        if inner.waiting > 0 || inner.slots.any_leaving() || inner.slots.any_requested() {
            return None;
        }
        let places = inner.slots.places.iter().enumerate();
        Some(PlugState {
            limit: inner.slots.limit,
            registers: lock(&self.registers).state(),
            names: places
                .filter_map(|(number, slot)| Some((number, slot.as_ref()?.name.clone())))
                .collect(),
        })
    }

    /// Goes on from a `state`, in place of a guest that has not started.
    pub fn restore(&self, limit: usize, registers: &HotplugState) {
        let mut inner = lock(&self.inner);
        inner.slots.limit = limit.min(SLOTS);
        lock(&self.registers).restore(registers);
        // What it has not heard of it is reminded of.
        inner.remind_until = Instant::now() + REMIND_FOR;
    }

    /// To be put on the port bus.
    pub fn registers(&self) -> Arc<Mutex<HotplugRegisters>> {
        self.registers.clone()
    }

    /// Starts the thread that makes devices and takes them apart. Called once, on a thread whose filter permits all that.
    pub fn start(self: &Arc<Self>, seccomp: &Seccomp) -> io::Result<()> {
        match lock(&self.receiver).take() {
            Some(jobs) => nursery::start(self.clone(), jobs, seccomp.clone()),
            None => Ok(()),
        }
    }

    /// The thread of the device at `slot` has begun its work.
    pub fn started(&self, slot: usize, thread: RunningThread) {
        if let Some(slot) = lock(&self.inner).slots.get(slot) {
            slot.thread = Some(thread);
        }
    }

    /// The guest's devices as they are now.
    pub fn config(&self) -> VmConfig {
        lock(&self.inner).config.clone()
    }

    /// Plugs in a drive. `reply` is told when the guest has it.
    pub fn attach_drive(&self, drive: DriveConfig, reply: Reply) {
        self.ask(Attachment::Drive(Box::new(drive)), reply);
    }

    /// Plugs in a network interface. `reply` is told when the guest has it.
    pub fn attach_net(&self, net: NetConfig, reply: Reply) {
        self.ask(Attachment::Net(Box::new(net)), reply);
    }

    fn ask(&self, attachment: Attachment, reply: Reply) {
        let mut inner = lock(&self.inner);
        let id = attachment.id();
        let error = match () {
            () if inner.ended => HotplugError::Ended { id },
            () if inner.waiting >= MAX_WAITING => HotplugError::Busy { id },
            () => {
                inner.waiting += 1;
                return self.send(Job::Attach(attachment, reply));
            }
        };
        drop(inner);
        self.connections
            .events
            .attach_failed(&attachment.id(), &error);
        reply(Err(error));
    }

    fn send(&self, job: Job) {
        // Without a receiver there is nothing to look after any more.
        let _ = self.jobs.send(job);
    }

    /// Does `job`, if there is one, and goes on with all that takes time. Returns when to come back, if nothing comes
    /// before.
    fn step(&self, job: Option<Job>, seccomp: &Seccomp) -> Option<Duration> {
        match job {
            Some(Job::Attach(attachment, reply)) => {
                let id = attachment.id();
                let result = self.make(attachment, seccomp);
                if let Err(error) = &result {
                    self.connections.events.attach_failed(&id, error);
                }
                reply(result);
                // Only now: a snapshot has to know of the configuration what the reply says of it.
                let mut inner = lock(&self.inner);
                inner.waiting = inner.waiting.saturating_sub(1);
            }
            Some(Job::Ejected(number, function)) => {
                if let Some(slot) = lock(&self.inner).slots.get(number) {
                    slot.leaving = Some(Leaving::Accessed(function));
                }
            }
            Some(Job::Look | Job::End) | None => {}
        }
        self.tick()
    }

    fn make(&self, attachment: Attachment, seccomp: &Seccomp) -> Result<(), HotplugError> {
        let id = attachment.id();
        let mut config = lock(&self.inner).config.clone();
        let vcpus = config.vcpus;
        match attachment {
            Attachment::Drive(drive) if drive.is_root => Err(HotplugError::RootDevice { id }),
            Attachment::Drive(drive) => {
                config.drives.push((*drive).clone());
                let make = || virtio::make_drive(&drive, vcpus);
                self.attach((id, None), config, make, seccomp)
            }
            Attachment::Net(net) if matches!(net.tap, TapSource::Fd(_)) => {
                Err(HotplugError::Descriptor { id })
            }
            Attachment::Net(net) => {
                config.net.push((*net).clone());
                let make = || virtio::make_net(&net, virtio::net::open(&net)?);
                self.attach((id, None), config, make, seccomp)
            }
            Attachment::Successor(new, slot) => {
                config.net.push(new.net.clone());
                let make = || virtio::make_net(&new.net, new.end);
                self.attach((id, Some(slot)), config, make, seccomp)
            }
        }
    }

    /// Makes a device and puts it at the device number that it wants, if that is free.
    fn attach(
        &self,
        (id, wanted): (DeviceId, Option<usize>),
        config: VmConfig,
        make: impl FnOnce() -> Result<Made, VirtioError>,
        seccomp: &Seccomp,
    ) -> Result<(), HotplugError> {
        // Opening may wait for a lock. Others may ask meanwhile; nobody else makes devices and gives out device numbers.
        let Some(slot) = lock(&self.inner).slots.free(wanted) else {
            return Err(HotplugError::NoFreeSlot { id });
        };
        if let Err(source) = config.check() {
            let source = Box::new(source);
            return Err(HotplugError::Config { id, source });
        }
        let mut made = match make() {
            Ok(made) => made,
            Err(source) => {
                let source = Box::new(source);
                return Err(HotplugError::Make { id, source });
            }
        };
        let handle = made.handle.take();
        let Connections {
            vm,
            memory,
            bus,
            latch,
            events,
            handles,
            ..
        } = &self.connections;
        let (function, placed) = match virtio::connect_pci(vm, memory, slot, made) {
            Ok(connected) => connected,
            Err(source) => return Err(HotplugError::Connect { id, source }),
        };
        let thread = DeviceThread::new(placed.worker, latch.clone());
        let thread = match thread.and_then(|thread| thread.spawn(slot, seccomp.clone())) {
            Ok(thread) => thread,
            Err(source) => return Err(HotplugError::Thread { id, source }),
        };
        let mut inner = lock(&self.inner);
        if inner.ended {
            thread.stop();
            return Err(HotplugError::Ended { id });
        }
        if let Err(source) = bus.insert(slot, Arc::new(function)) {
            thread.stop();
            return Err(HotplugError::Slot { id, source });
        }
        inner.slots.places[slot] = Some(Slot {
            name: placed.name,
            id: Some(id.clone()),
            thread: Some(thread),
            ..Slot::default()
        });
        inner.config = config;
        if let Some((id, handle)) = handle {
            handles.insert(id, handle);
        }
        inner.remind_until = Instant::now() + REMIND_FOR;
        lock(&self.registers).plug(slot);
        self.tell_guest();
        events.attached(&id, slot);
        Ok(())
    }

    /// Asks the guest to let go of the device `id`. `reply` is told when the device is gone with all that it had, or when
    /// it stays.
    pub fn detach(&self, id: &DeviceId, reply: Reply) {
        let mut inner = lock(&self.inner);
        match self.find_removable(&inner, id) {
            Ok(number) => {
                // Who asks now wants nothing in its place.
                if let Some(slot) = inner.slots.get(number) {
                    slot.successor = None;
                }
                self.ask_back(&mut inner, number, reply);
            }
            Err(error) => {
                drop(inner);
                self.refuse_detach(id, error, reply);
            }
        }
    }

    /// Asks the guest to let go of what is at device number `number`.
    fn ask_back(&self, inner: &mut Inner, number: usize, reply: Reply) {
        let deadline = Instant::now() + inner.patience;
        if let Some(slot) = inner.slots.get(number) {
            slot.request = Some(Request { deadline, reply });
        }
        // One that the guest has let go of just now leaves anyway.
        if lock(&self.registers).request(number) {
            self.tell_guest();
        }
        self.send(Job::Look);
    }

    fn find_removable(&self, inner: &Inner, id: &DeviceId) -> Result<usize, HotplugError> {
        let id = id.clone();
        if inner.ended {
            return Err(HotplugError::Ended { id });
        }
        let is_root = |drive: &DriveConfig| {
            drive.is_root && matches!(&id, DeviceId::Drive(name) if name == drive.id.as_str())
        };
        if inner.config.drives.iter().any(is_root) {
            return Err(HotplugError::RootInUse { id });
        }
        let Some(number) = inner.slots.find(&id) else {
            return Err(HotplugError::Unknown { id });
        };
        match &inner.slots.places[number] {
            Some(slot) if slot.request.is_some() => Err(HotplugError::AlreadyAsked { id }),
            _ => Ok(number),
        }
    }

    /// Ends it all: the threads that are still at work, for who waits for them. Whoever waits for the guest is told.
    pub fn end(&self) -> Vec<RunningThread> {
        let mut inner = lock(&self.inner);
        inner.ended = true;
        let mut threads = Vec::new();
        let mut replies = Vec::new();
        for mut slot in inner.slots.places.iter_mut().filter_map(Option::take) {
            threads.extend(slot.thread.take());
            let Some(id) = slot.id else { continue };
            let waiting = slot.request.map(|request| request.reply).into_iter();
            for reply in waiting.chain(slot.successor.map(|(_, reply)| reply)) {
                replies.push((reply, HotplugError::Ended { id: id.clone() }));
            }
        }
        drop(inner);
        for (reply, error) in replies {
            reply(Err(error));
        }
        self.send(Job::End);
        threads
    }

    /// The guest is to look at the registers.
    fn tell_guest(&self) {
        if let Err(error) = lock(&self.connections.ged).notify(GedEvent::PciSlots) {
            log::error!("The guest cannot be told of its devices: {error}");
        }
    }

    /// Goes on with what takes time. Returns when to come back.
    fn tick(&self) -> Option<Duration> {
        let mut inner = lock(&self.inner);
        let now = Instant::now();
        let seconds = inner.patience.as_secs();
        let (mut ended, mut followed) = (Vec::new(), Vec::new());
        for number in 0..SLOTS {
            let Some(slot) = inner.slots.get(number) else {
                continue;
            };
            if slot.leaving.is_some() {
                if slot.leave()
                    && let Some(slot) = inner.slots.places[number].take()
                {
                    ended.extend(slot.id.map(|id| (id, slot.request, None)));
                    followed.extend(slot.successor.map(|successor| (number, successor)));
                }
            } else if let Some(request) = slot.request.take_if(|request| request.deadline <= now) {
                lock(&self.registers).withdraw(number);
                let error = |id| HotplugError::TimedOut { id, seconds };
                let id = slot.id.clone();
                ended.extend(id.map(|id| (id.clone(), Some(request), Some(error(id)))));
            }
        }
        for (id, _, error) in &ended {
            if error.is_none() {
                inner.forget(id);
                self.connections.handles.remove(id);
            }
        }
        let asks = inner.slots.any_requested() || now < inner.remind_until;
        if asks && lock(&self.registers).is_unheard() {
            self.tell_guest();
        }
        inner.waiting += followed.len();
        let again = self.again(&inner);
        drop(inner);
        for (id, request, error) in ended {
            self.report(&id, request, error);
        }
        for (number, successor) in followed {
            self.succeed(number, successor);
        }
        again
    }

    fn report(&self, id: &DeviceId, request: Option<Request>, error: Option<HotplugError>) {
        let events = &self.connections.events;
        match &error {
            None => events.detached(id, request.is_some()),
            Some(error) => events.detach_failed(id, error),
        }
        if let Some(request) = request {
            (request.reply)(error.map_or(Ok(()), Err));
        }
    }

    /// When there is something to look after.
    fn again(&self, inner: &Inner) -> Option<Duration> {
        let unheard = Instant::now() < inner.remind_until && lock(&self.registers).is_unheard();
        if inner.slots.any_leaving() {
            Some(LEAVING)
        } else {
            (unheard || inner.slots.any_requested()).then_some(REMINDER)
        }
    }
}

impl Inner {
    /// The device `id` is no part of the guest any more.
    fn forget(&mut self, id: &DeviceId) {
        match id {
            DeviceId::Drive(name) => self
                .config
                .drives
                .retain(|drive| drive.id.as_str() != name.as_str()),
            DeviceId::Net(name) => self.config.net.retain(|net| net.id != *name),
        }
    }
}

/// What the guest lets go of is off the bus when its write to the register ends. All else waits for the hot-plug thread.
fn eject(bus: Arc<PciBus>, jobs: Sender<Job>) -> Box<dyn FnMut(u32) + Send> {
    Box::new(move |gone| {
        let slots = (0..SLOTS).filter(|slot| gone & 1 << slot != 0);
        for (slot, function) in slots.filter_map(|slot| Some((slot, bus.remove(slot)?))) {
            // Without a receiver the run has ended.
            let _ = jobs.send(Job::Ejected(slot, function));
        }
    })
}

#[cfg(test)]
mod tests;
