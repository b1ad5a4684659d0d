//! The configuration space and the features of a disk (virtio 1.2 §5.2.3, §5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::SECTOR_SIZE;
use super::backend::Backend;

/// Descriptors of each queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Data buffers of one request: header and status need a descriptor each.
pub(super) const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most sectors one request discards: 1 GiB, which a file system frees in milliseconds.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors one request zeroes: 16 MiB, which take milliseconds also where they must be written.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 15;

/// Length of `struct virtio_blk_config` up to and including the fields of write zeroes.
pub(super) const LEN: usize = 60;

/// The features of a disk on `backend` with `queues` queues.
pub(super) fn features(backend: &dyn Backend, queues: u16) -> u64 {
    let always = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
    let by_access = if backend.read_only() {
        1 << VIRTIO_BLK_F_RO
    } else {
        1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    };
    always | by_access | u64::from(queues > 1) << VIRTIO_BLK_F_MQ
}

/// The configuration space of a disk on `backend` with `queues` queues.
pub(super) fn space(backend: &dyn Backend, queues: u16) -> [u8; LEN] {
    let mut space = [0; LEN];
    space[0..8].copy_from_slice(&(backend.len() / SECTOR_SIZE).to_le_bytes());
    space[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
    // `blk_size` fits its 32 bits, being 512.
    space[20..24].copy_from_slice(&SECTOR_SIZE.to_le_bytes()[..4]);
    space[34..36].copy_from_slice(&queues.to_le_bytes());
    if !backend.read_only() {
        let granularity = u64::from(backend.discard_granularity()) / SECTOR_SIZE;
        space[36..40].copy_from_slice(&MAX_DISCARD_SECTORS.to_le_bytes());
        space[40..44].copy_from_slice(&1_u32.to_le_bytes());
        space[44..48].copy_from_slice(&granularity.to_le_bytes()[..4]);
        space[48..52].copy_from_slice(&MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        space[52..56].copy_from_slice(&1_u32.to_le_bytes());
        space[56] = 1;
    }
    space
}
