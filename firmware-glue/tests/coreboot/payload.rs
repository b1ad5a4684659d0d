use firmware_glue::cbfs::{Kind, NewFile};
use firmware_glue::compress::{Method, unpack};
use firmware_glue::image::{Image, ImageError};
use firmware_glue::payload::linux::{LinuxPayload, Trio};
use firmware_glue::payload::{Payload, PayloadError, SegmentKind};

use crate::tools::{Bench, bzimage, noise, text};

const AREAS: &str = "FMAP@0x0 4K\nCOREBOOT(CBFS)@0x1000 0xff000";
const SIZE: usize = 1 << 20;
const NAME: &str = "fallback/payload";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.create("rom", SIZE, AREAS, "COREBOOT");
    bench
}

fn made(kernel: &[u8], initramfs: &[u8], method: Method) -> LinuxPayload {
    let trio = Trio {
        kernel,
        initramfs: Some(initramfs),
        cmdline: "console=ttyS0,115200 quiet",
        method,
    };
    trio.payload().unwrap()
}

#[test]
fn cbfstool_takes_our_payload_and_gives_the_same_back() {
    let kernel = bzimage(&text(90_000, 1));
    let initramfs = text(50_000, 2);
    for method in [Method::None, Method::Lzma, Method::Lz4] {
        let bench = bench();
        let made = made(&kernel, &initramfs, method);
        bench.add("rom", NAME, "simple elf", &made.bytes, &["-A", "sha256"]);
        assert_eq!(bench.extract("rom", NAME, &["-U"]), made.bytes);
        let image = Image::open(bench.read("rom")).unwrap();
        let file = image.cbfs(image.region(None).unwrap()).find(NAME).unwrap();
        assert_eq!((file.kind(), file.data()), (Kind::SELF, &made.bytes[..]));
        // It lists the segments as they are.
        let print = bench.cbfstool("rom", &["print", "-v"]);
        for segment in Payload::parse(&made.bytes).unwrap().segments() {
            let line = print
                .lines()
                .find(|line| line.contains(&format!("load: {:#x},", segment.load)))
                .unwrap_or_else(|| panic!("{print}"));
            let lengths = format!("length: {}/{}", segment.data.len(), segment.mem_len);
            assert!(line.contains(&lengths), "{line}");
        }
        // And unpacks them: it makes an ELF file of them, with the memory as it would be.
        let elf = bench.extract("rom", NAME, &["-m", "x86"]);
        for part in [&kernel[1024..], &initramfs[..]] {
            assert!(
                elf.windows(part.len()).any(|window| window == part),
                "{method}"
            );
        }
    }
}

#[test]
fn a_payload_in_an_image_of_ours_is_the_same_to_cbfstool() {
    let bench = bench();
    let made = made(&bzimage(&noise(9000, 1)), &noise(500, 2), Method::None);
    let mut image = Image::open(bench.read("rom")).unwrap();
    let file = NewFile::new(NAME, Kind::SELF, made.bytes.clone());
    let added: Result<(), ImageError> = image.edit(None, |editor| {
        editor
            .add(&file)
            .map(drop)
            .map_err(|source| ImageError::Edit {
                region: NAME.into(),
                source,
            })
    });
    added.unwrap();
    bench.write("rom", image.bytes());
    assert_eq!(bench.extract("rom", NAME, &["-U"]), made.bytes);
}

/// What `cbfstool add-payload` makes of the same three files.
fn theirs(kernel: &[u8], initramfs: &[u8], more: &[&str]) -> Result<Vec<u8>, String> {
    let bench = bench();
    let kernel = bench.write("bzImage", kernel);
    let initramfs = bench.write("initramfs", initramfs);
    let arguments = [
        "add-payload",
        "-f",
        kernel.to_str().unwrap(),
        "-I",
        initramfs.to_str().unwrap(),
        "-C",
        "console=ttyS0,115200 quiet",
        "-n",
        NAME,
    ];
    bench.try_cbfstool("rom", &[&arguments[..], more].concat())?;
    Ok(bench.extract("rom", NAME, &["-U"]))
}

#[test]
fn the_payload_that_cbfstool_makes_is_read_and_has_the_same_parts() {
    let kernel = bzimage(&text(90_000, 1));
    let initramfs = noise(3000, 2);
    let theirs = theirs(&kernel, &initramfs, &[]).unwrap();
    let theirs = Payload::parse(&theirs).unwrap();
    let made = made(&kernel, &initramfs, Method::Lzma);
    let ours = Payload::parse(&made.bytes).unwrap();
    let part = |payload: &Payload<'_>, load: u64| {
        let segment = payload
            .segments()
            .find(|segment| segment.load == load)
            .unwrap();
        let method = Method::of_number(segment.compression).unwrap();
        unpack(method, segment.data, segment.mem_len as usize).unwrap()
    };
    // Kernel and command line are at the same places; the initramfs is not, on purpose.
    for load in [made.kernel_at, 0x9_1000] {
        assert_eq!(part(&ours, load), part(&theirs, load));
    }
    assert_eq!(
        part(&theirs, 64 << 20),
        part(&ours, made.initramfs_at.unwrap())
    );
    assert_eq!(ours.entry(), theirs.entry());
    // It copies a few fields of the header to the zero page, we all; what it copies is the same but for the initramfs.
    let (ours, theirs) = (part(&ours, 0x9_0000), part(&theirs, 0x9_0000));
    let mut fields = (0x1f1..0x268).filter(|at| theirs[*at] != 0 && !(0x218..0x21c).contains(at));
    assert!(fields.clone().count() > 4);
    assert_eq!(fields.find(|&at| ours[at] != theirs[at]), None);
}

/// Version 4.15 writes an empty kernel and says that all is well; later ones store it as it is.
#[test]
fn a_kernel_that_does_not_get_smaller_is_never_an_empty_one() {
    let kernel = bzimage(&noise(90_000, 1));
    if let Ok(theirs) = theirs(&kernel, &noise(3000, 2), &["-c", "lzma"]) {
        match Payload::parse(&theirs) {
            Err(error) => assert!(matches!(error, PayloadError::Empty { .. }), "{error}"),
            Ok(theirs) => assert!(
                theirs
                    .segments()
                    .any(|segment| segment.data == &kernel[1024..])
            ),
        }
    }
    for method in [Method::Lzma, Method::Lz4, Method::Zstd] {
        let made = made(&kernel, &noise(3000, 2), method);
        let payload = Payload::parse(&made.bytes).unwrap();
        let code = payload
            .segments()
            .find(|segment| segment.kind == SegmentKind::Code && segment.load == made.kernel_at)
            .unwrap();
        assert_eq!(
            (code.compression, code.data),
            (0, &kernel[1024..]),
            "{method}"
        );
    }
}

/// Version 4.15 stores what LZ4 makes longer; ours are never longer than they would be as they are.
#[test]
fn no_segment_is_longer_than_what_it_is_made_of() {
    let kernel = bzimage(&noise(90_000, 1));
    let plain = made(&kernel, &noise(3000, 2), Method::None).bytes.len();
    for method in [Method::Lzma, Method::Lz4, Method::Zstd] {
        assert_eq!(made(&kernel, &noise(3000, 2), method).bytes.len(), plain);
    }
}
