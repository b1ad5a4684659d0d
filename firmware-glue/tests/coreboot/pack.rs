use std::collections::BTreeMap;
use std::fs;

use firmware_glue::image::Image;
use firmware_glue::layout::PAYLOAD;

use crate::command::{COREBOOT, SIZE, daruma_fw, ours, someones};
use crate::tools::{Bench, bzimage, noise};

/// Packs as `more` says and expects to be refused; nothing was written.
fn refused(bench: &Bench, more: &[&str]) -> String {
    let list = || {
        let entries = fs::read_dir(bench.path("")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    let (before, image) = (list(), bench.read("coreboot.rom"));
    let arguments = [&["pack", "--into", "coreboot.rom", "-o", "out.rom"], more].concat();
    let error = daruma_fw(bench, &arguments).refusal();
    assert_eq!(list(), before, "{error}");
    assert!(bench.read("coreboot.rom") == image);
    error
}

/// Files of the main CBFS: where they begin, and their bytes with their header.
fn files(image: &Image) -> BTreeMap<String, (usize, Vec<u8>)> {
    let region = image.region(None).unwrap();
    image
        .cbfs(region)
        .files()
        .map(|file| file.unwrap())
        .map(|file| {
            let whole = [file.metadata(), file.data()].concat();
            (
                file.name().to_owned(),
                (region.range.start + file.start(), whole),
            )
        })
        .collect()
}

#[test]
fn only_what_is_said_changes_in_someones_image_byte_for_byte() {
    let bench = someones();
    let path = bench.path("coreboot.rom");
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let (before, time) = (bench.read("coreboot.rom"), modified());
    let said = daruma_fw(
        &bench,
        &["pack", "--into", "coreboot.rom", "--replace-payload"],
    )
    .well();
    assert!(
        bench.read("coreboot.rom") == before && modified() == time,
        "the input is only read"
    );
    let after = bench.read("coreboot-daruma.rom");

    // Where it may: the payload that was, what was free, and nothing else.
    let (old, new) = (
        Image::open(before.clone()).unwrap(),
        Image::open(after.clone()).unwrap(),
    );
    let mut may = vec![false; SIZE];
    let region = old.region(None).unwrap();
    for file in old.cbfs(region).walk().map(|file| file.unwrap()) {
        if file.kind().is_free() || file.name() == PAYLOAD {
            let end = file
                .data_range()
                .end
                .next_multiple_of(64)
                .min(region.range.len());
            may[COREBOOT.start + file.start()..COREBOOT.start + end].fill(true);
        }
    }
    for at in 0..SIZE {
        assert!(before[at] == after[at] || may[at], "{at:#x} has changed");
    }
    // Each changed file is told of; all others are the same at the same place.
    let (old, new) = (files(&old), files(&new));
    let told = [
        PAYLOAD,
        "guest/pocket/root.erofs",
        "guest/web/initrd",
        "machine/default.toml",
    ];
    for (name, file) in &old {
        assert!(told.contains(&&**name) || new[name] == *file, "{name}");
    }
    for (name, (start, whole)) in &new {
        if !old.contains_key(name) || old[name] != new[name] {
            assert!(told.contains(&&**name), "{name} is new and was not told of");
            let line = said.lines().find(|line| line.contains(&**name)).unwrap();
            assert!(
                line.contains(if name == PAYLOAD { "replaced" } else { "added" }),
                "{line}"
            );
            let at = line.split(" at 0x").nth(1).unwrap();
            let at = usize::from_str_radix(at.split(' ').next().unwrap(), 16).unwrap();
            assert!((*start..start + whole.len()).contains(&at), "{line}");
        }
    }
    assert_eq!(new.len(), old.len() + 3);

    // To cbfstool it is an image as any other, with our files in it.
    let print = bench.cbfstool("coreboot-daruma.rom", &["print", "-v"]);
    assert!(!print.contains("invalid"), "{print}");
    assert_eq!(
        bench.extract("coreboot-daruma.rom", PAYLOAD, &["-U"]),
        bench.read("target/image/daruma.payload")
    );
    assert_eq!(
        bench.extract("coreboot-daruma.rom", "guest/web/initrd", &[]),
        noise(300_000, 11)
    );
    daruma_fw(&bench, &["verify", "coreboot-daruma.rom"]).well();
    // What a measuring coreboot extends PCR 2 with.
    let digest = firmware_glue::hash::sha256(&bench.read("target/image/daruma.payload"));
    assert!(said.contains(&digest.to_string()), "{said}");
    // Again: the same.
    let again = ["pack", "--into", "coreboot-daruma.rom", "-o", "again.rom"];
    let said = daruma_fw(&bench, &again).well();
    assert_eq!(said.matches("the same").count(), 4, "{said}");
    assert!(bench.read("again.rom") == after);
}

#[test]
fn the_boards_payload_stays_unless_told_and_ours_can_have_another_name() {
    let bench = someones();
    let error = refused(&bench, &[]);
    assert!(
        error.contains("--replace-payload") && error.contains("--name img/daruma"),
        "{error}"
    );
    let arguments = [
        "pack",
        "--into",
        "coreboot.rom",
        "-o",
        "out.rom",
        "--name",
        "img/daruma",
    ];
    daruma_fw(&bench, &arguments).well();
    let get = |rom: &str, name: &str| bench.extract(rom, name, &["-U"]);
    assert_eq!(get("out.rom", PAYLOAD), get("coreboot.rom", PAYLOAD));
    assert_eq!(
        get("out.rom", "img/daruma"),
        bench.read("target/image/daruma.payload")
    );
}

#[test]
fn output_that_exists_and_the_input_itself_are_spared() {
    let bench = someones();
    bench.write("mine.rom", b"mine");
    let pack = |more: &[&str]| {
        let arguments = ["pack", "--into", "coreboot.rom", "--replace-payload"];
        daruma_fw(&bench, &[&arguments[..], more].concat())
    };
    assert!(pack(&["-o", "mine.rom"]).refusal().contains("--force"));
    assert_eq!(bench.read("mine.rom"), b"mine");
    pack(&["-o", "mine.rom", "--force"]).well();
    assert_eq!(bench.read("mine.rom").len(), SIZE);
    let before = bench.read("coreboot.rom");
    std::os::unix::fs::symlink("coreboot.rom", bench.path("link.rom")).unwrap();
    for output in [
        "coreboot.rom",
        "./coreboot.rom",
        "target/../coreboot.rom",
        "link.rom",
    ] {
        assert!(
            pack(&["-o", output, "--force"])
                .refusal()
                .contains("stays as it is"),
            "{output}"
        );
    }
    assert!(bench.read("coreboot.rom") == before);
    assert!(
        pack(&["-o", "no/folder/out.rom"])
            .refusal()
            .contains("no/folder/out.rom")
    );
}

/// A disk that is full, as far as a limit of the size of files can stand for it.
#[test]
fn what_cannot_be_written_whole_is_not_written() {
    let bench = someones();
    bench.write("mine.rom", b"mine");
    let before = fs::read_dir(bench.path("")).unwrap().count();
    for output in ["new.rom", "mine.rom --force"] {
        let program = env!("CARGO_BIN_EXE_daruma-fw");
        let script = format!(
            "trap '' XFSZ; ulimit -f 1000; exec {program} pack --into coreboot.rom --replace-payload -o {output}"
        );
        let done = std::process::Command::new("sh")
            .args(["-c", &script])
            .current_dir(bench.path(""))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{error}");
        assert!(error.contains("Cannot write"), "{error}");
    }
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), before);
    assert_eq!(bench.read("mine.rom"), b"mine");
}

#[test]
fn an_image_whose_boot_block_holds_a_hash_stays_whole_to_cbfstool() {
    let bench = someones();
    let rom = bench.read("target/image/daruma.rom");
    bench.write("hashed.rom", &rom);
    bench.write("file", &noise(500, 1));
    let arguments = [
        "pack",
        "--into",
        "hashed.rom",
        "-o",
        "out.rom",
        "--no-guests",
    ];
    let more = ["--payload", "small.payload", "--file", "guest/new=file"];
    daruma_fw(
        &bench,
        &["extract", "coreboot.rom", PAYLOAD, "-o", "small.payload"],
    )
    .well();
    let error = daruma_fw(&bench, &[&arguments[..], &more].concat()).refusal();
    assert!(
        error.contains("COREBOOT has no room for fallback/payload"),
        "{error}"
    );
    bench.write("tiny", &bzimage(&[7; 2000]));
    let more = ["--kernel", "tiny", "--file", "guest/new=file"];
    let said = daruma_fw(&bench, &[&arguments[..], &more].concat()).well();
    assert!(said.contains("made anew: the metadata hash"), "{said}");
    let print = bench.cbfstool("out.rom", &["print", "-v"]);
    let hash = print
        .lines()
        .find(|line| line.starts_with("[METADATA HASH]"))
        .unwrap();
    assert!(hash.ends_with(":valid"), "{print}");
    daruma_fw(&bench, &["verify", "out.rom"]).well();
}

#[test]
fn a_full_region_says_what_is_in_it_how_much_is_missing_and_what_to_cut() {
    let bench = someones();
    ours(&bench, "target/image", 6 << 20);
    let error = refused(&bench, &["--replace-payload"]);
    for words in [
        "COREBOOT has no room for guest/",
        "are missing at least",
        "\n+     6.00 MiB  guest/web/initrd",
        "fallback/romstage",
        "Leave out guest/web/initrd (--without NAME)",
    ] {
        assert!(error.contains(words), "{words}\n{error}");
    }
    let arguments = [
        "pack",
        "--into",
        "coreboot.rom",
        "--replace-payload",
        "-o",
        "out.rom",
    ];
    let without = ["--without", "guest/web/initrd"];
    daruma_fw(&bench, &[&arguments[..], &without].concat()).well();
}

#[test]
fn another_region_is_used_when_named_and_one_that_is_no_cbfs_refused() {
    let bench = someones();
    let error = refused(&bench, &["--region", "SMMSTORE"]);
    assert!(
        error.contains("Area SMMSTORE cannot be changed: The region (0x40000 bytes) is no CBFS"),
        "{error}"
    );
    let error = refused(&bench, &["--region", "NOWHERE"]);
    assert!(
        error.contains("no area NOWHERE; those with a CBFS are: FW_MAIN_A, COREBOOT"),
        "{error}"
    );
    let arguments = [
        "pack",
        "--into",
        "coreboot.rom",
        "-o",
        "out.rom",
        "--region",
        "FW_MAIN_A",
    ];
    let said = daruma_fw(&bench, &[&arguments[..], &["--without", "guest/"]].concat()).well();
    assert!(!said.contains("Note:"), "{said}");
    let (before, after) = (bench.read("coreboot.rom"), bench.read("out.rom"));
    let start = 0x26_0000;
    assert!(before[..start] == after[..start] && before[0x45_0000..] == after[0x45_0000..]);
    let said = daruma_fw(&bench, &[&arguments[..], &["--force"]].concat()).well();
    assert!(
        said.contains("Note: the host will not find the guests"),
        "{said}"
    );
}

#[test]
fn kernels_and_payloads_that_cannot_start_are_refused() {
    let bench = someones();
    let mut arm = vec![0; 5000];
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    bench.write("Image", &arm);
    assert!(refused(&bench, &["--kernel", "Image"]).contains("an arm64 Image"));
    let mut elf = vec![0; 5000];
    elf[..4].copy_from_slice(b"\x7fELF");
    bench.write("payload.elf", &elf);
    let error = refused(&bench, &["--payload", "payload.elf"]);
    assert!(error.contains("no SELF payload"), "{error}");
    let payload = bench.read("target/image/daruma.payload");
    bench.write("cut", &payload[..payload.len() - 1]);
    let error = refused(&bench, &["--payload", "cut"]);
    assert!(error.contains("outside"), "{error}");
    bench.write("nothing", &[]);
    let kernel = ["--kernel", "target/image/bzImage", "--initramfs", "nothing"];
    assert!(refused(&bench, &kernel).contains("The initramfs is empty"));
}

#[test]
fn a_payload_is_made_of_kernel_initramfs_and_command_line() {
    let bench = someones();
    bench.write("kernel", &bzimage(&[7; 600_000]));
    bench.write("initramfs", &noise(5000, 1));
    let mut arguments = vec![
        "pack",
        "--into",
        "coreboot.rom",
        "-o",
        "out.rom",
        "--no-guests",
        "--replace-payload",
    ];
    arguments.extend([
        "--kernel",
        "kernel",
        "--initramfs",
        "initramfs",
        "--cmdline",
        "console=ttyS0",
    ]);
    arguments.extend(["--compression", "lzma", "--file", "extra=initramfs"]);
    daruma_fw(&bench, &arguments).well();
    let print = bench.cbfstool("out.rom", &["print", "-v"]);
    assert!(print.contains("code  (LZMA compression"), "{print}");
    assert_eq!(bench.extract("out.rom", "extra", &[]), noise(5000, 1));
    // Guests take the payload's kernel, which they cannot if it is compressed once more.
    let with_guests: Vec<&str> = arguments
        .iter()
        .copied()
        .filter(|a| *a != "--no-guests")
        .collect();
    let said = daruma_fw(&bench, &[&with_guests[..], &["--force"]].concat()).well();
    assert!(said.contains("--file daruma/kernel=bzImage"), "{said}");
    let more = ["--force", "--file", "daruma/kernel=kernel"];
    let said = daruma_fw(&bench, &[&with_guests[..], &more].concat()).well();
    assert!(!said.contains("Note:"), "{said}");
}

#[test]
fn a_damaged_image_is_not_packed_into() {
    let bench = someones();
    let mut bytes = bench.read("coreboot.rom");
    // The length of the first file.
    bytes[COREBOOT.start + 8] = 0x7f;
    bench.write("coreboot.rom", &bytes);
    let error = refused(&bench, &["--replace-payload"]);
    assert!(
        error.contains("reaches past the end of its region"),
        "{error}"
    );
}
