//! Disks: what a guest wrote is what it reads, through layers, snapshots and power cuts.

#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small numbers, and a test that cannot go on has failed"
)]

use std::sync::Arc;

use proptest::prelude::*;
use store::medium::Medium;
use store::medium::sim::{Power, Simulated};
use store::{BlockDevice, Disk, Error, Options, PAGE, Spec, Store};

const LEN: u64 = 40 * PAGE as u64 + 512;
const SECTOR: usize = 512;

fn store(medium: &Simulated) -> Store {
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    Store::open(Arc::clone(&shared), Options::default())
        .or_else(|_| Store::create(shared, Options::default()))
        .unwrap()
}

/// A snapshot with a disk to stand on.
fn image(store: &Store) -> Vec<u8> {
    let bytes: Vec<u8> = (0..LEN).map(|at| (at / 512 % 251) as u8 + 1).collect();
    let mut writer = store.begin(Spec::default()).unwrap();
    writer.blob("disk:root", &bytes).unwrap();
    assert_eq!(writer.commit().unwrap().id, 1);
    bytes
}

fn all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

fn snapshot(store: &Store, disk: &Disk, parent: u64) -> u64 {
    let frozen = Arc::new(disk.freeze().unwrap());
    let parent = Some(parent);
    let mut writer = store
        .begin(Spec {
            parent,
            ..Spec::default()
        })
        .unwrap();
    writer.disk("disk:root", &frozen).unwrap();
    writer.commit().unwrap().id
}

fn content(store: &Store, id: u64) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    let object = store.snapshot(id).unwrap().object("disk:root").unwrap();
    object.read(0, &mut bytes).unwrap();
    bytes
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    Discard(usize, usize),
    Flush,
    Snapshot,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sectors = LEN as usize / SECTOR;
    let range = (0..sectors, 1_usize..40).prop_map(move |(at, len)| (at, len.min(sectors - at)));
    let step = prop_oneof![
        6 => (range.clone(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        2 => range.prop_map(|(at, len)| Step::Discard(at, len)),
        1 => Just(Step::Flush),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_disk_is_an_array_of_bytes_and_snapshots_are_copies(steps in steps()) {
        let medium = Simulated::default();
        let mut store = store(&medium);
        let mut expected = image(&store);
        let mut disk = store.create_disk("root", LEN, Some((1, "disk:root"))).unwrap();
        let mut copies = vec![(1, expected.clone())];
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    let range = at * SECTOR..(at + len) * SECTOR;
                    expected[range.clone()].fill(byte);
                    disk.write_at(range.start as u64, &expected[range]).unwrap();
                }
                Step::Discard(at, len) => {
                    expected[at * SECTOR..(at + len) * SECTOR].fill(0);
                    disk.discard((at * SECTOR) as u64, (len * SECTOR) as u64).unwrap();
                }
                Step::Flush => disk.flush().unwrap(),
                Step::Snapshot => {
                    let id = snapshot(&store, &disk, copies.last().unwrap().0);
                    copies.push((id, expected.clone()));
                }
                Step::Reopen => {
                    disk.flush().unwrap();
                    drop(disk);
                    drop(store);
                    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
                    store = Store::open(shared, Options::default()).unwrap();
                    disk = store.open_disk("root").unwrap();
                }
            }
            prop_assert!(all(&disk) == expected);
        }
        for (id, copy) in &copies {
            prop_assert!(content(&store, *id) == *copy);
        }
        let verified = store.verify(&mut |_| {}).unwrap();
        prop_assert!(verified.problems.is_empty());
    }
}

#[test]
fn writes_go_on_while_a_frozen_disk_is_copied() {
    let store = store(&Simulated::default());
    let mut expected = image(&store);
    let disk = store
        .create_disk("root", LEN, Some((1, "disk:root")))
        .unwrap();
    disk.write_at(100, b"before").unwrap();
    disk.prepare().unwrap();
    let frozen = Arc::new(disk.freeze().unwrap());
    disk.write_at(103, b"after").unwrap();
    let mut writer = store.begin(Spec::default()).unwrap();
    writer.disk("disk:root", &frozen).unwrap();
    disk.write_at(9000, b"during").unwrap();
    let id = writer.commit().unwrap().id;
    expected[100..106].copy_from_slice(b"before");
    assert!(content(&store, id) == expected);
    expected[103..108].copy_from_slice(b"after");
    expected[9000..9006].copy_from_slice(b"during");
    assert!(all(&disk) == expected);
}

#[test]
fn what_a_disk_stands_on_is_not_deleted() {
    let store = store(&Simulated::default());
    image(&store);
    let disk = store
        .create_disk("root", LEN, Some((1, "disk:root")))
        .unwrap();
    let second = snapshot(&store, &disk, 1);
    store.delete(1).unwrap();
    drop(disk);
    let error = store.delete(second).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("disk \"root\", which stands on it"),
        "{error}"
    );
    store.remove_disk("root").unwrap();
    store.delete(second).unwrap();
    assert!(store.status().unwrap().foreign.is_empty());
}

#[test]
fn a_disk_has_one_user_and_an_end() {
    let store = store(&Simulated::default());
    let disk = store.create_disk("root", LEN, None).unwrap();
    assert!(matches!(store.open_disk("root"), Err(Error::Busy { .. })));
    assert!(matches!(store.remove_disk("root"), Err(Error::Busy { .. })));
    for offset in [LEN - 1, LEN, u64::MAX] {
        assert!(matches!(
            disk.write_at(offset, &[1, 2]),
            Err(Error::Range { .. })
        ));
        assert!(matches!(
            disk.read_at(offset, &mut [0; 2]),
            Err(Error::Range { .. })
        ));
        assert!(matches!(disk.discard(offset, 2), Err(Error::Range { .. })));
    }
    assert!(matches!(
        store.open_disk("other"),
        Err(Error::NoDisk { .. })
    ));
    drop(disk);
    assert!(store.open_disk("root").is_ok());
}

/// What a sector may hold after a power cut: what was flushed last, or anything written since.
type Sectors = Vec<Vec<u8>>;

#[test]
fn flushed_sectors_survive_every_power_cut_and_others_are_old_or_new() {
    let mut states = 0_u64;
    for seed in 0..6_u64 {
        let medium = Simulated::default();
        let store = store(&medium);
        let bytes = image(&store);
        medium.record();
        let disk = store
            .create_disk("root", LEN, Some((1, "disk:root")))
            .unwrap();
        let made = medium.place();
        let count = LEN as usize / SECTOR;
        let mut sectors: Sectors = (0..count).map(|at| vec![bytes[at * SECTOR]]).collect();
        // What may be there from each place of the log on.
        let mut history = vec![(made, sectors.clone())];
        let mut random = seed + 1;
        let mut dice = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut parent = 1;
        for step in 0..30_u8 {
            match dice(8) {
                0..=4 => {
                    let at = dice(count as u64) as usize;
                    let len = (dice(24) as usize + 1).min(count - at);
                    let byte = 100 + step;
                    for sector in &mut sectors[at..at + len] {
                        sector.push(byte);
                    }
                    // From before the write begins, it may be there.
                    history.push((medium.place(), sectors.clone()));
                    if dice(4) == 0 {
                        sectors[at..at + len]
                            .iter_mut()
                            .for_each(|sector| sector.push(0));
                        history.push((medium.place(), sectors.clone()));
                        disk.discard((at * SECTOR) as u64, (len * SECTOR) as u64)
                            .unwrap();
                    } else {
                        disk.write_at((at * SECTOR) as u64, &vec![byte; len * SECTOR])
                            .unwrap();
                    }
                }
                5 | 6 => {
                    disk.flush().unwrap();
                    for sector in &mut sectors {
                        sector.drain(..sector.len() - 1);
                    }
                    history.push((medium.place(), sectors.clone()));
                }
                _ => {
                    parent = snapshot(&store, &disk, parent);
                }
            }
        }
        drop(disk);
        drop(store);
        let log = medium.recorded();
        let mut power = Power::new(&log);
        while power.step() {
            if power.at() < made {
                continue;
            }
            let known = history
                .iter()
                .rev()
                .find(|(place, _)| *place <= power.at())
                .unwrap();
            let mut images = vec![power.nothing(), power.torn(power.next_sectors() / 2)];
            images.extend((0..6).map(|_| power.some(&mut dice)));
            for image in images {
                states += 1;
                check(&Simulated::of(image), &known.1, &|| {
                    format!("seed {seed}, operation {}", power.at())
                });
            }
        }
    }
    use std::io::Write;
    writeln!(
        std::io::stdout(),
        "counted: {states} crash states of disks in the store"
    )
    .unwrap();
    assert!(states > 1000);
}

fn check(medium: &Simulated, allowed: &Sectors, what: &dyn Fn() -> String) {
    let shared: Arc<dyn Medium> = Arc::new(medium.clone());
    let store =
        Store::open(shared, Options::default()).unwrap_or_else(|e| panic!("{}: {e}", what()));
    let disk = store
        .open_disk("root")
        .unwrap_or_else(|e| panic!("{}: {e}", what()));
    let bytes = all(&disk);
    for (at, (sector, allowed)) in bytes.chunks(SECTOR).zip(allowed).enumerate() {
        let byte = sector[0];
        assert!(
            sector.iter().all(|other| *other == byte),
            "{}: sector {at} is torn",
            what()
        );
        assert!(
            allowed.contains(&byte),
            "{}: sector {at} is {byte} and not of {allowed:?}",
            what()
        );
    }
    let verified = store.verify(&mut |_| {}).unwrap();
    assert!(
        verified.problems.is_empty(),
        "{}: {:?}",
        what(),
        verified.problems
    );
}
