//! Network interfaces of its own for a guest that goes on from a snapshot, beside others that do so from the same one.
//!
//! The guest keeps the interface that it knows, with the address of before and without a host's end, until it has let go of
//! it; then it finds the new one.

use std::collections::HashSet;

use api::model::{Document, LoadSnapshot, NetworkInterface};

use super::plug::Change;
use super::{Controller, LoadError, StartError};
use crate::config::firecracker::{self, network_interfaces};
use crate::config::{NetConfig, TapSource, VmConfig};
use crate::hotplug::Successor;
use crate::machine::MachineError;
use crate::snapshot::state::DevicesState;
use crate::virtio;

/// An interface for later: its section of the configuration, and it with its host's end.
pub(super) type Opened = (NetworkInterface, Successor);

/// Whether the guest can be asked for what `request` replaces, and nothing is said of it besides.
pub(super) fn check(request: &LoadSnapshot, devices: &DevicesState) -> Result<(), LoadError> {
    let overrides = request.network_overrides.iter().map(|all| &all.iface_id);
    let mut named: HashSet<_> = overrides.collect();
    for new in &request.network_replacements {
        let id = || new.iface_id.clone();
        if !named.insert(&new.iface_id) {
            return Err(LoadError::NamedTwice { id: id() });
        }
        let DevicesState::Pci(bus) = devices else {
            return Err(LoadError::OnMmio { id: id() });
        };
        let name = format!("net/{}", new.iface_id);
        let mut functions = bus.functions.iter();
        let function = functions.find(|function| function.name == name);
        let slot = function.ok_or_else(|| LoadError::NoInterface { id: id() })?;
        let slot = u32::try_from(slot.slot).unwrap_or(u32::MAX);
        let removable = bus.hotplug.removable.checked_shr(slot).unwrap_or(0) & 1;
        if removable == 0 {
            return Err(LoadError::Fixed { id: id() });
        }
    }
    Ok(())
}

/// What the guest is made of as long as it has none of the interfaces `new`; and those.
pub(super) fn unplug(
    document: &Document,
    new: &[NetworkInterface],
    pci: bool,
) -> Result<(VmConfig, Vec<(NetworkInterface, NetConfig)>), LoadError> {
    let mut later = document.clone();
    let mut before = Vec::new();
    for new in new {
        let id = || new.iface_id.clone();
        let mut all = later.network_interfaces.iter_mut();
        let old = all.find(|interface| interface.iface_id == new.iface_id);
        let old = old.ok_or_else(|| LoadError::NoInterface { id: id() })?;
        before.push(network_interfaces::check(&std::mem::replace(
            old,
            new.clone(),
        ))?);
    }
    // That they go together is checked now: it is too late when the guest runs.
    let mut config = firecracker::guest(&later, pci)?;
    let mut successors = Vec::new();
    for (new, old) in new.iter().zip(before) {
        let mut all = config.net.iter_mut();
        if let Some(place) = all.find(|net| net.id == new.iface_id) {
            let old = NetConfig {
                tap: TapSource::Unplugged,
                ..old
            };
            successors.push((new.clone(), std::mem::replace(place, old)));
        }
    }
    config.check()?;
    Ok((config, successors))
}

/// Opens what `successors` are plugged into.
pub(super) fn open(
    successors: Vec<(NetworkInterface, NetConfig)>,
) -> Result<Vec<Opened>, StartError> {
    let open = |(section, net)| {
        let end = virtio::net::open(&net).map_err(MachineError::from)?;
        Ok((section, Successor { net, end }))
    };
    successors.into_iter().map(open).collect()
}

impl Controller {
    /// The guest is given `successors` when it goes on.
    pub(super) fn replace_nets(&mut self, successors: Vec<Opened>) {
        let told = |section| self.done(Change::Interface(Box::new(section)), None);
        let told = successors
            .into_iter()
            .map(|(section, new)| (new, told(section)));
        let told: Vec<_> = told.collect();
        let Some(guest) = &mut self.guest else {
            return;
        };
        for (new, reply) in told {
            let id = &new.net.id;
            log::info!(
                "Network interface \"{id}\" is to be replaced: until the guest lets go of it, it is connected to nothing"
            );
            guest.replace_net(new, reply);
        }
    }
}
