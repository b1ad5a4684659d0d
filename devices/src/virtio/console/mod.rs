//! The console device (virtio 1.2 §5.3): a terminal, and named byte streams beside it.
//!
//! Port 0 has queues 0 and 1, the control queues are 2 and 3, and port `n` has `2n + 2` and `2n + 3`, with the driver's
//! receiving queue first. All ports share one epoll, which is the device's only descriptor.

mod control;
mod host;
mod port;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::EventSet;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::host::{Callers, Host};

use self::control::{
    CONSOLE_PORT, Control, DEVICE_READY, Message, PORT_ADD, PORT_NAME, PORT_OPEN, PORT_READY,
    RESIZE,
};
use self::host::Link;
use self::port::Port;
use super::device::{DeviceTraits, Progress, Source, VirtioDevice, copy_config};
use super::queue::{QueueError, QueueState, Virtqueue};
use super::saved::{ConsoleState, DeviceState, RestoreError};
use crate::interrupt::Interrupt;
use crate::metrics::{ConsoleMetrics, Metrics};

/// The configuration space has the console's size.
pub const F_SIZE: u64 = 1 << 0;
/// There are several ports, and control queues.
pub const F_MULTIPORT: u64 = 1 << 1;
/// A byte written to the configuration space is printed, without any queue.
pub const F_EMERG_WRITE: u64 = 1 << 2;
/// Most ports of a device.
pub const MAX_PORTS: usize = 16;

const QUEUE_SIZE: u16 = 128;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
/// Offset of the emergency byte in the configuration space, behind columns, rows and the number of ports.
const EMERGENCY: u64 = 8;
const CONFIG_LEN: usize = 12;
/// What the epoll reports for a change of size; ports have two numbers each.
const RESIZE_TOKEN: u64 = u64::MAX;

/// Columns and rows.
type Size = (u16, u16);

/// One port as it is asked for.
pub struct PortSpec {
    /// By which the guest knows it.
    pub name: String,
    /// Whether it is a terminal.
    pub console: bool,
    /// Its other end.
    pub host: Host,
}

/// Tells a console its size, from any thread.
#[derive(Clone, Debug)]
pub struct Resizer(Arc<(Mutex<Option<Size>>, EventFd)>);

impl Resizer {
    /// The terminal at the host's end has this many columns and rows now.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((columns, rows));
        self.0.1.trigger()
    }

    fn take(&self) -> Option<Size> {
        // Only the ring matters; the counter does not.
        let _ = self.0.1.read();
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// A console device.
pub struct Console {
    ports: Vec<Port>,
    control: Control,
    epoll: Arc<Epoll>,
    resizer: Resizer,
    size: Size,
    config_changed: bool,
    multiport: bool,
    metrics: Arc<ConsoleMetrics>,
}

impl Console {
    /// A device with 1 to [`MAX_PORTS`] ports.
    pub fn new(ports: Vec<PortSpec>) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let resizer = Resizer(Arc::new((Mutex::new(None), EventFd::new(EFD_NONBLOCK)?)));
        let event = EpollEvent::new(EventSet::IN, RESIZE_TOKEN);
        epoll.ctl(ControlOperation::Add, resizer.0.1.as_raw_fd(), event)?;
        let metrics = Arc::<ConsoleMetrics>::default();
        let ports = (0..)
            .zip(ports.into_iter().take(MAX_PORTS))
            .map(|(index, spec)| {
                let link = Link::new(spec.host, epoll.clone(), 2 * index)?;
                Ok(Port::new(spec.name, spec.console, link, metrics.clone()))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            ports,
            control: Control::default(),
            epoll,
            resizer,
            size: (0, 0),
            config_changed: false,
            multiport: false,
            metrics,
        })
    }

    /// Changes the terminal's size later.
    pub fn resizer(&self) -> Resizer {
        self.resizer.clone()
    }

    /// The port that queue `index` belongs to, and whether the driver sends by it.
    fn port(&mut self, index: u16) -> Option<(&mut Port, bool)> {
        let pair = usize::from(index / 2);
        let number = if pair == 0 { 0 } else { pair.checked_sub(1)? };
        (pair != 1).then_some(())?;
        Some((self.ports.get_mut(number)?, index % 2 == 1))
    }

    fn send(&mut self, port: usize, event: u16, value: u16, more: &[u8]) {
        let port = u32::try_from(port).unwrap_or(u32::MAX);
        self.control.send(Message { port, event, value }, more);
    }

    fn send_size(&mut self, port: usize) {
        let (columns, rows) = self.size;
        let [a, b] = columns.to_le_bytes();
        let [c, d] = rows.to_le_bytes();
        self.send(port, RESIZE, 0, &[a, b, c, d]);
    }

    /// Answers a message of the driver.
    fn act(&mut self, message: Message) {
        let number = message.port as usize;
        match (message.event, message.value) {
            (DEVICE_READY, 1) => {
                for port in 0..self.ports.len() {
                    self.send(port, PORT_ADD, 0, &[]);
                }
            }
            (PORT_READY, 1) if number < self.ports.len() => {
                if self.ports[number].console {
                    self.send(number, CONSOLE_PORT, 1, &[]);
                    if self.size != (0, 0) {
                        self.send_size(number);
                    }
                }
                let mut name = self.ports[number].name.clone().into_bytes();
                name.push(0);
                self.send(number, PORT_NAME, 0, &name);
                let connection = self.ports[number].link.connection();
                self.ports[number].told = connection;
                self.send(number, PORT_OPEN, connection.is_some().into(), &[]);
            }
            (PORT_OPEN, value) => {
                if let Some(port) = self.ports.get_mut(number) {
                    port.open = value == 1;
                }
            }
            _ => {}
        }
    }

    fn process_control(&mut self) -> Result<Progress, QueueError> {
        for _ in 0..QUEUE_SIZE {
            let (some, message) = self.control.take()?;
            if !some {
                self.control.flush()?;
                return self.pump_unfinished();
            }
            if let Some(message) = message {
                self.act(message);
                // What the driver has opened may have input waiting for it.
                if let Some(port) = self.ports.get_mut(message.port as usize) {
                    port.unfinished = true;
                }
            }
        }
        self.control.flush()?;
        Ok(Progress::More)
    }

    /// Pumps each port that has something left to do, also after an error of one of them.
    fn pump_unfinished(&mut self) -> Result<Progress, QueueError> {
        let mut outcome = Ok(Progress::Idle);
        for number in 0..self.ports.len() {
            if self.ports[number].unfinished {
                outcome = match (outcome, self.pump(number)) {
                    (Ok(Progress::Idle), next) => next,
                    (Ok(Progress::More), Ok(_)) => Ok(Progress::More),
                    (Ok(_), Err(error)) | (Err(error), _) => Err(error),
                };
            }
        }
        outcome
    }

    /// Pumps a port, and tells the driver if its other end has come or gone meanwhile.
    fn pump(&mut self, number: usize) -> Result<Progress, QueueError> {
        let Some(port) = self.ports.get_mut(number) else {
            return Ok(Progress::Idle);
        };
        let progress = port.pump()?;
        let connection = port.link.connection();
        let told = std::mem::replace(&mut port.told, connection);
        if connection != told && self.multiport {
            if told.is_some() {
                self.send(number, PORT_OPEN, 0, &[]);
            }
            if connection.is_some() {
                self.send(number, PORT_OPEN, 1, &[]);
            }
            self.control.flush()?;
        }
        Ok(progress)
    }

    fn resize(&mut self) -> Result<(), QueueError> {
        if let Some(size) = self.resizer.take()
            && size != self.size
        {
            self.size = size;
            self.config_changed = true;
            if self.multiport {
                for port in 0..self.ports.len() {
                    if self.ports[port].console {
                        self.send_size(port);
                    }
                }
                self.control.flush()?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: VIRTIO_ID_CONSOLE,
            features: F_SIZE | F_MULTIPORT | F_EMERG_WRITE,
            queue_sizes: vec![QUEUE_SIZE; 2 * self.ports.len() + 2],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.metrics.clone())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_LEN];
        space[..2].copy_from_slice(&self.size.0.to_le_bytes());
        space[2..4].copy_from_slice(&self.size.1.to_le_bytes());
        let ports = u32::try_from(self.ports.len()).unwrap_or(u32::MAX);
        space[4..8].copy_from_slice(&ports.to_le_bytes());
        copy_config(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, Some(byte), Some(port)) = (offset, data.first(), self.ports.first_mut())
        {
            port.link.write(&[*byte]);
            self.metrics.tx_bytes_count.count();
        }
    }

    fn start_queue(&mut self, index: u16, queue: Virtqueue, features: u64) {
        self.multiport = features & F_MULTIPORT != 0;
        match index {
            CONTROL_RECEIVE => self.control.receive = Some(queue),
            CONTROL_TRANSMIT => self.control.transmit = Some(queue),
            _ => {
                let multiport = self.multiport;
                if let Some((port, sends)) = self.port(index) {
                    port.open |= !multiport;
                    if sends {
                        port.transmit = Some(queue);
                    } else {
                        port.receive = Some(queue);
                    }
                }
            }
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let queue = match index {
            CONTROL_RECEIVE => self.control.receive.take(),
            CONTROL_TRANSMIT => self.control.transmit.take(),
            _ => match self.port(index)? {
                (port, true) => return port.stop_transmit(),
                (port, false) => port.receive.take(),
            },
        };
        queue.map(|queue| queue.state())
    }

    fn process(&mut self, index: u16) -> Result<Progress, QueueError> {
        self.metrics.queue_event_count.count();
        match index {
            CONTROL_RECEIVE => self.control.flush().map(|()| Progress::Idle),
            CONTROL_TRANSMIT => self.process_control(),
            _ => {
                let number = usize::from(index / 2).saturating_sub(1);
                self.pump(number)
            }
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.epoll.as_raw_fd(),
            events: EventSet::IN,
        }]
    }

    fn wake(&mut self, _index: usize) -> Result<Progress, QueueError> {
        let mut events = [EpollEvent::default(); 8];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        // Each is reported once: all are noted before the work on one of them can fail.
        let mut resized = false;
        for event in &events[..count] {
            if event.data() == RESIZE_TOKEN {
                resized = true;
                continue;
            }
            let number = usize::try_from(event.data() / 2).unwrap_or(usize::MAX);
            let Some(port) = self.ports.get_mut(number) else {
                continue;
            };
            port.unfinished = true;
            if event.data() % 2 == 0 {
                port.link.is_ready(event.event_set());
            } else {
                port.link.is_called();
            }
        }
        let size_told = if resized { self.resize() } else { Ok(()) };
        let progress = self.pump_unfinished();
        size_told.and(progress)
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn reset(&mut self) {
        self.control.clear();
        self.multiport = false;
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console(ConsoleState {
            size: self.size,
            waiting: self.control.waiting(),
            ports: self.ports.iter().map(Port::save).collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Console(state) = state else {
            return Err(RestoreError::kind(VIRTIO_ID_CONSOLE, state));
        };
        RestoreError::count("ports", state.ports.len(), self.ports.len())?;
        let ports = self.ports.iter_mut().zip(&state.ports);
        let ports = ports.fold(true, |all, (port, state)| port.restore(state) && all);
        if !ports || !self.control.restore(&state.waiting) {
            let what = "more waits in a console than it keeps";
            return Err(RestoreError::Contradiction { what });
        }
        self.size = state.size;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
