//! The queues of a file system that another process serves: a driver that does anything, and a process that answers
//! anything.
#![no_main]

use std::cell::OnceCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::memory::{self, GuestMemory, RegionSpec};
use devices::virtio::fs::Fs;
use fuzz::Unstructured;
use fuzz::disk::file_of;
use fuzz::driver::{HIGH_BASE, HIGH_LEN, LOW_LEN, World, drive_in};
use vm_memory::{Bytes, FileOffset, GuestAddress};

const GET_FEATURES: u32 = 1;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;

/// Memory that can be shared, empty.
fn shared() -> Arc<GuestMemory> {
    thread_local! {
        static MEMORY: OnceCell<Arc<GuestMemory>> = const { OnceCell::new() };
    }
    let memory = MEMORY.with(|place| {
        let make = || {
            let regions = [(0, LOW_LEN), (HIGH_BASE, HIGH_LEN)].map(|(base, len)| RegionSpec {
                base: GuestAddress(base),
                len: usize::try_from(len).expect("64-bit host"),
                file: Some(FileOffset::new(file_of(&[], len), 0)),
            });
            Arc::new(memory::map(regions.into(), false).expect("a few KiB"))
        };
        place.get_or_init(make).clone()
    });
    for (base, len) in [(0, LOW_LEN), (HIGH_BASE, HIGH_LEN)] {
        let zeroes = vec![0; usize::try_from(len).expect("64-bit host")];
        memory
            .write_slice(&zeroes, GuestAddress(base))
            .expect("all of it is there");
    }
    memory
}

/// An answer of the protocol: request, flags of an answer, length, what it says.
fn answer(request: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short");
    let header = [request, 1 | 1 << 2, len].map(u32::to_le_bytes).concat();
    [&header, payload].concat()
}

/// All that the process will ever say; then it is gone.
fn script(input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let mut said = Vec::new();
    let honest = !input.ratio(1, 8)?;
    let features = if honest { u64::MAX } else { input.arbitrary()? };
    said.extend(answer(GET_FEATURES, &features.to_le_bytes()));
    // Without answers to everything, so that few are needed.
    let protocol: u64 = if input.ratio(1, 8)? { 1 << 3 } else { 0 };
    said.extend(answer(GET_PROTOCOL_FEATURES, &protocol.to_le_bytes()));
    for _ in 0..input.int_in_range(0..=12)? {
        match input.arbitrary::<u8>()? % 4 {
            0 => {
                let request = u32::from(input.arbitrary::<u8>()? % 40);
                said.extend(answer(request, &0_u64.to_le_bytes()));
            }
            1 => {
                let len = usize::from(input.arbitrary::<u8>()? % 40);
                said.extend(input.bytes(len.min(input.len()))?);
            }
            _ => {
                let index = u32::from(input.arbitrary::<u8>()? % 3);
                let base = u32::from(input.arbitrary::<u8>()?);
                let state = [index, base].map(u32::to_le_bytes).concat();
                said.extend(answer(GET_VRING_BASE, &state));
            }
        }
    }
    Ok(said)
}

/// The process, which has said all it will say.
struct Process(Option<UnixStream>);

impl World for Process {
    fn request(&mut self, _index: u16, input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
        // A FUSE request's header: length, operation, number.
        let mut header = vec![40, 0, 0, 0];
        header.extend(u32::from(input.arbitrary::<u8>()? % 50).to_le_bytes());
        header.resize(40, 0);
        Ok(header)
    }

    fn happen(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        if input.ratio(1, 4)? {
            self.0 = None;
        }
        if let Some(stream) = &mut self.0 {
            let _ = stream.read(&mut [0; 1024]);
        }
        Ok(())
    }
}

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| -> fuzz::Corpus {
    let (said, steps) = data.split_at(data.len().min(64));
    let Ok(said) = script(&mut Unstructured::new(said)) else {
        return fuzz::Corpus::Reject;
    };
    let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
    far.set_nonblocking(true).expect("a socket");
    far.write_all(&said).expect("room in the socket");
    // Who waits for more finds the end, and does not wait.
    far.shutdown(Shutdown::Write).expect("a socket");
    match Fs::new("fuzz", near, || true) {
        Ok(device) => drive_in(shared(), Box::new(device), &mut Process(Some(far)), steps),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            fuzz::Corpus::Keep
        }
    }
});
