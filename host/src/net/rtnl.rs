//! Interfaces, addresses and routes, by rtnetlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;

use super::netlink::Netlink;
use crate::address::{Mac, Subnet};

/// Multicast groups of linux/rtnetlink.h: links and IPv4 addresses.
const GROUPS: u32 = 1 | 0x10;
/// One packet at a time through a card's queue is enough for a bridge.
const NO_DELAY: u32 = 0;

/// The socket that requests go through.
pub struct Rtnl(Netlink);

impl Rtnl {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has no network.
    pub fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_ROUTE).map(Self)
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.0.next_sequence();
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes)
    }

    /// Makes a bridge that forwards at once: it is no part of a larger one, so there is no loop to look for.
    ///
    /// # Errors
    /// An interface of that name exists, or we may not.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::ForwardDelay(NO_DELAY),
                    InfoBridge::StpState(BridgeStpState::Disabled),
                ])),
            ]),
        ];
        self.ask(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    fn change(&mut self, index: u32, change: impl FnOnce(&mut LinkMessage)) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        change(&mut link);
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// It is gone, or its driver refuses.
    pub fn up(&mut self, index: u32) -> io::Result<()> {
        self.change(index, |link| {
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
        })
    }

    /// Connects an interface to a bridge, or, with `None`, to none.
    ///
    /// # Errors
    /// One of them is gone, or it cannot be connected.
    pub fn set_bridge(&mut self, index: u32, bridge: Option<u32>) -> io::Result<()> {
        self.change(index, |link| {
            let bridge = LinkAttribute::Controller(bridge.unwrap_or(0));
            link.attributes.push(bridge);
        })
    }

    /// Gives an interface a hardware address.
    ///
    /// # Errors
    /// It is gone or refuses.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        self.change(index, |link| {
            link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        })
    }

    /// Removes an interface.
    ///
    /// # Errors
    /// It is gone already, or it is hardware.
    pub fn delete(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(link), 0)
    }

    /// Gives an interface an address; one that it has already is as good.
    ///
    /// # Errors
    /// It is gone, or we may not.
    pub fn add_address(&mut self, index: u32, subnet: Subnet) -> io::Result<()> {
        self.ask(
            RouteNetlinkMessage::NewAddress(address(index, subnet)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Takes an address away, and with it its routes.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn delete_address(&mut self, index: u32, subnet: Subnet) -> io::Result<()> {
        match self.ask(RouteNetlinkMessage::DelAddress(address(index, subnet)), 0) {
            Err(error) if error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) => Ok(()),
            result => result,
        }
    }

    /// Makes a router the way out, in place of any other.
    ///
    /// # Errors
    /// The router is in no subnet of the interface.
    pub fn set_default_route(&mut self, index: u32, router: Ipv4Addr) -> io::Result<()> {
        self.ask(
            RouteNetlinkMessage::NewRoute(default_route(index, router)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Makes a router the way out no longer; one that is not is as good.
    ///
    /// # Errors
    /// We may not.
    pub fn delete_default_route(&mut self, index: u32, router: Ipv4Addr) -> io::Result<()> {
        match self.ask(
            RouteNetlinkMessage::DelRoute(default_route(index, router)),
            0,
        ) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
            result => result,
        }
    }
}

fn default_route(index: u32, router: Ipv4Addr) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::Inet(router)),
        RouteAttribute::Oif(index),
    ];
    route
}

fn address(index: u32, subnet: Subnet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = subnet.prefix;
    message.header.index = index;
    let ip = IpAddr::V4(subnet.address);
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if subnet.prefix < 31 {
        let broadcast = AddressAttribute::Broadcast(subnet.broadcast());
        message.attributes.push(broadcast);
    }
    message
}

/// Becomes readable when an interface or an address changed. What changed is looked up then: a lost message does no
/// harm that way.
pub struct Monitor(Socket);

impl Monitor {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has no network.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// Forgets what it has to tell.
    pub fn drain(&self) {
        let mut buffer = [0_u8; 4096];
        // A buffer that ran over is told as an error once, and is news like any other.
        while match self.0.recv(&mut &mut buffer[..], MSG_DONTWAIT) {
            Ok(_) => true,
            Err(error) => error.raw_os_error() == Some(Errno::ENOBUFS as i32),
        } {}
    }
}

impl std::os::fd::AsFd for Monitor {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
