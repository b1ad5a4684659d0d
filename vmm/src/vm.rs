//! KVM's side of one guest: capabilities, memory slots, interrupt controller.
#![expect(unsafe_code, reason = "hands guest memory to KVM by address")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    CpuId, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_clock_data, kvm_irqchip,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::config::VcpuCount;
use crate::jail::opened::{self, Kind};
use crate::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestMemory;
use crate::msi::{Doorbells, MsiRoutes, MsiVectors};
use crate::snapshot::blob;
use crate::virtio::pmem::Region;

mod dirty_log;

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

/// The chips of KVM's interrupt controller: both of a PC of old, and the I/O APIC.
const IRQCHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Model-specific registers for memory types, which older kernels know and do not list: variable, fixed, default.
const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c,
    0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e,
    0x26f, 0x2ff,
];

/// What KVM knows of a guest beside its memory and its vCPUs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VmState {
    /// The interrupt controller's chips.
    #[serde(deserialize_with = "blob::all")]
    pub irqchips: Vec<kvm_irqchip>,
    /// The guest's clock.
    #[serde(deserialize_with = "blob::one")]
    pub clock: kvm_clock_data,
}

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
    #[error("The snapshot's interrupt controller has {found} chips, not {expected} of known numbers", expected = IRQCHIPS.len())]
    Irqchips { found: usize },
    #[error("The snapshot does not say what time it was: leave clock_realtime out")]
    NoRealtime,
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
    msrs: Vec<u32>,
    /// The log of changed pages is cleared by a request of its own.
    manual: bool,
}

impl Vm {
    /// Makes a VM with `memory`, an in-kernel interrupt controller, and room for `vcpus`. With `logs`, KVM notes from now on
    /// which pages the guest changes.
    pub fn new(memory: &GuestMemory, vcpus: VcpuCount, logs: bool) -> Result<Self, VmError> {
        let kvm = open().map_err(VmError::Open)?;
        check(&kvm, vcpus)?;
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm_error("say which CPUID it supports"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let listed = kvm
            .get_msr_index_list()
            .map_err(kvm_error("say which model-specific registers it saves"))?;
        let mut msrs: Vec<_> = listed.as_slice().iter().copied().chain(MTRRS).collect();
        msrs.sort_unstable();
        msrs.dedup();
        let fd = kvm
            .create_vm()
            .map_err(kvm_error("create a virtual machine"))?;

        // Intel needs these pages for real mode and for a guest without paging; AMD ignores them.
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(kvm_error("place its identity map"))?;
        let tss = usize::try_from(KVM_TSS).unwrap_or(usize::MAX);
        fd.set_tss_address(tss)
            .map_err(kvm_error("place its task state segment"))?;
        let manual = dirty_log::clear_by_request(&fd, !logs);
        add_memory(&fd, memory, logs)?;
        // No PIT: the guest has the local APIC's timer and kvmclock, and nothing announces a PIT to it.
        fd.create_irq_chip()
            .map_err(kvm_error("create an interrupt controller"))?;
        let fd = Arc::new(fd);
        Ok(Self {
            routes: MsiRoutes::new(fd.clone()),
            fd,
            supported_cpuid,
            tsc_deadline,
            msrs,
            manual,
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

    /// The model-specific registers that make up a vCPU. A vCPU may lack some of them.
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// What KVM knows beside memory and vCPUs. The vCPUs stand still.
    pub fn state(&self) -> Result<VmState, VmError> {
        let mut irqchips = Vec::with_capacity(IRQCHIPS.len());
        for chip_id in IRQCHIPS {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.fd
                .get_irqchip(&mut chip)
                .map_err(kvm_error("tell its interrupt controller's state"))?;
            irqchips.push(chip);
        }
        let mut clock = self.fd.get_clock().map_err(kvm_error("tell the time"))?;
        if clock.flags & KVM_CLOCK_REALTIME == 0 {
            // KVM says what time it is in the world only while its clock follows the TSC, which it may not after a restore.
            clock.realtime = realtime();
        }
        Ok(VmState { irqchips, clock })
    }

    /// Goes on from `state`. The guest's clock goes on where it was or, with `advance`, after as much time as has passed
    /// in the world since.
    pub fn restore(&self, state: &VmState, advance: bool) -> Result<(), VmError> {
        let found = state.irqchips.len();
        if !state.irqchips.iter().map(|chip| chip.chip_id).eq(IRQCHIPS) {
            return Err(VmError::Irqchips { found });
        }
        for chip in &state.irqchips {
            self.fd
                .set_irqchip(chip)
                .map_err(kvm_error("take its interrupt controller's state"))?;
        }
        let kvm_clock_data {
            clock, realtime, ..
        } = state.clock;
        let known = state.clock.flags & KVM_CLOCK_REALTIME;
        if advance && realtime == 0 {
            return Err(VmError::NoRealtime);
        }
        let passed = if advance && known == 0 {
            self::realtime().saturating_sub(realtime)
        } else {
            0
        };
        let clock = kvm_clock_data {
            clock: clock.saturating_add(passed),
            realtime,
            flags: if advance { known } else { 0 },
            ..Default::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(kvm_error("set the guest's clock"))
    }

    /// Has KVM note from now on which pages of RAM the guest changes. At first, all of them count as changed, or none.
    pub fn log_changes(&self, memory: &GuestMemory) -> Result<(), VmError> {
        add_memory(&self.fd, memory, true)
    }

    /// The pages of region `slot` of RAM, of `len` bytes, that the guest has changed: one bit each. Those of before a
    /// [clear](Self::clear_changed) are not among them; where KVM has no such request, those of before this call.
    pub fn changed(&self, slot: u32, len: usize) -> Result<Vec<u64>, VmError> {
        self.fd
            .get_dirty_log(slot, len)
            .map_err(kvm_error("say which pages of memory have changed"))
    }

    /// Counts the pages `words` of region `slot` of RAM, of `len` bytes, as unchanged: 64 in a word, from that of number
    /// `first` on. What is changed from now on is changed.
    pub fn clear_changed(
        &self,
        slot: u32,
        len: usize,
        first: usize,
        words: &[u64],
    ) -> Result<(), VmError> {
        if !self.manual {
            return Ok(());
        }
        dirty_log::clear(&self.fd, slot, len, first, words)
            .map_err(kvm_error("forget which pages of memory have changed"))
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

/// Nanoseconds since 1970.
fn realtime() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Gives the guest its RAM; where it has it already, only whether changes are noted is new.
fn add_memory(vm: &VmFd, memory: &GuestMemory, logs: bool) -> Result<(), VmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let host = memory
            .get_host_address(region.start_addr())
            .map_err(VmError::MemoryAddress)?;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: if logs && region.bitmap().is_some() {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
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
