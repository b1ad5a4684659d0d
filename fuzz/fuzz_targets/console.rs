//! The queues of a console with a terminal and a port that programs of the host come to and go from.
#![no_main]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use devices::virtio::console::{Callers, Console, Host, PortSpec, Resizer};
use fuzz::Unstructured;
use fuzz::driver::{World, drive};
use fuzz::sockets::{Callers as Queue, pair};

/// Programs that wait to be let in.
struct Door(Queue);

impl AsRawFd for Door {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd()
    }
}

impl Callers for Door {
    fn accept(&mut self) -> io::Result<UnixStream> {
        self.0.accept()
    }
}

/// Who sits at the terminal, and who calls at the port.
struct People {
    keyboard: UnixStream,
    door: Queue,
    caller: Option<UnixStream>,
    resizer: Resizer,
}

impl World for People {
    fn request(&mut self, index: u16, input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
        if index != 3 {
            return Ok(Vec::new());
        }
        // `struct virtio_console_control`: port, event, value.
        let mut message = u32::from(input.arbitrary::<u8>()? % 4)
            .to_le_bytes()
            .to_vec();
        message.extend(u16::from(input.arbitrary::<u8>()? % 9).to_le_bytes());
        message.extend(u16::from(input.arbitrary::<u8>()? % 3).to_le_bytes());
        Ok(message)
    }

    fn happen(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let what = input.arbitrary::<u8>()?;
        let len = usize::from(input.arbitrary::<u8>()?);
        let data = input.bytes(len.min(input.len()))?;
        match what % 6 {
            0 => drop((&self.keyboard).write(data)),
            1 => {
                let (near, far) = pair();
                self.door.call(near);
                self.caller = Some(far);
            }
            2 => self.caller = None,
            3 => drop(self.resizer.resize(len as u16, u16::from(what))),
            4 => drop(self.keyboard.shutdown(std::net::Shutdown::Write)),
            _ => {
                if let Some(caller) = &mut self.caller {
                    let _ = caller.write(data);
                    let _ = caller.read(&mut [0; 512]);
                }
            }
        }
        let _ = (&self.keyboard).read(&mut [0; 512]);
        Ok(())
    }
}

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    let (terminal, keyboard) = pair();
    let door = Queue::new();
    let input = File::from(OwnedFd::from(terminal.try_clone().expect("a descriptor")));
    let spec = |name: &str, console, host| PortSpec {
        name: name.into(),
        console,
        host,
    };
    let output = Box::new(terminal);
    let device = Console::new(vec![
        spec("terminal", true, Host::Streams { input, output }),
        spec("port", false, Host::Socket(Box::new(Door(door.clone())))),
    ])
    .expect("a console");
    let mut people = People {
        keyboard,
        door,
        caller: None,
        resizer: device.resizer(),
    };
    drive(Box::new(device), &mut people, data)
});
