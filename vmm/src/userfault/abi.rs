//! What the kernel's header `linux/userfaultfd.h` says, for x86-64.

use std::mem::size_of;

/// The byte of a request that says that it is a userfaultfd's.
const OWNER: libc::c_ulong = 0xaa << 8;
const READ: libc::c_ulong = 2 << 30;
const BOTH: libc::c_ulong = 3 << 30;

/// A request on an argument of `size` bytes.
const fn request(direction: libc::c_ulong, number: libc::c_ulong, size: usize) -> libc::c_ulong {
    direction | ((size as libc::c_ulong) << 16) | OWNER | number
}

/// On `/dev/userfaultfd`: a new userfaultfd. Its argument are the flags of `open`.
pub const USERFAULTFD_IOC_NEW: libc::c_ulong = OWNER;
/// The handshake.
pub const UFFDIO_API: libc::c_ulong = request(BOTH, 0x3f, size_of::<Api>());
/// Takes a range under control.
pub const UFFDIO_REGISTER: libc::c_ulong = request(BOTH, 0x00, size_of::<Register>());
/// Lets go of a range.
pub const UFFDIO_UNREGISTER: libc::c_ulong = request(READ, 0x01, size_of::<Range>());
/// Lets threads that wait for a range try again.
pub const UFFDIO_WAKE: libc::c_ulong = request(READ, 0x02, size_of::<Range>());
/// Puts pages in their place, with contents.
pub const UFFDIO_COPY: libc::c_ulong = request(BOTH, 0x03, size_of::<Copy>());
/// Puts pages of zeroes in their place.
pub const UFFDIO_ZEROPAGE: libc::c_ulong = request(BOTH, 0x04, size_of::<Zero>());
/// Write-protects pages, or ends that.
pub const UFFDIO_WRITEPROTECT: libc::c_ulong = request(BOTH, 0x06, size_of::<WriteProtect>());

/// The version of the interface.
pub const UFFD_API: u64 = 0xaa;

/// [`UFFDIO_COPY`] and [`UFFDIO_ZEROPAGE`]: who waits goes on waiting.
pub const MODE_DONTWAKE: u64 = 1 << 0;
/// [`UFFDIO_COPY`]: the pages are write-protected.
pub const COPY_MODE_WP: u64 = 1 << 1;
/// [`UFFDIO_WRITEPROTECT`]: on, not off.
pub const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
/// [`UFFDIO_WRITEPROTECT`]: who waits goes on waiting.
pub const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

/// A page is missing or write-protected.
pub const EVENT_PAGEFAULT: u8 = 0x12;
/// The process has a child, with a userfaultfd of its own.
pub const EVENT_FORK: u8 = 0x13;
/// Pages were given back.
pub const EVENT_REMOVE: u8 = 0x15;
/// A mapping is gone.
pub const EVENT_UNMAP: u8 = 0x16;

/// Of a page fault: it was a write.
pub const PAGEFAULT_WRITE: u64 = 1 << 0;
/// Of a page fault: the page is there, and write-protected.
pub const PAGEFAULT_WP: u64 = 1 << 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Debug)]
pub struct Api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Debug)]
pub struct Range {
    pub start: u64,
    pub len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Debug)]
pub struct Register {
    pub range: Range,
    pub mode: u64,
    pub ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Debug)]
pub struct Copy {
    pub dst: u64,
    pub src: u64,
    pub len: u64,
    pub mode: u64,
    /// Bytes that are done, or an error below zero.
    pub copy: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Debug)]
pub struct Zero {
    pub range: Range,
    pub mode: u64,
    /// Bytes that are done, or an error below zero.
    pub zeropage: i64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Debug)]
pub struct WriteProtect {
    pub range: Range,
    pub mode: u64,
}

/// `struct uffd_msg`. Its union is three words here: all that any event has, and each has its first ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Message {
    pub event: u8,
    pub reserved: [u8; 7],
    pub argument: [u64; 3],
}

const _: () = assert!(size_of::<Message>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_the_kernels() {
        for (request, number) in [
            (USERFAULTFD_IOC_NEW, 0xaa00),
            (UFFDIO_API, 0xc018_aa3f),
            (UFFDIO_REGISTER, 0xc020_aa00),
            (UFFDIO_UNREGISTER, 0x8010_aa01),
            (UFFDIO_WAKE, 0x8010_aa02),
            (UFFDIO_COPY, 0xc028_aa03),
            (UFFDIO_ZEROPAGE, 0xc020_aa04),
            (UFFDIO_WRITEPROTECT, 0xc018_aa06),
        ] {
            assert_eq!(request, number, "{number:#x}");
        }
    }
}
