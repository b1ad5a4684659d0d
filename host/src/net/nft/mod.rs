//! The kernel's packet filter: which rules there are, as plain data. [`encode`] makes netlink messages of them.

mod encode;

use std::io;
use std::net::Ipv4Addr;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::Netlink;
use crate::address::Subnet;
use crate::config::Protocol;

/// Where in a packet's way a rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Before anything else is done with what comes in.
    Guard,
    /// What comes in: published ports.
    Arrive,
    /// What the host itself sends: published ports.
    Local,
    /// What goes out.
    Leave,
}

impl Chain {
    /// All, in the order in which they are made.
    pub const ALL: [Self; 4] = [Self::Guard, Self::Arrive, Self::Local, Self::Leave];
}

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It came in on the interface of this index.
    In(u32),
    /// It came in on another.
    NotIn(u32),
    /// It goes out on the interface of this index.
    Out(u32),
    /// It goes out on another.
    NotOut(u32),
    /// Its source is in this subnet.
    Source(Subnet),
    /// Its destination is in this subnet.
    Destination(Subnet),
    /// Its destination is this port.
    Port(Protocol, u16),
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is thrown away.
    Drop,
    /// It goes to this address and port instead.
    SendTo(Ipv4Addr, u16),
    /// It goes out in the name of the host.
    Masquerade,
}

/// A rule: if all conditions hold, the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where.
    pub chain: Chain,
    /// When.
    pub matches: Vec<Match>,
    /// What.
    pub verdict: Verdict,
}

/// Our table in the kernel. It goes when this is dropped.
pub struct Table {
    socket: Netlink,
    name: String,
    present: Vec<Rule>,
    /// Rules were sent: whatever was answered, the kernel may have them.
    attempted: bool,
}

impl Table {
    /// A table of that name; nothing is in the kernel yet.
    ///
    /// # Errors
    /// The kernel has no packet filter.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(Self {
            socket: Netlink::open(NETLINK_NETFILTER)?,
            name: name.to_owned(),
            present: Vec::new(),
            attempted: false,
        })
    }

    /// Makes these the rules, all at once or, with an error, not at all.
    ///
    /// # Errors
    /// The kernel refused, for want of rights or of a feature.
    pub fn set(&mut self, rules: Vec<Rule>) -> io::Result<()> {
        if rules == self.present {
            return Ok(());
        }
        let batch = encode::replace(&self.name, &rules, || self.socket.next_sequence());
        self.attempted = true;
        self.socket.send(&batch)?;
        self.present = rules;
        Ok(())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.attempted {
            let batch = encode::delete(&self.name, || self.socket.next_sequence());
            // What cannot be removed now never can; the interfaces that it speaks of go as well.
            let _ = self.socket.send(&batch);
        }
    }
}
