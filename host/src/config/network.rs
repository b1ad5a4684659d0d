//! Reading `[network]` of the machine, and what a guest says about its networks.

use std::net::Ipv4Addr;
use std::ops::Range;

use super::error::{ConfigError, nearest};
use super::reader::{Located, Section};
use crate::address::{Mac, Subnet, is_unicast};

/// `NAME_MAX` of an interface is 16 with the closing NUL.
const MAX_NIC_NAME: usize = 15;
const MAX_RESOLVERS: usize = 3;
/// More network cards than anyone has asked for; each is a tap and a device.
const MAX_NICS: usize = 8;
const MAX_PUBLISHED: usize = 64;
/// A private network holds the host and every guest's cards.
const PRIVATE_PREFIXES: std::ops::RangeInclusive<u8> = 8..=26;

/// The machine's network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkConfig {
    /// What guests are on unless they say otherwise; `None` leaves it to the place: bridge in the ROM, nat elsewhere.
    pub mode: Option<Mode>,
    /// The host's wired card; the first with a link without it.
    pub nic: Option<String>,
    /// The host's own address.
    pub address: HostAddress,
    /// Resolvers, before those that DHCP names.
    pub dns: Vec<Ipv4Addr>,
    /// The private subnet of `nat`; a free one without it.
    pub subnet: Option<Subnet>,
}

/// Where the host has its own address from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostAddress {
    /// From the network.
    #[default]
    Dhcp,
    /// From the machine file.
    Static {
        /// Address and subnet.
        subnet: Subnet,
        /// The way out.
        gateway: Option<Ipv4Addr>,
    },
}

/// What a guest's card is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The host's wired network, as a machine of its own there.
    Bridge,
    /// A private network behind the host's address.
    Nat,
    /// A private network of such guests without a way out.
    Isolated,
}

/// A network card of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nic {
    /// What it is connected to; the machine's mode without it.
    pub mode: Option<Mode>,
    /// Its hardware address; one derived from the names without it.
    pub mac: Option<Mac>,
}

/// A port of the host that leads to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Port of the host.
    pub port: u16,
    /// Port of the guest.
    pub to: u16,
    /// Which of the two kinds of ports.
    pub protocol: Protocol,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Reads `[network]`.
pub fn read_network(section: &Section<'_, '_>) -> Result<NetworkConfig, ConfigError> {
    section.refuse_unknown(&["mode", "nic", "address", "gateway", "dns", "subnet"])?;
    let mode = match section.string("mode")? {
        Some(word) => Some(read_mode(section, "mode", &word)?),
        None => None,
    };
    let nic = section.string("nic")?;
    if let Some(name) = &nic {
        let valid = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        let length = 1..=MAX_NIC_NAME;
        if !length.contains(&name.value.len()) || !name.value.chars().all(valid) {
            let reason = "write the name of a network card, e.g. \"eth0\"";
            let value = format!("{:?}", name.value);
            return Err(section.bad_value("nic", name.span.clone(), value, reason));
        }
    }
    let address = read_address(section)?;
    let subnet = read_subnet(section)?;
    if let (Some((private, span)), HostAddress::Static { subnet: own, .. }) = (&subnet, address)
        && private.overlaps(own)
    {
        let reason = format!("it overlaps the host's own network {own}");
        return Err(section.bad_value("subnet", span.clone(), format!("\"{private}\""), reason));
    }
    Ok(NetworkConfig {
        mode,
        nic: nic.map(|name| name.value),
        address,
        dns: read_resolvers(section)?,
        subnet: subnet.map(|(subnet, _)| subnet),
    })
}

fn read_mode(
    section: &Section<'_, '_>,
    key: &str,
    word: &Located<String>,
) -> Result<Mode, ConfigError> {
    const WORDS: [&str; 3] = ["bridge", "nat", "isolated"];
    match word.value.as_str() {
        "bridge" => Ok(Mode::Bridge),
        "nat" => Ok(Mode::Nat),
        "isolated" => Ok(Mode::Isolated),
        other => {
            let meant = nearest(other, WORDS)
                .map(|word| format!("did you mean \"{word}\"? "))
                .unwrap_or_default();
            let reason = format!("{meant}(one of bridge, nat, isolated)");
            Err(section.bad_value(key, word.span.clone(), format!("{other:?}"), reason))
        }
    }
}

fn read_address(section: &Section<'_, '_>) -> Result<HostAddress, ConfigError> {
    let gateway = read_ip(section, "gateway")?;
    let Some(text) = section.string("address")?.filter(|t| t.value != "dhcp") else {
        return match gateway {
            None => Ok(HostAddress::Dhcp),
            Some((ip, span)) => {
                let reason = "it comes by DHCP; leave it out, or write address = \"192.0.2.5/24\"";
                Err(section.bad_value("gateway", span, ip.to_string(), reason))
            }
        };
    };
    let subnet = text
        .value
        .parse::<Subnet>()
        .ok()
        .filter(|subnet| is_unicast(subnet.address) && subnet.has_host(subnet.address));
    let Some(subnet) = subnet else {
        let reason = "write \"dhcp\", or an address with its subnet such as \"192.0.2.5/24\"";
        let value = format!("{:?}", text.value);
        return Err(section.bad_value("address", text.span, value, reason));
    };
    if let Some((ip, span)) = &gateway
        && (!subnet.has_host(*ip) || *ip == subnet.address)
    {
        let reason = format!("it must be another address in {subnet}");
        return Err(section.bad_value("gateway", span.clone(), ip.to_string(), reason));
    }
    Ok(HostAddress::Static {
        subnet,
        gateway: gateway.map(|(ip, _)| ip),
    })
}

fn read_ip(
    section: &Section<'_, '_>,
    key: &str,
) -> Result<Option<(Ipv4Addr, Range<usize>)>, ConfigError> {
    let Some(text) = section.string(key)? else {
        return Ok(None);
    };
    match text.value.parse() {
        Ok(ip) if is_unicast(ip) => Ok(Some((ip, text.span))),
        _ => Err(section.bad_value(
            key,
            text.span,
            format!("{:?}", text.value),
            "write an IPv4 address such as \"192.0.2.1\"",
        )),
    }
}

fn read_resolvers(section: &Section<'_, '_>) -> Result<Vec<Ipv4Addr>, ConfigError> {
    const HINT: &str = "write a list of IPv4 addresses, e.g. [\"192.0.2.1\"]";
    let texts = section.strings("dns")?;
    if let Some(text) = texts.get(MAX_RESOLVERS) {
        let reason = format!("at most {MAX_RESOLVERS} resolvers are used");
        return Err(section.bad_value("dns", text.span.clone(), texts.len().to_string(), reason));
    }
    let read = |text: Located<String>| {
        let ip = text.value.parse().ok().filter(|ip| is_unicast(*ip));
        ip.ok_or_else(|| section.bad_value("dns", text.span, format!("{:?}", text.value), HINT))
    };
    texts.into_iter().map(read).collect()
}

fn read_subnet(section: &Section<'_, '_>) -> Result<Option<(Subnet, Range<usize>)>, ConfigError> {
    let Some(text) = section.string("subnet")? else {
        return Ok(None);
    };
    let subnet = text.value.parse::<Subnet>().ok().filter(|subnet| {
        is_unicast(subnet.network())
            && subnet.network() == subnet.address
            && PRIVATE_PREFIXES.contains(&subnet.prefix)
    });
    match subnet {
        Some(subnet) => Ok(Some((subnet, text.span))),
        None => {
            let (least, most) = (PRIVATE_PREFIXES.start(), PRIVATE_PREFIXES.end());
            let reason = format!(
                "write a private subnet by its lowest address, /{least} to /{most}, e.g. \"10.214.0.0/24\""
            );
            Err(section.bad_value("subnet", text.span, format!("{:?}", text.value), reason))
        }
    }
}

/// Reads `network` and `[[guest.net]]` of a guest.
pub fn read_nics(section: &Section<'_, '_>, guest: &str) -> Result<Vec<Nic>, ConfigError> {
    let common = section.string("network")?;
    let has_net = section.has("net");
    let mode = match &common {
        Some(word) if word.value == "none" => {
            if has_net {
                let reason = "leave it out, or leave out the [[guest.net]] sections";
                let span = word.span.clone();
                return Err(section.bad_value("network", span, "\"none\"", reason));
            }
            return Ok(Vec::new());
        }
        Some(word) => Some(read_mode(section, "network", word)?),
        None => None,
    };
    if !has_net {
        return Ok(vec![Nic { mode, mac: None }]);
    }
    let mut nics = Vec::new();
    for net in section.tables("net", &format!("a network of guest '{guest}'"))? {
        net.refuse_unknown(&["mode", "mac"])?;
        if nics.len() == MAX_NICS {
            let reason = format!("a guest has at most {MAX_NICS} network cards");
            return Err(section.bad_value("net", net.span(), "one more", reason));
        }
        let mode = match net.string("mode")? {
            Some(word) => Some(read_mode(&net, "mode", &word)?),
            None => mode,
        };
        let mac = match net.string("mac")? {
            Some(text) => Some(text.value.parse::<Mac>().map_err(|error| {
                let value = format!("{:?}", text.value);
                net.bad_value("mac", text.span, value, error.to_string())
            })?),
            None => None,
        };
        nics.push(Nic { mode, mac });
    }
    Ok(nics)
}

/// Reads `[[guest.publish]]` of a guest with these cards.
pub fn read_published(
    section: &Section<'_, '_>,
    guest: &str,
    nics: &[Nic],
) -> Result<Vec<Publish>, ConfigError> {
    let mut published = Vec::new();
    for entry in section.tables("publish", &format!("a published port of guest '{guest}'"))? {
        entry.refuse_unknown(&["port", "to", "protocol"])?;
        let Some((port, span)) = read_port(&entry, "port")? else {
            return Err(entry.missing("port", "name the host's port, e.g. port = 8080"));
        };
        let reason = match nics.first() {
            None => Some("the guest has no network".to_owned()),
            Some(nic) if nic.mode == Some(Mode::Isolated) => {
                Some("the guest's first network is isolated".to_owned())
            }
            Some(_) if published.len() == MAX_PUBLISHED => {
                Some(format!("a guest publishes at most {MAX_PUBLISHED} ports"))
            }
            Some(_) => None,
        };
        if let Some(reason) = reason {
            return Err(entry.bad_value("port", span, port.to_string(), reason));
        }
        published.push(Publish {
            port,
            to: read_port(&entry, "to")?.map_or(port, |(to, _)| to),
            protocol: read_protocol(&entry)?,
        });
    }
    Ok(published)
}

fn read_port(
    section: &Section<'_, '_>,
    key: &str,
) -> Result<Option<(u16, Range<usize>)>, ConfigError> {
    let Some(number) = section.integer(key)? else {
        return Ok(None);
    };
    match u16::try_from(number.value) {
        Ok(port) if port != 0 => Ok(Some((port, number.span))),
        _ => {
            let value = number.value.to_string();
            Err(section.bad_value(key, number.span, value, "a port is 1 to 65535"))
        }
    }
}

fn read_protocol(section: &Section<'_, '_>) -> Result<Protocol, ConfigError> {
    let Some(word) = section.string("protocol")? else {
        return Ok(Protocol::Tcp);
    };
    match word.value.as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        other => {
            let value = format!("{other:?}");
            Err(section.bad_value("protocol", word.span, value, "write \"tcp\" or \"udp\""))
        }
    }
}
