//! TCP between a guest and its host over a tap, with checksum and segmentation offloads: ours beside the peer.
//!
//! *Instructions per MiB* is everything that the one CPU does for it: both TCP stacks and both programs, the VMM, KVM.
//! The streams end when the receiver has all of them.

use anyhow::Result;

use crate::blk::{exits_per_request, with_peers};
use crate::laboratory::Laboratory;
use crate::metric::{Clock, Metric};

/// Measures `net.*`.
pub fn measure(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let samples = laboratory.run("net")?;
    let ticks = |vmm: &str, phase: &str, per: &str| -> Result<f64> {
        let fields = [("vmm", vmm), ("phase", phase)];
        Ok(samples.middle(&fields, "ticks")? / samples.middle(&fields, per)?)
    };
    let mib = f64::from(1 << 20);
    let mut metrics = Vec::new();
    for (name, phase) in [
        ("net.tcp_tx_instructions_per_mib", "net.tcp_tx"),
        ("net.tcp_rx_instructions_per_mib", "net.tcp_rx"),
    ] {
        let value = |vmm: &str| Ok(ticks(vmm, phase, "bytes")? * mib);
        metrics.extend(with_peers(name, "ns", value, |value, peer| {
            value.at_most(0.7 * peer)
        })?);
    }
    let round_trip = |vmm: &str| ticks(vmm, "net.tcp_rr", "requests");
    let name = "net.tcp_rr_instructions";
    metrics.extend(with_peers(name, "ns", round_trip, |value, _| value)?);
    for (name, phase) in [
        ("net.tcp_tx_exits_per_chunk", "net.tcp_tx"),
        ("net.tcp_rx_exits_per_chunk", "net.tcp_rx"),
    ] {
        let exits = |vmm: &str| exits_per_request(&samples, vmm, phase, "net.nothing");
        let counted = with_peers(name, "exits", exits, |value, _| value)?;
        metrics.extend(counted.into_iter().map(|metric| Metric {
            clock: Clock::None,
            ..metric
        }));
    }
    Ok(metrics)
}
