//! The machine that QEMU makes for the ROM.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use crate::tool;

/// RAM of the machine in MiB, and its processors.
pub const MEMORY_MIB: u32 = 3072;
const CPUS: u32 = 2;

/// Port of the host in the machine that leads to the page of `web`: see `configs/default.toml`.
const PUBLISHED: u16 = 8080;

/// `program`, a QEMU, with the ROM in `image` at the reset vector, its disk, and a network card; no terminal or screen yet. `emulated` is
/// the processor where there is no hardware to lend.
///
/// The card's network is QEMU's own: it needs no rights, and `port` of this computer leads to [`PUBLISHED`] there.
pub fn command(program: &Path, image: &Path, emulated: Option<&str>, port: u16) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", tool::search_path()).args(["-M", "q35"]);
    match emulated {
        None => command.args(["-accel", "kvm", "-cpu", "host"]),
        Some(cpu) => command.args(["-accel", "tcg,thread=multi", "-cpu", cpu]),
    };
    command.args(["-m", &MEMORY_MIB.to_string(), "-smp", &CPUS.to_string()]);
    command.arg("-bios").arg(image.join("daruma.rom"));
    command.arg("-drive").arg(drive(&image.join("disk.img")));
    let forward = format!("user,id=wire,hostfwd=tcp:127.0.0.1:{port}-:{PUBLISHED}");
    command.args(["-netdev", &forward]);
    command.args(["-device", "virtio-net-pci,netdev=wire"]);
    command
}

/// A free port of this computer, [`PUBLISHED`] itself if it is.
pub fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PUBLISHED))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(listener.local_addr()?.port())
}

/// A raw disk on virtio. A comma in a path must be doubled for QEMU.
fn drive(disk: &Path) -> String {
    format!(
        "file={},format=raw,if=virtio",
        disk.display().to_string().replace(',', ",,")
    )
}

/// A command as one would type it.
pub fn as_typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,+:@".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translation_emulates_what_the_guests_need() {
        let cpu = Some("EPYC,+svm,-npt");
        let (program, image) = (Path::new("qemu-system-x86_64"), Path::new("target/image"));
        let typed = as_typed(&command(program, image, cpu, 8081));
        assert_eq!(
            typed,
            "qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu EPYC,+svm,-npt -m 3072 -smp 2 \
             -bios target/image/daruma.rom -drive file=target/image/disk.img,format=raw,if=virtio \
             -netdev user,id=wire,hostfwd=tcp:127.0.0.1:8081-:8080 -device virtio-net-pci,netdev=wire"
        );
    }

    #[test]
    fn odd_paths_survive_qemu_and_the_shell() {
        assert_eq!(drive(Path::new("a,b")), "file=a,,b,format=raw,if=virtio");
        let mut command = Command::new("x");
        command.args(["it's", ""]);
        assert_eq!(as_typed(&command), r"x 'it'\''s' ''");
    }
}
