//! Packet sockets: whole Ethernet frames of one interface, filtered in the kernel.
#![expect(
    unsafe_code,
    reason = "packet sockets are bound and filtered by structures that nix has no safe form for"
)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send};

/// `ETH_P_ALL` as the kernel wants it: in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_ARP: u32 = 0x0806;
const UDP: u32 = 17;
/// `BPF_RET` with this many bytes: the whole frame.
const WHOLE: u32 = 0x4_0000;

/// Which frames are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// ARP.
    pub arp: bool,
    /// UDP over IPv4 to this port.
    pub udp_port: u16,
}

/// A socket for the frames that come in on one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens one on the interface of that index.
    ///
    /// # Errors
    /// The interface is gone, or we may not.
    pub fn open(index: u32, wanted: Wanted) -> io::Result<Self> {
        Self::bound(index, &filter(Some(wanted)))
    }

    /// Opens one that hears nothing and only sends.
    ///
    /// # Errors
    /// The interface is gone, or we may not.
    pub fn sender(index: u32) -> io::Result<Self> {
        Self::bound(index, &filter(None))
    }

    fn bound(index: u32, program: &[libc::sock_filter]) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Protocol 0 receives nothing: no frame slips in before the filter.
        // SAFETY: takes numbers only.
        let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the descriptor was just made and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = u16::try_from(program.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog {
            len: length,
            filter: program.as_ptr().cast_mut(),
        };
        set_option(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        // What goes out would be copied for us first and thrown away by the filter then.
        let ignore: libc::c_int = 1;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &ignore)?;
        // SAFETY: plain data, for which all zero bits are valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        address.sll_protocol = ALL_PROTOCOLS;
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        // SAFETY: the address is a `sockaddr_ll`, alive for the call, and its length goes with it.
        let result = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                length_of::<libc::sockaddr_ll>()?,
            )
        };
        Errno::result(result)?;
        Ok(Self { fd })
    }

    /// The next frame's length in `buffer`; `None` when there is none.
    ///
    /// # Errors
    /// The interface is down or gone.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame. One that the kernel has no room for is lost, as on the wire.
    ///
    /// # Errors
    /// The interface is down or gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match send(self.fd.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn length_of<T>() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)
}

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = length_of::<T>()?;
    // SAFETY: each caller passes the type of its option, alive for the call with all it points to.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// The filter as a classic BPF program; `None` lets nothing through.
fn filter(wanted: Option<Wanted>) -> Vec<libc::sock_filter> {
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF_INDEXED: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    const LOAD_HEADER_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        // Every code is below 256.
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let Some(wanted) = wanted else {
        return vec![op(RETURN, 0, 0, 0)];
    };
    let arp_taken = if wanted.arp { WHOLE } else { 0 };
    vec![
        op(LOAD_HALF, 12, 0, 0),
        op(IF_EQUAL, ETHERTYPE_ARP, 8, 0),
        op(IF_EQUAL, ETHERTYPE_IPV4, 0, 8),
        op(LOAD_BYTE, 23, 0, 0),
        op(IF_EQUAL, UDP, 0, 6),
        // A later fragment has no ports.
        op(LOAD_HALF, 20, 0, 0),
        op(IF_ANY_BIT, 0x1fff, 4, 0),
        op(LOAD_HEADER_LENGTH, 14, 0, 0),
        op(LOAD_HALF_INDEXED, 16, 0, 0),
        op(IF_EQUAL, u32::from(wanted.udp_port), 2, 1),
        op(RETURN, arp_taken, 0, 0),
        op(RETURN, 0, 0, 0),
        op(RETURN, WHOLE, 0, 0),
    ]
}
