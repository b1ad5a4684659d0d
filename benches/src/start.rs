//! Start of one guest: `daruma-vmm` beside QEMU's leanest machine type, in one host, in one run.

use anyhow::Result;

use crate::blk::with_peers;
use crate::laboratory::Laboratory;
use crate::metric::{Clock, Metric};

/// Measures `vmm.*`: the median of three starts each.
pub fn measure(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let samples = laboratory.run("start")?;
    let need = |vmm: &str, field: &str| samples.middle(&[("vmm", vmm)], field);
    let ms = |us: f64| us / 1000.0;
    let total = need("daruma", "boot_timer_us")?;
    let own = need("daruma", "running_us")?;
    let open = need("daruma-open", "running_us")?;
    let qemu = need("qemu", "marker_us")?;
    let virtual_ms = |name: &str, us: f64| Metric::new(name, ms(us), "ms", Clock::Virtual);
    Ok(vec![
        virtual_ms("vmm.start_to_init_ms", total)
            .at_most(110.0)
            .peer("qemu", ms(qemu)),
        virtual_ms("vmm.start_to_init_ms.vmm", own),
        virtual_ms("vmm.start_to_init_ms.kernel", total - own),
        // With the filters, which a VMM has without a jail as well.
        virtual_ms("vmm.jail_ms", need("daruma-jailed", "running_us")? - open).at_most(3.0),
        virtual_ms("vmm.jail_ms.filters", own - open),
        virtual_ms(
            "vmm.start_to_init_bzimage_ms",
            need("daruma-bzimage", "boot_timer_us")?,
        ),
        virtual_ms(
            "vmm.start_to_init_pci_ms",
            need("daruma-pci", "boot_timer_us")?,
        )
        // Within 10% of MMIO.
        .at_most(1.1 * ms(total)),
        virtual_ms("vmm.start_to_api_ms", need("daruma-by-api", "answered_us")?).at_most(5.0),
        // From the process's start to the guest's init, client and all; with a file it may be 5 ms less.
        virtual_ms("vmm.start_by_api_ms", need("daruma-by-api", "ready_us")?)
            .at_most(ms(need("daruma", "ready_us")?) + 5.0),
        memory("vmm.overhead_kib.bare", need("daruma", "overhead_kib")?)
            .peer("qemu", need("qemu", "overhead_kib")?),
    ])
}

/// Measures `snap.restore_*`: the median of three each.
pub fn restore(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let samples = laboratory.run("restore")?;
    let ms = |how: &str, field: &str| {
        let us = samples.middle(&[("vmm", how)], field);
        us.map(|us| us / 1000.0)
    };
    let virtual_ms = |name: &str, ms: f64| Metric::new(name, ms, "ms", Clock::Virtual);
    let mut metrics = Vec::new();
    // From a program, as from the store, with the working set of before; the first is what is promised.
    for (suffix, how) in [
        ("", "working-set"),
        (".jailed", "working-set-jailed"),
        (".on_demand", "demand"),
        (".file", "file"),
    ] {
        let loaded = virtual_ms(
            &format!("snap.restore_loaded_ms{suffix}"),
            ms(how, "loaded_us")?,
        );
        let output = virtual_ms(
            &format!("snap.restore_first_output_ms{suffix}"),
            ms(how, "output_us")?,
        );
        metrics.extend(match suffix {
            "" => [loaded.at_most(2.0), output.at_most(6.0)],
            _ => [loaded, output],
        });
        if suffix != ".file" {
            // Pages that the guest had to wait for, up to its first output.
            let faults = samples.middle(&[("vmm", how)], "faults")?;
            let name = format!("snap.restore_faults{suffix}");
            metrics.push(Metric::new(name, faults, "", Clock::None));
        }
    }
    Ok(metrics)
}

/// Measures `snap.fork_*`: guests that go on from one snapshot at the same time, each until it has said something.
pub fn forks(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let samples = laboratory.run("forks")?;
    let need = |how: &str, field: &str| samples.middle(&[("vmm", how)], field);
    Ok(vec![
        // Of the one that has most.
        memory("snap.fork_private_kib", need("open", "most_kib")?).at_most(1536.0),
        memory("snap.fork_private_kib.mean", need("open", "mean_kib")?),
        memory("snap.fork_private_kib.guest", need("open", "guest_kib")?),
        // With the process outside of the jail.
        memory("snap.fork_private_kib.jailed", need("jailed", "most_kib")?).at_most(1536.0),
        // With all that the host's kernel has for it.
        memory("snap.fork_host_kib", need("open", "host_kib")?),
        memory("snap.fork_host_kib.jailed", need("jailed", "host_kib")?),
    ])
}

/// Measures `vmm.overhead_kib` with a disk, a network interface and a vsock.
pub fn overhead(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let samples = laboratory.run("devices")?;
    let value = |vmm: &str| samples.middle(&[("vmm", vmm)], "overhead_kib");
    let metrics = with_peers("vmm.overhead_kib", "KiB", value, |metric, _| {
        metric.at_most(4.0 * 1024.0)
    })?;
    let bytes = metrics.into_iter().map(|metric| Metric {
        clock: Clock::None,
        ..metric
    });
    Ok(bytes.collect())
}

fn memory(name: &str, kib: f64) -> Metric {
    Metric::new(name, kib, "KiB", Clock::None)
}
