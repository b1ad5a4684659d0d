//! The way from those who ask for something to the main thread, which does it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use api::model::Document;
use api::{Fault, Handler, Outcome, Request};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Action;
use super::plug::Change;

/// Something to do.
pub enum Order {
    /// By the control socket: nobody waits for an answer.
    Control(Action),
    /// By the API, whose thread waits for the answer.
    Api(Box<Request>, Sender<Outcome>),
    /// By who takes snapshots: what the guest is made of.
    Describe(Sender<Document>),
    /// What was asked for before is done: the configuration hears of it.
    Changed(Change),
}

/// Takes orders, from any thread. Clones are the same desk.
#[derive(Clone, Debug)]
pub struct Desk {
    orders: Sender<Order>,
    bell: Arc<EventFd>,
}

impl Desk {
    /// Hands an order to the main thread.
    pub fn put(&self, order: Order) -> io::Result<()> {
        self.orders
            .send(order)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.bell.write(1)
    }
}

impl Handler for Desk {
    fn handle(&mut self, request: Request) -> Outcome {
        let (reply, answer) = mpsc::channel();
        let ended = || Fault::new("The guest has ended, and the VMM ends with it.");
        self.put(Order::Api(Box::new(request), reply))
            .map_err(|_| ended())?;
        answer.recv().unwrap_or_else(|_| Err(ended()))
    }
}

/// Where orders lie until the main thread gets to them.
pub struct Inbox {
    orders: Receiver<Order>,
}

impl Inbox {
    /// An empty inbox, its desk, and what wakes the main thread's loop for it.
    pub fn new() -> io::Result<(Self, Desk, Bell)> {
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (sender, orders) = mpsc::channel();
        let desk = Desk {
            orders: sender,
            bell: bell.clone(),
        };
        Ok((Self { orders }, desk, Bell(bell)))
    }

    /// The next order, if there is one.
    pub fn take(&self) -> Option<Order> {
        self.orders.try_recv().ok()
    }
}

/// Wakes the loop it is added to when there are orders.
pub struct Bell(Arc<EventFd>);

impl MutEventSubscriber for Bell {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = self.0.as_raw_fd();
        if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            log::error!("Requests cannot be served: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // Only the ring matters; the counter does not.
        let _ = self.0.read();
    }
}
