//! `daruma`: the host of a machine, and the VMM of each of its guests, in one program.

use std::process::ExitCode;

fn main() -> ExitCode {
    host::cli::main(std::env::args_os().collect())
}

/// In flash, in place of the C library's, which reads `/proc` by `scanf` and brings 100 KiB of that along.
///
/// The standard library asks it where each thread's stack ends, to say "stack overflow" where the signal would speak for
/// itself, and goes without that when it fails.
#[cfg(target_feature = "crt-static")]
#[expect(
    unsafe_code,
    reason = "takes the place of a function of the C library by its name"
)]
// SAFETY: it has the ABI of pthread_getattr_np(3), touches nothing, and reports failure as that does: by an error number.
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(
    _thread: nix::libc::pthread_t,
    _attributes: *mut nix::libc::pthread_attr_t,
) -> nix::libc::c_int {
    nix::libc::ENOSYS
}
