//! Pages of guest memory as frames for the channel.

use devices::memory::GuestRegion;
use vm_memory::{Bytes, GuestMemoryError, MemoryRegionAddress};

use super::protocol::{HEADER as BEFORE, MAX_DATA, PAGE, pages_header};

/// Bytes before the pages of a frame.
const HEADER: usize = 16;
/// Most pages of a frame.
const MAX_PAGES: usize = MAX_DATA / PAGE;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// What is done with pages of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroes {
    /// They are sent as others are: something else may have been there before.
    Send,
    /// Whoever gets the frames knows that all else is zero.
    Skip,
}

/// Frames one after the other.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    pages: u64,
}

impl Frames {
    /// With room for `pages` that is there already: filling it touches no new memory.
    pub fn with_room(pages: usize) -> Self {
        // At worst, each page has a frame of its own.
        let mut bytes = vec![1; pages.saturating_mul(PAGE + HEADER)];
        bytes.clear();
        Self { bytes, pages: 0 }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Each frame.
    pub fn each(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes();
        std::iter::from_fn(move || {
            let length = rest.get(4..8)?.first_chunk::<4>()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (frame, behind) = rest.split_at_checked(BEFORE + length)?;
            rest = behind;
            Some(frame)
        })
    }

    /// How many pages are in it.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Nothing is in it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.pages = 0;
    }

    /// Adds the pages of `region` that have their bits in `words` set, of which the first is that of page number `first`.
    /// The region begins at `start` of linear memory.
    pub fn add(
        &mut self,
        (region, start): (&GuestRegion, u64),
        first: usize,
        words: &[u64],
        zeroes: Zeroes,
    ) -> Result<(), GuestMemoryError> {
        for (from, count) in runs(words) {
            for part in (0..count).step_by(MAX_PAGES) {
                let pages = MAX_PAGES.min(count - part);
                self.add_run((region, start), first + from + part, pages, zeroes)?;
            }
        }
        Ok(())
    }

    /// Adds `count` pages, of one frame at most, from page number `first` on.
    fn add_run(
        &mut self,
        (region, start): (&GuestRegion, u64),
        first: usize,
        count: usize,
        zeroes: Zeroes,
    ) -> Result<(), GuestMemoryError> {
        let at = self.bytes.len();
        let data = at + HEADER;
        self.bytes.resize(data + count * PAGE, 0);
        let place = self.bytes.get_mut(data..).unwrap_or_default();
        let offset = first as u64 * PAGE as u64;
        region.read_slice(place, MemoryRegionAddress(offset))?;
        if zeroes == Zeroes::Send || !place.chunks_exact(PAGE).any(|page| page == ZEROES) {
            self.head(at, start + offset, count);
            return Ok(());
        }
        // What is not zero moves together, with a header before each piece: there is a page less for each of them.
        let (mut to, mut page) = (at, 0);
        while page < count {
            let is_zero = |page: usize| {
                let from = data + page * PAGE;
                self.bytes.get(from..from + PAGE) == Some(&ZEROES[..])
            };
            let end = (page..count).find(|page| is_zero(*page)).unwrap_or(count);
            if end > page {
                let from = data + page * PAGE;
                self.bytes.copy_within(from..data + end * PAGE, to + HEADER);
                let pages = end - page;
                self.head(to, start + offset + (page * PAGE) as u64, pages);
                to += HEADER + pages * PAGE;
            }
            page = end + 1;
        }
        self.bytes.truncate(to);
        Ok(())
    }

    /// Writes the header of a frame at `at`.
    fn head(&mut self, at: usize, offset: u64, pages: usize) {
        if let Some(place) = self.bytes.get_mut(at..at + HEADER) {
            place.copy_from_slice(&pages_header(offset, pages * PAGE));
        }
        self.pages += pages as u64;
    }
}

/// First bit and number of bits of each run of bits that are set.
fn runs(words: &[u64]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let mut word = *word;
        let mut base = index * 64;
        while word != 0 {
            let skip = word.trailing_zeros();
            let count = (word >> skip).trailing_ones();
            base += skip as usize;
            match runs.last_mut() {
                Some((from, len)) if *from + *len == base => *len += count as usize,
                _ => runs.push((base, count as usize)),
            }
            base += count as usize;
            word = word.checked_shr(skip + count).unwrap_or(0);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use devices::memory::{GuestMemory, anonymous};
    use proptest::prelude::*;
    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::live::protocol::{Decoder, Report};

    const PAGES: usize = 640;

    fn memory() -> GuestMemory {
        anonymous(&[(GuestAddress(0), PAGES * PAGE)]).unwrap()
    }

    /// The first byte of each page that frames have.
    fn decode(frames: &Frames) -> BTreeMap<u64, u8> {
        assert_eq!(frames.each().collect::<Vec<_>>().concat(), frames.bytes());
        let mut decoder = Decoder::<Report>::new();
        let mut source = frames.bytes();
        let mut found = BTreeMap::new();
        while let Some(report) = decoder.receive(&mut source).unwrap() {
            let Report::Pages(pages) = report else {
                panic!("{report:?}")
            };
            for (page, bytes) in (0..).zip(pages.bytes().chunks_exact(PAGE)) {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                let before = found.insert(pages.offset() + page * PAGE as u64, bytes[0]);
                assert_eq!(before, None);
            }
        }
        found
    }

    proptest! {
        #[test]
        fn runs_are_the_bits_that_are_set(words in prop::collection::vec(
            prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)], 0..6,
        )) {
            let found: Vec<_> = runs(&words)
                .into_iter()
                .flat_map(|(from, count)| from..from + count)
                .collect();
            let bits: Vec<_> = (0..words.len() * 64)
                .filter(|bit| words[bit / 64] & 1 << (bit % 64) != 0)
                .collect();
            prop_assert_eq!(found, bits);
        }
    }

    proptest! {
        // Megabytes each.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn frames_have_the_pages_asked_for_and_zeroes_only_if_they_are_wanted(
            words in prop::collection::vec(prop_oneof![any::<u64>(), Just(u64::MAX)], PAGES / 64),
            zero in prop::collection::vec(any::<bool>(), PAGES),
            skip in any::<bool>(),
        ) {
            let memory = memory();
            for (page, zero) in zero.iter().enumerate().filter(|(_, zero)| !**zero) {
                let byte = (page % 255 + 1).to_le_bytes()[0];
                let _ = zero;
                memory.write_slice(&[byte; PAGE], GuestAddress((page * PAGE) as u64)).unwrap();
            }
            let region = memory.iter().next().unwrap();
            let (start, zeroes) = (1 << 32, if skip { Zeroes::Skip } else { Zeroes::Send });
            let mut frames = Frames::with_room(PAGES);
            let room = frames.bytes.capacity();
            frames.add((region, start), 0, &words[..4], zeroes).unwrap();
            frames.add((region, start), 256, &words[4..], zeroes).unwrap();
            prop_assert_eq!(frames.bytes.capacity(), room);
            let found = decode(&frames);
            prop_assert_eq!(found.len() as u64, frames.pages());
            for page in 0..PAGES {
                let asked = words[page / 64] & 1 << (page % 64) != 0;
                let expected = match (asked, zero[page]) {
                    (true, false) => Some((page % 255 + 1).to_le_bytes()[0]),
                    (true, true) if !skip => Some(0),
                    _ => None,
                };
                let offset = start + (page * PAGE) as u64;
                prop_assert_eq!(found.get(&offset).copied(), expected, "page {}", page);
            }
        }
    }
}
