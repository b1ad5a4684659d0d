use object::read::pe::PeFile64;
use object::{Object as _, ObjectSection as _};
use proptest::prelude::*;

use super::*;

/// A program of one section, `.text`, with room for `room` more in its headers.
pub(crate) fn program(text: &[u8], room: usize) -> Vec<u8> {
    let directories = 6;
    let optional_size = DIRECTORIES + 8 * directories;
    let table = 0x40 + COFF + optional_size;
    let headers = (table + SECTION_HEADER * (1 + room)).next_multiple_of(8);
    let mut file = vec![0; headers];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let long = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    put(0, b"MZ");
    put(0x3c, &long(0x40));
    put(0x40, b"PE\0\0\x64\x86\x01\0");
    put(0x40 + OPTIONAL_SIZE, &long(optional_size)[..2]);
    let optional = 0x40 + COFF;
    put(optional, &PE32_PLUS.to_le_bytes());
    put(optional + ENTRY, &long(0x1000));
    put(optional + SECTION_ALIGNMENT, &long(0x200));
    put(optional + FILE_ALIGNMENT, &long(0x200));
    put(optional + SIZE_OF_IMAGE, &long(0x1000 + text.len()));
    put(optional + SIZE_OF_HEADERS, &long(headers));
    put(optional + CHECKSUM, &long(0x1234));
    // EFI application.
    put(optional + 68, &[10, 0]);
    put(optional + DIRECTORY_COUNT, &long(directories));
    put(table, b".text");
    put(table + 8, &long(text.len()));
    put(table + 12, &long(0x1000));
    put(table + 16, &long(text.len()));
    put(table + 20, &long(headers));
    file.extend(text);
    file
}

fn data<'a>(name: &'a str, data: &'a [u8]) -> NewSection<'a> {
    NewSection {
        name,
        data,
        code: false,
    }
}

#[test]
fn sections_are_added_as_others_read_them() {
    let file = program(b"some code", 3);
    let code = NewSection {
        name: ".start",
        data: &[0xc3; 5000],
        code: true,
    };
    let sections = [data(".cmdline", b"quiet"), code, data(".initrd", b"cpio")];
    let made = with_sections(&Pe::parse(&file).unwrap(), &sections).unwrap();

    let reader = PeFile64::parse(&*made).unwrap();
    let found: Vec<_> = reader
        .sections()
        .map(|section| {
            (
                section.name().unwrap().to_owned(),
                section.data().unwrap().to_vec(),
            )
        })
        .collect();
    assert_eq!(found[0], (".text".to_owned(), b"some code".to_vec()));
    for (new, found) in sections.iter().zip(&found[1..]) {
        assert_eq!(found.0, new.name);
        assert_eq!(found.1, new.data);
    }
    let start = reader.section_by_name(".start").unwrap().address();
    assert_eq!(reader.entry(), start);
    assert_eq!(start % 4096, 0, "firmware protects pages");

    let ours = Pe::parse(&made).unwrap();
    assert_eq!(u64::from(ours.entry), start);
    assert_eq!(ours.find(".initrd").unwrap().data, b"cpio");
    assert_eq!(ours.find(".text").unwrap().data, b"some code");
    let sizes: Vec<_> = sections.iter().map(|new| new.data.len()).collect();
    let at: Vec<_> = ours
        .sections()
        .skip(1)
        .map(|section| section.address)
        .collect();
    assert_eq!(places(&Pe::parse(&file).unwrap(), &sizes).unwrap(), at);
}

#[test]
fn what_lies_behind_the_table_is_not_written_over() {
    let mut file = program(b"code", 3);
    let pe = Pe::parse(&file).unwrap();
    let table_end = pe.table + SECTION_HEADER;
    // As a bzImage has its setup header there: one entry fits before it.
    file[table_end + SECTION_HEADER + 1] = 0x1f;
    let pe = Pe::parse(&file).unwrap();
    let two = [data(".a", b"a"), data(".b", b"b")];
    let error = with_sections(&pe, &two).unwrap_err();
    assert_eq!(error, PeError::NoRoom { room: 1, wanted: 2 });
    assert!(with_sections(&pe, &two[..1]).is_ok());
}

#[test]
fn what_cannot_be_changed_is_refused() {
    let file = program(b"code", 3);
    let pe = Pe::parse(&file).unwrap();
    let name = |name| with_sections(&pe, &[data(name, b"x")]).unwrap_err();
    assert_eq!(
        name(".text").to_string(),
        "The UEFI program has a section .text already"
    );
    for bad in ["", ".too-long", ".a b"] {
        assert!(matches!(name(bad), PeError::Name { .. }), "{bad:?}");
    }
    let twice = [data(".a", b"x"), data(".a", b"y")];
    assert!(matches!(
        with_sections(&pe, &twice),
        Err(PeError::Duplicate { .. })
    ));

    let check = |at: usize, bytes: &[u8]| {
        let mut file = program(b"code", 3);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Pe::parse(&file).unwrap_err()
    };
    let optional = 0x40 + COFF;
    let certificates = optional + DIRECTORIES + 8 * CERTIFICATES;
    assert_eq!(check(certificates, &[0, 0, 0, 0, 8]), PeError::Signed);
    assert_eq!(check(0x44, &[0x4c, 1]), PeError::Machine { machine: 0x14c });
    assert!(matches!(check(0, b"ZM"), PeError::NotPe { .. }));
    assert!(matches!(check(0x3c, &[0xff; 4]), PeError::NotPe { .. }));
    assert!(matches!(check(0x46, &[0, 0]), PeError::Field { .. }));
    assert!(matches!(
        check(optional + FILE_ALIGNMENT, &[3]),
        PeError::Field { .. }
    ));
    let cut = &file[..file.len() - 1];
    assert!(matches!(
        Pe::parse(cut),
        Err(PeError::Truncated {
            what: "a section",
            ..
        })
    ));
}

proptest! {
    #[test]
    fn no_change_of_bytes_panics(
        changes in prop::collection::vec((0usize..0x180, any::<u8>()), 1..12),
        cut in 0usize..0x400,
    ) {
        let mut file = program(&[0x90; 64], 2);
        for (at, value) in changes {
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
        }
        file.truncate(file.len().saturating_sub(cut % 80));
        if let Ok(pe) = Pe::parse(&file)
            && let Ok(made) = with_sections(&pe, &[data(".new", b"new")])
        {
            let again = Pe::parse(&made).unwrap();
            prop_assert_eq!(again.find(".new").unwrap().data, b"new");
        }
    }
}
