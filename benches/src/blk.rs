//! Block I/O: what a request costs the host, ours beside the peer's two machine types.
//!
//! The guest reads and writes its disk past its own page cache (`O_DIRECT`), at depth 1 by `pread`, deeper by `io_submit`
//! with all requests that have ended replaced in one batch. The disk is a file on ext4 that the host has in its page
//! cache, the same for all VMMs and cached the same way: no device of the host's is waited for, so that everything
//! between the guest's request and its answer is the VMM's work, KVM's, and one copy of the data. (On tmpfs io_uring
//! cannot read without a helper thread; from a real disk the virtual clock would count the outer machine's waiting.)
//!
//! *Instructions beyond the guest's*: one CPU runs everything, and its clock counts instructions. All that passes from
//! the first request of a phase to the last answer, divided by the requests, is what a request costs guest and host
//! together. What the guest's own share of it is comes from the same guest program on the same kernel run directly on the
//! emulated machine, with a disk that answers at once and whose work is no instruction of the machine (QEMU's
//! `null-co`). What is left of the cost after that share is the host's: KVM's exits and interrupts, the VMM, the file.
//! That the guest goes idle and wakes up more often because a VMM is slow counts as that VMM's doing.

use anyhow::{Context, Result};

use crate::laboratory::{Laboratory, Samples};
use crate::metric::{Clock, Metric};

/// A disk that costs no instructions: it completes requests inside the guest's own access to the doorbell.
const FREE_DISK: [&str; 4] = [
    "-blockdev",
    "driver=null-co,node-name=disk,size=67108864,read-zeroes=off",
    "-device",
    "virtio-blk-pci,drive=disk,ioeventfd=off",
];

/// Ours on both transports, by the names in reports and in metrics.
pub const OURS: [(&str, &str); 2] = [("daruma", ""), ("daruma-pci", ".pci")];

/// The peer's machine types.
pub const PEERS: [(&str, &str); 3] = [
    ("qemu-microvm+io_uring", "microvm"),
    ("qemu-microvm-pci+io_uring", "microvm-pci"),
    ("qemu-q35+io_uring", "q35"),
];

/// Phases of one experiment and of the guest alone.
struct Runs {
    host: Samples,
    alone: Samples,
}

impl Runs {
    /// Instructions of one request: guest and host together.
    fn whole(&self, vmm: &str, phase: &str) -> Result<f64> {
        per_request(&self.host, &[("vmm", vmm), ("phase", phase)])
    }

    /// Instructions of one request that the guest itself needs.
    fn guest(&self, phase: &str) -> Result<f64> {
        per_request(&self.alone, &[("phase", phase)])
    }

    fn host(&self, vmm: &str, phase: &str) -> Result<f64> {
        Ok(self.whole(vmm, phase)? - self.guest(phase)?)
    }

    /// MiB in a second of virtual time.
    fn speed(&self, vmm: &str, phase: &str) -> Result<f64> {
        let fields = [("vmm", vmm), ("phase", phase)];
        let bytes = self.host.middle(&fields, "bytes")?;
        Ok(bytes / f64::from(1 << 20) / self.host.middle(&fields, "ticks")? * 1e9)
    }
}

/// Ticks of one request, without those in which the machine's clock jumped because nobody had anything to do.
fn per_request(samples: &Samples, fields: &[(&str, &str)]) -> Result<f64> {
    Ok(samples.middle(fields, "busy_ticks")? / samples.middle(fields, "requests")?)
}

/// Measures `blk.*`.
pub fn measure(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let runs = Runs {
        alone: laboratory.alone("blk", &FREE_DISK)?,
        host: laboratory.run("blk")?,
    };
    let mut metrics = Vec::new();
    for (name, phase) in [
        ("blk.read4k_qd1_instructions", "blk.read4k_qd1"),
        ("blk.read4k_qd32_instructions", "blk.read4k_qd32"),
    ] {
        let host = |vmm: &str| runs.host(vmm, phase);
        metrics.extend(with_peers(name, "ns", host, |value, peer| {
            value.at_most(0.5 * peer)
        })?);
        metrics.push(Metric::new(
            format!("{name}.guest"),
            runs.guest(phase)?,
            "ns",
            Clock::Virtual,
        ));
    }
    for (name, phase) in [
        ("blk.seq_read_mib_s", "blk.seq_read_qd1"),
        ("blk.seq_write_mib_s", "blk.seq_write_qd1"),
        ("blk.seq_read_mib_s.qd32", "blk.seq_read_qd32"),
        ("blk.seq_write_mib_s.qd32", "blk.seq_write_qd32"),
    ] {
        let speed = |vmm: &str| runs.speed(vmm, phase);
        metrics.extend(faster(name, speed)?);
    }
    let exits = |vmm: &str| exits_per_request(&runs.host, vmm, "blk.read4k_qd32", "blk.nothing");
    let name = "blk.exits_per_request_qd32";
    metrics.extend(
        with_peers(name, "exits", exits, |value, _| value.at_most(0.2))?
            .into_iter()
            .map(|metric| Metric {
                clock: Clock::None,
                ..metric
            }),
    );
    Ok(metrics)
}

/// A number of ours on both transports, with the peer's; `goal` gets the better (smaller) of the peer's.
pub fn with_peers(
    name: &str,
    unit: &'static str,
    value: impl Fn(&str) -> Result<f64>,
    goal: impl Fn(Metric, f64) -> Metric,
) -> Result<Vec<Metric>> {
    compare(name, unit, value, goal, f64::min)
}

fn faster(name: &str, speed: impl Fn(&str) -> Result<f64>) -> Result<Vec<Metric>> {
    compare(
        name,
        "MiB/s",
        speed,
        |value, peer| value.at_least(1.5 * peer),
        f64::max,
    )
}

fn compare(
    name: &str,
    unit: &'static str,
    value: impl Fn(&str) -> Result<f64>,
    goal: impl Fn(Metric, f64) -> Metric,
    better: fn(f64, f64) -> f64,
) -> Result<Vec<Metric>> {
    // Not every machine type of the peer works on every host.
    let peers: Vec<(&str, f64)> = PEERS
        .iter()
        .filter_map(|(vmm, kind)| Some((*kind, value(vmm).ok()?)))
        .collect();
    let best = peers.iter().map(|(_, value)| *value).reduce(better);
    let best = best.with_context(|| format!("No machine type of the peer gave {name}"))?;
    OURS.iter()
        .map(|(vmm, suffix)| {
            let own = Metric::new(format!("{name}{suffix}"), value(vmm)?, unit, Clock::Virtual);
            // `qemu` is its best machine type for this number; the others are told by their names.
            let metric = peers
                .iter()
                .fold(own.peer("qemu", best), |metric, (kind, peer)| {
                    metric.peer(&format!("qemu-{kind}"), *peer)
                });
            Ok(goal(metric, best))
        })
        .collect()
}

/// Times that the vCPU left the guest for each request of `phase`, without what agreeing on a phase costs (`nothing`).
pub fn exits_per_request(samples: &Samples, vmm: &str, phase: &str, nothing: &str) -> Result<f64> {
    let of = |phase| [("vmm", vmm), ("phase", phase)];
    let all = samples.middle(&of(phase), "/counters/exits")?;
    let around = samples.middle(&of(nothing), "/counters/exits")?;
    Ok((all - around) / samples.middle(&of(phase), "requests")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(lines: &str) -> Samples {
        Samples::after("lab: ", lines.to_owned())
    }

    #[test]
    fn the_guests_own_share_is_taken_off() {
        let runs = Runs {
            host: samples(
                "lab: {\"vmm\":\"a\",\"phase\":\"p\",\"requests\":10,\"bytes\":1048576,\"ticks\":500,\"busy_ticks\":400}",
            ),
            alone: samples("lab: {\"phase\":\"p\",\"requests\":2,\"busy_ticks\":30}"),
        };
        assert!((runs.host("a", "p").unwrap() - 25.0).abs() < 1e-9);
        assert!((runs.speed("a", "p").unwrap() - 2e6).abs() < 1e-3);
        assert!(runs.host("b", "p").is_err(), "nothing was measured of b");
    }

    #[test]
    fn exits_of_the_agreement_are_not_the_requests() {
        let samples = samples(
            "lab: {\"vmm\":\"a\",\"phase\":\"p\",\"requests\":10,\"counters\":{\"exits\":25}}\n\
             lab: {\"vmm\":\"a\",\"phase\":\"n\",\"requests\":0,\"counters\":{\"exits\":20}}\n",
        );
        let exits = exits_per_request(&samples, "a", "p", "n").unwrap();
        assert!((exits - 0.5).abs() < 1e-9);
    }

    #[test]
    fn the_better_peer_is_the_one_to_beat() {
        let value = |vmm: &str| {
            Ok(if vmm.starts_with("qemu-q35") {
                4.0
            } else {
                10.0
            })
        };
        let less = with_peers("n", "ns", value, |metric, peer| metric.at_most(peer)).unwrap();
        assert_eq!(less[0].peer["qemu"], 4.0);
        let more = faster("n", value).unwrap();
        assert_eq!(more[1].peer["qemu"], 10.0);
        assert_eq!(more[1].name, "n.pci");
    }
}
