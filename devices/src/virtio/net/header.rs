//! What a driver asks of the host for a frame it sends (virtio 1.2 §5.1.6.2).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

use super::HEADER_LEN;

const NEEDS_CHECKSUM: u8 = low(VIRTIO_NET_HDR_F_NEEDS_CSUM);
const ECN: u8 = low(VIRTIO_NET_HDR_GSO_ECN);

/// These constants are bits of a byte.
const fn low(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

/// A copy of the header, which the driver cannot change any more.
pub(super) type Header = [u8; HEADER_LEN];

/// The part of `header` that counts, or what is wrong with it for a driver that has taken `features`. Offsets into the
/// frame are for the host's kernel to check, which knows the frame.
pub(super) fn check(header: Header, features: u64) -> Result<Header, &'static str> {
    let has = |feature: u32| features & 1 << feature != 0;
    let [flags, segmentation, ..] = header;
    let mut checked = header;
    // Others are for frames to the driver.
    checked[0] = flags & NEEDS_CHECKSUM;
    checked[HEADER_LEN - 2..].fill(0);
    let (kind, marked) = (segmentation & !ECN, segmentation & ECN != 0);
    if checked[0] != 0 && !has(VIRTIO_NET_F_CSUM) {
        return Err("a checksum is left out that was not agreed upon");
    }
    let agreed = match u32::from(kind) {
        VIRTIO_NET_HDR_GSO_NONE => return Ok(checked),
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6),
        VIRTIO_NET_HDR_GSO_UDP_L4 => has(VIRTIO_NET_F_HOST_USO) && !marked,
        _ => false,
    };
    if !agreed || marked && !has(VIRTIO_NET_F_HOST_ECN) {
        return Err("it is to be cut in a way that was not agreed upon");
    }
    if checked[0] == 0 || header[4..6] == [0, 0] {
        return Err("it is to be cut without checksum or without a size");
    }
    Ok(checked)
}
