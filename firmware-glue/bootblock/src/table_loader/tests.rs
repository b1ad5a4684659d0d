use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::memory::tests::TestMemory;

/// fw_cfg as a map of files.
#[derive(Default)]
struct TestFiles {
    files: Vec<(&'static str, Vec<u8>)>,
    written: BTreeMap<(u16, u32), Vec<u8>>,
}

impl Files for TestFiles {
    fn find(&mut self, name: &str) -> Option<(u16, u32)> {
        let index = self.files.iter().position(|(other, _)| *other == name)?;
        let size = self.files[index].1.len();
        Some((u16::try_from(index).ok()?, u32::try_from(size).ok()?))
    }

    fn read(&mut self, file: u16, to: &mut [u8]) -> bool {
        to.copy_from_slice(&self.files[usize::from(file)].1[..to.len()]);
        true
    }

    fn write(&mut self, file: u16, offset: u32, from: &[u8]) -> bool {
        self.written.insert((file, offset), from.to_vec());
        true
    }
}

fn files() -> TestFiles {
    let mut rsdp = b"RSD PTR ".to_vec();
    rsdp.resize(20, 0);
    TestFiles {
        files: vec![
            ("etc/acpi/rsdp", rsdp),
            ("etc/acpi/tables", vec![1; 64]),
            ("etc/vmgenid_addr", vec![0; 8]),
        ],
        ..TestFiles::default()
    }
}

fn command(number: u32, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut out = vec![0; COMMAND_SIZE];
    out[..4].copy_from_slice(&number.to_le_bytes());
    for (at, bytes) in parts {
        out[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    out
}

fn allocate(name: &str, align: u32, zone: u8) -> Vec<u8> {
    command(
        1,
        &[
            (4, name.as_bytes()),
            (60, &align.to_le_bytes()),
            (64, &[zone]),
        ],
    )
}

fn add_pointer(to: &str, of: &str, offset: u32, size: u8) -> Vec<u8> {
    command(
        2,
        &[
            (4, to.as_bytes()),
            (60, of.as_bytes()),
            (116, &offset.to_le_bytes()),
            (120, &[size]),
        ],
    )
}

fn add_checksum(of: &str, offset: u32, start: u32, len: u32) -> Vec<u8> {
    command(
        3,
        &[
            (4, of.as_bytes()),
            (60, &offset.to_le_bytes()),
            (64, &start.to_le_bytes()),
            (68, &len.to_le_bytes()),
        ],
    )
}

fn write_pointer(to: &str, of: &str, to_offset: u32, of_offset: u32, size: u8) -> Vec<u8> {
    command(
        4,
        &[
            (4, to.as_bytes()),
            (60, of.as_bytes()),
            (116, &to_offset.to_le_bytes()),
            (120, &of_offset.to_le_bytes()),
            (124, &[size]),
        ],
    )
}

struct Machine {
    files: TestFiles,
    memory: TestMemory,
    zones: Zones,
}

fn machine() -> Machine {
    Machine {
        files: files(),
        memory: TestMemory {
            base: 0x1000,
            bytes: vec![0; 0x2000],
        },
        zones: Zones {
            high: Zone::new(0x1000..0x2000),
            fseg: Zone::new(0x2000..0x3000),
        },
    }
}

impl Machine {
    fn run(&mut self, script: &[Vec<u8>]) -> Result<Option<u64>, TableError> {
        run(
            &script.concat(),
            &mut self.files,
            &mut self.memory,
            &mut self.zones,
        )
    }
}

const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";

#[test]
fn a_script_as_qemu_writes_it_places_links_and_sums() {
    let mut machine = machine();
    let rsdp = machine
        .run(&[
            allocate(RSDP, 16, ZONE_FSEG),
            allocate(TABLES, 64, ZONE_HIGH),
            add_pointer(RSDP, TABLES, 16, 4),
            add_checksum(RSDP, 8, 0, 20),
            write_pointer("etc/vmgenid_addr", TABLES, 0, 40, 8),
            command(77, &[]),
            command(0, &[]),
        ])
        .unwrap();
    assert_eq!(rsdp, Some(0x2fe0));
    let table = machine.memory.bytes(0x2fe0, 20).unwrap().to_vec();
    assert_eq!(table[16..20], 0x1fc0u32.to_le_bytes());
    assert_eq!(
        table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    assert_eq!(machine.memory.bytes(0x1fc0, 64).unwrap(), [1; 64]);
    assert_eq!(machine.files.written[&(2, 0)], 0x1fe8u64.to_le_bytes());
}

#[test]
fn impossible_commands_are_refused() {
    let loaded = [
        allocate(RSDP, 16, ZONE_FSEG),
        allocate(TABLES, 64, ZONE_HIGH),
    ];
    let fails = |command: Vec<u8>| {
        let script = [&loaded[..], &[command]].concat();
        machine().run(&script).unwrap_err()
    };
    assert!(matches!(
        fails(allocate("etc/none", 1, 1)),
        TableError::NoFile { index: 2, .. }
    ));
    assert!(matches!(
        fails(allocate(RSDP, 16, ZONE_FSEG)),
        TableError::TooMany { .. }
    ));
    assert!(matches!(
        fails(allocate("etc/vmgenid_addr", 3, 1)),
        TableError::NoRoom { align: 3, .. }
    ));
    assert!(matches!(
        fails(allocate("etc/vmgenid_addr", 1, 3)),
        TableError::NoRoom { zone: 3, .. }
    ));
    assert!(matches!(
        fails(allocate("etc/vmgenid_addr", 1 << 31, 1)),
        TableError::NoRoom { .. }
    ));
    assert!(matches!(
        fails(command(1, &[(4, &[b'x'; 56])])),
        TableError::BadName { index: 2 }
    ));
    assert!(matches!(
        fails(add_pointer(RSDP, "etc/vmgenid_addr", 0, 4)),
        TableError::NotLoaded { .. }
    ));
    assert!(matches!(
        fails(add_pointer(RSDP, TABLES, 17, 4)),
        TableError::Outside { offset: 17, .. }
    ));
    assert!(matches!(
        fails(add_pointer(RSDP, TABLES, u32::MAX, 4)),
        TableError::Outside { .. }
    ));
    assert!(matches!(
        fails(add_pointer(RSDP, TABLES, 0, 3)),
        TableError::Outside { len: 3, .. }
    ));
    assert!(matches!(
        fails(add_checksum(TABLES, 64, 0, 1)),
        TableError::Outside { offset: 64, .. }
    ));
    assert!(matches!(
        fails(add_checksum(TABLES, 0, 1, u32::MAX)),
        TableError::Outside { .. }
    ));
    assert!(matches!(
        fails(write_pointer("etc/vmgenid_addr", TABLES, 1, 0, 8)),
        TableError::Outside { .. }
    ));
    assert!(matches!(
        fails(write_pointer("etc/vmgenid_addr", TABLES, 0, 65, 8)),
        TableError::Outside { .. }
    ));
    assert!(matches!(
        fails(write_pointer("etc/none", TABLES, 0, 0, 8)),
        TableError::NoFile { .. }
    ));
}

proptest! {
    #[test]
    fn no_script_panics(commands in prop::collection::vec(
        (0u32..6, prop::sample::select(vec![RSDP, TABLES, "etc/vmgenid_addr", "none"]),
         prop::sample::select(vec![RSDP, TABLES, "none"]), any::<[u32; 3]>(), 0u32..100, any::<u8>()), 0..30)
    ) {
        let script: Vec<_> = [allocate(RSDP, 16, ZONE_FSEG), allocate(TABLES, 64, ZONE_HIGH)]
            .into_iter()
            .chain(commands.into_iter().map(|(number, to, of, any, small, byte)| match number {
                0 => allocate(to, any[0], byte),
                1 => allocate(to, 1, byte % 3),
                2 => add_pointer(to, of, small, byte % 10),
                3 => add_checksum(to, small, any[0] % 100, any[1]),
                4 => write_pointer(to, of, small, any[0], byte % 9),
                _ => command(any[0], &[(4, &any[1].to_le_bytes())]),
            }))
            .collect();
        let _ = machine().run(&script);
    }
}
