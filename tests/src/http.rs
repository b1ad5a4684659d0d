//! The network outside the machine: pages that come through forwarded ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::console::HUNG;

/// A port of this computer that was free just now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// One try at a page.
pub fn get(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    if page.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(page)
}

/// The page behind a forwarded port, once the guest has its address: QEMU takes connections from the start.
pub fn page(port: u16) -> Result<String> {
    let deadline = Instant::now() + HUNG;
    loop {
        match get(port) {
            Ok(page) => return Ok(page),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("No page came through the forwarded port");
            }
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}
