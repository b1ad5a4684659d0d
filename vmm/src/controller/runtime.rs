//! Requests while the guest runs.

use std::time::Instant;

use api::model::{Action, Document, NetworkInterfaceUpdate, VmState};
use api::{Answer, Fault, Outcome, Request};
use devices::metrics::Gauge;

use super::{fault, snapshot};
use crate::config::firecracker::rate_limiter;
use crate::events::by_firecrackers_names;
use crate::machine::Running;
use crate::metrics;

/// What has been done since `start` took so long, in microseconds. Firecracker counts with the API's way and without; both
/// are the same here, where the request does not leave the process.
fn took(start: Instant, gauges: &[&Gauge]) {
    let microseconds = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    for gauge in gauges {
        gauge.set(microseconds);
    }
}

/// Carries out `request` on a guest that has been started; `document` is its configuration and stays true.
pub(super) fn handle(guest: &mut Running, document: &mut Document, request: Request) -> Outcome {
    use Request as R;
    let latencies = &metrics::process().latencies;
    match request {
        R::PatchVm(VmState::Paused) => {
            let start = Instant::now();
            guest
                .pause()
                .map_err(|error| fault::about("Internal VMM error", &error))?;
            took(start, &[&latencies.pause_vm, &latencies.vmm_pause_vm]);
            Ok(Answer::Done)
        }
        R::PatchVm(VmState::Resumed) => {
            let start = Instant::now();
            guest.resume();
            took(start, &[&latencies.resume_vm, &latencies.vmm_resume_vm]);
            Ok(Answer::Done)
        }
        R::PutAction(Action::SendCtrlAltDel) => match guest.targets.press_power_button() {
            Ok(()) => Ok(Answer::Done),
            Err(error) => Err(fault::about(
                "Internal VMM error: The power button cannot be pressed",
                &error,
            )),
        },
        R::PatchNetworkInterface(update) => patch_interface(guest, document, &update),
        R::PatchBalloon(update) => {
            let balloon = guest.targets.handles.balloon.as_ref();
            let balloon = balloon.ok_or_else(fault::no_balloon)?;
            balloon
                .set(update.amount_mib)
                .map_err(|error| fault::about("Balloon update error", &error))?;
            if let Some(section) = &mut document.balloon {
                section.amount_mib = update.amount_mib;
            }
            Ok(Answer::Done)
        }
        R::GetBalloonStatistics => balloon_statistics(guest),
        R::PatchBalloonStatistics(update) => {
            let seconds = update.stats_polling_interval_s;
            let balloon = guest.targets.handles.balloon.as_ref();
            balloon
                .ok_or_else(fault::no_balloon)?
                .set_interval(seconds)
                .map_err(|error| fault::about("Balloon update error", &error))?;
            if let Some(section) = &mut document.balloon {
                section.stats_polling_interval_s = seconds;
            }
            Ok(Answer::Done)
        }
        R::CreateSnapshot(request) => {
            let start = Instant::now();
            let is_diff = request.snapshot_type.as_deref() == Some("Diff");
            let outcome = snapshot::create(guest, document, request);
            let gauges = if is_diff {
                [
                    &latencies.diff_create_snapshot,
                    &latencies.vmm_diff_create_snapshot,
                ]
            } else {
                [
                    &latencies.full_create_snapshot,
                    &latencies.vmm_full_create_snapshot,
                ]
            };
            took(start, &gauges);
            outcome
        }
        _ => Err(Fault::after_start()),
    }
}

fn balloon_statistics(guest: &Running) -> Outcome {
    let balloon = guest.targets.handles.balloon.as_ref();
    let latest = balloon
        .ok_or_else(fault::no_balloon)?
        .statistics()
        .map_err(|error| fault::about("Balloon config error", &error))?;
    Answer::json(&by_firecrackers_names(&latest))
}

fn patch_interface(
    guest: &Running,
    document: &mut Document,
    update: &NetworkInterfaceUpdate,
) -> Outcome {
    const WHAT: &str = "Network config error";
    let id = &update.iface_id;
    let unknown = || Fault::new(format!("{WHAT}: There is no network interface \"{id}\""));
    let mut all = document.network_interfaces.iter_mut();
    let section = all.find(|interface| interface.iface_id == *id);
    let section = section.ok_or_else(unknown)?;
    let handle = guest.targets.handles.devices.net(id).ok_or_else(unknown)?;
    for (update, now, control) in [
        (
            update.rx_rate_limiter,
            &mut section.rx_rate_limiter,
            &handle.receive,
        ),
        (
            update.tx_rate_limiter,
            &mut section.tx_rate_limiter,
            &handle.transmit,
        ),
    ] {
        if let Some(update) = update {
            let limits = now.unwrap_or_default().updated(update);
            control
                .set(rate_limiter::read(Some(limits)).into())
                .map_err(|error| fault::about(WHAT, &error))?;
            *now = Some(limits);
        }
    }
    Ok(Answer::Done)
}
