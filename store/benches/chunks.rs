//! How fast pages go into a store and come out of it, verified, on one core. Everything counts that a snapshot needs:
//! hashes, the look for what is known already, compression, the tree, the index and the commit with its syncs.
//!
//! Time is the processor time of the thread, which does all of it: with the store on a RAM disk there is nothing to wait
//! for, and what else the machine does is not counted.

#![expect(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros make public items, and a benchmark that cannot go on has failed"
)]

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use store::medium::Directory;
use store::{Base, BlockDevice, Compression, Options, PAGE, Spec, Store, Thoroughness};

/// Bytes of a snapshot: 64 MiB.
const LEN: usize = 64 << 20;

/// Pages of all kinds, none twice: a third noise, the others like programs' data.
fn memory(seed: u64, noise: bool) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (at, page) in bytes.chunks_exact_mut(PAGE).enumerate() {
        let random = if noise || at % 3 == 0 { PAGE } else { PAGE / 4 };
        for word in page[..random].chunks_exact_mut(8) {
            word.copy_from_slice(&next().to_le_bytes());
        }
        for (at, word) in page[random..].chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(0x5555_0000_u64 + at as u64 * 64).to_le_bytes());
        }
    }
    bytes
}

fn write(store: &Store, bytes: &[u8], compression: Compression) -> u64 {
    let mut writer = store.begin_with(Spec::default(), compression).unwrap();
    let ram = writer.object("ram", bytes.len() as u64).unwrap();
    for (at, part) in bytes.chunks(1 << 20).enumerate() {
        writer.write(ram, (at << 20) as u64, part).unwrap();
    }
    writer.commit().unwrap().id
}

/// Processor time of `work`.
fn cost(work: impl FnOnce()) -> Duration {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let start = now();
    work();
    now() - start
}

fn store() -> (tempfile::TempDir, Store) {
    // A RAM disk where there is one: the program is measured here, and no disk.
    let shm = std::path::Path::new("/dev/shm");
    let folder = if shm.is_dir() {
        tempfile::tempdir_in(shm)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.unwrap();
    let medium = Arc::new(Directory::open(folder.path()).unwrap());
    let options = Options {
        cache: 64 << 20,
        ..Options::default()
    };
    (folder, Store::create(medium, options).unwrap())
}

fn writing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("write");
    group.throughput(Throughput::Bytes(LEN as u64));
    group.sample_size(10);
    let kinds = [
        ("raw", Compression::Off, false),
        ("lz4", Compression::Fast, false),
        ("lz4, noise", Compression::Fast, true),
    ];
    for (name, compression, noise) in kinds {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|count| {
                let (_folder, store) = store();
                let mut took = Duration::ZERO;
                for round in 0..count {
                    let bytes = memory((round + 1) << 20, noise);
                    let mut id = 0;
                    took += cost(|| id = write(&store, &bytes, compression));
                    store.delete(id).unwrap();
                    store
                        .collect(Thoroughness::Worthwhile, &mut |_, _| {})
                        .unwrap();
                }
                took
            });
        });
    }
    let (_folder, store) = store();
    let bytes = memory(7, false);
    write(&store, &bytes, Compression::Fast);
    group.bench_function(BenchmarkId::from_parameter("known already"), |bencher| {
        bencher.iter_custom(|count| {
            cost(|| (0..count).for_each(|_| assert!(write(&store, &bytes, Compression::Fast) > 0)))
        });
    });
}

fn reading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read, verified");
    group.throughput(Throughput::Bytes(LEN as u64));
    group.sample_size(10);
    for (name, compression) in [("raw", Compression::Off), ("lz4", Compression::Fast)] {
        let (_folder, store) = store();
        let bytes = memory(7, false);
        let id = write(&store, &bytes, compression);
        let ram = store.snapshot(id).unwrap().object("ram").unwrap();
        let mut room = vec![0; 1 << 20];
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut all = || {
                for at in (0..LEN as u64).step_by(room.len()) {
                    ram.read(at, black_box(&mut room)).unwrap();
                }
            };
            bencher.iter_custom(|count| cost(|| (0..count).for_each(|_| all())));
        });
        group.throughput(Throughput::Bytes(PAGE as u64));
        let mut page = [0; PAGE];
        let mut at = 0;
        group.bench_function(BenchmarkId::new("a fault", name), |bencher| {
            let mut fault = || {
                at = (at + 4099) % (LEN / PAGE) as u64;
                ram.page(at, black_box(&mut page)).unwrap();
            };
            bencher.iter_custom(|count| cost(|| (0..count).for_each(|_| fault())));
        });
        group.throughput(Throughput::Bytes(LEN as u64));
    }
}

/// A restore of the first of a thousand snapshots, and of the last: opening it, and then either the faults of a guest that
/// begins to work, or reading all pages, each of which may be of another snapshot.
fn history(criterion: &mut Criterion) {
    const DEPTH: u64 = 1000;
    /// Pages that change from one snapshot to the next.
    const CHANGES: u64 = 16;
    const FAULTS: u64 = 4096;
    let mut group = criterion.benchmark_group("restore at depth");
    group.throughput(Throughput::Bytes(LEN as u64));
    group.sample_size(10);
    let (_folder, store) = store();
    let bytes = memory(7, false);
    let first = write(&store, &bytes, Compression::Off);
    let mut last = first;
    let fresh = memory(8 << 20, false);
    for depth in 1..DEPTH {
        let spec = Spec {
            parent: Some(last),
            ..Spec::default()
        };
        let mut writer = store.begin_with(spec, Compression::Off).unwrap();
        let ram = writer.object("ram", LEN as u64).unwrap();
        for change in 0..CHANGES {
            let page = (depth * CHANGES + change) * 4099 % (LEN / PAGE) as u64;
            let at = usize::try_from(page).unwrap() * PAGE;
            let page = &fresh[at..at + PAGE];
            writer.write(ram, at as u64, page).unwrap();
        }
        last = writer.commit().unwrap().id;
    }
    let (mut room, mut page) = (vec![0; 1 << 20], [0; PAGE]);
    for (depth, id) in [(1, first), (DEPTH, last)] {
        group.bench_function(BenchmarkId::new("faults", depth), |bencher| {
            let mut faults = || {
                let ram = store.snapshot(id).unwrap().object("ram").unwrap();
                for number in 0..FAULTS {
                    let at = number * 4099 % (LEN / PAGE) as u64;
                    ram.page(at, black_box(&mut page)).unwrap();
                }
            };
            bencher.iter_custom(|count| cost(|| (0..count).for_each(|_| faults())));
        });
        group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
            let mut all = || {
                let ram = store.snapshot(id).unwrap().object("ram").unwrap();
                for at in (0..LEN as u64).step_by(room.len()) {
                    ram.read(at, black_box(&mut room)).unwrap();
                }
            };
            bencher.iter_custom(|count| cost(|| (0..count).for_each(|_| all())));
        });
    }
}

/// An image that disks stand on: adopting it, and reading a disk on it.
fn images(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("image");
    group.throughput(Throughput::Bytes(LEN as u64));
    group.sample_size(10);
    let (folder, store) = store();
    let path = folder.path().with_extension("image");
    std::fs::write(&path, memory(7, false)).unwrap();
    let image = Arc::new(File::open(&path).unwrap());
    let adopt = || {
        store
            .adopt(Arc::clone(&image) as _, &mut |_, _| {})
            .unwrap()
            .id
    };
    group.bench_function(BenchmarkId::from_parameter("adopt"), |bencher| {
        bencher
            .iter_custom(|count| cost(|| (0..count).for_each(|_| assert!(adopt().0 != [0; 32]))));
    });
    let base = Base::Image(adopt());
    let disk = store.create_disk("root", LEN as u64, base).unwrap();
    for (name, room) in [("a disk, 128 KiB", 128 << 10), ("a disk, 4 KiB", PAGE)] {
        let mut room = vec![0; room];
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut all = || {
                for at in (0..LEN as u64).step_by(room.len()) {
                    disk.read_at(at, black_box(&mut room)).unwrap();
                }
            };
            bencher.iter_custom(|count| cost(|| (0..count).for_each(|_| all())));
        });
    }
    std::fs::remove_file(path).unwrap();
}

criterion_group!(benches, writing, reading, history, images);
criterion_main!(benches);
