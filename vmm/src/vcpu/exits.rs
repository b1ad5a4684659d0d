//! What made a vCPU leave the guest, and what is done about it.
#![expect(
    unsafe_code,
    reason = "reads details of an exit from the unions of kvm_run"
)]

use std::sync::Arc;

use devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::errno;

use crate::metrics::VcpuMetrics;

/// What the vCPU's thread does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Run,
    /// Look whether the run has ended.
    Check,
    /// Somebody has kicked the vCPU: look what for. Nothing that the guest did is half done.
    Kicked,
    /// The guest is in a state that a PC answers with a reset.
    TripleFault,
    /// The vCPU cannot go on.
    Failed(String),
}

/// The address spaces of a guest.
pub struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
    /// Counts what they are accessed for.
    pub metrics: Arc<VcpuMetrics>,
}

/// Runs the guest until it needs the VMM, and answers what it asked for.
pub fn run(vcpu: &mut VcpuFd, buses: &Buses) -> Next {
    let metrics = &*buses.metrics;
    let next = answer(vcpu, buses);
    match next {
        Next::Failed(_) | Next::TripleFault => metrics.failures.count(),
        Next::Run | Next::Check | Next::Kicked => {}
    }
    next
}

fn answer(vcpu: &mut VcpuFd, buses: &Buses) -> Next {
    let metrics = &*buses.metrics;
    match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            metrics.exit_io_in.count();
            let (address, length) = (data.as_mut_ptr(), data.len());
            let width = access_width(vcpu);
            // SAFETY: the bytes lie in the vCPU's kvm_run mapping, which `vcpu` keeps alive, and nothing else refers to
            // them while this thread is outside of KVM_RUN.
            let data = unsafe { std::slice::from_raw_parts_mut(address, length) };
            // A string instruction reads the same port again and again.
            for element in data.chunks_mut(width) {
                buses.ports.read(port.into(), element);
            }
            Next::Run
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            metrics.exit_io_out.count();
            let (address, length) = (data.as_ptr(), data.len());
            let width = access_width(vcpu);
            // SAFETY: as above.
            let data = unsafe { std::slice::from_raw_parts(address, length) };
            for element in data.chunks(width) {
                buses.ports.write(port.into(), element);
            }
            Next::Check
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            metrics.exit_mmio_read.count();
            buses.mmio.read(address, data);
            Next::Run
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            metrics.exit_mmio_write.count();
            buses.mmio.write(address, data);
            Next::Check
        }
        Ok(VcpuExit::Intr) => {
            metrics.exit_interrupted.count();
            Next::Kicked
        }
        Ok(VcpuExit::Shutdown) => Next::TripleFault,
        Ok(VcpuExit::SystemEvent(kind, _)) => Next::Failed(format!(
            "KVM reported the system event {kind}, which x86 guests do not cause"
        )),
        Ok(VcpuExit::FailEntry(reason, cpu)) => Next::Failed(format!(
            "The processor refused to enter the guest on host CPU {cpu}: hardware reason {reason:#x}"
        )),
        Ok(VcpuExit::InternalError) => {
            let suberror = internal_suberror(vcpu);
            Next::Failed(format!(
                "KVM gave up on the guest: {}{}",
                internal_error_text(suberror),
                place(vcpu)
            ))
        }
        Ok(VcpuExit::MemoryFault { gpa, size, .. }) => Next::Failed(format!(
            "KVM cannot reach {size} bytes of guest memory at {gpa:#x}"
        )),
        Ok(VcpuExit::Hlt) => {
            Next::Failed("The vCPU halted outside of KVM's interrupt controller".into())
        }
        Ok(other) => {
            let exit = format!("{other:?}");
            Next::Failed(format!(
                "KVM left the guest for an unexpected reason: {exit}{}",
                place(vcpu)
            ))
        }
        Err(error) => failed(error, vcpu, metrics),
    }
}

fn failed(error: errno::Error, vcpu: &mut VcpuFd, metrics: &VcpuMetrics) -> Next {
    match error.errno() {
        libc::EINTR => {
            metrics.exit_interrupted.count();
            vcpu.set_kvm_immediate_exit(0);
            Next::Kicked
        }
        // A vCPU that was never started can be woken for no reason.
        libc::EAGAIN => {
            metrics.exit_interrupted.count();
            Next::Check
        }
        libc::EFAULT => Next::Failed(format!(
            "KVM cannot reach guest memory: the host may be out of memory{}",
            place(vcpu)
        )),
        _ => Next::Failed(format!("KVM cannot run the vCPU: {error}{}", place(vcpu))),
    }
}

/// Bytes of one element of a port access; 1, 2 or 4.
fn access_width(vcpu: &mut VcpuFd) -> usize {
    // SAFETY: called only after an exit for port I/O, for which KVM fills this member of the union. All bit patterns
    // are valid.
    let size = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.io.size };
    usize::from(size.max(1))
}

fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: called only after KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the union. All bit patterns
    // are valid.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

fn internal_error_text(suberror: u32) -> String {
    match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction".into(),
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions came at once".into(),
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "it cannot deliver an event".into(),
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            "the processor left the guest for a reason it does not know".into()
        }
        other => format!("internal error {other}"),
    }
}

/// Where the guest was, if KVM still says so.
fn place(vcpu: &VcpuFd) -> String {
    match vcpu.get_regs() {
        Ok(regs) => format!(" (at instruction {:#x})", regs.rip),
        Err(_) => String::new(),
    }
}
