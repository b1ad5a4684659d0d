//! Page faults that are served by a program: the kernel's userfaultfd.
//!
//! A [`Userfault`] controls ranges of one process's memory. A thread that touches a missing page there, or writes to a
//! write-protected one, waits until somebody who holds the descriptor has put the page in its place or taken the
//! protection away. That somebody may be another process, which was sent the descriptor: a guest's memory comes out of
//! a snapshot so, page by page as the guest asks for it.
//!
//! Faults of the kernel's own accesses (KVM, and reads into the guest's memory) wait as well, which takes the right to
//! have them: that of `CAP_SYS_PTRACE`, of the sysctl `vm.unprivileged_userfaultfd`, or of `/dev/userfaultfd`.
#![expect(
    unsafe_code,
    reason = "the requests of userfaultfd, whose arguments are addresses"
)]

mod abi;
mod event;
pub mod handler;
mod mapping;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use devices::memory::GuestRegion;
use vm_memory::GuestMemoryRegion;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use crate::jail::opened::{self, Kind};

pub use self::event::{Event, Fault};
pub use self::mapping::{Mapping, MappingError, Places};

/// The granularity of faults in bytes: the page size of x86.
pub const PAGE: u64 = 4096;
/// Who may open it may have faults of the kernel's accesses.
pub const DEVICE: &str = "/dev/userfaultfd";
/// What `/proc/self/fd/N` links to.
const KIND: &str = "anon_inode:[userfaultfd]";
/// Messages that are read at once.
const BATCH: usize = 64;

/// What the kernel shall be able to do, or can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Missing pages of anonymous memory: every kernel has that.
    pub const NONE: Self = Self(0);
    /// Write protection.
    pub const WRITE_PROTECT: Self = Self(1 << 0);
    /// [`Event::Remove`].
    pub const EVENT_REMOVE: Self = Self(1 << 3);
    /// Missing pages of memory that is shared (`memfd`).
    pub const MISSING_SHARED: Self = Self(1 << 5);
    /// [`Event::Unmap`].
    pub const EVENT_UNMAP: Self = Self(1 << 6);
    /// Write protection of memory that is shared.
    pub const WRITE_PROTECT_SHARED: Self = Self(1 << 12);
    /// Write protection of anonymous pages that are missing as well.
    pub const WRITE_PROTECT_UNPOPULATED: Self = Self(1 << 13);

    /// These and those.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    pub const fn have(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which accesses to a range wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// Those to missing pages.
    pub missing: bool,
    /// Writes to write-protected pages.
    pub write_protect: bool,
}

/// Whether threads that wait for a page go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// They do.
    Yes,
    /// They wait until [`Userfault::wake`].
    No,
}

/// Why there is no control of page faults.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// The kernel gives none.
    #[error(
        "Cannot have a userfaultfd, neither by {DEVICE} nor by the system call: does this kernel have \
         CONFIG_USERFAULTFD, and may this user open {DEVICE}?"
    )]
    Open(#[source] io::Error),
    /// The handshake fails.
    #[error("The kernel's userfaultfd has not all of the features {wanted:#x}")]
    Features {
        /// Bits of [`Features`].
        wanted: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What was received is something else.
    #[error("The descriptor is no userfaultfd but \"{found}\"")]
    NotUserfault {
        /// What it is.
        found: String,
    },
    /// A received descriptor cannot be looked at.
    #[error("Cannot find out what kind of descriptor was received")]
    Kind(#[source] io::Error),
    /// A range stays as it is.
    #[error("Cannot control the faults of {bytes} bytes at {start:#x}")]
    Register {
        /// First address.
        start: u64,
        /// Length.
        bytes: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// The device that makes userfaultfds, which can be opened ahead of a jail. Userfaultfds are of the process that asks for
/// them, not of the one that opened the device.
///
/// # Errors
/// There is none, or it may not be opened.
pub fn open_device() -> io::Result<File> {
    File::options().read(true).write(true).open(DEVICE)
}

/// Opens what [`Userfault::open_kept`] needs, ahead of a jail.
pub fn open_ahead() {
    // Who needs it says that it cannot be had.
    if let Ok(device) = open_device() {
        opened::keep(Kind::Write, DEVICE, device);
    }
}

/// Makes what [`Userfault::open_kept`] needs if there is no device: ahead of the filters of system calls, of which none
/// permits this call, and in the process whose memory it is for.
pub fn make_ahead() {
    match opened::take(Kind::Write, DEVICE) {
        Some(device) => opened::keep(Kind::Write, DEVICE, device),
        None => {
            if let Some(fd) = by_call() {
                opened::keep(Kind::Userfault, DEVICE, fd);
            }
        }
    }
}

/// One without a handshake yet.
fn by_call() -> Option<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call makes a descriptor and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has made it just now, for this caller.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A userfaultfd.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    /// Another process has it too, and may have changed whether reads wait.
    shared: bool,
}

impl Userfault {
    /// A userfaultfd for this process's memory, by [`DEVICE`] or else by the system call. Reading it never waits.
    ///
    /// # Errors
    /// The kernel gives none, or not one with the `required` features.
    pub fn open(required: Features) -> Result<Self, UserfaultError> {
        match open_device() {
            Ok(device) => Self::from_device(&device, required),
            // The call's own error says less: it is there for everybody, but not with all rights.
            Err(no_device) => match by_call() {
                Some(fd) => Self::adopt(fd, required),
                None => Err(UserfaultError::Open(no_device)),
            },
        }
    }

    /// As [`Self::open`], by what was opened ahead; without a system call that makes one.
    ///
    /// # Errors
    /// Nothing was, or what was has not the `required` features.
    pub fn open_kept(required: Features) -> Result<Self, UserfaultError> {
        if let Some(fd) = opened::take(Kind::Userfault, DEVICE) {
            return Self::adopt(fd, required);
        }
        let device = opened::file(Path::new(DEVICE), true).map_err(UserfaultError::Open)?;
        let made = Self::from_device(&device, required);
        // For another one.
        opened::keep(Kind::Write, DEVICE, device);
        made
    }

    /// As [`Self::open`], by a `device` that is open already.
    ///
    /// # Errors
    /// The kernel gives none, or not one with the `required` features.
    pub fn from_device(device: &File, required: Features) -> Result<Self, UserfaultError> {
        let flags = libc::c_ulong::from((libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned());
        // SAFETY: the request makes a descriptor and touches no memory.
        let fd = unsafe { ioctl_with_val(device, abi::USERFAULTFD_IOC_NEW, flags) };
        if fd < 0 {
            return Err(UserfaultError::Open(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has made it just now, for this caller.
        Self::adopt(unsafe { OwnedFd::from_raw_fd(fd) }, required)
    }

    fn adopt(fd: OwnedFd, required: Features) -> Result<Self, UserfaultError> {
        let mut api = abi::Api {
            api: abi::UFFD_API,
            features: required.0,
            ioctls: 0,
        };
        // SAFETY: `api` is what this request reads and writes.
        let done = unsafe { ioctl_with_mut_ref(&fd, abi::UFFDIO_API, &mut api) };
        check(done).map_err(|source| UserfaultError::Features {
            wanted: required.0,
            source,
        })?;
        Ok(Self { fd, shared: false })
    }

    /// A userfaultfd of another process, which has sent it. That process is not trusted: what it sends must be one, and
    /// that reads never wait does not depend on it.
    ///
    /// # Errors
    /// It is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, UserfaultError> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let found = fs::read_link(Path::new(&link)).map_err(UserfaultError::Kind)?;
        if found != Path::new(KIND) {
            let found = found.display().to_string();
            return Err(UserfaultError::NotUserfault { found });
        }
        Ok(Self { fd, shared: true })
    }

    /// Takes a region of a guest's memory under control, which this process has mapped.
    ///
    /// # Errors
    /// The kernel cannot do this for memory of that kind, or it is under another's control.
    pub fn register(&self, region: &GuestRegion, modes: Modes) -> Result<(), UserfaultError> {
        let (start, bytes) = place_of(region);
        let mode = u64::from(modes.missing) | u64::from(modes.write_protect) << 1;
        let mut register = abi::Register {
            range: abi::Range { start, len: bytes },
            mode,
            ioctls: 0,
        };
        // SAFETY: `register` is what this request reads and writes. What changes by it is when, and with which contents,
        // pages of a guest's memory appear, which nobody takes for constant.
        let done = unsafe { ioctl_with_mut_ref(&self.fd, abi::UFFDIO_REGISTER, &mut register) };
        check(done).map_err(|source| UserfaultError::Register {
            start,
            bytes,
            source,
        })
    }

    /// Lets go of `bytes` from `start` on: who waits there goes on, missing pages are zeroes, and no page is protected.
    ///
    /// # Errors
    /// The range is not what the kernel can let go of.
    pub fn unregister(&self, start: u64, bytes: u64) -> io::Result<()> {
        let range = abi::Range { start, len: bytes };
        // SAFETY: `range` is what this request reads. No page changes by it.
        check(unsafe { ioctl_with_ref(&self.fd, abi::UFFDIO_UNREGISTER, &range) })
    }

    /// Puts `contents`, whole pages, in the place of missing pages at `start`. Returns how many bytes of them are there
    /// now, at least one page.
    ///
    /// # Errors
    /// - [`io::ErrorKind::AlreadyExists`]: the first page is not missing. Nobody is woken.
    /// - [`io::ErrorKind::WouldBlock`]: events wait to be read first.
    /// - [`io::ErrorKind::NotFound`]: the place is not under control, or not mapped any more.
    /// - `ESRCH`: the process is gone.
    pub fn copy(&self, start: u64, contents: &[u8], wake: Wake) -> io::Result<u64> {
        self.copy_with(start, contents, dont_wake(wake))
    }

    /// As [`Self::copy`], and the pages are write-protected from the beginning.
    ///
    /// # Errors
    /// As for [`Self::copy`].
    pub fn copy_protected(&self, start: u64, contents: &[u8], wake: Wake) -> io::Result<u64> {
        self.copy_with(start, contents, dont_wake(wake) | abi::COPY_MODE_WP)
    }

    fn copy_with(&self, start: u64, contents: &[u8], mode: u64) -> io::Result<u64> {
        let mut copy = abi::Copy {
            dst: start,
            src: contents.as_ptr().addr() as u64,
            len: contents.len() as u64,
            mode,
            copy: 0,
        };
        // SAFETY: `copy` is what this request reads and writes, and `contents` what it reads beside. It writes only to
        // missing pages of ranges under control, which are a guest's memory.
        let done = unsafe { ioctl_with_mut_ref(&self.fd, abi::UFFDIO_COPY, &mut copy) };
        placed(done, copy.copy)
    }

    /// Puts zeroes in the place of `bytes`, whole pages, of missing pages at `start`. Returns how many bytes of them are
    /// there now, at least one page.
    ///
    /// # Errors
    /// As for [`Self::copy`].
    pub fn zero(&self, start: u64, bytes: u64, wake: Wake) -> io::Result<u64> {
        let mut zero = abi::Zero {
            range: abi::Range { start, len: bytes },
            mode: dont_wake(wake),
            zeropage: 0,
        };
        // SAFETY: `zero` is what this request reads and writes. It changes only missing pages of ranges under control,
        // which are a guest's memory.
        let done = unsafe { ioctl_with_mut_ref(&self.fd, abi::UFFDIO_ZEROPAGE, &mut zero) };
        placed(done, zero.zeropage)
    }

    /// Lets threads that wait for a page of `bytes` from `start` on try again.
    ///
    /// # Errors
    /// The range is none of whole pages.
    pub fn wake(&self, start: u64, bytes: u64) -> io::Result<()> {
        let range = abi::Range { start, len: bytes };
        // SAFETY: `range` is what this request reads. No page changes by it.
        check(unsafe { ioctl_with_ref(&self.fd, abi::UFFDIO_WAKE, &range) })
    }

    /// Write-protects `bytes` from `start` on, if `on`; if not, writes go through again and, with [`Wake::Yes`], who
    /// waits goes on.
    ///
    /// # Errors
    /// - [`io::ErrorKind::WouldBlock`]: events wait to be read first.
    /// - [`io::ErrorKind::NotFound`]: the place is not under control of that kind.
    pub fn write_protect(&self, start: u64, bytes: u64, on: bool, wake: Wake) -> io::Result<()> {
        let mode = match (on, wake) {
            // The kernel refuses both: protection wakes nobody.
            (true, _) => abi::WRITEPROTECT_MODE_WP,
            (false, Wake::Yes) => 0,
            (false, Wake::No) => abi::WRITEPROTECT_MODE_DONTWAKE,
        };
        let mut protect = abi::WriteProtect {
            range: abi::Range { start, len: bytes },
            mode,
        };
        // SAFETY: `protect` is what this request reads. No page's contents change by it.
        check(unsafe { ioctl_with_mut_ref(&self.fd, abi::UFFDIO_WRITEPROTECT, &mut protect) })
    }

    /// Adds what there is to say to `events`, up to 64 of them; whether there was anything. Never waits.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub fn read(&self, events: &mut Vec<Event>) -> io::Result<bool> {
        let mut messages = [abi::Message::default(); BATCH];
        let length = size_of_val(&messages);
        let fd = self.fd.as_raw_fd();
        let start = messages.as_mut_ptr().cast();
        let mut done = Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        if self.shared {
            let vector = libc::iovec {
                iov_base: start,
                iov_len: length,
            };
            // SAFETY: `messages` has `length` bytes, of which any value is a message.
            done = bytes(unsafe { libc::preadv2(fd, &raw const vector, 1, -1, libc::RWF_NOWAIT) });
        }
        // Before Linux 6.10, the flag that all share decides.
        if matches!(&done, Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
            // SAFETY: as above.
            done = bytes(unsafe { libc::read(fd, start, length) });
        }
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                    _ => Err(error),
                };
            }
        };
        let read = &messages[..done / size_of::<abi::Message>()];
        for message in read {
            if message.event == abi::EVENT_FORK
                && let Ok(child) = RawFd::try_from(message.argument[0] & u64::from(u32::MAX))
            {
                // SAFETY: the kernel has made this descriptor for this very message, which only it writes: nobody else
                // knows it. Nobody wants it.
                drop(unsafe { OwnedFd::from_raw_fd(child) });
            }
            events.push(message.into());
        }
        Ok(!read.is_empty())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Userfault {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Where a region is in this process: first address, and bytes.
pub fn place_of(region: &GuestRegion) -> (u64, u64) {
    let start = region.as_ptr().addr() as u64;
    (start, region.len())
}

fn dont_wake(wake: Wake) -> u64 {
    match wake {
        Wake::Yes => 0,
        Wake::No => abi::MODE_DONTWAKE,
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn bytes(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// What came of a request that places pages. One that was done in part says so by an error.
fn placed(result: libc::c_int, bytes: i64) -> io::Result<u64> {
    match u64::try_from(bytes) {
        Ok(bytes) if bytes > 0 => Ok(bytes),
        _ if result < 0 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}
