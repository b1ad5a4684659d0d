//! The machine that QEMU makes for the ROM.

use std::path::Path;
use std::process::Command;

use crate::tool;
use crate::world::Acceleration;

/// RAM of the machine in MiB, and its processors.
pub const MEMORY_MIB: u32 = 3072;
const CPUS: u32 = 2;

/// QEMU with the ROM in `image` at the reset vector and its disk attached; no terminal or screen yet.
pub fn command(image: &Path, acceleration: Acceleration) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.env("PATH", tool::search_path()).args(["-M", "q35"]);
    match acceleration {
        Acceleration::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        Acceleration::Tcg => command.args(["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"]),
    };
    command.args(["-m", &MEMORY_MIB.to_string(), "-smp", &CPUS.to_string()]);
    command.arg("-bios").arg(image.join("daruma.rom"));
    command.arg("-drive").arg(drive(&image.join("disk.img")));
    command
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
        let typed = as_typed(&command(Path::new("target/image"), Acceleration::Tcg));
        assert_eq!(
            typed,
            "qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu EPYC,+svm,+npt -m 3072 -smp 2 \
             -bios target/image/daruma.rom -drive file=target/image/disk.img,format=raw,if=virtio"
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
