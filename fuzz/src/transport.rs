//! A guest that accesses a transport's registers anyhow, and now and then as a driver would.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use devices::memory::GuestMemory;
use devices::virtio::balloon::{Balloon, Options};
use devices::virtio::state::{NEEDS_RESET, Register};
use devices::virtio::testing::{TestGuest, Transport, guest_memory};
use vm_memory::{Bytes, GuestAddress};

const MAX_STEPS: usize = 100;

/// Does what `data` says to a device on the transport `on`.
pub fn drive(on: Transport, data: &[u8]) {
    let options = Options {
        page_reporting: true,
        ..Options::default()
    };
    thread_local! {
        static MEMORY: Arc<GuestMemory> = guest_memory();
    }
    let memory = MEMORY.with(Arc::clone);
    // Where rings are: the rest is never read but as what the guest wrote there.
    let empty = memory.write_slice(&[0; 0x2_0000], GuestAddress(0));
    empty.expect("all of it is there");
    let device = Balloon::new(options).expect("an eventfd");
    let mut guest = TestGuest::with_memory(on, device, memory);
    let mut input = Unstructured::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() || step(on, &mut guest, &mut input).is_err() {
            break;
        }
    }
    guest.run();
    guest.reset();
    assert_eq!(guest.read(Register::Status), 0, "a reset resets");
    let mut ring = guest.start_all();
    let list = ring.data(&[0; 4]);
    let head = ring.add(&[list]);
    guest.notify(0);
    assert_eq!(ring.used(), Some((head, 0)), "the device works again");
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

/// Where the transport has something, and its bytes there.
fn parts(on: Transport) -> &'static [(u64, u16)] {
    match on {
        Transport::Mmio => &[(0, 0x100), (0x100, 0x10), (0, 0x100), (0, 0x1000)],
        Transport::Pci => &[
            (0, 0x40),
            (0, 0x40),
            (0x1000, 8),
            (0x2000, 0x10),
            (0x3000, 0x70),
            (0x4000, 0x10),
            (0x6000, 0x20),
            (0, 0x8000),
        ],
    }
}

fn step(on: Transport, guest: &mut TestGuest, input: &mut Unstructured<'_>) -> Result<()> {
    let what: u8 = input.arbitrary()?;
    match what % 8 {
        0 => {
            let features = guest.offered() & input.arbitrary::<u64>()?;
            guest.negotiate(features | 1 << 32);
        }
        1 => drop(guest.start_all()),
        2 => {
            guest.run();
        }
        _ => {
            let (base, len) = *input.choose(parts(on))?;
            let mut offset = u64::from(input.arbitrary::<u16>()? % len);
            let width = [4, 4, 4, 1, 2, 8, 3, 16][usize::from(input.arbitrary::<u8>()? % 8)];
            if what & 0x80 == 0 {
                offset &= !3;
            }
            // An access does not leave the range: the bus cuts it.
            let end = match on {
                Transport::Mmio => 0x1000,
                Transport::Pci => 0x8000,
            };
            let at = base + offset;
            let width = width.min(usize::try_from(end - at).unwrap_or(1));
            let bus = guest.bus_device().clone();
            // The messages of the table are the test driver's own; masks are anybody's.
            let message = matches!(on, Transport::Pci)
                && (0x3000..0x4000).contains(&at)
                && (at % 16 != 12 || width != 4);
            if what & 0x40 == 0 && !message {
                let mut data = [0; 16];
                let value = match input.arbitrary::<u8>()? {
                    value @ 0..0xf0 => value.into(),
                    _ => input.arbitrary::<u64>()?,
                };
                data[..8].copy_from_slice(&value.to_le_bytes());
                bus.write(at, &data[..width]);
            } else {
                bus.read(at, &mut [0; 16][..width]);
            }
        }
    }
    Ok(())
}
