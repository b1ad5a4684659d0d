//! Addresses as machine files write them: hardware addresses and IPv4 subnets.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use firmware_glue::hash::blake3;
use thiserror::Error;

/// The hardware address of a guest's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// Why a text is no hardware address for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MacError {
    /// Not six bytes.
    #[error("write six bytes in hexadecimal, e.g. \"02:00:00:00:00:01\"")]
    Form,
    /// The group bit is set.
    #[error("it is a multicast address: the first byte must be even")]
    Multicast,
    /// All bytes are zero.
    #[error("no interface has this address")]
    Zero,
}

impl Mac {
    /// The address of interface `index` of a guest: the same for the same names on the same board, locally administered.
    #[must_use]
    pub fn derive(board: &str, machine: &str, guest: &str, index: usize) -> Self {
        let seed = format!("{board}\n{machine}\n{guest}\n{index}");
        let mut bytes = [0; 6];
        for (to, from) in bytes.iter_mut().zip(blake3(seed.as_bytes()).0) {
            *to = from;
        }
        // IEEE 802: bit 0 of the first byte marks a group, bit 1 an address that no vendor gave.
        bytes[0] = bytes[0] & !1 | 2;
        Self(bytes)
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacError::Form)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError::Form);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Form)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Form);
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        if bytes[0] & 1 == 1 {
            return Err(MacError::Multicast);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An IPv4 address with the length of its subnet's prefix, as in `192.0.2.5/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The address; for a subnet as such, its lowest.
    pub address: Ipv4Addr,
    /// Bits of the subnet, 1 to 32.
    pub prefix: u8,
}

impl Subnet {
    /// Of an address and a prefix length; `None` unless that is 1 to 32.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (1..=32)
            .contains(&prefix)
            .then_some(Self { address, prefix })
    }

    /// Of an address and a mask; `None` for a mask with holes.
    #[must_use]
    pub fn with_mask(address: Ipv4Addr, mask: Ipv4Addr) -> Option<Self> {
        let bits = u32::from(mask);
        let prefix = u8::try_from(bits.leading_ones()).ok()?;
        let subnet = Self::new(address, prefix)?;
        (subnet.mask() == mask).then_some(subnet)
    }

    /// A single address.
    #[must_use]
    pub fn host(address: Ipv4Addr) -> Self {
        Self {
            address,
            prefix: 32,
        }
    }

    /// Its mask.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        let host_bits = 32_u32.saturating_sub(self.prefix.into());
        Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    /// Its lowest address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) & u32::from(self.mask()))
    }

    /// Its highest address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) | !u32::from(self.mask()))
    }

    /// The `n`th address in it, if a host may have it.
    #[must_use]
    pub fn nth(self, n: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(u32::from(self.network()).checked_add(n)?);
        self.has_host(address).then_some(address)
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask()) == u32::from(self.network())
    }

    /// Whether an address is in it and may be a host's: neither the subnet's own nor its broadcast address.
    #[must_use]
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        let ends = [self.network(), self.broadcast()];
        // RFC 3021: with 31 bits there is nothing but hosts.
        self.contains(address) && (self.prefix >= 31 || !ends.contains(&address))
    }

    /// Whether they have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }
}

/// Whether an address can be one host's at all.
#[must_use]
pub fn is_unicast(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    // 0/8 is "this network", 224/4 multicast, 240/4 reserved and broadcast.
    first != 0 && first < 224 && !address.is_loopback()
}

impl FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address = address.parse().map_err(drop)?;
        Self::new(address, prefix.parse().map_err(drop)?).ok_or(())
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn derived_address_is_stable_local_and_no_group() {
        let mac = Mac::derive("board", "default", "web", 0);
        assert_eq!(mac, Mac::derive("board", "default", "web", 0));
        for other in [
            Mac::derive("board", "default", "web", 1),
            Mac::derive("board", "default", "pocket", 0),
            Mac::derive("board", "other", "web", 0),
            Mac::derive("another", "default", "web", 0),
        ] {
            assert_ne!(mac, other);
            assert_eq!(other.0[0] & 3, 2);
        }
    }

    #[test]
    fn bad_hardware_addresses_are_refused_with_the_reason() {
        let read = |text: &str| text.parse::<Mac>();
        assert_eq!(read("02:00:00:00:00:FE").unwrap().0, [2, 0, 0, 0, 0, 0xfe]);
        assert_eq!(read("01:00:5e:00:00:01"), Err(MacError::Multicast));
        assert_eq!(read("ff:ff:ff:ff:ff:ff"), Err(MacError::Multicast));
        assert_eq!(read("00:00:00:00:00:00"), Err(MacError::Zero));
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "+2:00:00:00:00:01",
        ] {
            assert_eq!(read(text), Err(MacError::Form), "{text}");
        }
    }

    #[test]
    fn subnet_knows_its_ends() {
        let subnet = subnet("192.0.2.77/24");
        assert_eq!(subnet.network(), Ipv4Addr::new(192, 0, 2, 0));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(192, 0, 2, 255));
        assert_eq!(subnet.nth(10), Some(Ipv4Addr::new(192, 0, 2, 10)));
        assert_eq!(subnet.nth(0), None);
        assert_eq!(subnet.nth(255), None);
        assert_eq!(subnet.nth(256), None);
        assert!(subnet.has_host(Ipv4Addr::new(192, 0, 2, 1)));
        assert!(!subnet.has_host(Ipv4Addr::new(192, 0, 3, 1)));
    }

    #[test]
    fn overlap_holds_both_ways() {
        let (wide, narrow) = (subnet("10.0.0.0/8"), subnet("10.9.0.0/24"));
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!narrow.overlaps(subnet("10.9.1.0/24")));
    }

    #[test]
    fn masks_with_holes_are_refused() {
        let address = Ipv4Addr::new(10, 0, 2, 15);
        let with = |mask: [u8; 4]| Subnet::with_mask(address, mask.into());
        assert_eq!(with([255, 255, 255, 0]), Some(subnet("10.0.2.15/24")));
        assert_eq!(with([255, 0, 255, 0]), None);
        assert_eq!(with([0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9./:a-f]{0,20}") {
            let _ = text.parse::<Mac>();
            let _ = text.parse::<Subnet>();
        }

        #[test]
        fn network_and_broadcast_enclose_the_address(address: u32, prefix in 1_u8..=32) {
            let subnet = Subnet::new(address.into(), prefix).unwrap();
            prop_assert!(subnet.contains(subnet.address));
            prop_assert!(subnet.network() <= subnet.address && subnet.address <= subnet.broadcast());
        }
    }
}
