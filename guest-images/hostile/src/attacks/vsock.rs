//! Packets of the socket device that lie (virtio 1.2 §5.10.6).

use super::{Attack, check, once};
use crate::driver::Driver;
use crate::hw::memory;
use crate::ring::WRITE;

/// `struct virtio_vsock_hdr` (virtio 1.2 §5.10.6).
#[derive(Clone, Copy)]
pub struct Packet {
    pub source: u64,
    pub destination: u64,
    pub source_port: u32,
    pub destination_port: u32,
    pub len: u32,
    pub kind: u16,
    pub operation: u16,
    pub flags: u32,
    pub buffer: u32,
    pub forwarded: u32,
}

/// The guest's own address, as the tests configure it.
const GUEST: u64 = 3;
const HOST: u64 = 2;
const STREAM: u16 = 1;
const REQUEST: u16 = 1;

impl Packet {
    /// Asks for a connection from `port` to one of the host's where nobody listens.
    pub const fn request(port: u32) -> Self {
        Self {
            source: GUEST,
            destination: HOST,
            source_port: port,
            destination_port: 9999,
            len: 0,
            kind: STREAM,
            operation: REQUEST,
            flags: 0,
            buffer: 0x1_0000,
            forwarded: 0,
        }
    }

    /// Writes the header to guest memory.
    pub fn put(&self, at: u64) {
        memory::write64(at, self.source);
        memory::write64(at + 8, self.destination);
        memory::write32(at + 16, self.source_port);
        memory::write32(at + 20, self.destination_port);
        memory::write32(at + 24, self.len);
        memory::write16(at + 28, self.kind);
        memory::write16(at + 30, self.operation);
        memory::write32(at + 32, self.flags);
        memory::write32(at + 36, self.buffer);
        memory::write32(at + 40, self.forwarded);
    }
}

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const HEADER: u32 = 44;
const REPLY: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// Sends `packet` with `data` bytes behind it, and waits until it is taken. Answers have a buffer to go to.
fn send(driver: &mut Driver, packet: &Packet, data: u32) -> Result<(), &'static str> {
    feed(driver);
    let ring = driver.rings[usize::from(TRANSMIT)];
    packet.put(ring.buffers());
    ring.describe(0, ring.buffers(), HEADER + data, 0, 0);
    driver.submit(TRANSMIT, 0);
    driver.wait(TRANSMIT).map(drop)
}

/// Gives one receive buffer, in place of the one that was used.
fn feed(driver: &mut Driver) {
    let ring = &mut driver.rings[usize::from(RECEIVE)];
    if ring.take().is_some() || ring.is_unused() {
        ring.describe(0, ring.buffers(), 0x1000, WRITE, 0);
        driver.submit(RECEIVE, 0);
    }
}

pub const ATTACKS: &[Attack] = &[
    check("packet-lengths-that-lie", |driver| {
        for (len, data) in [
            (0, 100),
            (100, 0),
            (u32::MAX, 10),
            (0x1_0001, 0x4000),
            (1, 0),
        ] {
            for operation in [REQUEST, DATA] {
                let packet = Packet {
                    len,
                    operation,
                    ..Packet::request(7)
                };
                send(driver, &packet, data)?;
            }
        }
        Ok(())
    }),
    check("operations-and-kinds-nobody-knows", |driver| {
        for word in [0, 2, 8, 9, 100, 0x7fff, 0xffff] {
            send(
                driver,
                &Packet {
                    operation: word,
                    ..Packet::request(7)
                },
                0,
            )?;
            send(
                driver,
                &Packet {
                    kind: word,
                    ..Packet::request(7)
                },
                0,
            )?;
        }
        Ok(())
    }),
    check("addresses-of-others", |driver| {
        for address in [0, 1, 2, 3, 4, u64::from(u32::MAX), 1 << 32 | 2, u64::MAX] {
            send(
                driver,
                &Packet {
                    source: address,
                    ..Packet::request(7)
                },
                0,
            )?;
            send(
                driver,
                &Packet {
                    destination: address,
                    ..Packet::request(7)
                },
                0,
            )?;
        }
        Ok(())
    }),
    check("packets-of-no-connection", |driver| {
        for operation in [REPLY, RST, SHUTDOWN, DATA, CREDIT_UPDATE] {
            for (buffer, forwarded) in [
                (0, u32::MAX),
                (u32::MAX, u32::MAX),
                (u32::MAX, 0),
                (1, 0x8000_0000),
            ] {
                let packet = Packet {
                    operation,
                    buffer,
                    forwarded,
                    flags: u32::MAX,
                    ..Packet::request(9)
                };
                send(driver, &packet, 0)?;
            }
        }
        Ok(())
    }),
    check("thousands-of-connections", |driver| {
        for port in 0..1000 {
            send(driver, &Packet::request(port), 0)?;
        }
        Ok(())
    }),
    check("connections-without-end-to-a-listener", |driver| {
        // Where a test listens on the host's side of this port, it never accepts; elsewhere the connection is refused.
        for port in 0..300 {
            let packet = Packet {
                destination_port: 1024,
                ..Packet::request(port)
            };
            send(driver, &packet, 0)?;
            let credit = Packet {
                operation: CREDIT_UPDATE,
                buffer: u32::MAX,
                forwarded: u32::MAX,
                ..packet
            };
            send(driver, &credit, 0)?;
        }
        Ok(())
    }),
    check("data-beyond-the-credit", |driver| {
        let packet = Packet {
            destination_port: 1024,
            ..Packet::request(5000)
        };
        send(driver, &packet, 0)?;
        let data = Packet {
            operation: DATA,
            len: 0x4000,
            ..packet
        };
        for _ in 0..200 {
            send(driver, &data, 0x4000)?;
        }
        Ok(())
    }),
    once("answers-without-buffers", |driver| {
        let ring = driver.rings[usize::from(TRANSMIT)];
        Packet::request(8).put(ring.buffers());
        ring.describe(0, ring.buffers(), HEADER, 0, 0);
        for round in 0..1500_u16 {
            driver.rings[usize::from(TRANSMIT)].take();
            driver.rings[usize::from(TRANSMIT)].offer(0);
            if round % 8 == 0 {
                driver.device.notify(TRANSMIT);
            }
        }
        driver.settle(TRANSMIT.into());
    }),
    once("header-too-short", |driver| {
        for len in [1, 43] {
            let ring = driver.rings[usize::from(TRANSMIT)];
            ring.describe(0, ring.buffers(), len, 0, 0);
            driver.submit(TRANSMIT, 0);
        }
        driver.settle(TRANSMIT.into());
    }),
    once("receive-buffers-too-small", |driver| {
        for (head, len) in [(0, 1), (1, 43), (2, 44)] {
            let ring = driver.rings[usize::from(RECEIVE)];
            ring.describe(head, ring.buffers(), len, WRITE, 0);
            driver.submit(RECEIVE, head);
        }
        let ring = driver.rings[usize::from(TRANSMIT)];
        Packet::request(8).put(ring.buffers());
        ring.describe(0, ring.buffers(), HEADER, 0, 0);
        driver.submit(TRANSMIT, 0);
        driver.settle(TRANSMIT.into());
    }),
];
