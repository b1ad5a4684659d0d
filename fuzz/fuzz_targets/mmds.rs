//! The metadata service: HTTP requests, and frames of a guest that speaks TCP/IP as it likes.
#![no_main]

use std::sync::OnceLock;
use std::time::Instant;

use devices::virtio::net::Interceptor;
use fuzz::Unstructured;
use vmm::mmds::{Config, DEFAULT_ADDRESS, Endpoint, Mmds, Rules, Store, Version, answer};

const SEED: &[u8] =
    b"GET /a/b HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept: application/json\r\n\r\n";
const TOKEN: &[u8] = b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\nContent-Length: 2\r\n\r\nab";
/// Ports of the guest that connections come from.
const PORTS: u16 = 4;
const MAX_STEPS: usize = 60;

const SYN: u8 = 2;
const FIN: u8 = 1;
const ACK: u8 = 16;

fn config(version: Version) -> Config {
    Config {
        version,
        interfaces: vec!["eth0".into()],
        address: DEFAULT_ADDRESS,
        imds_compat: false,
    }
}

fn service() -> &'static Mmds {
    static SERVICE: OnceLock<Mmds> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let service = Mmds::new();
        let data =
            serde_json::json!({"a": {"b": "c", "d": [1, 2], "e": null}, "f": "long ".repeat(100)});
        service.store().put(data).expect("a short document");
        service
    })
}

fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| {
        let mut store = Store::default();
        store
            .put(service().store().get().clone())
            .expect("a short document");
        store
    })
}

/// A guest's end of a connection: what it has sent, and what it has got.
#[derive(Clone, Copy, Default)]
struct Connection {
    sent: u32,
    got: u32,
}

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or(0)).to_be_bytes()
}

/// A frame of TCP, with its checksums right.
fn segment(
    port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(60 + data.len());
    tcp.extend((1000 + port).to_be_bytes());
    tcp.extend(80_u16.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.push(u8::try_from(5 + options.len() / 4).unwrap_or(5) << 4);
    tcp.push(flags);
    tcp.extend(window.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend(options);
    tcp.extend(data);
    let (from, to) = ([169, 254, 1, 1], DEFAULT_ADDRESS.octets());
    let len = u16::try_from(tcp.len()).unwrap_or(0);
    let sum = checksum(&[&from, &to, &[0, 6], &len.to_be_bytes(), &tcp]);
    tcp[16..18].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + len).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(from);
    ip.extend(to);
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum);
    let ethernet = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0];
    [&ethernet[..], &ip, &tcp].concat()
}

struct Guest {
    endpoint: Endpoint,
    connections: [Connection; PORTS as usize],
}

impl Guest {
    fn send(&mut self, frame: &[u8]) {
        if self.endpoint.wants(&frame[..frame.len().min(42)]) {
            self.endpoint.take(frame);
        }
        self.hear();
    }

    /// Takes all answers, and remembers where the connections stand.
    fn hear(&mut self) {
        let mut buffer = [0; 8 << 10];
        let mut frames = 0;
        while let Some(len) = self.endpoint.next(&mut buffer) {
            frames += 1;
            assert!(
                frames < 1000,
                "one frame of the guest is not answered for ever"
            );
            let frame = &buffer[..len];
            if len < 54 || frame[12..14] != [8, 0] || frame[23] != 6 {
                continue;
            }
            let word = |at: usize| {
                frame[at..at + 4]
                    .first_chunk()
                    .copied()
                    .map_or(0, u32::from_be_bytes)
            };
            let port = u16::from_be_bytes([frame[36], frame[37]]).wrapping_sub(1000);
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let data = total.saturating_sub(20 + usize::from(frame[46] >> 4) * 4);
            if let Some(connection) = self.connections.get_mut(usize::from(port)) {
                let flags = u32::from(frame[47] & SYN != 0) + u32::from(frame[47] & FIN != 0);
                connection.got = word(38)
                    .wrapping_add(u32::try_from(data).unwrap_or(0))
                    .wrapping_add(flags);
                if frame[47] & ACK != 0 {
                    connection.sent = word(42);
                }
            }
        }
        assert!(!self.endpoint.has_next());
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let what: u8 = input.arbitrary()?;
        let port = u16::from(input.arbitrary::<u8>()?) % PORTS;
        let at = usize::from(port);
        match what % 8 {
            0 => {
                let len = usize::from(input.arbitrary::<u8>()?);
                let bytes = input.bytes(len.min(input.len()))?;
                self.send(bytes);
            }
            1 => {
                let mut frame = vec![0xff; 6];
                frame.extend([
                    2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 169, 254, 1,
                    1, 0, 0, 0, 0, 0, 0,
                ]);
                frame.extend(DEFAULT_ADDRESS.octets());
                self.send(&frame);
            }
            2 => {
                self.connections[at] = Connection::default();
                self.send(&segment(port, 0, 0, SYN, 1000, &[], &[]));
                let Connection { sent, got } = self.connections[at];
                self.send(&segment(port, sent, got, ACK, 1000, &[], &[]));
            }
            3 => {
                let Connection { sent, got } = self.connections[at];
                let request = if what & 8 == 0 { SEED } else { TOKEN };
                self.send(&segment(port, sent, got, ACK, 1000, &[], request));
            }
            4 => self.endpoint.wake(),
            _ => {
                let Connection { sent, got } = self.connections[at];
                let seq = sent.wrapping_add_signed(input.arbitrary::<i8>()?.into());
                let ack = got.wrapping_add_signed(i32::from(input.arbitrary::<i8>()?) / 16);
                let flags = input.arbitrary::<u8>()? & 0x3f;
                let window = input.arbitrary()?;
                let options = usize::from(input.arbitrary::<u8>()? % 11) * 4;
                let options = input.bytes(options.min(input.len() / 4 * 4))?;
                let len = usize::from(input.arbitrary::<u8>()?);
                let data = input.bytes(len.min(input.len()))?;
                self.send(&segment(port, seq, ack, flags, window, options, data));
            }
        }
        Ok(())
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let frames = fuzz::steps().into_iter().step_by(2);
    let frames = frames.map(|steps| [vec![1, 2, 0, 3, 0], steps].concat());
    let requests = [SEED, TOKEN].map(|request| [&[0], request].concat());
    frames.chain(requests).collect()
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let [kind, data @ ..] = data else {
        return;
    };
    let version = if kind & 2 == 0 { Version::V1 } else { Version::V2 };
    if kind & 1 == 0 {
        let rules = Rules::new(&config(version)).expect("random bytes");
        let _ = answer(data, kind & 4 != 0, store(), &rules, Instant::now());
        return;
    }
    let mut guest = Guest {
        endpoint: Endpoint::new(service(), &config(version)).expect("a timer"),
        connections: Default::default(),
    };
    let mut input = Unstructured::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() || guest.step(&mut input).is_err() {
            break;
        }
    }
    guest.endpoint.reset();
    guest.hear();
});
