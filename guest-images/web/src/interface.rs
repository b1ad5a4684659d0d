//! The network interface: found, brought up, given an address. IPv4 through the ioctls of `netdevice(7)`.
#![expect(unsafe_code, reason = "interfaces are set up by ioctl(2) on a socket")]

use std::ffi::c_int;
use std::fs;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// `ARPHRD_ETHER`.
const ETHERNET: &str = "1";

/// The first Ethernet interface.
pub struct Interface {
    pub name: String,
    pub mac: [u8; 6],
}

impl Interface {
    /// Looks in sysfs; `None` while there is none.
    pub fn find() -> Option<Self> {
        let entries = fs::read_dir("/sys/class/net").ok()?;
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.len() < libc::IFNAMSIZ)
            .collect();
        names.sort();
        names.into_iter().find_map(|name| {
            let read = |file: &str| fs::read_to_string(format!("/sys/class/net/{name}/{file}"));
            (read("type").ok()?.trim() == ETHERNET).then_some(())?;
            let mac = parse_mac(read("address").ok()?.trim())?;
            Some(Self { name, mac })
        })
    }

    /// Brings it up.
    pub fn up(&self) -> io::Result<()> {
        let mut request = self.request();
        let running = libc::IFF_UP | libc::IFF_RUNNING;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(running).unwrap_or(0);
        ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sets the address and its subnet; `UNSPECIFIED` takes it away.
    pub fn set_address(&self, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = socket_address(address);
        ioctl(libc::SIOCSIFADDR, &mut request)?;
        if address.is_unspecified() {
            return Ok(());
        }
        let mut request = self.request();
        request.ifr_ifru.ifru_netmask = socket_address(mask);
        ioctl(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Adds the way out. One that is there already is as good.
    pub fn set_router(&self, router: Ipv4Addr) -> io::Result<()> {
        // SAFETY: `rtentry` is plain data, for which all zero bits mean "not given".
        let mut route: libc::rtentry = unsafe { mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(router);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        match ioctl(libc::SIOCADDRT, &mut route) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// A socket for DHCP on this interface alone: it may broadcast, and waits at most `timeout` for an answer.
    pub fn dhcp_socket(&self, timeout: Duration) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, smoltcp::wire::DHCP_CLIENT_PORT))?;
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(timeout))?;
        let length = libc::socklen_t::try_from(self.name.len()).unwrap_or(0);
        // SAFETY: the option's value is the name, and its length goes with it.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                self.name.as_ptr().cast(),
                length,
            )
        };
        checked(result).map(|()| socket)
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: `ifreq` is plain data, valid with all bits zero.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // `find` left room for the closing NUL.
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from.cast_signed();
        }
        request
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // `sockaddr_in`: port, address, padding.
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
        sa_data: data,
    }
}

fn ioctl<T>(number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: each caller passes the structure that its request number takes, alive for the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_mut(argument)) };
    checked(result)
}

fn checked(result: c_int) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_six_bytes_are_a_mac() {
        assert_eq!(parse_mac("02:00:0a:ff:00:01"), Some([2, 0, 10, 255, 0, 1]));
        for bad in ["", "02:00:0a:ff:00", "02:00:0a:ff:00:01:02", "g2:0:0:0:0:0"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
