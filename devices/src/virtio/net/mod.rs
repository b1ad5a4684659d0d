//! The network device (virtio 1.2 §5.1): one pair of queues over one [`Backend`].
//!
//! Frames go by one system call each, straight between the backend and the guest's buffers. [`receive`] puts incoming
//! frames into as many buffers as they need, [`transmit`] checks what the driver asks of the host and sends it, [`wire`]
//! is the way out and its end, [`device`] holds them together.

pub mod backend;
pub mod device;
mod header;
pub mod interceptor;
mod receive;
pub mod tap;
mod transmit;
mod wire;

pub use backend::{Backend, Offloads, Unplugged};
pub use device::{Net, NetOptions};
pub use interceptor::Interceptor;
pub use tap::Tap;

/// Bytes of `struct virtio_net_hdr` before every frame (virtio 1.2 §5.1.6): modern drivers always have `num_buffers`.
pub const HEADER_LEN: usize = 12;
/// The longest frame: 64 KiB of segments to cut, Ethernet header and VLAN tag.
pub const MAX_FRAME: usize = (64 << 10) + 14 + 4;
/// The shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Most frames of one direction before others have a turn.
const FRAMES_PER_TURN: u32 = 64;
