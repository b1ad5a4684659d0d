use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::chain::Chain;
use crate::virtio::testing::{BUFFERS, GuestRing, guest_memory};

/// A chain with one buffer of 512 bytes at [`BUFFERS`].
fn chain(memory: &Arc<GuestMemory>, writable: bool) -> Chain {
    let mut ring = GuestRing::new(memory.clone(), 0, 16);
    let buffer = ring.buffer(512, writable);
    let head = ring.add(&[buffer]);
    let mut chain = Chain::new();
    let table = GuestAddress(ring.registers().descriptors);
    chain.load(memory, table, 16, head, false).unwrap();
    chain
}

fn engine(preference: Preference, memory: &Arc<GuestMemory>) -> (Engine, File) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    let mut engine = Engine::new(preference);
    engine.attach_file(file.try_clone().unwrap());
    engine.attach_memory(memory.clone());
    (engine, file)
}

fn read(chain: &Chain) -> Job<'_> {
    Job {
        action: Action::Read,
        offset: 0,
        len: 512,
        buffers: &chain.writable,
    }
}

#[test]
fn file_in_memory_needs_no_queue() {
    let memory = memfd();
    let mut engine = Engine::default();
    engine.attach_file(memory.try_clone().unwrap());
    assert!(!engine.is_asynchronous() && engine.descriptor().is_none());
    // Who asks for it gets it.
    let mut engine = Engine::new(Preference::Asynchronous);
    engine.attach_file(memory);
    assert!(engine.is_asynchronous());
}

fn memfd() -> File {
    use std::os::fd::FromRawFd;

    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), 0) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { File::from_raw_fd(fd) }
}

#[test]
fn what_is_cached_is_read_at_once() {
    let memory = guest_memory();
    let chain = chain(&memory, true);
    for preference in [Preference::Synchronous, Preference::Asynchronous] {
        let (mut engine, _file) = engine(preference, &memory);
        assert!(matches!(
            engine.start(3, &read(&chain)),
            Start::Done(Ok(()))
        ));
        let mut data = [0; 512];
        memory.read_slice(&mut data, GuestAddress(BUFFERS)).unwrap();
        assert_eq!(data, [7; 512]);
        memory
            .write_slice(&[0; 512], GuestAddress(BUFFERS))
            .unwrap();
    }
}

#[test]
fn what_is_queued_ends_with_its_token() {
    let memory = guest_memory();
    let chain = chain(&memory, true);
    let (mut engine, _file) = engine(Preference::Asynchronous, &memory);
    engine.expect_nothing_cached();
    for token in [5, 127] {
        assert!(matches!(
            engine.start(token, &read(&chain)),
            Start::InFlight
        ));
    }
    let mut tokens = Vec::new();
    while tokens.len() < 2 {
        engine.wait().unwrap();
        while let Some((token, result)) = engine.reap() {
            result.unwrap();
            tokens.push(token);
        }
    }
    tokens.sort_unstable();
    assert_eq!(tokens, [5, 127]);
    assert!(engine.reap().is_none());
    engine.wait().unwrap();
}

#[test]
fn work_goes_on_when_the_kernel_takes_no_more() {
    let memory = guest_memory();
    let chain = chain(&memory, true);
    let (mut engine, _file) = engine(Preference::Asynchronous, &memory);
    engine.expect_nothing_cached();
    assert!(matches!(engine.start(1, &read(&chain)), Start::InFlight));
    engine.lose_ring();
    engine.submit();
    let (token, result) = engine.reap().unwrap();
    assert_eq!(token, 1);
    result.unwrap();
    assert!(!engine.is_asynchronous());
    assert!(matches!(
        engine.start(1, &read(&chain)),
        Start::Done(Ok(()))
    ));
}

#[test]
fn engine_that_goes_waits_for_the_kernel() {
    let memory = guest_memory();
    let chain = chain(&memory, false);
    let (mut engine, file) = engine(Preference::Asynchronous, &memory);
    engine.expect_nothing_cached();
    memory
        .write_slice(&[9; 512], GuestAddress(BUFFERS))
        .unwrap();
    let write = Job {
        action: Action::Write { durable: true },
        buffers: &chain.readable,
        ..read(&chain)
    };
    assert!(matches!(engine.start(0, &write), Start::InFlight));
    engine.submit();
    drop(engine);
    let mut data = [0; 512];
    file.read_exact_at(&mut data, 0).unwrap();
    assert_eq!(data, [9; 512]);
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
fn job_without_file_or_memory_is_an_error() {
    let memory = guest_memory();
    let chain = chain(&memory, true);
    let mut engine = Engine::default();
    engine.attach_memory(memory);
    assert!(matches!(
        engine.start(0, &read(&chain)),
        Start::Done(Err(_))
    ));
}
