//! The laboratory: namespaces are entered by threads, so that ordinary sockets of a thread are on its network.
#![expect(
    unsafe_code,
    reason = "a tap is attached by ioctl(2), as a VMM does it"
)]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, gettid};

use crate::address::{Mac, Subnet};
use crate::clock;
use crate::config::{HostAddress, Limits, Machine, NetworkConfig};
use crate::net::private::Private;
use crate::net::rtnl::Rtnl;
use crate::net::wired::Wired;
use crate::net::{Networks, News, Place, bridge, links};

/// Set in the process that has rights of its own in a user namespace.
const INSIDE: &str = "DARUMA_LAB";
/// Longer than any of this takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// For what must not succeed.
const REFUSED: Duration = Duration::from_secs(2);
pub const RESOLVER_ANSWER: &[u8] = b"an answer";

nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);

/// A thread in a network namespace of its own that does what it is told.
struct Stage {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

impl Stage {
    fn new() -> Self {
        let (jobs, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        thread::spawn(move || {
            isolate();
            tell.send(gettid().as_raw()).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        let thread = told.recv().unwrap();
        Self { jobs, thread }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs
            .send(Box::new(move || drop(tell.send(job()))))
            .unwrap();
        told.recv().unwrap()
    }
}

/// Moves the calling thread to a network namespace of its own, with the view of it in /sys.
fn isolate() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let none = MsFlags::empty();
    mount(Some("sysfs"), "/sys", Some("sysfs"), none, None::<&str>).unwrap();
    ip("link set lo up");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// A host with one card, whose cable leads to a wire.
pub struct Lab {
    wire: Stage,
    networks: Option<Networks>,
    news: Option<Receiver<News>>,
    clients: Arc<Mutex<Vec<Ipv4Addr>>>,
}

impl Lab {
    /// Moves this thread to a laboratory; `None` when the test ran in a process of its own instead.
    pub fn enter(test: &str) -> Option<Self> {
        if !geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
            let status = Command::new("unshare")
                .args(["--user", "--map-root-user", "--"])
                .arg(std::env::current_exe().unwrap())
                .args(["--nocapture", &format!("net::tests::{test}")])
                .env(INSIDE, "1")
                .status()
                .unwrap();
            assert!(status.success(), "user namespaces are needed, or root");
            return None;
        }
        isolate();
        // Our kernel filters no bridged packets; some of those that tests run on do, where a port's own packets cannot
        // come back to it.
        let _ = bridge::set_option("net/bridge/bridge-nf-call-iptables", "0");
        let wire = Stage::new();
        ip("link add up0 type veth peer name wire0");
        ip(&format!("link set wire0 netns {}", wire.thread));
        wire.run(|| {
            ip("addr add 192.0.2.1/24 dev wire0");
            ip("link set wire0 up");
        });
        Some(Self {
            wire,
            networks: None,
            news: None,
            clients: Arc::default(),
        })
    }

    /// Starts the networks of a machine, with a DHCP server on the wire.
    pub fn start(&mut self, text: &str, place: Place) {
        let machine = Machine::parse("m.toml", text, Limits::default()).unwrap();
        assert!(machine.remarks.is_empty(), "{:?}", machine.remarks);
        let (tell, news) = channel();
        let networks = Networks::start(&machine, place, HashMap::new(), move |news| {
            drop(tell.send(news));
        });
        let mut known = vec![links::find("up0").unwrap().mac];
        known.extend(networks.taps.iter().map(|tap| tap.mac));
        self.networks = Some(networks);
        self.news = Some(news);
        self.wire.run(move || {
            let wire = links::find("wire0").unwrap();
            let subnet = "192.0.2.0/24".parse().unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let server = Private::open(&mut rtnl, wire, subnet, known, false, true).unwrap();
            thread::spawn(move || {
                loop {
                    wait(&server.socket, PollTimeout::NONE);
                    server.serve();
                }
            });
        });
    }

    /// The host's own way to an address, with a DHCP server on a port of its bridge, as a guest might be one, that
    /// answers long before the one on the wire.
    pub fn address_beside_a_rogue(&self) -> Subnet {
        let serve = |card: &'static str, subnet: &'static str, known: Vec<Mac>| {
            let mut rtnl = Rtnl::open().unwrap();
            let card = links::find(card).unwrap();
            let subnet = subnet.parse().unwrap();
            let server = Private::open(&mut rtnl, card, subnet, known, false, true).unwrap();
            let (tell, heard) = channel();
            thread::spawn(move || {
                loop {
                    wait(&server.socket, PollTimeout::NONE);
                    server.serve();
                    let _ = tell.send(());
                }
            });
            heard
        };
        let known = vec![links::find("up0").unwrap().mac];
        let rogue = Stage::new();
        ip("link add port0 type veth peer name rogue0");
        ip(&format!("link set rogue0 netns {}", rogue.thread));
        let mut rtnl = Rtnl::open().unwrap();
        let bridge = bridge::create(&mut rtnl, 0).unwrap();
        bridge::connect(&mut rtnl, "port0", bridge.index).unwrap();
        let macs = known.clone();
        let heard = rogue.run(move || {
            ip("link set rogue0 up");
            serve("rogue0", "198.51.100.0/24", macs)
        });
        let config = NetworkConfig {
            nic: Some("up0".to_owned()),
            ..NetworkConfig::default()
        };
        let mut wired = Wired::open(&mut rtnl, bridge, &config, "host").unwrap();
        let end = Instant::now() + PATIENCE;
        let mut answered = false;
        let mut macs = Some(known);
        while wired.address().is_none() && Instant::now() < end {
            wired.look(&mut rtnl, clock::now()).unwrap();
            wired.tick(&mut rtnl, clock::now()).unwrap();
            if let Some(ear) = wired.socket() {
                wait(ear, PollTimeout::from(50_u16));
            }
            wired.receive(&mut rtnl, clock::now()).unwrap();
            answered |= heard.try_recv().is_ok();
            if answered && let Some(macs) = macs.take() {
                self.wire.run(move || serve("wire0", "192.0.2.0/24", macs));
            }
        }
        assert!(answered, "the guest heard nothing");
        wired.address().expect("the host got no address")
    }

    /// A wired network with a static address.
    pub fn static_address(&self, subnet: Subnet, router: Ipv4Addr) -> (Wired, Rtnl) {
        let config = NetworkConfig {
            nic: Some("up0".to_owned()),
            address: HostAddress::Static {
                subnet,
                gateway: Some(router),
            },
            ..NetworkConfig::default()
        };
        let mut rtnl = Rtnl::open().unwrap();
        let bridge = bridge::create(&mut rtnl, 0).unwrap();
        let mut wired = Wired::open(&mut rtnl, bridge, &config, "host").unwrap();
        // The card's link shows a moment after it is switched on.
        let end = Instant::now() + PATIENCE;
        while !links::find("up0").unwrap().bridged && Instant::now() < end {
            wired.look(&mut rtnl, clock::now()).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        (wired, rtnl)
    }

    pub fn stop(&mut self) {
        self.networks = None;
    }

    fn wait_for(&self, what: &str, mut wanted: impl FnMut(&News) -> bool) {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.news.as_ref().unwrap().recv_timeout(left) {
                Ok(news) if wanted(&news) => return,
                Ok(news) => {
                    assert!(!matches!(news, News::Remark(_)), "{news:?}");
                    seen.push(news);
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} among {seen:#?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("ended after {seen:#?}"),
            }
        }
    }

    /// Waits until the networks say this of themselves.
    pub fn wait_for_state(&self, words: &str) {
        let wanted = |news: &News| matches!(news, News::State(text) if text.contains(words));
        self.wait_for(words, wanted);
    }

    /// Waits until a guest is known to have this address.
    pub fn wait_for_address(&self, address: Ipv4Addr) {
        let wanted = |news: &News| matches!(news, News::Address { address: Some(known), .. } if *known == address);
        self.wait_for(&address.to_string(), wanted);
    }

    /// Plugs the cable in or pulls it.
    pub fn cable(&self, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        self.wire
            .run(move || ip(&format!("link set wire0 {state}")));
    }

    /// A guest on a tap.
    pub fn guest(&self, tap: usize) -> Guest {
        let tap = self.networks.as_ref().unwrap().taps[tap].clone();
        Guest::plug(&tap.name, tap.mac)
    }

    /// What a machine on the wire reads at an address.
    pub fn ask(&self, address: Ipv4Addr, port: u16) -> io::Result<String> {
        self.wire.run(move || ask(address, port))
    }

    /// Serves a text on the wire, and remembers who asked.
    pub fn serve(&self, port: u16, text: &'static str) {
        let clients = Arc::clone(&self.clients);
        self.wire.run(move || serve(port, text, clients));
    }

    pub fn last_client(&self) -> Option<Ipv4Addr> {
        self.clients.lock().unwrap().last().copied()
    }

    /// Answers name queries on the wire.
    pub fn resolver(&self) {
        self.wire.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 53)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(RESOLVER_ANSWER, from).unwrap();
                }
            });
        });
    }

    /// A route on the wire.
    pub fn route(&self, subnet: Subnet, router: Ipv4Addr) {
        self.wire
            .run(move || ip(&format!("route add {subnet} via {router}")));
    }

    pub fn give_host_an_address(&self) {
        ip("addr add 192.0.2.10/24 dev up0");
        ip("link set up0 up");
    }

    pub fn interfaces(&self) -> Vec<String> {
        links::scan().into_iter().map(|link| link.name).collect()
    }

    pub fn bridges(&self) -> Vec<String> {
        let names = self.interfaces().into_iter();
        names.filter(|name| name.starts_with("daruma")).collect()
    }

    pub fn macs(&self) -> Vec<Mac> {
        let taps = &self.networks.as_ref().unwrap().taps;
        taps.iter().map(|tap| tap.mac).collect()
    }

    pub fn forwarding(&self) -> String {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        text.trim().to_owned()
    }
}

/// A guest: a kernel's network with one card, at the other end of the host's tap.
pub struct Guest {
    place: Stage,
    address: Ipv4Addr,
}

impl Guest {
    fn plug(tap: &str, mac: Mac) -> Self {
        let host_end = attach(tap);
        let place = Stage::new();
        let (guest_end, mut rtnl) = place.run(move || {
            let card = attach("eth0");
            let mut rtnl = Rtnl::open().unwrap();
            rtnl.set_mac(links::find("eth0").unwrap().index, mac)
                .unwrap();
            (card, rtnl)
        });
        connect(host_end, guest_end);
        let address = place.run(move || {
            // The host's own way to an address does for a guest as well.
            let config = NetworkConfig {
                nic: Some("eth0".to_owned()),
                ..NetworkConfig::default()
            };
            let bridge = bridge::create(&mut rtnl, 0).unwrap();
            let mut wired = Wired::open(&mut rtnl, bridge, &config, "guest").unwrap();
            let end = Instant::now() + PATIENCE;
            while wired.address().is_none() && Instant::now() < end {
                wired.look(&mut rtnl, clock::now()).unwrap();
                wired.tick(&mut rtnl, clock::now()).unwrap();
                if let Some(socket) = wired.socket() {
                    wait(socket, PollTimeout::from(50_u16));
                }
                wired.receive(&mut rtnl, clock::now()).unwrap();
            }
            wired.address().expect("the guest got no address").address
        });
        Self { place, address }
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn serve(&self, port: u16, text: &'static str) {
        self.place.run(move || serve(port, text, Arc::default()));
    }

    pub fn ask(&self, address: Ipv4Addr, port: u16) -> io::Result<String> {
        self.place.run(move || ask(address, port))
    }

    /// Sends a name query.
    pub fn query(&self, server: Ipv4Addr) -> Vec<u8> {
        self.place.run(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(b"a question", (server, 53)).unwrap();
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, SocketAddr::from((server, 53)));
            buffer[..length].to_vec()
        })
    }

    /// A default route, though DHCP gave none.
    pub fn route(&self, router: Ipv4Addr) {
        self.place.run(move || {
            ip(&format!(
                "route add default via {router} dev daruma0 onlink"
            ));
        });
    }
}

/// What is served at an address, on the network of this thread.
pub fn ask(address: Ipv4Addr, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), REFUSED)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn serve(port: u16, text: &'static str, clients: Arc<Mutex<Vec<Ipv4Addr>>>) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            if let SocketAddr::V4(from) = from {
                clients.lock().unwrap().push(*from.ip());
            }
            stream.write_all(text.as_bytes()).unwrap();
        }
    });
}

fn wait(fd: &impl AsFd, timeout: PollTimeout) {
    let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout);
}

/// Opens a tap as a VMM does.
fn attach(name: &str) -> File {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // SAFETY: plain data, for which all zero bits are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: the structure is the one this request takes, alive for the call.
    unsafe { set_interface(device.as_raw_fd(), &raw const request) }.unwrap();
    device
}

/// Passes frames between two taps until one is gone.
fn connect(a: File, b: File) {
    for (mut from, mut to) in [(a.try_clone().unwrap(), b.try_clone().unwrap()), (b, a)] {
        thread::spawn(move || {
            let mut frame = vec![0; 1 << 16];
            loop {
                match from.read(&mut frame) {
                    // A card that is off takes no frames, as a real one.
                    Ok(length) => {
                        let _ = to.write(&frame[..length]);
                    }
                    // The tap is off or gone; it may come up yet.
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
    }
}
