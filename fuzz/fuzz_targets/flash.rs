//! What lies in flash: the flash map, CBFS, the anchor, the header of a kernel.
#![no_main]

use firmware_glue::anchor::Anchor;
use firmware_glue::cbfs::Cbfs;
use firmware_glue::fmap::{self, Fmap};
use firmware_glue::linux::Kernel;

/// A small flash image as our own writer makes it, cut to what has something in it.
fn seeds() -> Vec<Vec<u8>> {
    let mut region = vec![0xff; 0x400];
    // An old-style file header: magic, length, type, attributes, offset, name.
    region[..8].copy_from_slice(b"LARCHIVE");
    region[8..12].copy_from_slice(&8_u32.to_be_bytes());
    region[12..16].copy_from_slice(&0x50_u32.to_be_bytes());
    region[16..20].copy_from_slice(&0x28_u32.to_be_bytes());
    region[20..24].copy_from_slice(&0x48_u32.to_be_bytes());
    region[24..32].copy_from_slice(b"daruma/k");
    region[32..40].fill(0);
    // Attributes: a hash, a compression.
    region[0x28..0x30].copy_from_slice(&[0x68, 0x73, 0x61, 0x48, 0, 0, 0, 0x10]);
    region[0x38..0x48].copy_from_slice(&[
        0x42, 0x43, 0x4c, 0x46, 0, 0, 0, 0x10, 0, 0, 0, 1, 0, 0, 1, 0,
    ]);
    let mut map = b"__FMAP__\x01\x01".to_vec();
    map.extend(0xffff_0000_u64.to_le_bytes());
    map.extend(0x400_u32.to_le_bytes());
    map.extend([b'F'; 32]);
    map.extend(2_u16.to_le_bytes());
    for (name, offset, len) in [(b'A', 0_u32, 0x200_u32), (b'B', 0x200, 0x200)] {
        map.extend(offset.to_le_bytes());
        map.extend(len.to_le_bytes());
        map.extend([name, 0].into_iter().chain([0; 30]));
        map.extend([0; 2]);
    }
    let mut kernel = vec![0; 0x400];
    kernel[0x1f1] = 1;
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x201] = 0x66;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&[15, 2]);
    vec![region.clone(), map.clone(), [region, map].concat(), kernel]
}

fn walk(region: &[u8]) {
    let cbfs = Cbfs::new(region);
    let mut steps = 0;
    for file in cbfs.walk() {
        steps += 1;
        assert!(steps <= region.len(), "the walk comes to its end");
        let Ok(file) = file else { continue };
        assert!(
            region
                .get(file.data_range())
                .is_some_and(|data| data == file.data())
        );
        let _ = (
            file.name(),
            file.kind(),
            file.metadata(),
            file.compression(),
        );
        for (count, _) in file.attributes().enumerate() {
            assert!(
                count <= region.len(),
                "the list of attributes comes to its end"
            );
        }
        if file.verify_all().is_ok() {
            assert!(file.verify().is_ok());
        }
    }
    let _ = cbfs.metadata_hash();
    let _ = cbfs.find("daruma/kernel");
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    walk(data);
    let _ = fmap::flash_in_window(data);
    if let Ok(map) = Fmap::find(data) {
        for area in map.areas() {
            if let Ok(region) = map.region(area.name) {
                walk(region);
                if let Ok(anchor) = Anchor::of(&map, &Cbfs::new(region)) {
                    assert!(anchor.verify(&map, &Cbfs::new(region)).is_ok());
                    assert!(Anchor::parse(&anchor.to_bytes()).is_ok());
                }
            }
        }
    }
    let _ = Anchor::find(data).map(|at| Anchor::parse(&data[at..]));
    let _ = Kernel::parse(data).map(|kernel| (kernel.setup_header().len(), kernel.code().len()));
});
