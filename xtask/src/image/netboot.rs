//! `netboot/`: what a DHCP or HTTP server gives to computers that boot from the network, guests included.

use anyhow::Result;
use firmware_glue::initramfs;

use super::uefi::Programs;

/// Where `configs/netboot.toml` looks.
const FOLDER: &str = "guests";
const MACHINE: &str = "guests/machine.toml";
/// The guests' files, below that folder.
pub const KERNEL: &str = "kernel";
pub const POCKET: &str = "pocket/root.erofs";
pub const WEB: &str = "web/initrd";
/// The kernel takes several archives one after the other, each at a multiple of this.
const ALIGNMENT: usize = 4;

/// What the kit is made of.
pub struct Parts<'a> {
    /// The host's kernel.
    pub kernel: &'a [u8],
    /// The host's initramfs.
    pub initramfs: &'a [u8],
    /// The host's command line.
    pub cmdline: &'a str,
    /// Text of the machine file.
    pub machine: &'a str,
    /// The guests' files, by their names below `guests`.
    pub guests: &'a [(&'a str, &'a [u8])],
}

/// Files of the kit, by name.
pub struct Kit {
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Parts<'_> {
    pub fn assemble(&self) -> Result<Kit> {
        let mut builder = initramfs::Builder::new();
        builder.file(MACHINE, 0o644, self.machine.as_bytes().to_vec())?;
        for (name, data) in self.guests {
            builder.file(&format!("{FOLDER}/{name}"), 0o644, data.to_vec())?;
        }
        // All in it that is large is compressed.
        let guests = builder.build()?;
        let mut both = self.initramfs.to_vec();
        both.resize(both.len().next_multiple_of(ALIGNMENT), 0);
        both.extend_from_slice(&guests);
        let cmdline = format!("{} daruma.machine=/{MACHINE}", self.cmdline);
        let programs = Programs::assemble(self.kernel, &both, &cmdline)?;
        Ok(Kit {
            files: vec![
                ("netboot/boot.ipxe", script(&cmdline).into_bytes()),
                ("netboot/bzImage", self.kernel.to_vec()),
                ("netboot/daruma.efi", programs.with_stub),
                ("netboot/guests.cpio", guests),
                ("netboot/initramfs", self.initramfs.to_vec()),
            ],
        })
    }
}

/// Files are named relative to the script's own address. `initrd=` is for UEFI machines with an older iPXE.
fn script(cmdline: &str) -> String {
    format!(
        "#!ipxe\n\
         kernel bzImage initrd=initramfs initrd=guests.cpio {cmdline}\n\
         initrd initramfs\n\
         initrd guests.cpio\n\
         boot\n"
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_machine_file_names_what_the_archive_has() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/netboot.toml");
        let machine = std::fs::read_to_string(path).unwrap();
        for name in [KERNEL, POCKET, WEB] {
            assert!(machine.contains(&format!("\"/{FOLDER}/{name}\"")), "{name}");
        }
    }
}
