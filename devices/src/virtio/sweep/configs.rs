//! The configuration space of every device, in every status, by every width: what is read of it is the same bytes
//! however it is read, and what is written changes what is the driver's to change.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::{WIDTHS, report, values};
use crate::rate_limiter::{RateLimiter, RateLimits};
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::block::engine::Preference;
use crate::virtio::block::{self, Block, Engine, RawFile};
use crate::virtio::console::{self, Console, PortSpec};
use crate::virtio::net::{Backend, Net, NetOptions, Offloads};
use crate::virtio::pmem::{Backing, Pmem};
use crate::virtio::queue::{QueueRegisters, RING_FEATURES};
use crate::virtio::rng::Rng;
use crate::virtio::state::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, NEEDS_RESET};
use crate::virtio::testing::{TestGuest, Transport};
use crate::virtio::vsock::{self, Vsock};

/// A network, a disk's medium and a host of which nothing comes.
struct Silent(UnixStream);

impl Silent {
    fn new() -> Self {
        let (end, _) = UnixStream::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        Self(end)
    }
}

impl Backend for Silent {
    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn cuts_udp(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}

impl Backing for Silent {
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl vsock::Host for Silent {
    fn listener(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn connect(&mut self, _port: u32) -> io::Result<UnixStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

struct Device {
    name: &'static str,
    make: fn(Transport) -> TestGuest,
    len: u64,
    /// The bytes a driver writes and reads back.
    writable: std::ops::Range<u64>,
}

fn devices() -> [Device; 7] {
    let device = |name, len, writable, make| Device {
        name,
        make,
        len,
        writable,
    };
    [
        device("rng", 0, 0..0, |on| TestGuest::new(on, Rng::new())),
        device("balloon", 8, 4..8, |on| {
            TestGuest::new(on, Balloon::new(balloon::Options::default()).unwrap())
        }),
        device("pmem", 16, 0..0, |on| {
            TestGuest::new(on, Pmem::new(1 << 32, 1 << 21, Silent::new()))
        }),
        device("block", 60, 0..0, |on| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(8 * 512).unwrap();
            let disk = Box::new(RawFile::new(file, false).unwrap());
            let options = block::Options {
                queues: 3,
                ..Default::default()
            };
            let engine = Engine::new(Preference::Synchronous);
            TestGuest::new(on, Block::new(disk, engine, options).unwrap())
        }),
        device("net", 12, 0..0, |on| {
            let limiter = || RateLimiter::new(RateLimits::default()).unwrap();
            let options = NetOptions {
                mac: [2, 1, 2, 3, 4, 5],
                mtu: Some(1400),
                interceptor: None,
                receive_limiter: limiter(),
                transmit_limiter: limiter(),
            };
            TestGuest::new(on, Net::new(Box::new(Silent::new()), options))
        }),
        device("vsock", 8, 0..0, |on| {
            TestGuest::new(on, Vsock::new(52, Box::new(Silent::new())).unwrap())
        }),
        device("console", 12, 0..0, |on| {
            let input = File::from(OwnedFd::from(Silent::new().0));
            let host = console::Host::Streams {
                input,
                output: Box::new(io::sink()),
            };
            let name = "terminal".into();
            let spec = PortSpec {
                name,
                console: true,
                host,
            };
            TestGuest::new(on, Console::new(vec![spec]).unwrap())
        }),
    ]
}

const STATUSES: [fn(&mut TestGuest); 7] = [
    |_| {},
    |guest| {
        guest.add_status(ACKNOWLEDGE);
    },
    |guest| {
        guest.add_status(ACKNOWLEDGE | DRIVER);
    },
    |guest| assert!(guest.negotiate(RING_FEATURES)),
    |guest| {
        guest.negotiate(RING_FEATURES);
        assert!(guest.add_status(DRIVER_OK));
    },
    |guest| {
        guest.negotiate(RING_FEATURES);
        let wrong = QueueRegisters {
            size: 3,
            ready: true,
            ..Default::default()
        };
        guest.set_queue(0, &wrong);
        guest.add_status(DRIVER_OK);
        assert_ne!(guest.status() & NEEDS_RESET, 0);
    },
    |guest| {
        guest.add_status(FAILED);
    },
];

fn bytes(guest: &mut TestGuest, len: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(len).unwrap()];
    guest.read_config(0, &mut data);
    data
}

fn sweep(on: Transport, device: &Device) -> u64 {
    let mut count = 0;
    let base = match on {
        Transport::Mmio => 0x100,
        Transport::Pci => 0x2000,
    };
    for reach in STATUSES {
        let mut guest = (device.make)(on);
        reach(&mut guest);
        guest.run();
        let status = guest.status();
        let writable = status & (DRIVER | FAILED | NEEDS_RESET) == DRIVER;
        let name = format!("{} on {on:?} in {status:#x}", device.name);
        let mut now = bytes(&mut guest, device.len);
        for offset in 0..device.len + 20 {
            for width in WIDTHS {
                let what = format!("{name}: {width} bytes at {offset}");
                let inside = offset + width as u64 <= device.len;
                let mut data = [0x5a; 16];
                guest.bus_device().read(base + offset, &mut data[..width]);
                for (byte, at) in data[..width].iter().zip(offset..) {
                    let at = usize::try_from(at).unwrap();
                    assert_eq!(*byte, now.get(at).copied().unwrap_or(0), "{what}");
                }
                count += 1;
                for value in values(width, true) {
                    let refused = guest.state().refused_writes();
                    guest.bus_device().write(base + offset, &value);
                    guest.run();
                    let refused = guest.state().refused_writes() - refused;
                    assert_eq!(refused, u64::from(!inside || !writable), "{what}");
                    for (byte, at) in value.iter().zip(offset..) {
                        if inside && writable && device.writable.contains(&at) {
                            now[usize::try_from(at).unwrap()] = *byte;
                        }
                    }
                    assert_eq!(bytes(&mut guest, device.len), now, "{what}");
                    assert_eq!(guest.status(), status, "{what}");
                    count += 1;
                }
            }
        }
    }
    count
}

#[test]
fn configuration_of_every_device_is_its_bytes_in_every_status() {
    for &on in Transport::ALL {
        let count: u64 = devices().iter().map(|device| sweep(on, device)).sum();
        report(&format!(
            "{count} accesses to devices' configuration on {on:?}"
        ));
    }
}
