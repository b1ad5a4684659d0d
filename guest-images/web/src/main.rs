//! The `web` guest: an appliance whose only process is this program.
//!
//! It runs as PID 1 from an initial RAM disk, serves one page on port 80, reports ready through the boot-timer port as
//! soon as the port is open, gets its address by DHCP beside that, and powers the machine off when the power button is
//! pressed.

mod button;
mod dhcp;
mod http;
mod interface;
mod machine;

use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use machine::Console;

const PORT: u16 = 80;

fn main() {
    let mount_errors = machine::mount_pseudo_file_systems();
    let mut console = Console::open();
    for error in mount_errors {
        console.say(&format!("web: {error}"));
    }

    // Bound to every address: the one that DHCP gives needs no new socket.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT));
    match &listener {
        Ok(_) => {
            console.say(&format!("web: serving on port {PORT}"));
            if let Err(error) = machine::signal_ready() {
                console.say(&format!("web: could not signal ready: {error}"));
            }
        }
        Err(error) => console.say(&format!("web: port {PORT} cannot be opened: {error}")),
    }
    if let Err(error) = button::watch() {
        console.say(&format!("web: the power button will not work: {error}"));
    }
    if let Err(error) = thread::Builder::new().spawn(dhcp::keep_address) {
        console.say(&format!("web: no address: {error}"));
    }
    match listener {
        Ok(listener) => http::serve(&listener),
        // PID 1 must not end; the button still works.
        Err(_) => loop {
            thread::park();
        },
    }
}
