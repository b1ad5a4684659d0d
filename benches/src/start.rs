//! Start of one guest: `daruma-vmm` beside QEMU's leanest machine type, in one host, in one run.

use anyhow::Result;

use crate::laboratory::Laboratory;
use crate::metric::{Clock, Metric};

/// Measures `vmm.*`: the median of three starts each.
pub fn measure(laboratory: &Laboratory) -> Result<Vec<Metric>> {
    let samples = laboratory.run("start")?;
    let need = |vmm: &str, field: &str| samples.middle(&[("vmm", vmm)], field);
    let ms = |us: f64| us / 1000.0;
    let total = need("daruma", "boot_timer_us")?;
    let own = need("daruma", "running_us")?;
    let qemu = need("qemu", "marker_us")?;
    let virtual_ms = |name: &str, us: f64| Metric::new(name, ms(us), "ms", Clock::Virtual);
    Ok(vec![
        virtual_ms("vmm.start_to_init_ms", total)
            .at_most(110.0)
            .peer("qemu", ms(qemu)),
        virtual_ms("vmm.start_to_init_ms.vmm", own),
        virtual_ms("vmm.start_to_init_ms.kernel", total - own),
        virtual_ms(
            "vmm.start_to_init_bzimage_ms",
            need("daruma-bzimage", "boot_timer_us")?,
        ),
        Metric::new(
            "vmm.overhead_kib",
            need("daruma", "overhead_kib")?,
            "KiB",
            Clock::None,
        )
        .at_most(5.0 * 1024.0)
        .peer("qemu", need("qemu", "overhead_kib")?),
    ])
}
