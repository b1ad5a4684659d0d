//! Getting a vCPU out of the guest from another thread.
//!
//! A signal alone can arrive between the last check and `KVM_RUN` and be lost. The handler therefore sets
//! `immediate_exit` in the vCPU's own `kvm_run` page: the next `KVM_RUN` returns at once.
#![expect(
    unsafe_code,
    reason = "installs a signal handler that writes to the vCPU's kvm_run page"
)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The `immediate_exit` byte of the vCPU that runs on this thread. Constant initialization and no destructor, so
    /// that a signal handler may use it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Registration` clears the pointer on this same thread before the page goes away.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler, once per process and before any vCPU runs.
pub fn install_handler() -> Result<(), errno::Error> {
    register_signal_handler(SIGRTMIN(), on_kick)
}

/// Makes the vCPU's thread return from `KVM_RUN`.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle is not joined yet, so that the thread's identifier is valid even if it has ended.
    let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    // ESRCH: it has ended by itself, which is what was wanted.
    if result != 0 && result != libc::ESRCH {
        log::error!("Cannot signal a vCPU: error {result}");
    }
}

/// Connects this thread's signals to a vCPU for as long as it lives.
pub struct Registration<'a> {
    // The pointer is this thread's business only.
    _not_send: PhantomData<*mut u8>,
    vcpu: &'a mut VcpuFd,
}

impl<'a> Registration<'a> {
    /// Signals to this thread get `vcpu` out of the guest.
    pub fn new(vcpu: &'a mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self {
            _not_send: PhantomData,
            vcpu,
        }
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        self.vcpu
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
