//! KVM's side of one guest: capabilities, memory slots, interrupt controller.
#![expect(unsafe_code, reason = "hands guest memory to KVM by address")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::config::VcpuCount;
use crate::jail::opened::{self, Kind};
use crate::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestMemory;
use crate::msi::{Doorbells, MsiRoutes, MsiVectors};
use crate::virtio::pmem::Region;

/// The KVM API version that every kernel since 2.6.22 has.
const API_VERSION: i32 = 12;

/// Where the host has KVM.
const DEVICE: &str = "/dev/kvm";

/// Opens KVM for a later [`Vm::new`].
pub fn open_ahead() -> Result<(), VmError> {
    opened::keep_file(Path::new(DEVICE), true).map_err(|error| {
        VmError::Open(errno::Error::new(error.raw_os_error().unwrap_or(libc::EIO)))
    })
}

/// What the VMM cannot do without.
const REQUIRED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why KVM cannot run the guest.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant describes it and its values"
)]
pub enum VmError {
    #[error(
        "Cannot open /dev/kvm: {hint}",
        hint = open_hint(*.0)
    )]
    Open(#[source] errno::Error),
    #[error("KVM has API version {found}, needed is {API_VERSION}")]
    ApiVersion { found: i32 },
    #[error("KVM of this kernel lacks {name}: use a newer kernel")]
    Capability { name: &'static str },
    #[error("The guest has {asked} vCPUs, KVM of this host permits {max}")]
    TooManyVcpus { asked: u8, max: usize },
    #[error("KVM cannot {what}")]
    Kvm {
        what: &'static str,
        #[source]
        source: errno::Error,
    },
    #[error("Cannot find the guest's memory in the VMM's address space")]
    MemoryAddress(#[source] vm_memory::GuestMemoryError),
}

/// What a user can do about a `/dev/kvm` that does not open.
fn open_hint(error: errno::Error) -> &'static str {
    match io::Error::from(error).kind() {
        io::ErrorKind::NotFound => {
            "it does not exist. Load the module kvm_intel or kvm_amd, and enable virtualization (VT-x or SVM) in the \
             firmware; in a virtual machine, enable nested virtualization on its host"
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied. Run as root or add your user to the group kvm"
        }
        _ => "is another hypervisor using the processor's virtualization?",
    }
}

/// KVM, which may have been opened already.
fn open() -> Result<Kvm, errno::Error> {
    match opened::take(Kind::Write, DEVICE) {
        // SAFETY: it is open, is KVM, and nobody else's.
        Some(device) => Ok(unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }),
        None => Kvm::new(),
    }
}

fn kvm_error(what: &'static str) -> impl Fn(errno::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}

/// One virtual machine in KVM.
#[derive(Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    routes: Arc<MsiRoutes>,
    supported_cpuid: CpuId,
    tsc_deadline: bool,
}

impl Vm {
    /// Makes a VM with `memory`, an in-kernel interrupt controller, and room for `vcpus`.
    pub fn new(memory: &GuestMemory, vcpus: VcpuCount) -> Result<Self, VmError> {
        let kvm = open().map_err(VmError::Open)?;
        check(&kvm, vcpus)?;
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm_error("say which CPUID it supports"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let fd = kvm
            .create_vm()
            .map_err(kvm_error("create a virtual machine"))?;

        // Intel needs these pages for real mode and for a guest without paging; AMD ignores them.
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(kvm_error("place its identity map"))?;
        let tss = usize::try_from(KVM_TSS).unwrap_or(usize::MAX);
        fd.set_tss_address(tss)
            .map_err(kvm_error("place its task state segment"))?;
        add_memory(&fd, memory)?;
        // No PIT: the guest has the local APIC's timer and kvmclock, and nothing announces a PIT to it.
        fd.create_irq_chip()
            .map_err(kvm_error("create an interrupt controller"))?;
        let fd = Arc::new(fd);
        Ok(Self {
            routes: MsiRoutes::new(fd.clone()),
            fd,
            supported_cpuid,
            tsc_deadline,
        })
    }

    /// Gives the guest memory beyond its RAM `memory`.
    pub fn add_regions(&self, memory: &GuestMemory, regions: &[Region]) -> Result<(), VmError> {
        let read_only = regions.iter().any(|region| region.read_only);
        if read_only && !self.fd.check_extension(Cap::ReadonlyMem) {
            return Err(VmError::Capability {
                name: "KVM_CAP_READONLY_MEM",
            });
        }
        // RAM has the slots from 0 on.
        for (slot, region) in (0..).skip(memory.iter().count()).zip(regions) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: if region.read_only {
                    KVM_MEM_READONLY
                } else {
                    0
                },
                guest_phys_addr: region.guest,
                memory_size: region.size,
                userspace_addr: region.host,
            };
            // SAFETY: a region is mapped over its whole size until the process ends, and overlaps nothing else.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(kvm_error("take the memory of a pmem device"))?;
        }
        Ok(())
    }

    /// Creates one vCPU.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, VmError> {
        self.fd
            .create_vcpu(id.into())
            .map_err(kvm_error("create a vCPU"))
    }

    /// The CPUID that KVM and this processor can offer.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported_cpuid
    }

    /// Whether KVM's local APIC has a TSC-deadline timer.
    pub fn has_tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    /// A new eventfd that raises interrupt line `irq` (an edge) when it is written.
    pub fn interrupt_line(&self, irq: u32) -> Result<EventFd, VmError> {
        let fd = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|error| kvm_error("connect an interrupt")(error.into()))?;
        self.fd
            .register_irqfd(&fd, irq)
            .map_err(kvm_error("connect an interrupt"))?;
        Ok(fd)
    }

    /// Interrupt vectors of a PCI function, `count` of them.
    pub fn interrupt_vectors(&self, count: u16) -> MsiVectors {
        MsiVectors::new(self.routes.clone(), count)
    }

    /// What lets KVM ring the doorbells of PCI functions.
    pub fn doorbells(&self) -> Doorbells {
        Doorbells(self.fd.clone())
    }

    /// Lets KVM ring `doorbell` when the guest writes the 32-bit `value` at `address`.
    pub fn watch_write(&self, doorbell: &EventFd, address: u64, value: u32) -> Result<(), VmError> {
        self.fd
            .register_ioevent(doorbell, &IoEventAddress::Mmio(address), value)
            .map_err(kvm_error("watch a virtio device's doorbell"))
    }
}

fn check(kvm: &Kvm, vcpus: VcpuCount) -> Result<(), VmError> {
    let found = kvm.get_api_version();
    if found != API_VERSION {
        return Err(VmError::ApiVersion { found });
    }
    if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(VmError::Capability { name });
    }
    let max = kvm.get_max_vcpus();
    if usize::from(vcpus.get()) > max {
        return Err(VmError::TooManyVcpus {
            asked: vcpus.get(),
            max,
        });
    }
    Ok(())
}

fn add_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), VmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let host = memory
            .get_host_address(region.start_addr())
            .map_err(VmError::MemoryAddress)?;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host.addr() as u64,
        };
        // SAFETY: the region is mapped, is as long as it says, overlaps no other region, and `memory::allocate` never
        // unmaps it.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm_error("take the guest's memory"))?;
    }
    Ok(())
}
