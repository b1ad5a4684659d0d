//! What an emulated processor may do that a real one does not.
//!
//! QEMU 7.2 emulates AMD's virtualization with faults of its own: it may deliver an injected interrupt twice. And now and
//! then a vCPU's thread in the host's kernel is seen to take page fault after page fault with the guest's GS base, after an
//! interrupt. How that comes about is not known; on a real processor nothing but the processor itself swaps the two. So a
//! test in which the *host's* kernel falls, and only such a one, runs again, and says so.

use anyhow::Result;

use crate::qemu::hardware_nesting;

/// How often one test may see the host's kernel fall.
const FALLS: usize = 2;

/// Runs `test`, and again if the host's kernel fell under an emulated processor; says so each time.
pub fn forgive_falls(test: impl Fn() -> Result<()>) -> Result<()> {
    for _ in 0..FALLS {
        match test() {
            Err(error) if !hardware_nesting() && host_fell(&format!("{error:#}")) => {
                println!(
                    "The emulated processor broke the host's kernel; this test runs again. {error:#}"
                );
            }
            result => return result,
        }
    }
    test()
}

/// Whether a console shows a fault of the host's kernel. Only the host finds QEMU's name in its firmware's tables.
fn host_fell(console: &str) -> bool {
    console.contains("Oops: ") && console.contains("Hardware name: QEMU")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_guests_fault_is_not_the_hosts() {
        let host = "Oops: stack guard page: 0000 [#1] SMP\nHardware name: QEMU Standard PC (Q35 + ICH9, 2009), BIOS";
        assert!(host_fell(host));
        assert!(!host_fell("Oops: general protection fault\nCPU: 0 PID: 1"));
        assert!(!host_fell("Hardware name: QEMU Standard PC"));
    }

    #[test]
    fn falls_are_forgiven_but_not_for_ever() {
        if hardware_nesting() {
            return;
        }
        let runs = std::cell::Cell::new(0);
        let result = forgive_falls(|| {
            runs.set(runs.get() + 1);
            bail!("Oops: 0000\nHardware name: QEMU")
        });
        assert!(result.is_err());
        assert_eq!(runs.get(), FALLS + 1);
    }

    #[test]
    fn other_failures_are_final() {
        let runs = std::cell::Cell::new(0);
        let result = forgive_falls(|| {
            runs.set(runs.get() + 1);
            bail!("a guest was not ready")
        });
        assert!(result.is_err());
        assert_eq!(runs.get(), 1);
    }
}
