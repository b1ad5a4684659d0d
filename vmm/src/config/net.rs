//! A network interface of the guest.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use super::{ConfigError, RateLimiterConfig};

/// Most characters of an interface's name within its guest.
const MAX_ID_LENGTH: usize = 64;
/// Most bytes of the name of a host's interface (`IFNAMSIZ`, less the end).
const MAX_TAP_LENGTH: usize = 15;

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address made up from `seed`: the same for the same words, locally administered.
    pub fn generate(seed: &[&str]) -> Self {
        // FNV-1a: spreads well, and stays the same whatever library is used.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in seed.iter().flat_map(|word| word.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// Its bytes, in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let error = || ConfigError::BadMac { mac: text.into() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let digits = part.filter(|part| part.bytes().all(|c| c.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(digits.ok_or_else(error)?, 16).map_err(|_| error())?;
        }
        // The lowest bit of the first byte says that an address is for a group of stations.
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Where an interface is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// The host's tap interface of this name.
    Name(String),
    /// A tap that was opened for this process: one queue, with `IFF_NO_PI` and `IFF_VNET_HDR`.
    Fd(RawFd),
    /// Nowhere: the guest is to let go of the interface.
    Unplugged,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its name.
    pub id: String,
    /// The host's end.
    pub tap: TapSource,
    /// The guest's address; without one, an address made from the names of the interface and of the tap.
    pub mac: Option<MacAddress>,
    /// The longest packet in bytes, if the guest is to be told.
    pub mtu: Option<u16>,
    /// How much the guest may receive in a time.
    pub rx_rate_limiter: RateLimiterConfig,
    /// How much the guest may send in a time.
    pub tx_rate_limiter: RateLimiterConfig,
}

impl NetConfig {
    /// The guest's address.
    pub fn address(&self) -> MacAddress {
        let tap = match &self.tap {
            TapSource::Name(name) => name,
            TapSource::Fd(_) | TapSource::Unplugged => "",
        };
        self.mac
            .unwrap_or_else(|| MacAddress::generate(&[&self.id, tap]))
    }

    /// Checks what can be judged without the host.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let permitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let len = self.id.len();
        if !(1..=MAX_ID_LENGTH).contains(&len) || !self.id.chars().all(permitted) {
            return Err(ConfigError::BadInterfaceId {
                id: self.id.clone(),
                max: MAX_ID_LENGTH,
            });
        }
        match &self.tap {
            TapSource::Name(name) => {
                let permitted = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
                let len = (1..=MAX_TAP_LENGTH).contains(&name.len());
                if !len || !name.chars().all(permitted) || matches!(name.as_str(), "." | "..") {
                    return Err(ConfigError::BadTapName {
                        name: name.clone(),
                        max: MAX_TAP_LENGTH,
                    });
                }
            }
            // The first three are the standard streams.
            TapSource::Fd(fd) if *fd < 3 => {
                return Err(ConfigError::OutOfRange {
                    field: "network-interfaces.host_dev_fd",
                    value: (*fd).into(),
                    min: 3,
                    max: i32::MAX.into(),
                    unit: "(a descriptor beyond the standard streams)",
                });
            }
            TapSource::Fd(_) | TapSource::Unplugged => {}
        }
        // The shortest every IPv4 host takes; the longest a tap has.
        if let Some(mtu) = self.mtu.filter(|mtu| !(68..=65_521).contains(mtu)) {
            return Err(ConfigError::OutOfRange {
                field: "network-interfaces.mtu",
                value: mtu.into(),
                min: 68,
                max: 65_521,
                unit: "bytes",
            });
        }
        Ok(())
    }

    /// Checks that it does not get into the way of `other`.
    pub(super) fn check_with(&self, other: &Self) -> Result<(), ConfigError> {
        if self.id == other.id {
            return Err(ConfigError::DuplicateInterface {
                id: self.id.clone(),
            });
        }
        let what = if self.tap == other.tap && self.tap != TapSource::Unplugged {
            "tap interface"
        } else if self.address() == other.address() {
            "MAC address"
        } else {
            return Ok(());
        };
        Err(ConfigError::InterfacesShare {
            first: other.id.clone(),
            second: self.id.clone(),
            what,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac: MacAddress = "AA:fc:00:00:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "aa:fc:00:00:00:01");
        for bad in [
            "",
            "AA:FC:00:00:00",
            "AA:FC:00:00:00:01:02",
            "AA:FC:00:00:00:1",
            "AA:FC:00:00:00:+1",
            "AA-FC-00-00-00-01",
            // Of a group, and of nobody.
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn generated_addresses_are_stable_and_differ() {
        let mac = MacAddress::generate(&["eth0", "tap0"]);
        assert_eq!(mac.to_string(), "02:c6:e3:c3:9e:59");
        assert_ne!(mac, MacAddress::generate(&["eth0", "tap1"]));
        assert_ne!(mac, MacAddress::generate(&["eth0t", "ap0"]));
    }
}
