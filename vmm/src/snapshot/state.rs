//! What a snapshot's state file says, as values.

use api::model::Document;
use devices::legacy::rtc::RtcState;
use devices::legacy::serial::SerialState;
use devices::legacy::watchdog::WatchdogState;
use devices::pci::hotplug::HotplugState;
use devices::virtio::mmio::MmioSaved;
use devices::virtio::pci::PciSaved;
use serde::{Deserialize, Serialize};

use crate::vcpu::state::VcpuState;
use crate::vm::VmState;

/// A guest without its memory.
#[derive(Debug, Deserialize, Serialize)]
pub struct State {
    /// The version of the VMM that wrote it, for people.
    pub vmm_version: String,
    /// What the guest is made of, as it was then.
    pub document: Document,
    /// The guest in KVM.
    pub vm: VmState,
    /// Its vCPUs, in their order.
    pub vcpus: Vec<VcpuState>,
    /// The devices that every guest has.
    pub platform: PlatformState,
    /// Its virtio devices.
    pub devices: DevicesState,
}

/// The devices that every guest has, as far as they remember something.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PlatformState {
    /// The serial port.
    pub serial: SerialState,
    /// The real-time clock.
    pub rtc: RtcState,
    /// Events that the guest has not read.
    pub ged: u32,
    /// The watchdog, as it was when the guest was paused.
    pub watchdog: WatchdogState,
}

/// Virtio devices, and where they are.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DevicesState {
    /// On MMIO, in the order of their places.
    Mmio(Vec<MmioDeviceState>),
    /// On PCI.
    Pci(PciState),
}

/// One device on MMIO.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct MmioDeviceState {
    /// What it is called.
    pub name: String,
    /// It.
    pub transport: MmioSaved,
}

/// The PCI bus.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PciState {
    /// What was last written to the address port.
    pub port_address: u32,
    /// The guest knows the slots below it.
    pub slot_limit: usize,
    /// The hot-plug registers.
    pub hotplug: HotplugState,
    /// Its functions but the host bridge.
    pub functions: Vec<PciFunctionState>,
}

/// One device on PCI.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PciFunctionState {
    /// Its device number.
    pub slot: usize,
    /// What it is called.
    pub name: String,
    /// It.
    pub function: PciSaved,
}
