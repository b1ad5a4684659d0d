//! The machine file.
#![no_main]

use host::config::{Limits, Machine};

const SEED: &str = r#"[machine]
name = "m"
[network]
mode = "nat"
subnet = "10.1.0.0/24"
[[guest]]
name = "a"
vcpus = 2
memory = "512M"
kernel = "disk:guests/a/vmlinux"
initrd = "flash:i"
cmdline = "console=ttyS0 root=/dev/vda rw"
ready = { console = "login:" }
restart = "on-failure"
transport = "mmio"
autostart = true
[[guest.disk]]
source = "disk:guests/a/root.img"
format = "raw"
read-only = true
pmem = true
[[guest.nic]]
mac = "02:00:00:00:00:01"
[[guest.publish]]
port = 8080
to = 80
protocol = "tcp"
[[guest]]
name = "b"
kernel = "disk"
ready = "boot-timer"
"#;

fuzz::fuzz_target!(init: fuzz::begin(|| vec![SEED.as_bytes().to_vec()]), |data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let limits = Limits {
        host_memory_mib: Some(1024),
    };
    match Machine::parse("fuzz", &text, limits) {
        Ok(machine) => {
            for guest in machine.guests {
                if let Err(error) = guest.config {
                    assert!(!error.to_string().is_empty());
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
