//! UEFI starts the host: from a stick, as either of the two programs, and with Secure Boot.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::qemu::{Builder, Qemu, Uefi};
use tests::{Image, image};

const KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";
/// The firmware's word when a signature is missing or wrong.
const REFUSED: &str = "Access Denied";
/// The host's, when it finds no machine file: there is no other disk.
const STARTED: &str = "disk:machine.toml not found";

/// Boots `program` from a disk on which firmware finds nothing else.
fn boot(firmware: Uefi, folder: &Path, program: &[u8]) -> Result<Qemu> {
    let place = folder.join("disk/EFI/BOOT");
    fs::create_dir_all(&place)?;
    fs::write(place.join("BOOTX64.EFI"), program)?;
    // QEMU makes a FAT of the folder.
    let drive = format!(
        "if=virtio,format=raw,read-only=on,file=fat:{}",
        folder.join("disk").display()
    );
    Builder::uefi(firmware, folder)?
        .args(["-drive".into(), drive.into()])
        .boot()
}

#[test]
fn a_pc_boots_the_stick_and_its_guests_come_from_it() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let mut machine = Builder::uefi(Uefi::Open, folder.path())?
        .stick(&image.path("daruma.img"))
        .boot()?;
    machine.console.expect("host: machine default")?;
    machine
        .console
        .expect_all(&["daruma: pocket: ready: ", "daruma: web: ready: "])?;
    Ok(())
}

#[test]
fn the_kernel_is_a_whole_uefi_program_without_a_stub() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let program = image.read("daruma-nostub.efi")?;
    let mut machine = boot(Uefi::Open, folder.path(), &program)?;
    // It has its command line, which says where lines go, and its initramfs, which says this.
    machine.console.expect(STARTED)?;
    Ok(())
}

#[test]
fn with_secure_boot_what_is_signed_boots_and_nothing_else() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("key");
    let mut openssl = Command::new("openssl");
    openssl.args(["rsa", "-in", KEY, "-passin", "pass:snakeoil", "-out"]);
    image::run(openssl.arg(&key))?;
    let signed = |name: &str| -> Result<Vec<u8>> {
        let output = folder.path().join("signed.efi");
        let mut sbsign = Command::new("sbsign");
        sbsign.args(["--cert", CERTIFICATE, "--key"]).arg(&key);
        sbsign.arg("--output").arg(&output);
        image::run(sbsign.arg(image.path(name)))?;
        Ok(fs::read(&output)?)
    };
    let mut changed = signed("daruma.efi")?;
    // In the kernel, which is most of the file.
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    for (program, words) in [
        (signed("daruma.efi")?, STARTED),
        (signed("daruma-nostub.efi")?, STARTED),
        (changed, REFUSED),
        (image.read("daruma.efi")?, REFUSED),
        (image.read("daruma-nostub.efi")?, REFUSED),
    ] {
        let mut machine = boot(Uefi::SecureBoot, folder.path(), &program)?;
        let (found, _) = machine.console.expect_any(&[STARTED, REFUSED])?;
        ensure!(
            [STARTED, REFUSED][found] == words,
            "expected {words:?} of a program of {} bytes",
            program.len()
        );
    }
    Ok(())
}
