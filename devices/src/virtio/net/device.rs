//! The network device: features, configuration, and who is called when.

use std::sync::Arc;

use event_manager::EventSet;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::backend::{Backend, Offloads};
use super::interceptor::Interceptor;
use super::receive::Receiver;
use super::transmit::Transmitter;
use super::wire::Wire;
use crate::metrics::{Metrics, NetMetrics};
use crate::rate_limiter::RateLimiter;
use crate::virtio::device::{DeviceTraits, Progress, Source, VirtioDevice, copy_config};
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};
use crate::virtio::saved::{DeviceState, RestoreError};

const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// `struct virtio_net_config` up to and including `mtu` (§5.1.4).
const CONFIG_LEN: usize = 12;

/// What a network device needs besides its network.
pub struct NetOptions {
    /// The guest's address.
    pub mac: [u8; 6],
    /// The longest packet in bytes, if the guest is to be told.
    pub mtu: Option<u16>,
    /// Limit of what the guest receives.
    pub receive_limiter: RateLimiter,
    /// Limit of what the guest sends.
    pub transmit_limiter: RateLimiter,
    /// Who answers some frames in place of the network.
    pub interceptor: Option<Box<dyn Interceptor>>,
}

/// A network interface.
pub struct Net {
    wire: Wire,
    options: NetOptions,
    receiver: Option<Receiver>,
    transmitter: Option<Transmitter>,
    metrics: Arc<NetMetrics>,
}

impl Net {
    /// An interface at `backend`, without a driver.
    pub fn new(backend: Box<dyn Backend>, mut options: NetOptions) -> Self {
        let metrics = Arc::<NetMetrics>::default();
        Self {
            wire: Wire::new(backend, options.interceptor.take(), metrics.clone()),
            options,
            receiver: None,
            transmitter: None,
            metrics,
        }
    }

    fn receive(&mut self) -> Result<Progress, QueueError> {
        match &mut self.receiver {
            Some(receiver) => receiver.pump(&mut self.wire, &mut self.options.receive_limiter),
            None => Ok(Progress::Idle),
        }
    }

    fn transmit(&mut self) -> Result<Progress, QueueError> {
        match &mut self.transmitter {
            Some(sender) => {
                let sent = sender.pump(&mut self.wire, &mut self.options.transmit_limiter)?;
                self.answer(sent)
            }
            None => Ok(Progress::Idle),
        }
    }

    /// Gives the guest what somebody within has answered to what it `sent`.
    fn answer(&mut self, sent: Progress) -> Result<Progress, QueueError> {
        if !self.wire.has_answer() {
            return Ok(sent);
        }
        let received = self.receive()?;
        Ok(if sent == Progress::More {
            sent
        } else {
            received
        })
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&self.options.mac);
        let [link_up, ..] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
        config[6] = if self.wire.is_up() { link_up } else { 0 };
        // One pair of queues.
        config[8] = 1;
        config[10..].copy_from_slice(&self.options.mtu.unwrap_or_default().to_le_bytes());
        config
    }
}

/// What a driver that has taken `features` can receive.
fn offloads(features: u64) -> Offloads {
    let has = |feature: u32| features & 1 << feature != 0;
    // Everything else builds on it (§5.1.3.1), whatever a driver takes.
    let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
    let (tso4, tso6) = (has(VIRTIO_NET_F_GUEST_TSO4), has(VIRTIO_NET_F_GUEST_TSO6));
    Offloads {
        checksum,
        tso4: checksum && tso4,
        tso6: checksum && tso6,
        ecn: checksum && (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN),
        uso4: checksum && has(VIRTIO_NET_F_GUEST_USO4),
        uso6: checksum && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

impl VirtioDevice for Net {
    fn traits(&self) -> DeviceTraits {
        let mut features = 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_STATUS;
        if self.options.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        if self.wire.cuts_udp() {
            features |= 1_u64 << VIRTIO_NET_F_GUEST_USO4
                | 1 << VIRTIO_NET_F_GUEST_USO6
                | 1 << VIRTIO_NET_F_HOST_USO;
        }
        DeviceTraits {
            device_id: VIRTIO_ID_NET,
            features,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(self.metrics.clone())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config(), offset, data);
    }

    fn start_queue(&mut self, index: u16, queue: Virtqueue, features: u64) {
        if index == RECEIVE {
            self.wire.set_offloads(offloads(features));
            let metrics = self.metrics.clone();
            self.receiver = Some(Receiver::new(queue, features, metrics));
        } else {
            let (mac, metrics) = (self.options.mac, self.metrics.clone());
            self.transmitter = Some(Transmitter::new(queue, features, mac, metrics));
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        if index == RECEIVE {
            self.receiver.take().map(Receiver::stop)
        } else {
            self.transmitter.take().map(Transmitter::stop)
        }
    }

    fn process(&mut self, index: u16) -> Result<Progress, QueueError> {
        if index == TRANSMIT {
            self.metrics.tx_queue_event_count.count();
            self.transmit()
        } else {
            self.metrics.rx_queue_event_count.count();
            self.receive()
        }
    }

    fn sources(&self) -> Vec<Source> {
        let tap = Source {
            fd: self.wire.fd(),
            // An edge: a tap whose frames have no buffers to go to must not keep the thread from sleeping.
            events: EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED,
        };
        let NetOptions {
            receive_limiter,
            transmit_limiter,
            ..
        } = &self.options;
        let timer = self.wire.timer().map(|fd| Source {
            fd,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        });
        let always = [tap, receive_limiter.source(), transmit_limiter.source()];
        always.into_iter().chain(timer).collect()
    }

    fn wake(&mut self, index: usize) -> Result<Progress, QueueError> {
        match index {
            0 => {
                self.metrics.rx_tap_event_count.count();
                let parked = self
                    .transmitter
                    .as_ref()
                    .is_some_and(Transmitter::is_parked);
                let sent = if parked {
                    self.transmit()?
                } else {
                    Progress::Idle
                };
                let received = self.receive()?;
                Ok(if sent == Progress::More {
                    sent
                } else {
                    received
                })
            }
            1 => {
                self.metrics.rx_event_rate_limiter_count.count();
                self.receive()
            }
            2 => {
                self.metrics.tx_rate_limiter_event_count.count();
                self.transmit()
            }
            _ => {
                if let Some(within) = self.wire.interceptor() {
                    within.wake();
                }
                self.receive()
            }
        }
    }

    fn take_config_change(&mut self) -> bool {
        self.wire.take_change()
    }

    fn reset(&mut self) {
        self.wire.set_offloads(Offloads::default());
        if let Some(within) = self.wire.interceptor() {
            within.reset();
        }
    }

    fn save(&self) -> DeviceState {
        let mac = self.options.mac;
        DeviceState::Net { mac }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Net { mac } => {
                self.options.mac = *mac;
                Ok(())
            }
            other => Err(RestoreError::kind(VIRTIO_ID_NET, other)),
        }
    }
}

#[cfg(test)]
mod tests;
