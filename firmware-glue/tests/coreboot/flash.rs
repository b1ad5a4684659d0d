//! `daruma-fw flash` through the real flashrom, on a chip that flashrom itself emulates.

use crate::command::{COREBOOT, Said, daruma_fw, someones};
use crate::tools::Bench;

/// 16 MiB; its contents are in the file `chip`.
const PROGRAMMER: &str = "dummy:emulate=W25Q128FV,image=chip";

/// A chip with someone's image, and that image with ours in it as `packed.rom`.
fn board() -> Bench {
    let bench = someones();
    bench.write("chip", &bench.read("coreboot.rom"));
    let pack = [
        "pack",
        "--into",
        "coreboot.rom",
        "-o",
        "packed.rom",
        "--replace-payload",
    ];
    daruma_fw(&bench, &pack).well();
    bench
}

fn flash(bench: &Bench, rom: &str, more: &[&str]) -> Said {
    let arguments = ["flash", rom, "-p", PROGRAMMER, "-c", "W25Q128.V"];
    daruma_fw(bench, &[&arguments[..], more].concat())
}

/// Refused before anything is written.
fn refused(bench: &Bench, rom: &str, more: &[&str]) -> String {
    let before = bench.read("chip");
    let error = flash(bench, rom, more).refusal();
    assert!(bench.read("chip") == before, "{error}");
    error
}

#[test]
fn one_area_is_written_after_a_backup_and_read_back() {
    let bench = board();
    let (before, packed) = (bench.read("chip"), bench.read("packed.rom"));
    let said = flash(&bench, "packed.rom", &["--dry-run", "--backup", "first"]).well();
    assert!(
        said.contains("~ fallback/payload") && said.contains("+ guest/web/initrd"),
        "{said}"
    );
    assert!(bench.read("chip") == before);

    // What the board writes at run time may have changed since; it stays as it is.
    let mut later = before;
    later[0x20_0000..0x20_0100].fill(0x11);
    bench.write("chip", &later);
    let said = flash(&bench, "packed.rom", &[]).well();
    assert!(said.contains("Written and read back"), "{said}");
    assert!(bench.read("flash-backup.rom") == later);
    let after = bench.read("chip");
    assert!(after[COREBOOT] == packed[COREBOOT]);
    assert!(after[..COREBOOT.start] == later[..COREBOOT.start]);

    let said = flash(&bench, "packed.rom", &["--backup", "second"]).well();
    assert!(said.contains("nothing to write"), "{said}");
    let error = refused(&bench, "packed.rom", &["--backup", "second"]);
    assert!(error.contains("second exists"), "{error}");
    // The way back.
    flash(&bench, "coreboot.rom", &["--backup", "third"]).well();
    assert!(bench.read("chip") == later);
}

#[test]
fn an_image_for_another_board_is_refused() {
    let bench = board();
    let packed = bench.read("packed.rom");
    let change = |name: &str, from: &[u8], to: &[u8]| {
        let mut bytes = packed.clone();
        let at = bytes
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bench.write(name, &bytes);
    };
    change("map.rom", b"SMMSTORE", b"RW_STORE");
    let error = refused(&bench, "map.rom", &["--backup", "1"]);
    assert!(error.contains("different flash maps"), "{error}");
    // Microcode, for one.
    bench.cbfstool("packed.rom", &["remove", "-n", "cpu_microcode_blob.bin"]);
    let error = refused(&bench, "packed.rom", &["--backup", "2"]);
    assert!(
        error.contains("cpu_microcode_blob.bin is on the chip and not in the image"),
        "{error}"
    );
    bench.add(
        "packed.rom",
        "cpu_microcode_blob.bin",
        "microcode",
        &[7; 5000],
        &[],
    );
    let error = refused(&bench, "packed.rom", &["--backup", "3"]);
    assert!(error.contains("--other-build"), "{error}");
    flash(
        &bench,
        "packed.rom",
        &["--backup", "4", "--other-build", "--dry-run"],
    )
    .well();

    bench.cbfstool("packed.rom", &["remove", "-n", "config"]);
    let error = refused(&bench, "packed.rom", &["--backup", "5", "--other-build"]);
    assert!(error.contains("--other-build cannot be allowed"), "{error}");
    let config = b"CONFIG_MAINBOARD_DIR=\"lenovo/x230\"\n";
    bench.add("packed.rom", "config", "raw", config, &[]);
    for more in [&["--backup", "6"][..], &["--backup", "7", "--other-build"]] {
        let error = refused(&bench, "packed.rom", more);
        assert!(
            error.contains("is for emulation/qemu-q35 Q35, the image's for lenovo/x230"),
            "{error}"
        );
    }
    let error = refused(&bench, "target/image/daruma.rom", &["--backup", "8"]);
    assert!(error.contains("The chip has 16777216 bytes"), "{error}");
}

#[test]
fn a_chip_that_cannot_be_read_or_written_says_so_and_how_to_get_back() {
    let bench = board();
    let arguments = ["flash", "packed.rom", "-p", "dummy:emulate=NO_SUCH_CHIP"];
    let error = daruma_fw(&bench, &arguments).refusal();
    assert!(error.contains("flashrom failed"), "{error}");
    assert!(!bench.path("flash-backup.rom").exists());
    // A chip that does not know how to be written: page program, and the erasers.
    let programmer = format!("{PROGRAMMER},spi_blacklist=0220525BD8D87C60C7");
    let arguments = ["flash", "packed.rom", "-p", &programmer, "-c", "W25Q128.V"];
    let error = daruma_fw(&bench, &arguments).refusal();
    assert!(error.contains("This writes back what was there"), "{error}");
    assert!(error.contains("-w flash-backup.rom"), "{error}");
    assert!(bench.read("flash-backup.rom") == bench.read("coreboot.rom"));
}
