use devices::virtio::net::Interceptor;
use devices::virtio::net::interceptor::{MAX_INTERCEPTED, START_LEN};
use proptest::prelude::*;
use serde_json::json;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};

use super::queues::Queues;
use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

fn config(version: Version) -> Config {
    Config {
        version,
        interfaces: vec!["eth0".into()],
        address: DEFAULT_ADDRESS,
        imds_compat: false,
    }
}

/// A service for one test. What it takes stays taken: the process ends soon.
fn service() -> &'static Mmds {
    let service = Mmds::new();
    let data = json!({"latest": {"meta-data": {"ami-id": "ami-1"}}, "large": "x".repeat(50_000)});
    service.store().put(data).unwrap();
    Box::leak(Box::new(service))
}

/// A guest with TCP/IP of its own, and the service at the other end of its wire.
struct World {
    endpoint: Endpoint,
    guest: Interface,
    sockets: SocketSet<'static>,
    wire: Queues,
    millis: i64,
}

impl World {
    fn new(version: Version) -> Self {
        let endpoint = Endpoint::new(service(), &config(version)).unwrap();
        let mut wire = Queues::default();
        let address = EthernetAddress([2, 0, 0, 0, 0, 1]);
        let settings = smoltcp::iface::Config::new(HardwareAddress::Ethernet(address));
        let mut guest = Interface::new(settings, &mut wire, Instant::ZERO);
        guest.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap();
            // As by `ip route add 169.254.169.254 dev eth0`.
            let route = Ipv4Address::new(169, 254, 169, 1);
            addresses.push(IpCidr::new(route.into(), 24)).unwrap();
        });
        Self {
            endpoint,
            guest,
            sockets: SocketSet::new(Vec::new()),
            wire,
            millis: 0,
        }
    }

    fn connect(&mut self, local_port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 4096]);
        let mut socket = Socket::new(buffer(), buffer());
        let to = (DEFAULT_ADDRESS, 80);
        socket
            .connect(self.guest.context(), to, (GUEST, local_port))
            .unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets frames go both ways. A guest takes `most` frames at a time.
    fn run_taking(&mut self, most: usize) {
        for _ in 0..200 {
            self.millis += 1;
            let now = Instant::from_millis(self.millis);
            self.guest.poll(now, &mut self.wire, &mut self.sockets);
            for frame in std::mem::take(&mut self.wire.outgoing) {
                let start = &frame[..frame.len().min(START_LEN)];
                if self.endpoint.wants(start) {
                    self.endpoint.take(&frame);
                }
            }
            let mut frame = [0; MAX_INTERCEPTED];
            for _ in 0..most {
                let Some(length) = self.endpoint.next(&mut frame) else {
                    break;
                };
                self.wire.incoming = Some(frame[..length].to_vec());
                let now = Instant::from_millis(self.millis);
                self.guest.poll(now, &mut self.wire, &mut self.sockets);
            }
        }
    }

    fn received(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            self.run_taking(100);
            let socket = self.socket(handle);
            while socket.can_recv() {
                let part = socket.recv(|part| (part.len(), part.to_vec())).unwrap();
                bytes.extend(part);
            }
            if !self.socket(handle).may_recv() {
                break;
            }
        }
        bytes
    }

    fn ask(&mut self, port: u16, request: &[u8]) -> String {
        let handle = self.connect(port);
        self.run_taking(100);
        assert_eq!(self.socket(handle).state(), State::Established);
        assert_eq!(
            self.socket(handle).send_slice(request).unwrap(),
            request.len()
        );
        let answer = self.received(handle);
        self.socket(handle).close();
        self.run_taking(100);
        String::from_utf8(answer).unwrap()
    }
}

const CLOSE: &str = "Connection: close\r\n\r\n";

#[test]
fn a_guest_gets_its_metadata_over_tcp() {
    let mut world = World::new(Version::V1);
    let request = format!("GET /latest/meta-data/ami-id HTTP/1.1\r\n{CLOSE}");
    let answer = world.ask(5000, request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nami-1"), "{answer}");
    let metrics = &world.endpoint_metrics();
    assert_eq!(metrics.connections_created.get(), 1);
    assert_eq!(metrics.connections_destroyed.get(), 1);
    assert!(metrics.rx_accepted.get() > 4 && metrics.tx_frames.get() > 4);
}

impl World {
    fn endpoint_metrics(&self) -> Arc<MmdsMetrics> {
        self.endpoint.service().metrics.clone()
    }
}

#[test]
fn an_answer_larger_than_all_buffers_comes_whole_to_a_slow_guest() {
    let mut world = World::new(Version::V1);
    let handle = world.connect(5000);
    world.run_taking(100);
    let request = format!("GET /large HTTP/1.1\r\n{CLOSE}");
    world.socket(handle).send_slice(request.as_bytes()).unwrap();
    // It reads nothing for a while.
    world.run_taking(1);
    let answer = world.received(handle);
    assert!(answer.ends_with(&[b'x'; 50_000]), "{} bytes", answer.len());
}

#[test]
fn a_session_begins_with_a_token() {
    let mut world = World::new(Version::V2);
    let refused = world.ask(5000, format!("GET /latest HTTP/1.1\r\n{CLOSE}").as_bytes());
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
    let ask = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n";
    let given = world.ask(5001, format!("{ask}{CLOSE}").as_bytes());
    let token = given.split_once("\r\n\r\n").unwrap().1;
    let request = format!("GET /latest HTTP/1.1\r\nX-metadata-token: {token}\r\n{CLOSE}");
    let answer = world.ask(5002, request.as_bytes());
    assert!(answer.ends_with("\r\n\r\nmeta-data/"), "{answer}");
}

#[test]
fn one_connection_serves_several_requests() {
    let mut world = World::new(Version::V1);
    let one = "GET /latest HTTP/1.1\r\n\r\n";
    let answer = world.ask(
        5000,
        format!("{one}{one}GET / HTTP/1.1\r\n{CLOSE}").as_bytes(),
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
}

#[test]
fn more_connections_than_there_are_places_are_refused_and_reset_frees_them() {
    let mut world = World::new(Version::V1);
    let handles: Vec<_> = (0..40).map(|i| world.connect(5000 + i)).collect();
    world.run_taking(100);
    let states = handles
        .iter()
        .map(|handle| world.socket(*handle).state())
        .collect::<Vec<_>>();
    let open = states.iter().filter(|state| **state == State::Established);
    assert_eq!(open.count(), 16, "{states:?}");
    assert!(states.contains(&State::Closed), "{states:?}");
    world.endpoint.reset();
    let answer = world.ask(6000, format!("GET / HTTP/1.1\r\n{CLOSE}").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn a_guest_that_takes_no_frame_gets_no_more_than_32() {
    let mut world = World::new(Version::V1);
    // Requests for its hardware address: each has an answer.
    let mut request = [0; 42];
    request[..6].fill(0xff);
    request[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[28..32].copy_from_slice(&GUEST.octets());
    request[38..42].copy_from_slice(&DEFAULT_ADDRESS.octets());
    for _ in 0..1000 {
        assert!(world.endpoint.wants(&request));
        world.endpoint.take(&request);
    }
    let mut frame = [0; MAX_INTERCEPTED];
    let answers = std::iter::from_fn(|| world.endpoint.next(&mut frame)).count();
    assert_eq!(answers, 32);
    assert_eq!(world.endpoint_metrics().tx_errors.get(), 1000 - 32);
}

#[test]
fn only_what_is_for_the_service_is_taken_from_the_network() {
    let mut world = World::new(Version::V1);
    let mut frame = [0; START_LEN];
    for (kind, at, wanted) in [
        ([8, 0], 30, true),
        ([8, 6], 38, true),
        ([8, 0], 26, false),
        ([8, 6], 28, false),
        ([0x86, 0xdd], 30, false),
    ] {
        frame.fill(0);
        frame[12..14].copy_from_slice(&kind);
        frame[at..at + 4].copy_from_slice(&DEFAULT_ADDRESS.octets());
        assert_eq!(world.endpoint.wants(&frame), wanted, "{kind:?} {at}");
    }
    assert!(!world.endpoint.wants(&frame[..14]));
}

#[test]
fn a_file_can_have_the_metadata() {
    let service = Mmds::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let load = |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        load(&service, file.path())
    };
    load(r#"{"a": 1}"#).unwrap();
    assert!(matches!(load("nonsense"), Err(LoadError::Json { .. })));
    assert!(matches!(load("[]"), Err(LoadError::Store(_))));
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(DEFAULT_LIMIT));
    assert!(matches!(load(&large), Err(LoadError::Store(_))));
    assert!(matches!(
        load(&large.repeat(10)),
        Err(LoadError::Json { .. })
    ));
    assert_eq!(service.store().get(), &json!({"a": 1}));
}

#[test]
fn how_it_is_reached_is_checked() {
    let asked = |text| serde_json::from_str::<api::model::MmdsConfig>(text).unwrap();
    let check = |text| Config::check(&asked(text), &["eth0", "eth1"]);
    let good = check(
        r#"{"network_interfaces": ["eth1"], "version": "V2", "ipv4_address": "169.254.170.2", "imds_compat": true}"#,
    );
    let expected = Config {
        version: Version::V2,
        interfaces: vec!["eth1".into()],
        address: Ipv4Addr::new(169, 254, 170, 2),
        imds_compat: true,
    };
    assert_eq!(good.unwrap(), expected);
    let plain = check(r#"{"network_interfaces": ["eth0"]}"#).unwrap();
    assert_eq!(plain.version, Version::V1);
    for (bad, what) in [
        (r#"{"network_interfaces": []}"#, "empty"),
        (r#"{"network_interfaces": ["eth2"]}"#, "\"eth2\""),
        (r#"{"network_interfaces": ["eth0"], "version": "V3"}"#, "V3"),
        (
            r#"{"network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1"}"#,
            "10.0.0.1",
        ),
        (
            r#"{"network_interfaces": ["eth0"], "ipv4_address": "169.254.255.1"}"#,
            "169.254",
        ),
    ] {
        let text = check(bad).unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
    }
}

proptest! {
    /// Frames that look like the service's up to some byte.
    #[test]
    fn any_frame_is_harmless(
        frames in prop::collection::vec(
            (prop::sample::select(vec![[8u8, 0u8], [8, 6]]), prop::collection::vec(any::<u8>(), 42..200), any::<bool>()),
            1..20,
        ),
    ) {
        let mut world = World::new(Version::V1);
        for (kind, mut frame, tcp) in frames {
            frame[12..14].copy_from_slice(&kind);
            if tcp {
                // IPv4 without options, TCP to port 80, of the right length.
                let length = u16::try_from(frame.len() - 14).unwrap();
                frame[14] = 0x45;
                frame[16..18].copy_from_slice(&length.to_be_bytes());
                frame[20..22].fill(0);
                frame[23] = 6;
                frame[36..38].copy_from_slice(&80u16.to_be_bytes());
            }
            let at = if kind == [8, 6] { 38 } else { 30 };
            frame[at..at + 4].copy_from_slice(&DEFAULT_ADDRESS.octets());
            if world.endpoint.wants(&frame[..START_LEN]) {
                world.endpoint.take(&frame);
            }
        }
        let mut frame = [0; MAX_INTERCEPTED];
        while world.endpoint.next(&mut frame).is_some() {}
        world.endpoint.wake();
    }
}
