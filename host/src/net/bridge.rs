//! Making a bridge and finding out what the kernel is to know about it.

use std::fs;
use std::io;
use std::path::Path;

use super::links::{self, Link};
use super::rtnl::Rtnl;

/// Of every bridge's name.
pub const PREFIX: &str = "daruma";
/// More bridges than any machine has.
const MAX_BRIDGES: usize = 100;

/// Makes a bridge under the first free name from `first` on and switches it on.
///
/// # Errors
/// The kernel has no bridges, or we may not.
pub fn create(rtnl: &mut Rtnl, first: usize) -> io::Result<Link> {
    for number in first..MAX_BRIDGES {
        let name = format!("{PREFIX}{number}");
        match rtnl.add_bridge(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                let link = links::find(&name).ok_or(io::ErrorKind::NotFound)?;
                if let Err(error) = without_ipv6(&name) {
                    // What cannot be closed must not be open.
                    let _ = rtnl.delete(link.index);
                    return Err(error);
                }
                // Ports of one bridge that talk by way of the host are meant to.
                let _ = set_option(&format!("net/ipv4/conf/{name}/send_redirects"), "0");
                rtnl.up(link.index)?;
                return Ok(link);
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Gives the host no IPv6 address on a bridge: its packet filter rules are for IPv4 alone, and by a link-local address
/// any guest could reach what the host serves. What guests say to each other and to the wire passes as before.
fn without_ipv6(bridge: &str) -> io::Result<()> {
    match set_option(&format!("net/ipv6/conf/{bridge}/disable_ipv6"), "1") {
        // This kernel has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map(drop),
    }
}

/// Has the host take nothing in from a bridge and route nothing: it has no address there, so a strict look at where
/// packets come from refuses all of them.
///
/// # Errors
/// The kernel refused.
pub fn wall_off(bridge: &Link) -> io::Result<()> {
    // 8: answers ARP for none of its addresses.
    for (option, value) in [("rp_filter", "1"), ("forwarding", "0"), ("arp_ignore", "8")] {
        set_option(&format!("net/ipv4/conf/{}/{option}", bridge.name), value)?;
    }
    Ok(())
}

/// Connects a tap and switches it on.
///
/// # Errors
/// One of them is gone.
pub fn connect(rtnl: &mut Rtnl, tap: &str, bridge: u32) -> io::Result<Link> {
    let link = links::find(tap).ok_or(io::ErrorKind::NotFound)?;
    rtnl.set_bridge(link.index, Some(bridge))?;
    rtnl.up(link.index)?;
    Ok(link)
}

/// Removes what an earlier process of ours left, but for the taps that are `kept`: process 1 stands up again in the same
/// kernel.
pub fn clear(rtnl: &mut Rtnl, kept: impl Fn(&str) -> bool) {
    for link in links::scan() {
        let ours = link.name.starts_with(PREFIX) || link.name.starts_with(super::tap::PREFIX);
        if ours && !link.wired && !kept(&link.name) {
            // One that stays is in the way at most by its name.
            let _ = rtnl.delete(link.index);
        }
    }
}

/// Writes a kernel parameter and returns what it was.
///
/// # Errors
/// There is none of that name, or we may not.
pub fn set_option(name: &str, value: &str) -> io::Result<String> {
    let path = Path::new("/proc/sys").join(name);
    let before = fs::read_to_string(&path)?.trim().to_owned();
    if before != value {
        fs::write(path, value)?;
    }
    Ok(before)
}
