//! What is done to the store while it is recorded.

use std::io;
use std::sync::{Arc, OnceLock};

use store::medium::Medium;
use store::medium::sim::{Log, Simulated};
use store::{
    Base, BlockDevice, Compression, Digest, Error, Image, Info, Options, PAGE, Result, Spec, Store,
    Thoroughness, image_list,
};

/// Bytes of the disk that there may be.
pub const DISK: u64 = 150 * PAGE as u64;

/// Numbers that are the same each time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// What the store is to show: nothing before there is one.
pub type State = Option<Shown>;

/// Snapshots with their working sets, and images that were adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub snapshots: Vec<Info>,
    pub working_sets: Vec<Option<Vec<u64>>>,
    pub images: Vec<Digest>,
}

impl Shown {
    pub fn of(store: &Store) -> Self {
        let images = store.images().unwrap().into_iter();
        let snapshots = store.list().unwrap();
        let set = |info: &Info| store.snapshot(info.id).unwrap().working_set().unwrap();
        Self {
            working_sets: snapshots.iter().map(set).collect(),
            snapshots,
            images: images.map(|(info, _)| info.id).collect(),
        }
    }
}

/// Images that there are.
pub const IMAGES: u64 = 3;

/// An image, always the same.
pub struct Made(&'static [u8]);

impl Made {
    pub fn new(number: u64) -> Arc<Self> {
        static ALL: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        // Every third page is zero.
        let page = |number: u64, at: u64| match (number + at) % 3 {
            0 => [0; PAGE],
            _ => [u8::try_from(number * 16 + at % 8 + 1).unwrap(); PAGE],
        };
        let all = ALL.get_or_init(|| {
            let sizes = (0..IMAGES).zip([3, 20, 140]);
            let pages = sizes.map(|(number, pages)| (0..pages).map(move |at| page(number, at)));
            let whole = pages.map(|pages| pages.collect::<Vec<_>>().into_flattened());
            whole
                .map(|bytes| [&bytes[..], &[9; 512]].concat())
                .collect()
        });
        Arc::new(Self(&all[usize::try_from(number).unwrap()]))
    }
}

impl Image for Made {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
        Ok(())
    }
}

/// Says where all images are that the store knows.
pub fn attach(store: &Store) {
    static IDS: OnceLock<Vec<Digest>> = OnceLock::new();
    let ids = IDS.get_or_init(|| {
        let scratch = Store::create(Arc::new(Simulated::default()), options()).unwrap();
        let adopt = |number| scratch.adopt(Made::new(number), &mut |_, _| {}).unwrap().id;
        (0..IMAGES).map(adopt).collect()
    });
    for (info, attached) in store.images().unwrap() {
        let number = ids.iter().position(|id| *id == info.id).unwrap();
        if !attached {
            store.attach(&info.id, Made::new(number as u64)).unwrap();
        }
    }
}

/// A call, and what the store showed before and after it.
struct Call {
    to: usize,
    before: State,
    after: State,
}

/// A workload that was done.
pub struct Recorded {
    pub log: Log,
    calls: Vec<Call>,
}

pub fn options() -> Options {
    Options {
        // A few snapshots fill a segment.
        segment: 96 << 10,
        cache: 1 << 20,
        ..Options::default()
    }
}

/// A page: one of a few that are everywhere, one that compresses, or one that does not.
fn page(dice: &mut Dice) -> [u8; PAGE] {
    let kind = dice.below(8);
    let seed = if kind < 3 {
        dice.below(6)
    } else {
        dice.below(u64::MAX)
    };
    let mut page = [0; PAGE];
    let mut noise = Dice::new(seed);
    let filled = if kind == 7 { PAGE } else { 40 };
    for byte in &mut page[..filled] {
        *byte = u8::try_from(noise.below(256)).unwrap();
    }
    page
}

/// Writes a snapshot that goes on from `parent`.
pub fn snapshot(store: &Store, dice: &mut Dice, parent: Option<u64>, commit: bool) -> Result<()> {
    let spec = Spec {
        guest: format!("guest{}", dice.below(2)),
        parent,
        time_ms: dice.below(1 << 40),
        ..Spec::default()
    };
    let compression = [Compression::Off, Compression::Fast][usize::from(dice.below(2) == 0)];
    let mut writer = store.begin_with(spec, compression)?;
    for name in ["ram", "disk:root"] {
        if dice.below(8) == 0 {
            continue;
        }
        let pages = [20, 32, 50, 1100][usize::try_from(dice.below(4)).unwrap()];
        let object = writer.object(name, pages * PAGE as u64)?;
        for _ in 0..dice.below(12) {
            let at = dice.below(pages) * PAGE as u64;
            let zero = dice.below(6) == 0;
            let bytes = if zero { [0; PAGE] } else { page(dice) };
            writer.write(object, at, &bytes)?;
        }
    }
    let blob = page(dice);
    writer.blob("devices", &blob[..777])?;
    if commit {
        writer.commit()?;
    }
    Ok(())
}

/// One thing that somebody does to a store.
pub fn step(store: &Store, dice: &mut Dice) -> Result<()> {
    let all = store.list()?;
    let some = |dice: &mut Dice| {
        let at = dice.below(all.len().max(1) as u64);
        all.get(usize::try_from(at).unwrap()).map(|info| info.id)
    };
    match dice.below(14) {
        0..=4 => {
            let parent = some(dice).filter(|_| dice.below(5) > 0);
            snapshot(store, dice, parent, true)
        }
        5 => {
            let parent = some(dice);
            snapshot(store, dice, parent, false)
        }
        6 | 7 => match some(dice) {
            Some(id) if all.len() > 1 => match store.delete(id) {
                // What stands on it, goes first.
                Err(Error::Busy { .. }) => store.remove_disk("image"),
                done => done,
            },
            _ => Ok(()),
        },
        8 => match some(dice) {
            Some(id) if dice.below(2) == 0 => {
                let pages: Vec<_> = (0..dice.below(2000)).map(|_| dice.below(1 << 20)).collect();
                store.snapshot(id)?.set_working_set(&pages)
            }
            Some(id) => store.mark(id, |labels, good| {
                labels.insert("why".to_owned(), "because".to_owned());
                *good = true;
            }),
            None => Ok(()),
        },
        9 => {
            for (info, _) in store.images()? {
                store.detach(&info.id);
            }
            store.collect(Thoroughness::All, &mut |_, _| {}).map(drop)
        }
        10 => adopt(store, dice),
        11 => create_disk(store, dice),
        _ => write_disk(store, dice),
    }
}

/// Makes a disk, on an image or on a disk in a snapshot; or adopts an image for that, if there is none.
fn create_disk(store: &Store, dice: &mut Dice) -> Result<()> {
    attach(store);
    let images = store.images()?;
    if images.is_empty() {
        return adopt(store, dice);
    }
    let all = store.list()?;
    let all = all
        .iter()
        .filter(|info| info.object("disk:image").is_some());
    let mut bases: Vec<Base> = all
        .map(|info| Base::Object(info.id, "disk:image".to_owned()))
        .collect();
    bases.extend(images.iter().map(|(info, _)| Base::Image(info.id)));
    let base = bases.swap_remove(usize::try_from(dice.below(bases.len() as u64)).unwrap());
    store.create_disk("image", DISK, base).map(drop)
}

/// Adopts an image by reading it, or by its list.
fn adopt(store: &Store, dice: &mut Dice) -> Result<()> {
    let image = Made::new(dice.below(IMAGES));
    if dice.below(2) == 0 {
        return store.adopt(image, &mut |_, _| {}).map(drop);
    }
    let list = image_list(&*image, &mut |_, _| {}).unwrap();
    store.adopt_with(image, &list).map(drop)
}

/// Writes to the disk, and takes a snapshot of it.
fn write_disk(store: &Store, dice: &mut Dice) -> Result<()> {
    attach(store);
    let disk = match store.open_disk("image") {
        Ok(disk) => disk,
        Err(Error::NoDisk { .. }) => return create_disk(store, dice),
        Err(error) => return Err(error),
    };
    for _ in 0..dice.below(4) {
        let at = dice.below(DISK / PAGE as u64) * PAGE as u64;
        match dice.below(3) {
            0 => disk.discard(at, PAGE as u64)?,
            1 => disk.write_at(at, &page(dice))?,
            _ => disk.write_at(at + 512, &[7; 512])?,
        }
    }
    if dice.below(2) == 0 {
        disk.flush()?;
    }
    let frozen = Arc::new(disk.freeze()?);
    let mut writer = store.begin(Spec::default())?;
    writer.disk("disk:image", &frozen)?;
    writer.commit()?;
    Ok(())
}

impl Recorded {
    pub fn new(seed: u64) -> Self {
        let medium = Simulated::default();
        medium.record();
        let shared: Arc<dyn Medium> = Arc::new(medium.clone());
        let store = Store::create(shared, options()).unwrap();
        let mut calls = vec![Call {
            to: medium.place(),
            before: None,
            after: Some(Shown::of(&store)),
        }];
        let mut dice = Dice::new(seed);
        for _ in 0..14 {
            let before = Some(Shown::of(&store));
            step(&store, &mut dice).unwrap();
            calls.push(Call {
                to: medium.place(),
                before,
                after: Some(Shown::of(&store)),
            });
        }
        drop(store);
        let log = medium.recorded();
        Self { log, calls }
    }

    /// Whether there was a snapshot that stands on an image.
    pub fn on_images(&self) -> bool {
        let states = self.calls.iter().filter_map(|call| call.after.as_ref());
        let mut objects = states
            .flat_map(|shown| &shown.snapshots)
            .flat_map(|info| &info.objects);
        objects.any(|object| object.image.is_some())
    }

    /// What the store may show if the power is cut before operation `at`.
    pub fn allowed(&self, at: usize) -> Vec<State> {
        match self.calls.iter().find(|call| at < call.to) {
            Some(call) => vec![call.before.clone(), call.after.clone()],
            None => vec![self.calls.last().unwrap().after.clone()],
        }
    }
}
