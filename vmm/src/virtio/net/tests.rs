//! With a real tap interface: where this user may not make one, these say so and do nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::net::UdpSocket;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use devices::virtio::state::NEEDS_RESET;
use devices::virtio::testing::{GuestRing, TestGuest, Transport};
use vmm_sys_util::errno;

use super::*;
use crate::config::RateLimiterConfig;

/// A tap of a test's own, with the address `net.1` on the host's side and `net.2` known behind it.
struct HostTap {
    name: String,
    net: String,
}

static TAPS: AtomicU32 = AtomicU32::new(0);

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}

impl HostTap {
    fn new() -> Option<Self> {
        let number = TAPS.fetch_add(1, Ordering::Relaxed);
        let name = format!("dt{}n{number}", process::id());
        if !ip(&format!("tuntap add dev {name} mode tap vnet_hdr")) {
            eprintln!("skipped: this user may not make tap interfaces, or there is no ip(8)");
            return None;
        }
        let net = format!("10.213.{}", process::id() % 100 * 2 + number % 2);
        let tap = Self { name, net };
        for arguments in [
            format!("addr add {}.1/24 dev {}", tap.net, tap.name),
            format!("link set {} up", tap.name),
            format!(
                "neigh replace {}.2 lladdr {} dev {}",
                tap.net, MAC, tap.name
            ),
        ] {
            assert!(ip(&arguments), "ip {arguments}");
        }
        Some(tap)
    }

    fn config(&self) -> NetConfig {
        NetConfig {
            id: "eth0".into(),
            tap: TapSource::Name(self.name.clone()),
            mac: Some(MAC.parse().unwrap()),
            mtu: None,
            rx_rate_limiter: RateLimiterConfig::default(),
            tx_rate_limiter: RateLimiterConfig::default(),
        }
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        // One of the tests has done so already.
        let _ = ip(&format!("link del {}", self.name));
    }
}

/// The interface `net`, whose tap is opened for it.
fn make(net: &NetConfig) -> Result<(Net, Handle), VirtioError> {
    super::make(net, open(net)?)
}

const VERSION_1: u64 = 1 << 32;
const GUEST_CSUM: u64 = 1 << 1;
const MRG_RXBUF: u64 = 1 << 15;
const MAC: &str = "02:00:00:00:00:77";

fn start(guest: &mut TestGuest, features: u64) -> (GuestRing, GuestRing) {
    let always = VERSION_1 | MRG_RXBUF;
    let mut rings = guest.start_queues(always | features, &[64, 64]);
    let (mut tx, rx) = (rings.remove(1), rings.remove(0));
    tx.buffer(0x3_8000, false);
    (rx, tx)
}

/// Sends a datagram to port 7 of the guest until it is received; gives the frame with its header. A tap takes a moment
/// after it was opened until it carries anything.
fn receive_datagram(
    guest: &mut TestGuest,
    rx: &mut GuestRing,
    host: &UdpSocket,
    to: &str,
) -> Vec<u8> {
    let mut buffers = VecDeque::new();
    for _ in 0..1000 {
        host.send_to(b"a question", to).unwrap();
        if buffers.len() < 2 {
            let buffer = rx.buffer(2048, true);
            rx.add(&[buffer]);
            buffers.push_back(buffer);
            guest.notify(0);
        }
        guest.run();
        while let Some((_, len)) = rx.used() {
            let buffer = buffers.pop_front().unwrap();
            let frame = rx.contents(buffer)[..len as usize].to_vec();
            // EtherType IPv4, protocol UDP, destination port: others have something to say, too.
            if frame.len() > 54
                && frame[24..26] == [8, 0]
                && frame[35] == 17
                && frame[48..50] == [0, 7]
            {
                return frame;
            }
        }
        sleep(Duration::from_millis(5));
    }
    panic!("no datagram arrives at the guest");
}

#[test]
fn datagrams_go_both_ways_through_a_real_tap_with_and_without_checksums() {
    let Some(tap) = HostTap::new() else { return };
    for &on in Transport::ALL {
        for (features, unchecked) in [(0, 0), (GUEST_CSUM, 1)] {
            let mut guest = TestGuest::new(on, make(&tap.config()).unwrap().0);
            let (mut rx, mut tx) = start(&mut guest, features);
            let host = UdpSocket::bind(format!("{}.1:0", tap.net)).unwrap();
            host.set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let to = format!("{}.2:7", tap.net);
            let frame = receive_datagram(&mut guest, &mut rx, &host, &to);
            assert_eq!(frame[0] & 1, unchecked, "left for the guest to compute");
            assert!(frame.ends_with(b"a question"), "{frame:x?}");

            // The way back: addresses and ports exchanged, no UDP checksum.
            let mut back = frame.clone();
            back[..12].fill(0);
            back[12..18].copy_from_slice(&frame[18..24]);
            back[18..24].copy_from_slice(&frame[12..18]);
            back[38..42].copy_from_slice(&frame[42..46]);
            back[42..46].copy_from_slice(&frame[38..42]);
            back[46..48].copy_from_slice(&frame[48..50]);
            back[48..50].copy_from_slice(&frame[46..48]);
            back[52..54].fill(0);
            let buffer = tx.data(&back);
            let head = tx.add(&[buffer]);
            guest.notify(1);
            assert_eq!(tx.used(), Some((head, 0)));
            let mut answer = [0; 32];
            let (len, from) = host.recv_from(&mut answer).unwrap();
            assert_eq!(&answer[..len], b"a question");
            assert_eq!(from.to_string(), to);
        }
    }
}

#[test]
fn frames_the_kernel_refuses_are_dropped() {
    let Some(tap) = HostTap::new() else { return };
    for &on in Transport::ALL {
        let mut guest = TestGuest::new(on, make(&tap.config()).unwrap().0);
        let offered = guest.offered();
        let mut rings = guest.start_queues(offered, &[64, 64]);
        // To be cut, with checksum and header lengths far outside of the frame; then a checksum in the last byte.
        for header in [
            [1, 1, 0xff, 0xff, 1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            [1, 4, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0],
        ] {
            let buffer = rings[1].data(&[&header[..], &[0; 60]].concat());
            let head = rings[1].add(&[buffer]);
            guest.notify(1);
            assert_eq!(rings[1].used(), Some((head, 0)));
        }
        assert_eq!(guest.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn a_tap_that_disappears_takes_the_link_down() {
    for &on in Transport::ALL {
        let Some(tap) = HostTap::new() else { return };
        let mut guest = TestGuest::new(on, make(&tap.config()).unwrap().0);
        let (mut rx, mut tx) = start(&mut guest, 0);
        let buffer = rx.buffer(2048, true);
        rx.add(&[buffer]);
        guest.notify(0);
        assert_eq!(guest.config_u16(6), 1);
        assert!(ip(&format!("link del {}", tap.name)));
        guest.run();
        assert_eq!(guest.config_u16(6), 0, "the link is down");
        let buffer = tx.data(&[0; 80]);
        let head = tx.add(&[buffer]);
        guest.notify(1);
        assert_eq!(tx.used(), Some((head, 0)));
        assert_eq!(guest.run(), 0, "the device sleeps");
        assert_eq!(guest.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn a_tap_that_is_missing_busy_or_none_is_refused_with_what_to_do() {
    let Some(busy) = HostTap::new() else { return };
    let _first = make(&busy.config()).unwrap();
    let text = |config: &NetConfig| match make(config) {
        Err(VirtioError::OpenTap { source, .. }) => source.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it opens"),
    };
    let text_of = |tap| {
        text(&NetConfig {
            tap,
            ..busy.config()
        })
    };
    assert!(text(&busy.config()).contains("another program has it"));
    let lo = text_of(TapSource::Name("lo".into()));
    assert!(lo.contains("not a tap"), "{lo}");
    let closed = text_of(TapSource::Fd(987));
    assert!(closed.contains("Descriptor 987 is not a tap"), "{closed}");
    let null = File::open("/dev/null").unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&null);
    assert!(text_of(TapSource::Fd(fd)).contains("is not a tap"));
}

#[test]
fn a_tap_that_is_open_already_is_taken_over_and_a_missing_one_is_made() {
    let Some(tap) = HostTap::new() else { return };
    let open = tap::open(&tap.name).unwrap();
    let net = NetConfig {
        tap: TapSource::Fd(std::os::fd::IntoRawFd::into_raw_fd(open)),
        ..tap.config()
    };
    let taken = make(&net).unwrap();
    drop(taken);

    let name = format!("dt{}new", process::id());
    let made = tap::open(&name).unwrap();
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/flags")).unwrap();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1, "it is switched on");
    drop(made);
}

#[test]
fn hints_name_the_way_out() {
    for (code, hint) in [
        (libc::EBUSY, "Give each guest a tap of its own"),
        (libc::EPERM, "ip tuntap add dev t mode tap user"),
        (libc::EINVAL, "not a tap"),
    ] {
        let error = tap::TapError::Interface {
            name: "t".into(),
            source: errno::Error::new(code).into(),
        };
        assert!(error.to_string().contains(hint), "{error}");
    }
}
