//! `daruma-fw` as a program, on an image as someone could have it.

use std::path::Path;
use std::process::Command;

use firmware_glue::anchor::Anchor;
use firmware_glue::compress::Method;
use firmware_glue::payload::linux::Trio;
use firmware_glue::rom::RomBuilder;

use crate::tools::{Bench, bzimage, noise, text};

/// 16 MiB as boards have them: a part that is not the BIOS's, areas that are written at run time, one more CBFS.
const AREAS: &str = "SI_DESC@0x0 0x1000
SI_ME@0x1000 0x1ff000
BIOS@0x200000 0xe00000 {
  RW_MRC_CACHE@0x0 0x10000
  SMMSTORE@0x10000 0x40000
  RW_SECTION_A@0x50000 0x200000 {
    VBLOCK_A@0x0 0x10000
    FW_MAIN_A(CBFS)@0x10000 0x1f0000
  }
  FMAP@0x250000 0x1000
  COREBOOT(CBFS)@0x251000 0xbaf000
}";
pub const SIZE: usize = 16 << 20;
pub const COREBOOT: std::ops::Range<usize> = 0x45_1000..SIZE;

/// What a program has said, and how it has ended.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub error: String,
}

/// Runs `daruma-fw` in the folder of `bench`.
pub fn daruma_fw(bench: &Bench, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_daruma-fw"))
        .args(arguments)
        .current_dir(bench.path(""))
        .output()
        .unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Said {
    /// What it said, if all was well.
    pub fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.error);
        self.out
    }

    /// What it said of an error.
    pub fn refusal(self) -> String {
        assert_eq!(self.code, Some(2), "{}{}", self.out, self.error);
        self.error
    }
}

/// Someone's image `coreboot.rom`, and `target/image` with a payload and a ROM of ours.
pub fn someones() -> Bench {
    let bench = Bench::new();
    bench.create("coreboot.rom", SIZE, AREAS, "COREBOOT,FW_MAIN_A");
    let rom = "coreboot.rom";
    let mut bytes = bench.read(rom);
    for (start, len, seed) in [
        (0, 0x20_0000, 1),
        (0x20_0000, 0x5_0000, 2),
        (0x25_0000, 0x1_0000, 3),
    ] {
        bytes[start..start + len].copy_from_slice(&noise(len, seed));
    }
    bench.write(rom, &bytes);
    let hashed = ["-A", "sha256"];
    bench.add(rom, "fallback/romstage", "raw", &noise(60_000, 4), &hashed);
    bench.add(
        rom,
        "cpu_microcode_blob.bin",
        "microcode",
        &noise(90_000, 5),
        &["-a", "4096"],
    );
    let config =
        "CONFIG_MAINBOARD_DIR=\"emulation/qemu-q35\"\nCONFIG_MAINBOARD_PART_NUMBER=\"Q35\"\n";
    bench.add(rom, "config", "raw", config.as_bytes(), &["-c", "lzma"]);
    bench.add(rom, "fallback/payload", "simple elf", &theirs(), &hashed);
    bench.add(
        rom,
        "img/memtest",
        "simple elf",
        &theirs(),
        &["-b", "0x300000"],
    );
    bench.add(rom, "fallback/dsdt.aml", "raw", &text(9000, 7), &[]);
    ours(&bench, "target/image", 300_000);
    bench
}

/// A Linux as a payload, as another tool makes it.
fn theirs() -> Vec<u8> {
    let kernel = bzimage(&noise(700_000, 6));
    let mut payload = trio(&kernel, &noise(100, 1));
    let at = payload
        .windows(7)
        .position(|window| window == b"Daruma:")
        .unwrap();
    payload[at..at + 7].copy_from_slice(b"Theirs:");
    payload
}

fn trio(kernel: &[u8], initramfs: &[u8]) -> Vec<u8> {
    let trio = Trio {
        kernel,
        initramfs: Some(initramfs),
        cmdline: "quiet",
        method: Method::None,
    };
    trio.payload().unwrap().bytes
}

/// A folder as `cargo xtask image` leaves it, with guests of `size` bytes each.
pub fn ours(bench: &Bench, folder: &str, size: usize) {
    std::fs::create_dir_all(bench.path(folder)).unwrap();
    let kernel = bzimage(&noise(900_000, 8));
    let write = |name: &str, bytes: &[u8]| bench.write(&format!("{folder}/{name}"), bytes);
    write("daruma.payload", &trio(&kernel, &noise(400_000, 9)));
    write("bzImage", &kernel);
    write("initramfs", &noise(400_000, 9));
    let mut bootblock = vec![0xf4; 900];
    bootblock.extend_from_slice(&Anchor::blank());
    let rom = RomBuilder::new(bootblock)
        .kernel(kernel)
        .initramfs(noise(400_000, 9))
        .cmdline("quiet")
        .machine("[machine]\nname = \"default\"\n")
        .guest_file("pocket/root.erofs", noise(size, 10))
        .guest_file("web/initrd", noise(size, 11))
        .build()
        .unwrap();
    write("daruma.rom", &rom.bytes);
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn inspect_tells_people_and_programs_the_same() {
    let bench = someones();
    let table = daruma_fw(&bench, &["inspect", "coreboot.rom"]).well();
    let json = daruma_fw(&bench, &["inspect", "--json", "coreboot.rom"]).well();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["size"], SIZE);
    let areas = json["areas"].as_array().unwrap();
    let main = areas
        .iter()
        .find(|area| area["name"] == "COREBOOT")
        .unwrap();
    let listing = bench.cbfstool("coreboot.rom", &["print", "-k"]);
    let files = main["files"].as_array().unwrap();
    for (line, file) in listing.lines().skip(1).zip(files) {
        let columns: Vec<&str> = line.split('\t').collect();
        let number = |text: &str| i64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
        assert_eq!(file["offset"], number(columns[1]), "{line}");
        assert_eq!(file["size"], number(columns[4]), "{line}");
        if file["free"] == false {
            assert_eq!(file["name"], columns[0]);
            assert_eq!(file["type_name"], columns[2]);
            assert!(table.contains(columns[0]), "{table}");
        }
    }
    assert_eq!(listing.lines().count(), files.len() + 1);
    let payload = files
        .iter()
        .find(|file| file["name"] == "fallback/payload")
        .unwrap();
    assert_eq!(payload["hashes_valid"], true);
    assert_eq!(payload["payload"]["entry"], 0x4_0000);
    for area in ["SI_ME", "RW_MRC_CACHE", "    FW_MAIN_A"] {
        assert!(table.contains(area), "{table}");
    }
}

#[test]
fn verify_names_all_that_is_damaged() {
    let bench = someones();
    assert_eq!(daruma_fw(&bench, &["verify", "coreboot.rom"]).well(), "");
    assert_eq!(
        daruma_fw(&bench, &["verify", "target/image/daruma.rom"]).well(),
        ""
    );
    let mut bytes = bench.read("coreboot.rom");
    for part in [noise(60_000, 4), noise(700_000, 6)] {
        let at = bytes
            .windows(64)
            .position(|window| window == &part[1000..1064])
            .unwrap();
        bytes[at] ^= 1;
    }
    bench.write("damaged.rom", &bytes);
    let error = daruma_fw(&bench, &["verify", "damaged.rom"]).refusal();
    for name in ["fallback/romstage", "fallback/payload"] {
        assert!(
            error.contains(&format!("{name}: its contents do not match")),
            "{error}"
        );
    }
}

#[test]
fn extract_gives_what_cbfstool_gives_and_spares_what_exists() {
    let bench = someones();
    for (name, more) in [("config", &[][..]), ("fallback/payload", &["-U"])] {
        daruma_fw(
            &bench,
            &["extract", "coreboot.rom", name, "-o", "out", "--force"],
        )
        .well();
        assert_eq!(
            bench.read("out"),
            bench.extract("coreboot.rom", name, more),
            "{name}"
        );
    }
    let error = daruma_fw(&bench, &["extract", "coreboot.rom", "config", "-o", "out"]).refusal();
    assert!(error.contains("--force"), "{error}");
    let error = daruma_fw(&bench, &["extract", "coreboot.rom", "nothing", "-o", "new"]).refusal();
    assert!(error.contains("No file nothing"), "{error}");
    assert!(!bench.path("new").exists());
    let itself = [
        "extract",
        "coreboot.rom",
        "config",
        "-o",
        "coreboot.rom",
        "--force",
    ];
    let error = daruma_fw(&bench, &itself).refusal();
    assert!(error.contains("stays as it is"), "{error}");
}

#[test]
fn diff_says_what_differs_and_ends_as_diff_does() {
    let bench = someones();
    let same = daruma_fw(&bench, &["diff", "coreboot.rom", "coreboot.rom"]);
    assert_eq!((same.code, &*same.out), (Some(0), ""));
    let mut bytes = bench.read("coreboot.rom");
    bytes[0x20_0005] ^= 1;
    bench.write("other.rom", &bytes);
    bench.cbfstool("other.rom", &["remove", "-n", "config"]);
    bench.add("other.rom", "new", "raw", &[1; 40], &[]);
    let said = daruma_fw(&bench, &["diff", "coreboot.rom", "other.rom"]);
    assert_eq!(said.code, Some(1));
    let lines: Vec<&str> = said.out.lines().map(str::trim).collect();
    assert_eq!(lines[0], "RW_MRC_CACHE: 1 bytes differ");
    assert!(lines[1].starts_with("COREBOOT: "), "{}", said.out);
    assert!(lines[2].starts_with("- config ("), "{}", said.out);
    assert_eq!(lines[3..], ["+ new (40 B)"], "{}", said.out);
    let said = daruma_fw(&bench, &["diff", "coreboot.rom", "target/image/bzImage"]);
    assert!(said.refusal().contains("no coreboot image"));
}

#[test]
fn what_is_no_image_is_refused_by_every_command() {
    let bench = someones();
    let image = bench.read("coreboot.rom");
    bench.write("cut.rom", &image[..SIZE / 2]);
    bench.write("empty.rom", &[]);
    let before = names_in(&bench.path(""));
    for rom in [
        "cut.rom",
        "empty.rom",
        "missing.rom",
        "target/image/bzImage",
        "target",
    ] {
        for arguments in [
            &["inspect", rom][..],
            &["verify", rom],
            &["diff", "coreboot.rom", rom],
            &["extract", rom, "config", "-o", "out"],
            &["pack", "--into", rom, "-o", "out"],
            &["flash", rom, "-p", "dummy"],
        ] {
            let error = daruma_fw(&bench, arguments).refusal();
            assert!(error.contains(rom), "{arguments:?}: {error}");
            assert!(!error.contains("panicked"), "{error}");
        }
    }
    assert_eq!(names_in(&bench.path("")), before);
}
