//! KVM's log of changed pages, cleared by a request of its own: so that a page counts as unchanged just before it is copied,
//! and a guest of gigabytes does not wait for all of them.

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno::{self, errno_result};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Bytes of 64 pages.
const WORD_BYTES: usize = 64 * 4096;

/// Has the log cleared by request, before there is any memory; whether KVM can do that. With `all`, it says at its beginning
/// that all has changed, if KVM can: a guest that has run for a while is then not slowed before the first clear.
pub(super) fn clear_by_request(vm: &VmFd, all: bool) -> bool {
    let offered = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
    let mut wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    if all {
        wanted |= KVM_DIRTY_LOG_INITIALLY_SET;
    }
    let flags = u32::try_from(offered).unwrap_or_default() & wanted;
    if flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0 {
        return false;
    }
    let capability = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [flags.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&capability).is_ok()
}

/// Clears the bits `words`, from word `first` on, of the log of `slot`, which has `len` bytes of memory.
pub(super) fn clear(
    vm: &VmFd,
    slot: u32,
    len: usize,
    first: usize,
    words: &[u64],
) -> Result<(), errno::Error> {
    let invalid = || errno::Error::new(libc::EINVAL);
    let start = first.checked_mul(WORD_BYTES).ok_or_else(invalid)?;
    let bytes = words.len().saturating_mul(WORD_BYTES);
    // The last word of a region may be of less.
    let bytes = bytes.min(len.saturating_sub(start));
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: u32::try_from(bytes / 4096).map_err(|_| invalid())?,
        first_page: (start / 4096) as u64,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: `log` is what this request reads, and with it one bit of `words` for each of the pages, of which there are at
    // most 64 for each word.
    let done = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) };
    if done < 0 {
        return errno_result();
    }
    Ok(())
}
