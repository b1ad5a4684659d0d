//! The host's tap interfaces.
#![expect(unsafe_code, reason = "ioctls of the tun driver and of interfaces")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::jail::opened::{self, Kind};
use libc::{c_char, c_int, c_short, ifreq};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

const TUN: &str = "/dev/net/tun";
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;

/// How long a tap may be busy: a VMM that was killed lets go of its own a little later.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the network device needs of a tap: Ethernet frames, with a header for offloads and nothing else before them.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("Cannot open {TUN}: {hint}", hint = device_hint(.0))]
    Device(#[source] io::Error),
    #[error("Cannot use the tap interface \"{name}\": {hint}", hint = interface_hint(.source, .name))]
    Interface {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("Cannot switch the new tap interface \"{name}\" on")]
    Up {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "Descriptor {fd} is not a tap: open {TUN} with TUNSETIFF and pass that descriptor on to this process"
    )]
    NotATap {
        fd: RawFd,
        #[source]
        source: io::Error,
    },
    #[error(
        "Descriptor {fd} is a tap with flags {flags:#x}, needed are IFF_TAP, IFF_NO_PI and IFF_VNET_HDR ({FLAGS:#x})"
    )]
    WrongFlags { fd: RawFd, flags: c_int },
}

fn device_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "it does not exist. Load the module tun (modprobe tun)",
        ErrorKind::PermissionDenied => "permission denied. Run as root or make it writable",
        _ => "is the tun driver in this kernel?",
    }
}

fn interface_hint(error: &io::Error, name: &str) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "another program has it. Give each guest a tap of its own, or end that program".into()
        }
        Some(libc::EPERM) => format!(
            "no permission. Run as root, or make it for this user: ip tuntap add dev {name} mode tap \
             user <user> vnet_hdr"
        ),
        Some(libc::EINVAL) => format!(
            "there is an interface of this name that is not a tap with one queue. Make one: ip tuntap \
             add dev {name} mode tap vnet_hdr"
        ),
        _ => "the kernel refuses it".into(),
    }
}

/// A request about the interface `name`, which was checked to be short enough.
fn request(name: &str) -> ifreq {
    // SAFETY: an `ifreq` is plain data, of which all zeroes are a value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    let last = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..last].iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request
}

/// The 16 bits of flags that most requests carry.
fn flags(bits: c_int) -> c_short {
    let [a, b, ..] = bits.to_le_bytes();
    c_short::from_le_bytes([a, b])
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Opens the tap interface `name`. If there is none and this process may, it is made, and lives as long as it is open.
pub(super) fn open(name: &str) -> Result<File, TapError> {
    if let Some(tap) = opened::take(Kind::Tap, name) {
        return Ok(tap.into());
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true);
    let file = options.custom_flags(libc::O_NONBLOCK).open(TUN);
    let file = file.map_err(TapError::Device)?;
    let existed = exists(name);
    let mut tap = request(name);
    tap.ifr_ifru.ifru_flags = flags(FLAGS);
    let until = Instant::now() + PATIENCE;
    loop {
        // SAFETY: the call reads and writes one ifreq.
        let result = unsafe { ioctl_with_mut_ref(&file, TUNSETIFF, &mut tap) };
        match check(result) {
            Ok(()) => break,
            Err(source) if source.kind() == ErrorKind::ResourceBusy && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(source) => {
                let name = name.into();
                return Err(TapError::Interface { name, source });
            }
        }
    }
    if !existed {
        up(name).map_err(|source| TapError::Up {
            name: name.into(),
            source,
        })?;
        log::info!(
            "There was no tap interface \"{name}\": made one, which is connected to nothing yet"
        );
    }
    Ok(file)
}

fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else {
        return false;
    };
    // SAFETY: the name ends in a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    index != 0
}

/// Switches the interface on.
fn up(name: &str) -> io::Result<()> {
    // Any socket will do to speak about interfaces.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut interface = request(name);
    // SAFETY: the call reads and writes one ifreq.
    let result = unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFFLAGS, &mut interface) };
    check(result)?;
    // SAFETY: the call has filled in the flags.
    let now = unsafe { interface.ifr_ifru.ifru_flags };
    interface.ifr_ifru.ifru_flags = now | flags(libc::IFF_UP);
    // SAFETY: the call reads one ifreq.
    check(unsafe { ioctl_with_ref(&socket, libc::SIOCSIFFLAGS, &interface) })
}

/// Takes over a tap that was opened for this process.
pub(super) fn take(fd: RawFd) -> Result<File, TapError> {
    let mut tap = request("");
    // SAFETY: the call writes one ifreq, if it knows the request at all; a descriptor that is not open is an error.
    let result = unsafe { libc::ioctl(fd, TUNGETIFF, &raw mut tap) };
    check(result).map_err(|source| TapError::NotATap { fd, source })?;
    // SAFETY: the call has filled in the flags.
    let has = c_int::from(unsafe { tap.ifr_ifru.ifru_flags });
    // Also a tap with several queues can be used, one of them by us.
    if has & FLAGS != FLAGS {
        return Err(TapError::WrongFlags { fd, flags: has });
    }
    // SAFETY: it is open, is a tap, and was given to this process for this use: nothing else here owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    let set = |get: c_int, set: c_int, flag: c_int| {
        // SAFETY: reads the flags of an open descriptor.
        let now = unsafe { libc::fcntl(file.as_raw_fd(), get) };
        check(now)?;
        // SAFETY: sets the flags of an open descriptor.
        check(unsafe { libc::fcntl(file.as_raw_fd(), set, now | flag) })
    };
    set(libc::F_GETFL, libc::F_SETFL, libc::O_NONBLOCK)
        .and_then(|()| set(libc::F_GETFD, libc::F_SETFD, libc::FD_CLOEXEC))
        .map_err(|source| TapError::NotATap { fd, source })?;
    Ok(file)
}
