//! The service on one network interface: TCP/IP that only the guest behind that interface can reach.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::metrics::MmdsMetrics;
use devices::throttle::Throttle;
use devices::virtio::net::Interceptor;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{
    ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IpCidr,
    IpProtocol, Ipv4Packet, TcpPacket,
};
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{self, Connection, PORT};
use super::queues::Queues;
use super::{Config, Mmds, Rules};

/// The service's hardware address, which is Firecracker's for it.
pub const ADDRESS: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Most connections at a time. More are refused.
const MAX_CONNECTIONS: usize = 16;
/// Most rounds of one turn: each sends what there is room for.
const ROUNDS: usize = 8;
/// The shortest wait: a guest cannot make us wake more often than this.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The service on one network interface.
pub struct Endpoint {
    service: &'static Mmds,
    address: [u8; 4],
    rules: Rules,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<(SocketHandle, Connection)>,
    queues: Queues,
    timer: TimerFd,
    /// What the TCP/IP counts its time from.
    start: Instant,
    metrics: Arc<MmdsMetrics>,
    failures: Throttle,
}

impl Endpoint {
    /// Serves `service` by the rules of `config`.
    pub fn new(service: &'static Mmds, config: &Config) -> io::Result<Self> {
        let now = Instant::now();
        let mut queues = Queues::default();
        let hardware = HardwareAddress::Ethernet(EthernetAddress(ADDRESS));
        let mut settings = smoltcp::iface::Config::new(hardware);
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        settings.random_seed = u64::from_le_bytes(seed);
        let mut interface = Interface::new(settings, &mut queues, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // Whatever addresses the guest has, it is a neighbour. There is room for the first address.
            let _ = addresses.push(IpCidr::new(config.address.into(), 0));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let connections = (0..MAX_CONNECTIONS).map(|_| {
            let mut socket = connection::socket();
            // Port 80 is not zero, and a new socket is closed.
            let _ = socket.listen(PORT);
            (sockets.add(socket), Connection::new(now))
        });
        Ok(Self {
            service,
            address: config.address.octets(),
            rules: Rules::new(config)?,
            connections: connections.collect(),
            interface,
            sockets,
            queues,
            timer: TimerFd::new()?,
            start: now,
            metrics: service.metrics.clone(),
            failures: Throttle::default(),
        })
    }

    /// What it serves.
    pub fn service(&self) -> &'static Mmds {
        self.service
    }

    /// Does what there is to do with the frame that has come, if there is one, and with all connections.
    fn work(&mut self) {
        let now = Instant::now();
        let sent = self.queues.outgoing.len();
        for _ in 0..ROUNDS {
            let at = self.time(now);
            let result = self.interface.poll(at, &mut self.queues, &mut self.sockets);
            if !self.serve(now) && result == PollResult::None {
                break;
            }
        }
        // What was not taken has no room to be answered.
        if self.queues.incoming.take().is_some() {
            self.metrics.tx_errors.count();
        }
        if self.queues.outgoing.len() > sent {
            self.metrics.tx_count.count();
        }
        self.set_timer(now);
    }

    /// Lets each connection do what it can. `true` where one of them has.
    fn serve(&mut self, now: Instant) -> bool {
        let store = self.service.store();
        let mut busy = false;
        for (handle, connection) in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            let was_open = connection.is_open;
            busy |= connection.serve(socket, &store, &self.rules, now);
            match (was_open, connection.is_open) {
                (false, true) => self.metrics.connections_created.count(),
                (true, false) => self.metrics.connections_destroyed.count(),
                _ => {}
            }
        }
        busy
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let since = now.saturating_duration_since(self.start);
        smoltcp::time::Instant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// Comes back when something is due, if there is somebody to come back for.
    fn set_timer(&mut self, now: Instant) {
        let deadlines = self
            .connections
            .iter()
            .filter_map(|(_, open)| open.deadline());
        let Some(silence) = deadlines.min() else {
            return;
        };
        let at = self.time(now);
        let due = self.interface.poll_delay(at, &self.sockets);
        let due = due.map(|delay| Duration::from_micros(delay.total_micros()));
        let silence = silence.saturating_duration_since(now);
        let wait = due.map_or(silence, |due| due.min(silence));
        if let Err(error) = self.timer.reset(wait.max(SHORTEST_WAIT), None) {
            self.failures.warn(format_args!(
                "The timer of the metadata service cannot be set: {error}"
            ));
        }
    }

    /// Counts what kind of frame the guest has sent to the service.
    fn count(&self, frame: &[u8]) {
        let metrics = &self.metrics;
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
            return metrics.rx_bad_eth.count();
        };
        let expected = match ethernet.ethertype() {
            EthernetProtocol::Arp => ArpPacket::new_checked(ethernet.payload())
                .is_ok()
                .then_some(true),
            _ => Ipv4Packet::new_checked(ethernet.payload())
                .ok()
                .map(|packet| {
                    let tcp = TcpPacket::new_checked(packet.payload());
                    packet.next_header() == IpProtocol::Tcp
                        && tcp.is_ok_and(|tcp| tcp.dst_port() == PORT)
                }),
        };
        match expected {
            Some(true) => metrics.rx_accepted.count(),
            Some(false) => metrics.rx_accepted_unusual.count(),
            None => metrics.rx_accepted_err.count(),
        }
    }
}

impl Interceptor for Endpoint {
    fn wants(&mut self, start: &[u8]) -> bool {
        self.metrics.rx_count.count();
        // Ethernet's type, and the address of whom it is for: ARP and IPv4 have that in different places.
        let target = match start.get(12..14) {
            Some([0x08, 0x06]) => start.get(38..42),
            Some([0x08, 0x00]) => start.get(30..34),
            _ => None,
        };
        target == Some(&self.address[..])
    }

    fn take(&mut self, frame: &[u8]) {
        self.count(frame);
        self.queues.incoming = Some(frame.to_vec());
        self.work();
    }

    fn next(&mut self, frame: &mut [u8]) -> Option<usize> {
        if self.queues.outgoing.is_empty() {
            return None;
        }
        let next = self.queues.outgoing.pop_front()?;
        if self.queues.outgoing.is_empty() {
            // There is room for what could not be sent before.
            self.work();
        }
        let place = frame.get_mut(..next.len())?;
        place.copy_from_slice(&next);
        self.metrics.tx_frames.count();
        self.metrics.tx_bytes.add(next.len() as u64);
        Some(next.len())
    }

    fn has_next(&mut self) -> bool {
        !self.queues.outgoing.is_empty()
    }

    fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    fn wake(&mut self) {
        self.work();
    }

    fn reset(&mut self) {
        self.queues = Queues::default();
        for (handle, connection) in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if connection.is_open {
                self.metrics.connections_destroyed.count();
            }
            socket.abort();
            let _ = socket.listen(PORT);
            *connection = Connection::new(Instant::now());
        }
    }
}
