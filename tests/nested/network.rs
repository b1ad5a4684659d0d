//! The guests' networks, from outside the machine and from inside each guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::console::HUNG;
use tests::http::{free_port, get, page};
use tests::qemu::Builder;
use tests::{Console, Image};

use crate::shell::{self, view};

const MACHINE: &str = r#"
[machine]
name = "networks"

[[guest]]
name = "web"
memory = "64M"
kernel = "flash:daruma/kernel"
initrd = "flash:guest/web/initrd"
cmdline = "console=ttyS0 quiet hostname=web"
ready = { boot-timer = true }
[[guest.publish]]
port = 8080
to = 80

[[guest]]
name = "pocket"
memory = "96M"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 root=/dev/vda ro quiet loglevel=3"
ready = { console = "pocket login:" }
[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true

[[guest]]
name = "hidden"
memory = "64M"
network = "nat"
kernel = "flash:daruma/kernel"
initrd = "flash:guest/web/initrd"
cmdline = "console=ttyS0 quiet hostname=hidden"
ready = { boot-timer = true }
[[guest.publish]]
port = 8081
to = 80

[[guest]]
name = "inside"
memory = "96M"
network = "nat"
kernel = "flash:daruma/kernel"
cmdline = "console=ttyS0 root=/dev/vda ro quiet loglevel=3"
ready = { console = "pocket login:" }
[[guest.disk]]
source = "flash:guest/pocket/root.erofs"
read-only = true
"#;

/// Serves a page on this computer: what guests see as the world outside, at 10.0.2.2 of QEMU's network.
fn serve_outside() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nthe world outside\n");
        }
    });
    Ok(port)
}

/// Logs in to a pocket guest and waits until it has an address.
fn log_in(console: &mut Console, guest: u32) -> Result<()> {
    view(console, guest)?;
    shell::log_in(console, None)?;
    console.send("until ip route | grep -q default; do sleep 1; done; echo routed-$((3*7))\r")?;
    console.expect("routed-21")?;
    Ok(())
}

/// Has the guest on screen fetch a page with these words in it.
fn fetch(console: &mut Console, address: &str, port: u16, words: &str) -> Result<()> {
    // BusyBox's static wget falls over its C library's name look-up.
    let get = r"printf 'GET / HTTP/1.0\r\n\r\n'";
    console.send(&format!(
        "{get} >/tmp/get; until nc -w 20 {address} {port} </tmp/get >/tmp/page; do sleep 1; done; \
         cat /tmp/page; echo fetched-$((5*7))\r"
    ))?;
    let text = console.expect("fetched-35")?;
    ensure!(
        text.contains(words),
        "{address} port {port} gave no {words:?}: {text}"
    );
    Ok(())
}

/// The address of a guest as the host's `list` shows it, once it is known.
fn address_of(console: &mut Console, guest: &str) -> Result<Ipv4Addr> {
    let deadline = Instant::now() + HUNG;
    view(console, 0)?;
    while Instant::now() < deadline {
        console.send("list\r")?;
        let text = console.expect("inside ")?;
        let line = text.lines().find(|line| {
            let mut words = line.split_whitespace();
            words.next().is_some_and(|word| word.parse::<u8>().is_ok())
                && words.next() == Some(guest)
        });
        let line = line.context("The guest is not in the list")?;
        if let Some(address) = line.split_whitespace().find_map(|word| word.parse().ok()) {
            return Ok(address);
        }
        thread::sleep(Duration::from_secs(1));
    }
    bail!("The host never learned the address of {guest}")
}

#[test]
fn guests_are_on_the_network_and_published_ports_lead_to_them() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let rom = folder.path().join("networks.rom");
    std::fs::write(&rom, image.parts()?.machine(MACHINE).rom()?)?;
    let (web, hidden, outside) = (free_port()?, free_port()?, serve_outside()?);
    let mut machine = Builder::rom(&rom)
        .network(&[(web, 8080), (hidden, 8081)])
        .boot()?;
    machine.console.expect_all(&[
        "daruma: web: ready: ",
        "daruma: pocket: ready: ",
        "daruma: hidden: ready: ",
        "daruma: inside: ready: ",
    ])?;

    // From outside, through the host, to a guest on the wire and to one behind the host.
    let text = page(web)?;
    ensure!(
        text.contains("<title>web, a guest of Daruma</title>"),
        "{text}"
    );
    let text = page(hidden)?;
    ensure!(
        text.contains("<title>hidden, a guest of Daruma</title>"),
        "{text}"
    );

    let console = &mut machine.console;
    let address = address_of(console, "web")?;
    let world = |console: &mut Console| fetch(console, "10.0.2.2", outside, "the world outside");
    // A guest on the wire reaches its neighbour and the world outside.
    log_in(console, 2)?;
    fetch(console, &address.to_string(), 80, "<title>web,")?;
    world(console)?;
    // So does one behind the host, which also reaches its neighbour there by the published port.
    log_in(console, 4)?;
    world(console)?;
    fetch(console, "10.214.214.1", 8081, "<title>hidden,")?;

    // A guest that is started again has the same hardware address: QEMU's DHCP server gives it the same address.
    view(console, 0)?;
    console.send("restart web\r")?;
    // Older lines are on screen again; that it stopped is new.
    console.expect("daruma: web: stopped")?;
    console.expect("daruma: web: ready: ")?;
    let text = page(web)?;
    ensure!(text.contains("<title>web,"), "{text}");
    ensure!(text.contains(&address.to_string()), "not {address}: {text}");

    // The cable is pulled, the guests live on; it is plugged in again, and everything is as it was.
    view(console, 0)?;
    let link = |up: bool| {
        format!(r#"{{"execute": "set_link", "arguments": {{"name": "card", "up": {up}}}}}"#)
    };
    machine.monitor(&link(false))?;
    state(&mut machine.console, ": no link")?;
    ensure!(
        get(web).is_err(),
        "a page came through a cable that is pulled"
    );
    machine.monitor(&link(true))?;
    state(&mut machine.console, "0: eth0, 10.0.2.15/24 by DHCP")?;
    let text = page(web)?;
    ensure!(text.contains("<title>web,"), "{text}");
    Ok(())
}

/// Waits until the host says this of its networks.
fn state(console: &mut Console, words: &str) -> Result<()> {
    let deadline = Instant::now() + HUNG;
    while Instant::now() < deadline {
        console.send("network\r")?;
        if console.expect("nat, ")?.contains(words) {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
    bail!("The host never said {words:?} of its networks")
}
