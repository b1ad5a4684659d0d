use std::collections::BTreeMap;

use firmware_glue::fmap::{self, Fmap, NewArea};
use firmware_glue::image::Image;
use proptest::prelude::*;

use crate::tools::Bench;

/// Sizes of areas in pages, one behind the other, each with how many are inside of it.
fn areas() -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((1usize..20, 0usize..4), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_fmaptool_writes_is_read(areas in areas()) {
        let bench = Bench::new();
        let size = 1 << 20;
        let mut lines = "FMAP@0x0 4K\n".to_owned();
        let mut expected = BTreeMap::from([("FMAP".to_owned(), (0, 4096))]);
        let mut at = 4096;
        for (index, (pages, inner)) in areas.iter().enumerate() {
            let len = pages * 4096;
            lines += &format!("AREA{index}@{at:#x} {len:#x}");
            expected.insert(format!("AREA{index}"), (at, len));
            if *inner > 0 {
                lines += " {\n";
                for piece in 0..*inner {
                    lines += &format!("  PART{index}_{piece}@{:#x} 0x100\n", piece * 256);
                    expected.insert(format!("PART{index}_{piece}"), (at + piece * 256, 256));
                }
                lines += "}";
            }
            lines += "\n";
            at += len;
        }
        lines += &format!("COREBOOT(CBFS)@{at:#x} {:#x}\n", size - at);
        expected.insert("COREBOOT".to_owned(), (at, size - at));
        bench.create("rom", size, &lines, "COREBOOT");

        let image = Image::open(bench.read("rom")).unwrap();
        let read: BTreeMap<String, (usize, usize)> = image
            .regions()
            .iter()
            .map(|region| (region.name.clone(), (region.range.start, region.range.len())))
            .collect();
        prop_assert_eq!(&read, &expected);
        let cbfs: Vec<&str> = image.cbfs_regions().map(|region| &*region.name).collect();
        prop_assert_eq!(cbfs, ["COREBOOT"]);
        prop_assert_eq!(image.map().unwrap().base(), (1 << 32) - size as u64);
    }

    #[test]
    fn what_is_written_cbfstool_lists(areas in areas()) {
        let bench = Bench::new();
        let mut at = 4096;
        let mut named = vec![("FMAP".to_owned(), 0, 4096)];
        for (index, (pages, _)) in areas.iter().enumerate() {
            let len = u32::try_from(pages * 4096).unwrap();
            named.push((format!("AREA{index}"), at, len));
            at += len;
        }
        named.push(("COREBOOT".to_owned(), at, (1 << 20) - at));
        let new: Vec<NewArea<'_>> = named
            .iter()
            .map(|(name, offset, size)| NewArea { name, offset: *offset, size: *size, flags: 0 })
            .collect();
        let mut image = fmap::write(0xfff0_0000, 1 << 20, "FLASH", &new).unwrap();
        image.resize(1 << 20, 0xff);
        prop_assert_eq!(Fmap::find(&image).unwrap().areas().count(), named.len());
        firmware_glue::cbfs::Editor::format(&mut image[at as usize..]);
        bench.write("rom", &image);
        let listing = bench.cbfstool("rom", &["layout", "-w"]);
        for (name, offset, size) in &named {
            let line = format!("'{name}' (");
            let line = listing.lines().find(|found| found.starts_with(&line)).unwrap_or("");
            prop_assert!(line.ends_with(&format!("size {size}, offset {offset})")), "{}", listing);
        }
    }
}
