//! A disk that a server has: QEMU's, and such as do what they should not.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use super::*;
use crate::virtio::block::Nbd;
use crate::virtio::block::nbd::protocol::{
    self, ANSWER_ACK, ANSWER_INFO, Info, OPTION_GO, REQUEST_LEN, Reply, Request,
};

/// `qemu-nbd`, until it is dropped.
struct Qemu {
    child: Child,
    folder: TempDir,
}

impl Qemu {
    /// Serves a copy of [`image`], with further `arguments`.
    fn serve(arguments: &[&str]) -> (Self, File) {
        Self::of(SECTORS * 512, arguments)
    }

    /// Serves an image of `len` bytes.
    fn of(len: u64, arguments: &[&str]) -> (Self, File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let mut file = File::create(&path).unwrap();
        io::copy(&mut rewound(image()), &mut file).unwrap();
        file.set_len(len).unwrap();
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--format=raw", "--socket"])
            .arg(folder.path().join("socket"))
            .args(arguments)
            .arg(&path)
            .spawn()
            .unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        (Self { child, folder }, file)
    }

    fn connect(&mut self) -> UnixStream {
        for _ in 0..1000 {
            match UnixStream::connect(self.folder.path().join("socket")) {
                Ok(stream) => return stream,
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
            assert!(self.child.try_wait().unwrap().is_none(), "qemu-nbd ended");
        }
        panic!("qemu-nbd does not listen");
    }

    fn disk(&mut self, read_only: bool) -> Nbd {
        Nbd::new(self.connect(), "", read_only).unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rewound(mut file: File) -> File {
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

fn on(transport: Transport) -> On {
    On {
        transport,
        preference: Preference::Asynchronous,
        uncached: false,
    }
}

fn fixture(transport: Transport, disk: Nbd, image: File) -> Fixture {
    Fixture::over(on(transport), image, Box::new(disk), ALL_FEATURES)
}

#[test]
fn every_request_of_a_driver_does_on_a_servers_disk_what_it_does_on_a_file() {
    for &transport in Transport::ALL {
        let (mut qemu, image) = Qemu::serve(&["--discard=unmap"]);
        let disk = qemu.disk(false);
        assert_eq!((disk.len(), disk.read_only()), (SECTORS * 512, false));
        let mut f = fixture(transport, disk, image);
        let buffers = [f.ring.buffer(700, true), f.ring.buffer(836, true)];
        assert_eq!(f.request(IN, 5, &buffers), (OK, 1537));
        let read = [f.ring.contents(buffers[0]), f.ring.contents(buffers[1])].concat();
        let expected: Vec<u8> = (5 * 512..8 * 512).map(pattern).collect();
        assert_eq!(read, expected);

        let data = [f.ring.data(&[3; 1000]), f.ring.data(&[4; 24])];
        assert_eq!(f.request(OUT, 9, &data), (OK, 1));
        assert_eq!(f.request(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(f.deallocate(WRITE_ZEROES, 20, 8, 0), OK);
        assert_eq!(f.deallocate(WRITE_ZEROES, 40, 3, 1), OK);
        assert_eq!(f.deallocate(DISCARD, 56, 8, 0), OK);
        let disk = f.contents();
        assert_eq!(disk[9 * 512..9 * 512 + 1000], [3; 1000]);
        assert_eq!(disk[9 * 512 + 1000..11 * 512], [4; 24]);
        assert_eq!(disk[20 * 512..28 * 512], [0; 8 * 512]);
        assert_eq!(disk[40 * 512..43 * 512], [0; 3 * 512]);
        assert_eq!(disk[19 * 512], pattern(19 * 512));
        assert_eq!(disk[43 * 512], pattern(43 * 512));
        // A driver that knows no flush has its writes made durable one by one.
        f.guest.reset();
        f.ring = f.guest.start(RING_FEATURES, 256);
        let data = f.ring.data(&[5; 512]);
        assert_eq!(f.request(OUT, 63, &[data]), (OK, 1));
        assert_eq!(f.contents()[63 * 512..], [5; 512]);
    }
}

#[test]
fn more_requests_than_fit_are_in_flight_and_each_comes_back_once_with_its_own_data() {
    for &transport in Transport::ALL {
        let (mut qemu, image) = Qemu::serve(&[]);
        let disk = qemu.disk(false);
        let mut f = fixture(transport, disk, image);
        let buffers: Vec<_> = (0..85).map(|_| f.ring.buffer(1024, true)).collect();
        for round in 0..20_u64 {
            let sector = |index: u64| (index * 7 + round) % (SECTORS - 1);
            for (index, &buffer) in (0..).zip(&buffers) {
                f.add(IN, sector(index), &[buffer]);
            }
            f.guest.notify(0);
            let mut heads: Vec<u16> = buffers.iter().map(|_| f.used().0).collect();
            heads.sort_unstable();
            heads.dedup();
            assert_eq!(heads.len(), buffers.len());
            for (index, &buffer) in (0..).zip(&buffers) {
                let start = sector(index) * 512;
                let expected: Vec<u8> = (start..start + 1024).map(pattern).collect();
                assert_eq!(f.ring.contents(buffer), expected);
            }
        }
    }
}

#[test]
fn requests_longer_than_a_socket_holds_and_a_server_takes_are_cut_and_whole() {
    let (mut qemu, image) = Qemu::of(u64::from(MAX_REQUEST_BYTES) * 2, &[]);
    let disk = qemu.disk(false);
    let mut f = fixture(Transport::ALL[0], disk, image);
    // The same pages over and over: no memory of the guest's is needed for a long request.
    let piece = f.ring.data(&[0x77; 0x4_2000]);
    let most = (MAX_REQUEST_BYTES / 0x4_2000) as usize;
    assert_eq!(f.request(OUT, 1, &vec![piece; most]), (OK, 1));
    let end = 512 + most * 0x4_2000;
    let mut disk = vec![0; end + 512];
    f.image.read_exact_at(&mut disk, 0).unwrap();
    assert!(disk[512..end].iter().all(|&byte| byte == 0x77));
    assert_eq!((disk[511], disk[end]), (pattern(511), 0));
    let at = GuestAddress(piece.address);
    f.ring.memory.write_slice(&[1; 0x4_2000], at).unwrap();
    let room = Buffer {
        writable: true,
        ..piece
    };
    let (status, len) = f.request(IN, 1, &vec![room; most]);
    assert_eq!((status, len as usize), (OK, most * 0x4_2000 + 1));
    assert!(f.ring.contents(room).iter().all(|&byte| byte == 0x77));
}

#[test]
fn an_export_that_is_read_only_is_so_for_the_guest() {
    let (mut qemu, image) = Qemu::serve(&["--read-only"]);
    let disk = qemu.disk(false);
    assert!(disk.read_only());
    let on = on(Transport::ALL[0]);
    let mut f = Fixture::over(on, image, Box::new(disk), RING_FEATURES);
    assert_ne!(f.guest.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    let data = f.ring.data(&[3; 512]);
    assert_eq!(f.request(OUT, 0, &[data]), (IO_ERROR, 1));
    let buffer = f.ring.buffer(512, true);
    assert_eq!(f.request(IN, 3, &[buffer]).0, OK);
    assert_eq!(f.ring.contents(buffer)[0], pattern(3 * 512));
}

#[test]
fn a_reset_waits_for_what_a_server_has_and_memory_is_left_alone_afterwards() {
    for &transport in Transport::ALL {
        let (mut qemu, image) = Qemu::serve(&[]);
        let disk = qemu.disk(false);
        let mut f = fixture(transport, disk, image);
        let buffers: Vec<_> = (0..60).map(|_| f.ring.buffer(512, true)).collect();
        for &buffer in &buffers {
            f.add(IN, 3, &[buffer]);
        }
        f.guest.notify(0);
        f.guest.reset();
        for &buffer in &buffers {
            let at = GuestAddress(buffer.address);
            f.ring.memory.write_slice(&[0xab; 512], at).unwrap();
        }
        f.guest.run();
        for &buffer in &buffers {
            assert_eq!(f.ring.contents(buffer), [0xab; 512]);
        }
        f.ring = f.guest.start_all();
        let buffer = f.ring.buffer(512, true);
        assert_eq!(f.request(IN, 9, &[buffer]).0, OK);
        assert_eq!(f.ring.contents(buffer)[0], pattern(9 * 512));
    }
}

#[test]
fn a_server_that_dies_fails_what_it_had_and_all_that_follows_until_there_is_another() {
    for &transport in Transport::ALL {
        let (mut qemu, image) = Qemu::serve(&[]);
        let disk = qemu.disk(false);
        let block = on(transport).block(Box::new(disk), 1, None);
        let control = block.control();
        let mut guest = TestGuest::new(transport, block);
        let ring = guest.start(ALL_FEATURES, 256);
        let mut f = Fixture { guest, ring, image };
        qemu.child.kill().unwrap();
        qemu.child.wait().unwrap();
        for _ in 0..3 {
            let buffer = f.ring.buffer(512, true);
            assert_eq!(f.request(IN, 3, &[buffer]).0, IO_ERROR);
        }
        assert_eq!(f.request(FLUSH, 0, &[]), (IO_ERROR, 1));
        let (mut other, _image) = Qemu::serve(&[]);
        control.replace(Box::new(other.disk(false))).unwrap();
        f.guest.run();
        let buffer = f.ring.buffer(512, true);
        assert_eq!(f.request(IN, 3, &[buffer]).0, OK);
        assert_eq!(f.ring.contents(buffer)[0], pattern(3 * 512));
    }
}

/// A server of our own whose export is `len` bytes long; `serve` says what it does after the negotiation.
fn server(
    len: u64,
    serve: impl FnOnce(&mut UnixStream) + Send + 'static,
) -> (UnixStream, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let flags = protocol::FIXED_NEWSTYLE | protocol::NO_ZEROES;
        theirs.write_all(&protocol::greeting(flags)).unwrap();
        let mut question = vec![0; 4 + protocol::OPTION_LEN + protocol::ask_for("").len()];
        theirs.read_exact(&mut question).unwrap();
        let flags = protocol::HAS_FLAGS
            | protocol::SEND_FLUSH
            | protocol::SEND_FUA
            | protocol::SEND_WRITE_ZEROES;
        let export = Info::Export { len, flags }.encode();
        let mut answers = protocol::answer(OPTION_GO, ANSWER_INFO, &export);
        answers.extend(protocol::answer(OPTION_GO, ANSWER_ACK, &[]));
        theirs.write_all(&answers).unwrap();
        serve(&mut theirs);
    });
    (ours, thread)
}

fn request(stream: &mut UnixStream) -> Request {
    let mut bytes = [0; REQUEST_LEN];
    stream.read_exact(&mut bytes).unwrap();
    Request::decode(&bytes).unwrap()
}

#[test]
fn replies_in_any_order_and_in_single_bytes_find_their_requests() {
    let (stream, thread) = server(SECTORS * 512, |stream| {
        let requests: Vec<_> = (0..8).map(|_| request(stream)).collect();
        for request in requests.iter().rev() {
            let handle = request.handle;
            let mut bytes = Reply { error: 0, handle }.encode().to_vec();
            bytes.extend((request.offset..request.offset + 512).map(pattern));
            for byte in bytes {
                stream.write_all(&[byte]).unwrap();
            }
        }
    });
    let disk = Nbd::new(stream, "", false).unwrap();
    let mut f = fixture(Transport::ALL[0], disk, image());
    let buffers: Vec<_> = (0..8).map(|_| f.ring.buffer(512, true)).collect();
    for (sector, &buffer) in (0..).zip(&buffers) {
        f.add(IN, sector, &[buffer]);
    }
    f.guest.notify(0);
    for _ in 0..8 {
        f.used();
    }
    for (sector, &buffer) in (0..).zip(&buffers) {
        assert_eq!(f.ring.contents(buffer)[0], pattern(sector * 512));
    }
    thread.join().unwrap();
}

#[test]
fn a_servers_errors_are_the_guests_and_no_reason_to_give_it_up() {
    let (stream, thread) = server(SECTORS * 512, |stream| {
        for error in [protocol::ENOSPC, 12345, 0] {
            let handle = request(stream).handle;
            let reply = Reply { error, handle };
            stream.write_all(&reply.encode()).unwrap();
        }
    });
    let disk = Nbd::new(stream, "", false).unwrap();
    let mut f = fixture(Transport::ALL[0], disk, image());
    for expected in [IO_ERROR, IO_ERROR, OK] {
        assert_eq!(f.deallocate(WRITE_ZEROES, 1, 1, 0), expected);
    }
    thread.join().unwrap();
}

#[test]
fn a_server_that_breaks_the_protocol_is_given_up_with_all_its_requests() {
    let good = |request: Request| {
        let handle = request.handle;
        Reply { error: 0, handle }.encode().to_vec()
    };
    let unknown = |request: Request| {
        let handle = request.handle + (1 << 16);
        Reply { error: 0, handle }.encode().to_vec()
    };
    let far = |_| {
        let handle = u64::MAX;
        Reply { error: 0, handle }.encode().to_vec()
    };
    let noise = |_| vec![0xff; 16];
    let twice = move |request: Request| [good(request), vec![1; 512], good(request)].concat();
    type Answer = Box<dyn Fn(Request) -> Vec<u8> + Send>;
    let answers: [(Answer, u8); 5] = [
        (Box::new(unknown), IO_ERROR),
        (Box::new(far), IO_ERROR),
        (Box::new(noise), IO_ERROR),
        (Box::new(twice), OK),
        // It goes in the middle of the data.
        (Box::new(good), IO_ERROR),
    ];
    for (answer, first) in answers {
        let (stream, thread) = server(SECTORS * 512, move |stream| {
            let answer = answer(request(stream));
            stream.write_all(&answer).unwrap();
        });
        let disk = Nbd::new(stream, "", false).unwrap();
        let mut f = fixture(Transport::ALL[0], disk, image());
        let buffer = f.ring.buffer(512, true);
        assert_eq!(f.request(IN, 0, &[buffer]).0, first);
        thread.join().unwrap();
        assert_eq!(f.request(IN, 0, &[buffer]).0, IO_ERROR);
        assert!(!f.needs_reset());
    }
}

#[test]
fn a_server_that_goes_while_nothing_is_asked_does_not_keep_the_thread_awake() {
    let (stream, thread) = server(SECTORS * 512, |_| {});
    let disk = Nbd::new(stream, "", false).unwrap();
    let mut block = on(Transport::ALL[0]).block(Box::new(disk), 1, None);
    thread.join().unwrap();
    let fd = block.disk.engine.descriptor().unwrap();
    assert!(is_ready(fd), "the end of the connection");
    let source = block.sources.iter();
    let index = source.clone().position(|(source, _)| source.fd == fd);
    let _ = block.wake(index.unwrap()).unwrap();
    assert!(!is_ready(fd));
}

fn is_ready(fd: std::os::fd::RawFd) -> bool {
    let epoll = vmm_sys_util::epoll::Epoll::new().unwrap();
    let event = vmm_sys_util::epoll::EpollEvent::new(EventSet::IN, 0);
    let operation = vmm_sys_util::epoll::ControlOperation::Add;
    epoll.ctl(operation, fd.as_raw_fd(), event).unwrap();
    epoll.wait(0, &mut [event]).unwrap() == 1
}

#[test]
fn a_disk_in_a_file_is_not_replaced_by_a_servers_whose_replies_nobody_would_see() {
    let (mut qemu, _image) = Qemu::serve(&[]);
    let image = image();
    let block = on(Transport::ALL[0]).block(raw(&image, false), 1, None);
    let control = block.control();
    let mut guest = TestGuest::new(Transport::ALL[0], block);
    let ring = guest.start(ALL_FEATURES, 256);
    let mut f = Fixture { guest, ring, image };
    control.replace(Box::new(qemu.disk(false))).unwrap();
    f.guest.run();
    let buffer = f.ring.buffer(512, true);
    assert_eq!(f.request(IN, 3, &[buffer]).0, OK);
}
