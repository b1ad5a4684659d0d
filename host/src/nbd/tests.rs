//! The server against QEMU's clients, against the VMM's block device, and against clients that do what they should not. The
//! disk is the store's.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output};

use devices::virtio::block::nbd::protocol::{
    self, ANSWER_LEN, EINVAL, ENOSPC, EPERM, GREETING_LEN, REPLY_LEN, Reply, Request,
};
use devices::virtio::block::{Block, Engine, Nbd, Options};
use devices::virtio::testing::{Buffer, GuestRing, TestGuest, Transport};
use proptest::prelude::*;
use store::medium::Directory;
use store::{Disk, Store};
use tempfile::TempDir;

use super::*;

const LEN: u64 = 8 << 20;

/// A store with one disk, and its server.
struct World {
    folder: TempDir,
    store: Store,
    disk: Arc<Disk>,
    reports: Arc<Mutex<Vec<String>>>,
    service: Service,
}

impl World {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(read_only: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let medium = Arc::new(Directory::open(folder.path().join("store")).unwrap());
        let store = Store::create(medium, store::Options::default()).unwrap();
        let disk = Arc::new(store.create_disk("root", LEN, None).unwrap());
        let reports = Arc::<Mutex<Vec<String>>>::default();
        let heard = reports.clone();
        let report: Report = Arc::new(move |text| heard.lock().unwrap().push(text.to_owned()));
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let export = Export {
            disk: disk.clone(),
            read_only,
        };
        let service = serve(listener, Exports::one("root", export), report).unwrap();
        Self {
            folder,
            store,
            disk,
            reports,
            service,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn url(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        stream
    }

    /// A client that has chosen the disk.
    fn client(&self) -> Client {
        let mut stream = self.connect();
        stream
            .read_exact(&mut [0; GREETING_LEN])
            .expect("a greeting");
        let mut says = 3_u32.to_be_bytes().to_vec();
        let question = protocol::ask_for("");
        says.extend(protocol::option(protocol::OPTION_GO, &question));
        stream.write_all(&says).unwrap();
        loop {
            let mut start = [0; ANSWER_LEN];
            stream.read_exact(&mut start).unwrap();
            let (_, kind, len) = protocol::read_answer(&start).unwrap();
            stream.read_exact(&mut vec![0; len as usize]).unwrap();
            if kind == protocol::ANSWER_ACK {
                return Client(stream);
            }
        }
    }

    fn qemu_io(&self, commands: &[&str]) -> Output {
        let mut program = Command::new("qemu-io");
        program.args(["-f", "raw", &self.url("root")]);
        for command in commands {
            program.args(["-c", command]);
        }
        program.output().unwrap()
    }
}

struct Client(UnixStream);

impl Client {
    fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) {
        let request = Request {
            flags,
            command,
            handle: offset ^ 0x5555,
            offset,
            len,
        };
        self.0.write_all(&request.encode()).unwrap();
        self.0.write_all(data).unwrap();
    }

    /// The error of a reply to the request at `offset`.
    fn reply(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; REPLY_LEN];
        self.0.read_exact(&mut bytes).unwrap();
        let reply = Reply::decode(&bytes).unwrap();
        assert_eq!(reply.handle, offset ^ 0x5555);
        reply.error
    }

    fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        self.send(command, flags, offset, len, data);
        self.reply(offset)
    }

    /// Nothing more comes.
    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}

fn read(disk: &Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    disk.read_at(offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn qemu_io_reads_what_it_has_written_in_every_way_there_is() {
    let world = World::new();
    let output = world.qemu_io(&[
        "write -P 0x5a 0 2M",
        "write -P 0x11 4095 2",
        "write -f -P 0x22 1M 512",
        "flush",
        "read -P 0x5a 0 4095",
        "read -P 0x11 4095 2",
        "read -P 0x22 1M 512",
        "write -z 8k 8k",
        "write -z -u 64k 4k",
        "discard 128k 128k",
        "read -P 0 8k 8k",
        "read -P 0 64k 4k",
        "read -P 0x5a 16k 4k",
        "aio_write -P 0x33 5M 1M",
        "aio_write -P 0x44 6M 1M",
        "aio_write -P 0x55 7M 64k",
        "aio_flush",
        "read -P 0x33 5M 1M",
        "read -P 0x44 6M 1M",
        "length",
    ]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = said.contains("failed") || said.contains("rror");
    assert!(output.status.success() && !wrong, "{said} {output:?}");
    assert!(said.contains("8 MiB"), "{said}");
    assert_eq!(read(&world.disk, 4095, 2), [0x11; 2]);
    assert_eq!(read(&world.disk, 128 << 10, 128 << 10), [0; 128 << 10]);
    assert_eq!(read(&world.disk, 7 << 20, 64 << 10), [0x55; 64 << 10]);
    // Beyond the end QEMU does not even ask.
    let output = world.qemu_io(&["read 8M 512"]);
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn qemu_img_and_qemu_nbd_see_the_disk_as_it_is_and_its_snapshot_has_it() {
    let world = World::new();
    let image = world.folder.path().join("image");
    let bytes: Vec<u8> = (0..LEN / 8).flat_map(|n| (n / 3).to_le_bytes()).collect();
    fs::write(&image, &bytes).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (image, url) = (image.to_str().unwrap(), world.url(""));
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", image, &url],
    );
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", image, &url],
    );
    assert!(read(&world.disk, 0, bytes.len()) == bytes);
    let list = run(
        "qemu-nbd",
        &["--list", "--socket", world.socket().to_str().unwrap()],
    );
    assert!(
        list.contains("export: 'root'") && list.contains("8388608"),
        "{list}"
    );
    let frozen = Arc::new(world.disk.freeze().unwrap());
    let spec = store::Spec {
        guest: "g".into(),
        ..store::Spec::default()
    };
    let mut writer = world.store.begin(spec).unwrap();
    writer.disk("root", &frozen).unwrap();
    let info = writer.commit().unwrap();
    let object = world
        .store
        .snapshot(info.id)
        .unwrap()
        .object("root")
        .unwrap();
    let mut kept = vec![0; bytes.len()];
    object.read(0, &mut kept).unwrap();
    assert!(kept == bytes);
    let output = world.qemu_io(&["write -P 1 0 4k"]);
    assert!(output.status.success());
    object.read(0, &mut kept).unwrap();
    assert!(kept == bytes, "what was frozen stays");
}

#[test]
fn names_that_are_not_there_are_refused_and_the_only_one_needs_none() {
    let world = World::new();
    let no = Nbd::new(world.connect(), "other", false).err().unwrap();
    assert!(no.to_string().contains("no such export"), "{no}");
    drop(Nbd::new(world.connect(), "", false).unwrap());
    drop(Nbd::new(world.connect(), "root", false).unwrap());
    let long = "x".repeat(300);
    let no = Nbd::new(world.connect(), &long, false).err().unwrap();
    assert!(no.to_string().contains("300 bytes"), "{no}");
    let export = Export {
        disk: world.disk.clone(),
        read_only: true,
    };
    let mut two = Exports::one("a", export.clone());
    two.insert("b", export.clone());
    assert!(two.find("").is_none() && two.find("b").is_some());
    let listener = UnixListener::bind(world.folder.path().join("other")).unwrap();
    let refused = serve(
        listener,
        Exports::one(&long, export),
        world.service.shared.report.clone(),
    );
    assert!(matches!(refused, Err(ServeError::Name { len: 300 })));
}

/// Requests of a guest's driver, one at a time or many.
struct Driver {
    guest: TestGuest,
    ring: GuestRing,
}

impl Driver {
    fn new(transport: Transport, disk: Nbd) -> Self {
        let block = Block::new(Box::new(disk), Engine::default(), Options::default()).unwrap();
        let mut guest = TestGuest::new(transport, block);
        // Version 1, flush, discard, write zeroes.
        let ring = guest.start(1 << 32 | 1 << 9 | 1 << 13 | 1 << 14, 256);
        Self { guest, ring }
    }

    /// Offers a request; the last buffer is its status.
    fn add(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Buffer {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let header = self.ring.data(&header);
        let status = Buffer {
            writable: true,
            ..self.ring.data(&[0xff])
        };
        self.ring.add(&[&[header], data, &[status]].concat());
        status
    }

    fn finish(&mut self, mut requests: usize) {
        self.guest.notify(0);
        for _ in 0..20_000 {
            while self.ring.used().is_some() {
                requests -= 1;
            }
            if requests == 0 {
                return;
            }
            self.guest.run();
            thread::sleep(Duration::from_micros(200));
        }
        panic!("{requests} requests do not come back");
    }
}

#[test]
fn a_guests_requests_come_to_the_store_by_both_transports_many_at_a_time() {
    for &transport in Transport::ALL {
        let world = World::new();
        let disk = Nbd::new(world.connect(), "", false).unwrap();
        let mut driver = Driver::new(transport, disk);
        let mut model = vec![0_u8; usize::try_from(LEN).unwrap()];
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for round in 0..60 {
            driver.ring.reuse_buffers();
            let mut statuses = Vec::new();
            let mut reads = Vec::new();
            // Each on a part of the disk of its own: their order is nobody's promise.
            for part in 0..32 {
                let sectors = 1 + random(7);
                let sector = part * 512 + random(500);
                let at = usize::try_from(sector * 512).unwrap();
                let len = usize::try_from(sectors * 512).unwrap();
                statuses.push(match random(4) {
                    0 | 1 => {
                        let byte = u8::try_from(random(256)).unwrap();
                        let data = driver.ring.data(&vec![byte; len]);
                        model[at..at + len].fill(byte);
                        driver.add(1, sector, &[data])
                    }
                    2 => {
                        let mut range = sector.to_le_bytes().to_vec();
                        range.extend(u32::try_from(sectors).unwrap().to_le_bytes());
                        range.extend(u32::to_le_bytes(1));
                        let range = driver.ring.data(&range);
                        model[at..at + len].fill(0);
                        driver.add(13, 0, &[range])
                    }
                    _ => {
                        let room = driver.ring.buffer(u32::try_from(len).unwrap(), true);
                        reads.push((room, at, len));
                        driver.add(0, sector, &[room])
                    }
                });
            }
            driver.finish(statuses.len());
            for status in statuses {
                assert_eq!(driver.ring.contents(status), [0], "round {round}");
            }
            for (room, at, len) in reads {
                assert!(
                    driver.ring.contents(room) == model[at..at + len],
                    "round {round}"
                );
            }
        }
        let status = driver.add(4, 0, &[]);
        driver.finish(1);
        assert_eq!(driver.ring.contents(status), [0]);
        assert!(read(&world.disk, 0, model.len()) == model);
        assert!(world.reports.lock().unwrap().is_empty());
    }
}

#[test]
fn requests_that_make_no_sense_are_refused_and_change_nothing() {
    let world = World::new();
    let mut client = world.client();
    let (read_, write) = (protocol::READ, protocol::WRITE);
    let (trim, zeroes) = (protocol::TRIM, protocol::WRITE_ZEROES);
    world.disk.write_at(0, &[7; 8192]).unwrap();
    for (command, flags, offset, len, expected) in [
        (read_, 0, LEN - 511, 512, EINVAL),
        (read_, 0, u64::MAX, 512, EINVAL),
        (read_, 0, 0, protocol::MAX_DATA + 1, EINVAL),
        (read_, 4, 0, 512, EINVAL),
        (trim, 0, LEN, 1, EINVAL),
        (zeroes, 0, LEN - 4096, 8192, ENOSPC),
        (zeroes, 0, u64::MAX - 1, 4096, ENOSPC),
        (zeroes, 1 << 4, 0, 4096, EINVAL),
        (protocol::FLUSH, 0, 1, 0, EINVAL),
        (protocol::FLUSH, 0, 0, 1, EINVAL),
        (5, 0, 0, 0, EINVAL),
        (77, 0, 0, 512, EINVAL),
    ] {
        let error = client.ask(command, flags, offset, len, &[]);
        assert_eq!(error, expected, "{command} {flags} {offset} {len}");
    }
    assert_eq!(client.ask(write, 0, LEN - 100, 512, &[1; 512]), ENOSPC);
    assert_eq!(client.ask(write, 1 << 9, 0, 512, &[1; 512]), EINVAL);
    assert!(read(&world.disk, 0, 8192) == [7; 8192]);
    assert_eq!(read(&world.disk, LEN - 100, 100), [0; 100]);
    // The connection is as good as ever.
    assert_eq!(client.ask(write, protocol::FUA, 512, 512, &[9; 512]), 0);
    assert_eq!(client.ask(write, 0, LEN, 0, &[]), 0);
    client.send(read_, 0, 512, 512, &[]);
    assert_eq!(client.reply(512), 0);
    let mut data = [0; 512];
    client.0.read_exact(&mut data).unwrap();
    assert_eq!(data, [9; 512]);
    // More than anybody takes ends it.
    client.send(write, 0, 0, protocol::MAX_DATA + 1, &[1; 4096]);
    assert!(client.is_closed());
}

#[test]
fn the_longest_requests_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let medium = Arc::new(Directory::open(folder.path().join("store")).unwrap());
    let store = Store::create(medium, store::Options::default()).unwrap();
    let max = protocol::MAX_DATA;
    let disk = Arc::new(store.create_disk("d", u64::from(max) * 2, None).unwrap());
    let (listener, path) = {
        let path = folder.path().join("socket");
        (UnixListener::bind(&path).unwrap(), path)
    };
    let export = Export {
        disk,
        read_only: false,
    };
    let _service = serve(listener, Exports::one("d", export), Arc::new(|_| {})).unwrap();
    let url = format!("nbd+unix:///d?socket={}", path.display());
    let output = Command::new("qemu-io")
        .args(["-f", "raw", &url, "-c", "write -P 0x77 1M 32M"])
        .args(["-c", "read -P 0x77 1M 32M", "-c", "write -z -u 0 64M"])
        .args(["-c", "read -P 0 1M 32M"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && !said.contains("failed"),
        "{output:?}"
    );
}

#[test]
fn a_read_only_export_takes_no_change() {
    let world = World::with(true);
    let mut client = world.client();
    assert_eq!(client.ask(protocol::WRITE, 0, 0, 4, &[1; 4]), EPERM);
    assert_eq!(client.ask(protocol::TRIM, 0, 0, 4096, &[]), EPERM);
    assert_eq!(client.ask(protocol::WRITE_ZEROES, 0, 0, 4096, &[]), EPERM);
    assert_eq!(client.ask(protocol::FLUSH, 0, 0, 0, &[]), 0);
    assert_eq!(read(&world.disk, 0, 4), [0; 4]);
    let disk = Nbd::new(world.connect(), "", false).unwrap();
    assert!(devices::virtio::block::Backend::read_only(&disk));
}

#[test]
fn too_many_clients_are_turned_away_and_the_next_is_served_when_one_goes() {
    let world = World::new();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| world.client()).collect();
    let mut late = Client(world.connect());
    assert!(late.is_closed());
    assert_eq!(world.service.connections(), MAX_CONNECTIONS);
    clients.pop();
    for _ in 0..1000 {
        let mut stream = world.connect();
        if stream.read_exact(&mut [0; GREETING_LEN]).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody is served any more");
}

#[test]
fn a_service_that_stops_answers_nobody_and_lets_go_of_the_disk() {
    let mut world = World::new();
    let mut clients: Vec<_> = (0..5).map(|_| world.client()).collect();
    // In the middle of a request, and of a negotiation.
    clients[0].send(protocol::WRITE, 0, 0, 1 << 20, &[1; 1000]);
    let mut silent = world.connect();
    world.service.stop();
    assert_eq!(world.service.connections(), 0);
    for client in &mut clients {
        assert!(client.is_closed());
    }
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(UnixStream::connect(world.socket()).is_err());
    let World { service, disk, .. } = world;
    drop(service);
    assert_eq!(Arc::strong_count(&disk), 1);
    assert_eq!(read(&disk, 0, 1000), [0; 1000], "half a request is none");
}

#[test]
fn a_disk_that_fails_is_reported_and_its_clients_are_told() {
    struct Broken;
    impl BlockDevice for Broken {
        fn size(&self) -> u64 {
            4096
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> store::Result<()> {
            self.flush()
        }
        fn write_at(&self, _: u64, _: &[u8]) -> store::Result<()> {
            self.flush()
        }
        fn flush(&self) -> store::Result<()> {
            let name = "gone".to_owned();
            Err(store::Error::NoDisk { name })
        }
        fn discard(&self, _: u64, _: u64) -> store::Result<()> {
            self.flush()
        }
    }
    let mut world = World::new();
    world.service.stop();
    fs::remove_file(world.socket()).unwrap();
    let listener = UnixListener::bind(world.socket()).unwrap();
    let export = Export {
        disk: Arc::new(Broken),
        read_only: false,
    };
    let report = world.service.shared.report.clone();
    world.service = serve(listener, Exports::one("root", export), report).unwrap();
    let mut client = world.client();
    for _ in 0..4 {
        assert_eq!(client.ask(protocol::READ, 0, 0, 512, &[]), protocol::EIO);
        assert_eq!(client.ask(protocol::WRITE, 0, 0, 3, &[0; 3]), protocol::EIO);
        assert_eq!(client.ask(protocol::TRIM, 0, 0, 512, &[]), protocol::EIO);
        assert_eq!(client.ask(protocol::FLUSH, 0, 0, 0, &[]), protocol::EIO);
    }
    let reports = world.reports.lock().unwrap();
    // The first, second, fourth, eighth and sixteenth.
    assert_eq!(reports.len(), 5, "{reports:?}");
    assert!(reports[0].contains("gone"), "{reports:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_end_their_connection_and_nobody_elses(
        negotiated in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        options in proptest::collection::vec((0_u32..12, 0_usize..300), 0..8),
    ) {
        let world = World::new();
        let mut good = world.client();
        let mut bad = if negotiated { world.client().0 } else { world.connect() };
        if !negotiated {
            bad.write_all(&3_u32.to_be_bytes()).unwrap();
            for (option, len) in options {
                let _ = bad.write_all(&protocol::option(option, &bytes[..len.min(bytes.len())]));
            }
        }
        let _ = bad.write_all(&bytes);
        let _ = bad.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = bad.read_to_end(&mut said);
        prop_assert_eq!(good.ask(protocol::WRITE, 0, 0, 4, b"good"), 0);
        prop_assert_eq!(read(&world.disk, 0, 4), b"good");
    }
}
