//! The network of one guest and the laboratory: a tap, two addresses, three TCP services.
#![expect(
    unsafe_code,
    reason = "interfaces are set up by ioctl(2), which has no safe wrapper in std"
)]

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

use anyhow::{Context, Result};

/// The laboratory's address on the tap.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Takes a stream and answers with a byte at its end.
pub const SINK_PORT: u16 = 5001;
/// Sends a stream.
pub const SOURCE_PORT: u16 = 5002;
/// Answers each byte with itself.
pub const ECHO_PORT: u16 = 5003;

/// Length of a stream.
pub const STREAM_BYTES: u64 = 24 << 20;

const CHUNK: usize = 128 << 10;

/// Makes a tap that stays, with room for virtio-net's header, and gives it the laboratory's address.
pub fn make_tap(name: &str) -> Result<()> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("Cannot open /dev/net/tun")?;
    let mut request = request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags)?;
    control(tap.as_raw_fd(), TUNSETIFF, &mut request).context("Cannot make a tap")?;
    // SAFETY: TUNSETPERSIST takes a number.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETPERSIST, 1) } != 0 {
        return Err(io::Error::last_os_error()).context("Cannot keep the tap");
    }
    configure(name, HOST)
}

/// Gives an interface its address and switches it on.
pub fn configure(name: &str, address: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let set = |what, command, fill: &dyn Fn(&mut libc::ifreq)| {
        let mut request = request(name)?;
        fill(&mut request);
        control(socket.as_raw_fd(), command, &mut request)
            .with_context(|| format!("Cannot set the {what} of {name}"))
    };
    set("address", libc::SIOCSIFADDR, &|request| {
        request.ifr_ifru.ifru_addr = socket_address(address);
    })?;
    set("mask", libc::SIOCSIFNETMASK, &|request| {
        request.ifr_ifru.ifru_netmask = socket_address(MASK);
    })?;
    set("flags", libc::SIOCSIFFLAGS, &|request| {
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    })
}

fn request(name: &str) -> Result<libc::ifreq> {
    // SAFETY: an `ifreq` of zeroes is valid: a name of no characters, a union of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from)?;
    }
    Ok(request)
}

fn control(fd: RawFd, command: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all commands used here take an `ifreq`, which lives as long as the call.
    match unsafe { libc::ioctl(fd, command, std::ptr::from_mut(request)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
        sa_data: data,
    }
}

/// Serves the three TCP services, each on a thread, as long as the process lives.
pub fn serve() -> Result<()> {
    for (port, service) in [
        (SINK_PORT, sink as fn(TcpStream) -> io::Result<()>),
        (SOURCE_PORT, source),
        (ECHO_PORT, echo),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A guest that is gone takes its connection with it.
                let _ = service(stream);
            }
        });
    }
    Ok(())
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk)? > 0 {}
    stream.write_all(&[1])
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    for _ in 0..STREAM_BYTES / CHUNK as u64 {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Both)
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}
