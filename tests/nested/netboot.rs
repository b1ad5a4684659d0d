//! The netboot kit, as computers without a disk get it: over UEFI HTTP boot, and by iPXE.

use std::ffi::OsString;

use anyhow::Result;
use tests::Image;
use tests::http::serve;
use tests::qemu::{Builder, Uefi};

const READY: [&str; 2] = ["daruma: pocket: ready: ", "daruma: web: ready: "];

fn card(netdev: &str, device: &str) -> [OsString; 4] {
    let netdev = format!("user,id=wire,{netdev}");
    let device = format!("{device},netdev=wire,bootindex=0");
    [
        "-netdev".into(),
        netdev.into(),
        "-device".into(),
        device.into(),
    ]
}

#[test]
fn a_pc_without_a_disk_boots_over_http_with_its_guests() -> Result<()> {
    let image = Image::built()?;
    let port = serve(&image.path("netboot"))?;
    let folder = tempfile::tempdir()?;
    let address = format!("bootfile=http://10.0.2.2:{port}/daruma.efi");
    let mut machine = Builder::uefi(Uefi::Open, folder.path())?
        // The firmware's own driver, not the one that QEMU puts on the card.
        .args(card(&address, "virtio-net-pci,romfile="))
        // It would try these first, for a minute each.
        .args(["4", "6"].into_iter().flat_map(|version| {
            let setting = format!("opt/org.tianocore/IPv{version}PXESupport");
            let setting = format!("name={setting},string=n");
            ["-fw_cfg".into(), setting.into()]
        }))
        .boot()?;
    machine.console.expect("host: machine netboot")?;
    machine.console.expect_all(&READY)?;
    Ok(())
}

#[test]
fn ipxe_boots_the_kit_on_a_machine_without_uefi() -> Result<()> {
    let folder = Image::built()?.path("netboot");
    let tftp = format!("tftp={},bootfile=boot.ipxe", folder.display());
    let mut machine = Builder::bios()
        // QEMU's cards have iPXE in their ROMs. The host has a driver for this one only in its kernel for PCs.
        .args(card(&tftp, "e1000"))
        .boot()?;
    machine.console.expect("host: machine netboot")?;
    machine.console.expect_all(&READY)?;
    Ok(())
}
