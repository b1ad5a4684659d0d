//! TCP between the guest and the laboratory.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Result, bail};

use super::phase::{Done, Laps, Phases};
use crate::network::{self, ECHO_PORT, GUEST, HOST, SINK_PORT, SOURCE_PORT, STREAM_BYTES};

/// Bytes of one read or write.
const CHUNK: usize = 128 << 10;

/// One-byte questions and answers.
const ROUND_TRIPS: u64 = 500;

/// All phases of the network.
pub fn work(phases: &mut Phases) -> Result<()> {
    network::configure("eth0", GUEST)?;
    // The first connection learns the neighbour's address.
    let mut echo = TcpStream::connect((HOST, ECHO_PORT))?;
    echo.set_nodelay(true)?;
    let mut laps = Laps::new();
    round_trips(&mut echo, 32, &mut laps)?;
    send(&mut laps)?;
    receive(&mut laps)?;

    phases.run("net.nothing", |_| {
        Ok(Done {
            requests: 0,
            bytes: 0,
        })
    })?;
    phases.run("net.tcp_tx", send)?;
    phases.run("net.tcp_rx", receive)?;
    phases.run("net.tcp_rr", |laps| {
        round_trips(&mut echo, ROUND_TRIPS, laps)
    })
}

/// Sends a stream and waits until the other side has all of it.
fn send(laps: &mut Laps) -> Result<Done> {
    let mut stream = TcpStream::connect((HOST, SINK_PORT))?;
    let chunk = vec![0x5a; CHUNK];
    let mut left = STREAM_BYTES;
    let mut writes = 0;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(&chunk[..now])?;
        left -= now as u64;
        laps.lap();
        writes += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    laps.lap();
    Ok(Done {
        requests: writes,
        bytes: STREAM_BYTES,
    })
}

/// Receives a stream to its end.
fn receive(laps: &mut Laps) -> Result<Done> {
    let mut stream = TcpStream::connect((HOST, SOURCE_PORT))?;
    let mut chunk = vec![0; CHUNK];
    let (mut bytes, mut requests) = (0, 0);
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            count => {
                bytes += count as u64;
                requests += 1;
                laps.lap();
            }
        }
    }
    if bytes != STREAM_BYTES {
        bail!("{bytes} bytes came, sent were {STREAM_BYTES}");
    }
    Ok(Done { requests, bytes })
}

fn round_trips(echo: &mut TcpStream, count: u64, laps: &mut Laps) -> Result<Done> {
    let mut byte = [0];
    for _ in 0..count {
        echo.write_all(&byte)?;
        echo.read_exact(&mut byte)?;
        laps.lap();
    }
    Ok(Done {
        requests: count,
        bytes: count,
    })
}
