//! The network outside the machine: pages that come through forwarded ports.

use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
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

/// Serves the files of `folder` to whoever asks on this computer, as long as the test runs; gives the port.
pub fn serve(folder: &Path) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let folder = folder.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            // A client that goes away is its own business.
            thread::spawn(move || answer(stream, &folder).ok());
        }
    });
    Ok(port)
}

/// Answers one connection's requests, one after the other. Files have no folders in their names.
fn answer(stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut output = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        for header in lines.by_ref() {
            if header?.is_empty() {
                break;
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next(), words.next().unwrap_or_default());
        let name = path.trim_start_matches('/');
        let file = if name.contains('/') {
            Err(ErrorKind::NotFound.into())
        } else {
            std::fs::read(folder.join(name))
        };
        let (status, body) = match file {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let length = body.len();
        write!(
            output,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        if method == Some("GET") {
            output.write_all(&body)?;
        }
    }
    Ok(())
}
