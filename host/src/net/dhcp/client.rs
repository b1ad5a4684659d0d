//! The host's client. It sends what [`Client::tick`] returns, is told what comes in, and says when it wants to be woken.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpRepr, EthernetAddress};

use super::{Message, blank, emit};
use crate::address::{Mac, Subnet, is_unicast};

/// First and longest pause between questions that nobody answers.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(32);
/// Questions about one offer, or one old lease, before it is given up.
const MAX_TRIES: u32 = 4;
/// Between two questions for more time.
const LEAST_RENEWAL_WAIT: Duration = Duration::from_secs(5);
const DEFAULT_SECONDS: u32 = 3600;
/// A hostile server must not keep us busy.
const LEAST_SECONDS: u32 = 20;
/// Subnet mask, router, resolvers, lease time, server, renewal and rebinding time.
const WANTED: &[u8] = &[1, 3, 6, 51, 54, 58, 59];
/// RFC 2132 §3.14.
const OPTION_HOST_NAME: u8 = 12;

/// An address for some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address and its subnet.
    pub subnet: Subnet,
    /// The way out.
    pub router: Option<Ipv4Addr>,
    /// Resolvers.
    pub dns: Vec<Ipv4Addr>,
    server: Ipv4Addr,
    /// Hardware address that the server's word came from: it, or the router towards it.
    via: Mac,
    renew: Duration,
    rebind: Duration,
    expire: Duration,
}

/// What the client wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// A message to everyone.
    Broadcast(Vec<u8>),
    /// A message from the leased address to one server.
    Unicast {
        /// The message.
        bytes: Vec<u8>,
        /// Our address.
        from: Ipv4Addr,
        /// The server.
        to: Ipv4Addr,
        /// Its hardware address.
        via: Mac,
    },
    /// The host has this address from now on, in place of any other.
    Bound(Lease),
    /// The host has no address any more.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// The link is down.
    Idle,
    /// Looking for a server.
    Selecting,
    /// Taking an offer.
    Requesting(Lease),
    /// The link was down: is the old address still ours?
    Rebooting,
    /// All is well.
    Bound,
}

/// The client.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    name: String,
    phase: Phase,
    /// What is in use, in whatever phase.
    lease: Option<Lease>,
    transaction: u32,
    tries: u32,
    /// When the next message is sent.
    next: Duration,
}

impl Client {
    /// A client whose link is down. `name` is what the host is called.
    #[must_use]
    pub fn new(mac: Mac, name: &str) -> Self {
        Self {
            mac,
            name: name.chars().take(63).collect(),
            phase: Phase::Idle,
            lease: None,
            transaction: 0,
            tries: 0,
            next: Duration::ZERO,
        }
    }

    /// The link came up, or leads somewhere else.
    pub fn link_up(&mut self, now: Duration) {
        let phase = match self.lease {
            Some(_) => Phase::Rebooting,
            None => Phase::Selecting,
        };
        self.enter(phase, now);
    }

    /// The link went down. The address stays until its time is up: most cables come back.
    pub fn link_down(&mut self) {
        self.phase = Phase::Idle;
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let expire = self.lease.as_ref().map(|lease| lease.expire);
        let next = (self.phase != Phase::Idle).then_some(self.next);
        expire.into_iter().chain(next).min()
    }

    fn enter(&mut self, phase: Phase, now: Duration) {
        // Random, so that a server's word cannot be forged by who does not hear us.
        let random = RandomState::new().build_hasher().finish();
        self.transaction = u32::try_from(random & u64::from(u32::MAX)).unwrap_or(1);
        self.phase = phase;
        self.tries = 0;
        self.next = now;
    }

    /// Does what time has come for.
    #[must_use]
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.lease.as_ref().is_some_and(|lease| lease.expire <= now) {
            self.lease = None;
            actions.push(Action::Lost);
            if matches!(self.phase, Phase::Bound | Phase::Rebooting) {
                self.enter(Phase::Selecting, now);
            }
        }
        if self.phase == Phase::Idle || now < self.next {
            return actions;
        }
        let given_up = self.tries >= MAX_TRIES;
        if given_up && matches!(self.phase, Phase::Requesting(_) | Phase::Rebooting) {
            self.enter(Phase::Selecting, now);
        }
        actions.extend(self.speak(now));
        actions
    }

    /// The next message of the present phase.
    fn speak(&mut self, now: Duration) -> Option<Action> {
        let request = DhcpMessageType::Request;
        let wait = FIRST_WAIT
            .saturating_mul(1 << self.tries.min(5))
            .min(LONGEST_WAIT);
        self.tries = self.tries.saturating_add(1);
        self.next = now + wait;
        match (&self.phase, &self.lease) {
            (Phase::Selecting, _) => {
                let bytes = self.message(DhcpMessageType::Discover, |_| {});
                Some(Action::Broadcast(bytes))
            }
            (Phase::Requesting(offer), _) => {
                let bytes = self.message(request, |message| {
                    message.requested_ip = Some(offer.subnet.address);
                    message.server_identifier = Some(offer.server);
                });
                Some(Action::Broadcast(bytes))
            }
            (Phase::Rebooting, Some(lease)) => {
                let bytes = self.message(request, |message| {
                    message.requested_ip = Some(lease.subnet.address);
                });
                Some(Action::Broadcast(bytes))
            }
            (Phase::Bound, Some(lease)) => {
                let from = lease.subnet.address;
                let bytes = self.message(request, |message| message.client_ip = from);
                // RFC 2131 §4.4.5: half of the time that is left.
                let left = lease.expire.saturating_sub(now);
                self.next = now + (left / 2).max(LEAST_RENEWAL_WAIT);
                Some(if now < lease.rebind {
                    Action::Unicast {
                        bytes,
                        from,
                        to: lease.server,
                        via: lease.via,
                    }
                } else {
                    Action::Broadcast(bytes)
                })
            }
            (Phase::Idle | Phase::Rebooting | Phase::Bound, _) => None,
        }
    }

    /// A message came in from hardware address `via`.
    #[must_use]
    pub fn receive(&mut self, now: Duration, message: &Message, via: Mac) -> Vec<Action> {
        let ours = message.transaction == self.transaction && message.hardware == self.mac;
        if !ours {
            return Vec::new();
        }
        match (&self.phase, message.kind) {
            (Phase::Selecting, DhcpMessageType::Offer) => {
                let Some(offer) = lease(message, via, now) else {
                    return Vec::new();
                };
                self.phase = Phase::Requesting(offer);
                self.tries = 0;
                self.next = now;
                self.tick(now)
            }
            (Phase::Requesting(_) | Phase::Rebooting | Phase::Bound, DhcpMessageType::Ack) => {
                let Some(lease) = lease(message, via, now) else {
                    return Vec::new();
                };
                self.enter(Phase::Bound, lease.renew);
                self.lease = Some(lease.clone());
                vec![Action::Bound(lease)]
            }
            (Phase::Requesting(_) | Phase::Rebooting | Phase::Bound, DhcpMessageType::Nak) => {
                let had = self.lease.take().is_some();
                self.enter(Phase::Selecting, now);
                // Not at once: a server that refuses all would be asked without end.
                self.next = now + FIRST_WAIT;
                had.then_some(Action::Lost).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn message(
        &self,
        kind: DhcpMessageType,
        change: impl FnOnce(&mut DhcpRepr<'static>),
    ) -> Vec<u8> {
        let mut message = blank(kind, self.transaction, self.mac);
        message.client_identifier = Some(EthernetAddress(self.mac.0));
        message.parameter_request_list = Some(WANTED);
        message.max_size = Some(1400);
        change(&mut message);
        let name = [DhcpOption {
            kind: OPTION_HOST_NAME,
            data: self.name.as_bytes(),
        }];
        let options: &[_] = if self.name.is_empty() { &[] } else { &name };
        emit(&DhcpRepr {
            additional_options: options,
            ..message
        })
    }
}

/// What a server gives, if it makes sense.
fn lease(message: &Message, via: Mac, now: Duration) -> Option<Lease> {
    let mask = message.mask.unwrap_or(Ipv4Addr::new(255, 255, 255, 0));
    let subnet = Subnet::with_mask(message.yours, mask)?;
    if !is_unicast(message.yours) || !subnet.has_host(message.yours) {
        return None;
    }
    let [seconds, renew, rebind] = message.times;
    let seconds = seconds.unwrap_or(DEFAULT_SECONDS).max(LEAST_SECONDS);
    // A server's own times hold only where they are in order.
    let half = seconds / 2;
    let renew = renew.filter(|renew| (1..seconds).contains(renew));
    let renew = renew.unwrap_or(half).max(LEAST_SECONDS / 2);
    let rebind = rebind.filter(|rebind| (renew..seconds).contains(rebind));
    let rebind = rebind.unwrap_or(seconds - seconds / 8).max(renew);
    let after = |seconds: u32| now + Duration::from_secs(seconds.into());
    Some(Lease {
        subnet,
        router: message
            .router
            .filter(|router| subnet.has_host(*router) && *router != message.yours),
        dns: message
            .dns
            .iter()
            .copied()
            .filter(|ip| is_unicast(*ip))
            .collect(),
        server: message.server.filter(|server| is_unicast(*server))?,
        via,
        renew: after(renew),
        rebind: after(rebind),
        expire: after(seconds),
    })
}

#[cfg(test)]
mod tests;
