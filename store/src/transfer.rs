//! A snapshot as one file, to take elsewhere: a head, then the pages of each object that are stored, then a hash of all.
//! Of an object that stands on an image, it has what differs from that, and names the image.
//!
//! ```text
//! magic (16) · format (u32) · length of the head (u32) · head (JSON) · records · end · BLAKE3 of all before (32)
//! record: object (u32) · page (u64) · codec (u8) · length (u32) · payload      end: object = 0xffffffff
//! ```
//! Who imports believes nothing of it: it is complete only if it ends as it must, and the trees that come of its pages
//! have the digests that its head names.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::codec::{self, Codec, Encoder};
use crate::error::{Error, Result};
use crate::snapshot::{Info, ObjectInfo, Spec};
use crate::store::Store;
use crate::{Compression, FORMAT, PAGE, tree};

const MAGIC: &[u8; 16] = b"DARUMA SNAP \r\n\x1a\n";
/// Largest head, bytes.
const HEAD: u32 = 4 << 20;
const END: u32 = u32::MAX;
/// Pages that are looked up together.
const BATCH: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Head {
    snapshot: Info,
}

/// Writes, and hashes what it writes.
struct Out<'a> {
    to: &'a mut dyn Write,
    hasher: blake3::Hasher,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.to
            .write_all(bytes)
            .map_err(Error::io("write the exported file"))
    }
}

/// Reads, and hashes what it reads.
struct In<'a> {
    from: &'a mut dyn Read,
    hasher: blake3::Hasher,
}

impl In<'_> {
    fn get(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.from
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => wrong("it is cut off"),
                _ => Error::io("read the file to import")(error),
            })?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.get(&mut bytes)?;
        Ok(bytes)
    }
}

fn wrong(why: impl Into<String>) -> Error {
    Error::Import { why: why.into() }
}

impl Store {
    /// Writes a snapshot to one file, without the images that it stands on. `progress` gets the pages that were looked at, and all.
    pub fn export(
        &self,
        id: u64,
        to: &mut dyn Write,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let snapshot = self.snapshot(id)?;
        let info = snapshot.info();
        let hasher = blake3::Hasher::new();
        let mut out = Out { to, hasher };
        let head = serde_json::to_vec(&Head {
            snapshot: info.clone(),
        })
        .map_err(|error| wrong(error.to_string()))?;
        out.put(MAGIC)?;
        // An older program can import what it understands.
        let images = info.objects.iter().any(|object| object.image.is_some());
        let format = if images { FORMAT } else { 1 };
        out.put(&format.to_le_bytes())?;
        let len = u32::try_from(head.len()).ok().filter(|len| *len <= HEAD);
        out.put(
            &len.ok_or_else(|| wrong("its labels are too long"))?
                .to_le_bytes(),
        )?;
        out.put(&head)?;
        let total = info
            .objects
            .iter()
            .map(|object| tree::pages(object.len))
            .sum();
        let mut done = 0;
        let mut encoder = Encoder::new(Compression::Fast);
        let mut bytes = [0; PAGE];
        for (index, about) in (0_u32..).zip(&info.objects) {
            let object = snapshot.object(&about.name)?;
            let mut next = 0;
            loop {
                let pages = object.stored(next, BATCH)?;
                let Some(last) = pages.last() else { break };
                next = last + 1;
                for page in pages {
                    object.page(page, &mut bytes)?;
                    let (codec, payload) = encoder.encode(&bytes);
                    out.put(&index.to_le_bytes())?;
                    out.put(&page.to_le_bytes())?;
                    out.put(&[codec as u8])?;
                    out.put(&u32::try_from(payload.len()).unwrap_or(0).to_le_bytes())?;
                    out.put(payload)?;
                }
                progress(done + next, total);
            }
            done += tree::pages(about.len);
            progress(done, total);
        }
        out.put(&END.to_le_bytes())?;
        let digest = *out.hasher.finalize().as_bytes();
        out.put(&digest)?;
        out.to.flush().map_err(Error::io("write the exported file"))
    }

    /// Makes a snapshot of an exported file. It gets an id of this store, and no parent. Images that it stands on must have
    /// been adopted here. `progress` gets the bytes read.
    pub fn import(&self, from: &mut dyn Read, progress: &mut dyn FnMut(u64)) -> Result<Info> {
        let hasher = blake3::Hasher::new();
        let mut input = In { from, hasher };
        let head = head(&mut input)?;
        let told = head.snapshot;
        let mut writer = self.begin(Spec {
            guest: told.guest,
            parent: None,
            time_ms: told.time_ms,
            labels: told.labels,
        })?;
        let mut objects = Vec::new();
        for object in &told.objects {
            objects.push(writer.fresh_on(&object.name, object.len, object.image)?);
        }
        let mut read = 0;
        loop {
            let index = u32::from_le_bytes(input.array()?);
            if index == END {
                break;
            }
            let object = usize::try_from(index)
                .ok()
                .and_then(|index| objects.get(index));
            let object = object.ok_or_else(|| wrong(format!("it has no object {index}")))?;
            let page = u64::from_le_bytes(input.array()?);
            let (codec, payload, len) = payload(&mut input)?;
            let mut bytes = [0; PAGE];
            if !codec::decode(codec, &payload[..len], &mut bytes) {
                return Err(wrong(format!("page {page} of object {index} is damaged")));
            }
            let offset = page.checked_mul(PAGE as u64);
            let offset = offset.ok_or_else(|| wrong(format!("page {page} is behind every end")))?;
            writer.write(*object, offset, &bytes)?;
            read += (17 + len) as u64;
            progress(read);
        }
        let found = input.hasher.finalize();
        if input.array::<32>()? != *found.as_bytes() {
            return Err(wrong("its hash differs"));
        }
        let same = |now: &[ObjectInfo]| {
            now.len() == told.objects.len()
                && told.objects.iter().all(|object| {
                    let made = now.iter().find(|made| made.name == object.name);
                    let content = |info: &ObjectInfo| (info.len, info.root, info.image);
                    made.is_some_and(|made| content(made) == content(object))
                })
        };
        writer.commit_if(&mut |made| {
            same(&made.objects)
                .then_some(())
                .ok_or_else(|| wrong("its pages are not what its head says"))
        })
    }
}

fn head(input: &mut In<'_>) -> Result<Head> {
    if input.array()? != *MAGIC {
        return Err(wrong("it does not begin as an exported snapshot does"));
    }
    let found = u32::from_le_bytes(input.array()?);
    if found > FORMAT {
        return Err(wrong(format!(
            "it has format {found} and this program reads up to {FORMAT}"
        )));
    }
    let len = u32::from_le_bytes(input.array()?);
    if len > HEAD {
        return Err(wrong("its head is longer than any"));
    }
    let mut json = vec![0; usize::try_from(len).unwrap_or(0)];
    input.get(&mut json)?;
    serde_json::from_slice(&json).map_err(|error| wrong(format!("its head is damaged: {error}")))
}

fn payload(input: &mut In<'_>) -> Result<(Codec, [u8; PAGE], usize)> {
    let [codec] = input.array()?;
    let codec = Codec::from_byte(codec).ok_or_else(|| wrong("an encoding is unknown"))?;
    let len = u32::from_le_bytes(input.array()?);
    let len = usize::try_from(len).ok().filter(|len| *len <= PAGE);
    let len = len.ok_or_else(|| wrong("a page is longer than a page"))?;
    let mut bytes = [0; PAGE];
    input.get(&mut bytes[..len])?;
    Ok((codec, bytes, len))
}
