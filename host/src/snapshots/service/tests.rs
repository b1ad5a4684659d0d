//! The service with a real store and a VMM that is played: what the supervisor and the VMM see of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use devices::memory::GuestMemory;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm::live::protocol::{
    Decoder, End, Memory, Message, Order, PAGE, Report, encode_state, pages_header,
};
use vmm::userfault::{Features, Modes, Userfault};

use super::super::protocol::{
    Begin, DiskSource, Done, Load, Opened, Origin, Reply, Request, StoreCommand, What,
};
use super::super::{CHECKPOINT, READY, SUSPENDED, Thinning};
use super::serve;

/// The service in a thread, and the supervisor's end of it.
struct Desk {
    folder: tempfile::TempDir,
    stream: BufReader<UnixStream>,
    id: u64,
    service: Option<JoinHandle<std::io::Result<()>>>,
}

impl Desk {
    fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    fn over(folder: tempfile::TempDir) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = folder.path().join("channels");
        let _ = fs::remove_file(&socket);
        let channels = UnixListener::bind(&socket).unwrap();
        let store = folder.path().join("store");
        let service = thread::spawn(move || serve(theirs, channels, &store, "here"));
        let mut desk = Self {
            folder,
            stream: BufReader::new(ours),
            id: 0,
            service: Some(service),
        };
        let greeting = desk.hear();
        assert!(
            matches!(
                greeting,
                Reply {
                    id: 0,
                    done: Done::Ok(_)
                }
            ),
            "{greeting:?}"
        );
        desk
    }

    fn hear(&mut self) -> Reply {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, what: What) -> Result<Value, String> {
        self.id += 1;
        let request = Request { id: self.id, what };
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).unwrap();
        loop {
            let reply = self.hear();
            assert_eq!(reply.id, self.id);
            match reply.done {
                Done::Ok(value) => return Ok(value),
                Done::Error(reason) => return Err(reason),
                Done::Progress { .. } => {}
            }
        }
    }

    fn open(&mut self, guest: &str, disks: &[&str], from: Option<u64>) -> Result<Opened, String> {
        let from = from.map(|snapshot| Origin {
            snapshot,
            fork_of: None,
        });
        self.open_from(guest, disks, from)
    }

    fn open_from(
        &mut self,
        guest: &str,
        disks: &[&str],
        from: Option<Origin>,
    ) -> Result<Opened, String> {
        self.begin(guest, disks, from.map_or(Begin::Left, Begin::From))
    }

    fn begin(&mut self, guest: &str, disks: &[&str], begin: Begin) -> Result<Opened, String> {
        let disks = disks.iter().enumerate();
        let what = What::Open {
            guest: guest.to_owned(),
            disks: disks
                .map(|(index, image)| DiskSource {
                    drive_id: format!("disk{index}"),
                    image: self.folder.path().join(image),
                })
                .collect(),
            begin,
            folder: self.folder.path().join(guest),
        };
        Ok(serde_json::from_value(self.ask(what)?).unwrap())
    }

    fn take(&mut self, guest: &str) -> Result<Value, String> {
        self.take_with(guest, &BTreeMap::new(), None)
    }

    fn take_with(
        &mut self,
        guest: &str,
        labels: &BTreeMap<String, String>,
        thinning: Option<Thinning>,
    ) -> Result<Value, String> {
        loop {
            let what = What::Take {
                guest: guest.to_owned(),
                labels: labels.clone(),
                thinning,
            };
            match self.ask(what) {
                // The channel has been made, and may not have arrived.
                Err(error) if error.contains("no VMM has a live channel") => thread::yield_now(),
                taken => return taken,
            }
        }
    }

    fn close(&mut self, guest: &str) {
        let guest = guest.to_owned();
        self.ask(What::Close { guest }).unwrap();
    }

    fn stored(&mut self, command: StoreCommand) -> Result<Value, String> {
        self.ask(What::Stored { command })
    }

    /// A live channel, as the supervisor makes it before it starts a VMM.
    fn channel(&self, guest: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("channels")).unwrap();
        stream.write_all(format!("{guest}\n").as_bytes()).unwrap();
        stream
    }

    /// Ends the service, and hands its folder over.
    fn end(mut self) -> tempfile::TempDir {
        self.stream
            .get_mut()
            .shutdown(std::net::Shutdown::Both)
            .unwrap();
        self.service.take().unwrap().join().unwrap().unwrap();
        // A process would have ended now. Who has served memory here may have something to note still.
        let lock = fs::File::open(self.folder.path().join("store/lock")).unwrap();
        lock.lock().unwrap();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

/// The VMM's side of one snapshot: memory in which the pages `at` are full of `byte`, all else zero, or as before.
fn play(stream: &UnixStream, at: &[u64], byte: u8, during: impl FnOnce()) -> Order {
    let mut decoder = Decoder::<Order>::new();
    let mut reader = stream;
    let mut hear = || decoder.receive(&mut reader).unwrap().unwrap();
    let Order::Take(take) = hear() else {
        panic!("an order to take a snapshot");
    };
    let say = |report: Report| (&*stream).write_all(&report.encode()).unwrap();
    let (number, full) = (take.number, take.full);
    say(Report::Memory(Memory {
        number,
        full,
        len: 64 * PAGE as u64,
    }));
    say(Report::Freeze);
    assert_eq!(hear(), Order::Frozen);
    // What is written from here on is not in the snapshot.
    during();
    for part in encode_state(&[byte; 5000]) {
        (&*stream).write_all(&part).unwrap();
    }
    for page in at {
        let offset = page * PAGE as u64;
        (&*stream).write_all(&pages_header(offset, PAGE)).unwrap();
        (&*stream).write_all(&[byte; PAGE]).unwrap();
    }
    let pages = at.len() as u64;
    say(Report::End(End {
        number,
        pause_us: 7,
        pages,
    }));
    hear()
}

fn image(folder: &Path, name: &str, byte: u8) {
    fs::write(folder.join(name), vec![byte; 1 << 20]).unwrap();
}

/// What a client of the disk reads at its start, after it has written `write` there.
fn disk(socket: &Path, write: Option<u8>) -> u8 {
    use std::process::Command;
    let target = format!("nbd+unix:///?socket={}", socket.display());
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", &target]);
    if let Some(byte) = write {
        command.args(["-c", &format!("write -q -P {byte} 0 64k"), "-c", "flush"]);
    }
    let out = command.args(["-c", "read -v 0 1"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let byte = text.split_whitespace().nth(1);
    let byte = byte.and_then(|byte| u8::from_str_radix(byte, 16).ok());
    byte.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&out.stderr)))
}

/// The memory that a VMM gets which goes on from `load`, by a userfaultfd of this process.
fn memory_of(load: &Load) -> Vec<u8> {
    asked_for(load, |memory| {
        let mut bytes = vec![0; 64 * PAGE];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    })
}

/// What `ask` finds in the memory of a VMM that goes on from `load`.
fn asked_for<T>(load: &Load, ask: impl FnOnce(&GuestMemory) -> T) -> T {
    let memory = devices::memory::anonymous(&[(GuestAddress(0), 64 * PAGE)]).unwrap();
    let region = memory.iter().next().unwrap();
    let userfault = Userfault::open(Features::NONE).unwrap();
    let modes = Modes {
        missing: true,
        write_protect: false,
    };
    userfault.register(region, modes).unwrap();
    let address = region.get_host_address(MemoryRegionAddress(0)).unwrap();
    let mappings = json!([{
        "base_host_virt_addr": address.addr(),
        "size": 64 * PAGE,
        "offset": 0,
        "page_size": PAGE,
        "page_size_kib": PAGE,
    }]);
    let stream = UnixStream::connect(&load.memory).unwrap();
    let text = mappings.to_string();
    let fds = [userfault.as_fd().as_raw_fd()];
    let slices = [IoSlice::new(text.as_bytes())];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &slices,
        &rights,
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    ask(&memory)
}

/// Which pages are there without anybody having asked for them.
fn there(memory: &GuestMemory) -> Vec<u64> {
    let pagemap = fs::File::open("/proc/self/pagemap").unwrap();
    let start = memory.get_host_address(GuestAddress(0)).unwrap().addr() / PAGE;
    let mut entries = [0; 64 * 8];
    std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entries, start as u64 * 8).unwrap();
    let entries = (0..).zip(entries.as_chunks().0);
    let present = entries.filter(|(_, entry)| u64::from_le_bytes(**entry) >> 63 != 0);
    present.map(|(page, _)| page).collect()
}

#[test]
fn what_a_guest_waited_for_is_there_sooner_the_next_time_and_after_later_snapshots() {
    let mut desk = Desk::new();
    desk.open("web", &[], None).unwrap();
    let channel = desk.channel("web");
    let all: Vec<u64> = (0..64).collect();
    let vmm = thread::spawn(move || play(&channel, &all, 0xaa, || ()));
    let take = |desk: &mut Desk| desk.take("web").unwrap()["id"].as_u64().unwrap();
    let first = take(&mut desk);
    vmm.join().unwrap();
    let restore = |desk: &mut Desk, id: u64| {
        desk.close("web");
        let opened = desk.open("web", &[], Some(id)).unwrap();
        assert_eq!(opened.remarks, [""; 0]);
        opened.load.unwrap()
    };
    let load = restore(&mut desk, first);
    asked_for(&load, |memory| {
        assert!(there(memory).is_empty());
        for page in [40, 3, 17] {
            let byte: u8 = memory.read_obj(GuestAddress(page * PAGE as u64)).unwrap();
            assert_eq!(byte, 0xaa);
        }
    });
    // It is kept when the VMM is seen to have gone, and used from then on; and so is what is waited for then.
    let until = |desk: &mut Desk, id: u64, expected: &[u64]| {
        for _ in 0..600 {
            let load = restore(desk, id);
            let found = asked_for(&load, |memory| {
                for _ in 0..20 {
                    if there(memory) == expected {
                        break;
                    }
                    thread::sleep(std::time::Duration::from_millis(5));
                }
                there(memory)
            });
            if found == expected {
                return;
            }
        }
        panic!("{expected:?} are not fetched ahead");
    };
    until(&mut desk, first, &[3, 17, 40]);
    let load = restore(&mut desk, first);
    asked_for(&load, |memory| {
        let byte: u8 = memory.read_obj(GuestAddress(9 * PAGE as u64)).unwrap();
        assert_eq!(byte, 0xaa);
    });
    until(&mut desk, first, &[3, 9, 17, 40]);

    let channel = desk.channel("web");
    let vmm = thread::spawn(move || play(&channel, &[1], 0xbb, || ()));
    let second = take(&mut desk);
    vmm.join().unwrap();
    until(&mut desk, second, &[3, 9, 17, 40]);
    desk.close("web");
    // A guest that does not go on any more.
    loop {
        match desk.stored(StoreCommand::Delete { snapshot: first }) {
            Err(error) if error.contains("in use") => thread::yield_now(),
            done => break drop(done.unwrap()),
        }
    }
    until(&mut desk, second, &[3, 9, 17, 40]);
}

#[test]
fn snapshots_are_taken_listed_gone_back_to_and_deleted() {
    let mut desk = Desk::new();
    image(desk.folder.path(), "root.img", 1);
    let opened = desk.open("web", &["root.img"], None).unwrap();
    assert_eq!((opened.load, opened.sockets.len()), (None, 1));
    let socket = opened.sockets[0].clone();
    assert_eq!(disk(&socket, None), 1);
    assert_eq!(disk(&socket, Some(2)), 2);
    let channel = desk.channel("web");
    let vmm = thread::spawn({
        let channel = channel.try_clone().unwrap();
        move || {
            let first = play(&channel, &[0, 5], 0xaa, || {
                assert_eq!(disk(&socket, Some(3)), 3);
            });
            let second = play(&channel, &[5], 0xbb, || ());
            [first, second]
        }
    });
    let first = desk.take("web").unwrap();
    let second = desk.take("web").unwrap();
    let ends = vmm.join().unwrap();
    assert!(
        ends.iter().all(|end| matches!(end, Order::Kept(_))),
        "{ends:?}"
    );
    let (one, two) = (
        first["id"].as_u64().unwrap(),
        second["id"].as_u64().unwrap(),
    );
    assert_eq!(
        (&second["parent"], &second["pages"]),
        (&json!(one), &json!(1))
    );
    let list = desk.stored(StoreCommand::List { guest: None }).unwrap();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 2);
    // The image is as it was.
    assert_eq!(fs::read(desk.folder.path().join("root.img")).unwrap()[0], 1);
    desk.close("web");

    // As it left them.
    let opened = desk.open("web", &["root.img"], None).unwrap();
    assert_eq!(disk(&opened.sockets[0], None), 3);
    desk.close("web");

    // The first one: disk, state and memory of one instant.
    let opened = desk.open("web", &["root.img"], Some(one)).unwrap();
    assert_eq!(disk(&opened.sockets[0], None), 2);
    let load = opened.load.unwrap();
    assert_eq!(fs::read(&load.state).unwrap(), [0xaa; 5000]);
    let memory = memory_of(&load);
    assert_eq!(
        [memory[0], memory[5 * PAGE], memory[6 * PAGE]],
        [0xaa, 0xaa, 0]
    );
    desk.close("web");

    // The second has what the first has, and its changes.
    let opened = desk.open("web", &["root.img"], Some(two)).unwrap();
    let memory = memory_of(&opened.load.unwrap());
    assert_eq!(
        [memory[0], memory[5 * PAGE], memory[6 * PAGE]],
        [0xaa, 0xbb, 0]
    );
    desk.close("web");

    desk.stored(StoreCommand::Delete { snapshot: one }).unwrap();
    let verified = desk.stored(StoreCommand::Verify).unwrap();
    assert_eq!(verified["problems"], json!([]));
    let error = desk.open("web", &["root.img"], Some(one)).unwrap_err();
    assert!(error.contains(&one.to_string()), "{error}");

    // Another day.
    let mut desk = Desk::over(desk.end());
    let found = desk.ask(What::Find {
        guest: "web".to_owned(),
        snapshot: None,
    });
    assert_eq!(found.unwrap()["snapshot"], json!(two));
    // The disk stands on a snapshot that stands on the image.
    let opened = desk.open("web", &["root.img"], None).unwrap();
    assert_eq!(disk(&opened.sockets[0], None), 3);
}

#[test]
fn a_vmm_that_dies_or_lies_leaves_no_snapshot() {
    let mut desk = Desk::new();
    let error = desk.take("web").unwrap_err();
    assert!(error.contains("does not run"), "{error}");
    let lies: [(&str, Vec<u8>); 4] = [
        ("cannot be understood", vec![0xff; 64]),
        ("pages of no memory", {
            let mut bytes = pages_header(0, PAGE).to_vec();
            bytes.extend([0; PAGE]);
            bytes
        }),
        ("does not answer", Vec::new()),
        ("without memory", {
            let end = End {
                number: 1,
                pause_us: 0,
                pages: 0,
            };
            Report::End(end).encode()
        }),
    ];
    for (expected, bytes) in lies {
        desk.close("web");
        let mut channel = desk.channel("web");
        let vmm = thread::spawn(move || {
            let mut decoder = Decoder::<Order>::new();
            decoder.receive(&mut channel).unwrap();
            channel.write_all(&bytes).unwrap();
            channel.shutdown(std::net::Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            let _ = channel.read_to_end(&mut rest);
        });
        let error = loop {
            // The channel has been made, and may not have arrived.
            match desk.take("web") {
                Err(error) if error.contains("does not run") => {}
                done => break done.unwrap_err(),
            }
        };
        assert!(error.contains(expected), "{expected}: {error}");
        desk.close("web");
        vmm.join().unwrap();
    }
    let list = desk.stored(StoreCommand::List { guest: None }).unwrap();
    assert_eq!(list["snapshots"], json!([]));
}

#[test]
fn a_vmm_that_is_silent_for_too_long_has_snapshots_again_later() {
    let mut desk = Desk::new();
    let channel = desk.channel("web");
    let vmm = thread::spawn(move || {
        let mut decoder = Decoder::<Order>::new();
        let mut hear = || decoder.receive(&mut &channel).unwrap().unwrap();
        assert!(matches!(hear(), Order::Take(_)));
        assert!(matches!(hear(), Order::Lost(_)), "for want of an answer");
        // What it comes to say of that one is too late.
        let (number, pause_us, pages) = (1, 7, 0);
        let late = Report::End(End {
            number,
            pause_us,
            pages,
        });
        (&channel).write_all(&late.encode()).unwrap();
        play(&channel, &[3], 0xcc, || ())
    });
    let error = loop {
        match desk.take("web") {
            Err(error) if error.contains("does not run") => {}
            done => break done.unwrap_err(),
        }
    };
    assert!(error.contains("silent"), "{error}");
    desk.take("web").unwrap();
    assert!(matches!(vmm.join().unwrap(), Order::Kept(_)));
}

#[test]
fn a_store_of_another_machine_or_a_foreign_folder_is_refused_with_the_reason() {
    let desk = Desk::new();
    let folder = desk.end();
    let greet = |folder: &Path, machine: &str| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = folder.join("channels");
        let _ = fs::remove_file(&socket);
        let channels = UnixListener::bind(&socket).unwrap();
        let store = folder.join("store");
        serve(theirs, channels, &store, machine).unwrap();
        let mut line = String::new();
        BufReader::new(ours).read_line(&mut line).unwrap();
        line
    };
    let line = greet(folder.path(), "elsewhere");
    assert!(line.contains("error") && line.contains("here"), "{line}");
    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("store")).unwrap();
    fs::write(other.path().join("store/precious"), "mine").unwrap();
    let line = greet(other.path(), "here");
    assert!(line.contains("error"), "{line}");
    assert_eq!(
        fs::read(other.path().join("store/precious")).unwrap(),
        b"mine"
    );
}

#[test]
fn forks_have_one_memory_and_disks_of_their_own() {
    let mut desk = Desk::new();
    image(desk.folder.path(), "root.img", 1);
    let opened = desk.open("web", &["root.img"], None).unwrap();
    assert_eq!(disk(&opened.sockets[0], Some(2)), 2);
    let channel = desk.channel("web");
    let vmm = thread::spawn(move || play(&channel, &[0, 5], 0xaa, || ()));
    let id = desk.take("web").unwrap()["id"].as_u64().unwrap();
    vmm.join().unwrap();
    assert_eq!(disk(&opened.sockets[0], Some(3)), 3);

    let origin = || Origin {
        snapshot: id,
        fork_of: Some("web".to_owned()),
    };
    let mut fork = |name: &str| {
        let from = Some(origin());
        desk.open_from(name, &["root.img"], from).unwrap()
    };
    let forks = [fork("web-1"), fork("web-2")];
    // The one that they are of runs on.
    assert_eq!(disk(&forks[0].sockets[0], None), 2);
    assert_eq!(disk(&forks[0].sockets[0], Some(7)), 7);
    assert_eq!(disk(&forks[1].sockets[0], None), 2);
    assert_eq!(disk(&opened.sockets[0], None), 3);
    let loads = forks.map(|fork| fork.load.unwrap());
    assert_eq!(loads[0].memory, loads[1].memory);
    let memory = fs::read(&loads[0].memory).unwrap();
    assert_eq!(memory.len(), 64 * PAGE);
    assert_eq!(
        [memory[0], memory[5 * PAGE], memory[6 * PAGE]],
        [0xaa, 0xaa, 0]
    );
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&loads[0].memory).unwrap());
    assert!(blocks < 4 * PAGE as u64 / 512, "zeroes take no room");
    desk.close("web-1");
    assert!(loads[0].memory.exists(), "the other one has it still");
    desk.close("web-2");
    assert!(!loads[0].memory.exists());

    // Another guest's snapshot is nothing to go on from, other than as its fork.
    let error = desk.open("mail", &["root.img"], Some(id)).unwrap_err();
    assert!(error.contains("web"), "{error}");
}

#[test]
fn checkpoints_are_thinned_and_other_snapshots_are_not() {
    let mut desk = Desk::new();
    let none = Thinning {
        seconds: 0,
        minutes: 0,
        hours: 0,
        budget: None,
    };
    desk.open("web", &[], None).unwrap();
    let channel = desk.channel("web");
    let vmm = thread::spawn(move || {
        for byte in 1..=4 {
            play(&channel, &[byte.into()], byte, || ());
        }
    });
    let mut take = |labels: &[&str]| {
        let labels = labels
            .iter()
            .map(|label| ((*label).to_owned(), "yes".to_owned()));
        let taken = desk.take_with("web", &labels.collect(), Some(none));
        taken.unwrap()["id"].as_u64().unwrap()
    };
    let ids = [
        take(&[CHECKPOINT]),
        take(&[]),
        take(&[CHECKPOINT]),
        take(&[CHECKPOINT]),
    ];
    vmm.join().unwrap();
    let list = desk.stored(StoreCommand::List { guest: None }).unwrap();
    let list = list["snapshots"].as_array().unwrap();
    let left: Vec<_> = list.iter().map(|one| one["id"].as_u64().unwrap()).collect();
    assert_eq!(left, [ids[1], ids[3]]);
    // What is left has all that it had.
    desk.close("web");
    let opened = desk.open("web", &[], Some(ids[3])).unwrap();
    let memory = memory_of(&opened.load.unwrap());
    assert_eq!(
        [0, 1, 2, 3, 4].map(|page| memory[page * PAGE]),
        [0, 1, 2, 3, 4]
    );
    assert_eq!(
        desk.stored(StoreCommand::Verify).unwrap()["problems"],
        json!([])
    );
}

/// A guest with a disk, and three snapshots in which disk and memory are full of 1, 2 and 3; 4 is what it wrote last.
fn lived(desk: &mut Desk) -> Vec<u64> {
    image(desk.folder.path(), "root.img", 9);
    let opened = desk.begin("web", &["root.img"], Begin::Resume).unwrap();
    assert_eq!(opened.load, None, "nothing to go on from");
    let socket = &opened.sockets[0];
    let channel = desk.channel("web");
    let vmm = thread::spawn(move || {
        for byte in 1..=3 {
            play(&channel, &[0], byte, || ());
        }
    });
    let mut ids = Vec::new();
    for byte in 1..=3 {
        assert_eq!(disk(socket, Some(byte)), byte);
        ids.push(desk.take("web").unwrap()["id"].as_u64().unwrap());
    }
    vmm.join().unwrap();
    assert_eq!(disk(socket, Some(4)), 4);
    desk.close("web");
    ids
}

fn fallen(steps: u32) -> Begin {
    Begin::Back {
        steps,
        reason: "fire".to_owned(),
    }
}

#[test]
fn a_fallen_guest_goes_back_to_good_snapshots_only_and_what_its_disk_was_is_kept() {
    let mut desk = Desk::new();
    let ids = lived(&mut desk);
    // None is known to be good, and none was taken while it was ready.
    let opened = desk.begin("web", &["root.img"], fallen(0)).unwrap();
    assert_eq!((opened.load, opened.lost), (None, None));
    assert_eq!(disk(&opened.sockets[0], None), 4);
    desk.close("web");

    let snapshots = vec![ids[0], ids[1], 999];
    desk.ask(What::Good { snapshots }).unwrap();
    for (steps, expected) in [(0, 2), (1, 1)] {
        let opened = desk.begin("web", &["root.img"], fallen(steps)).unwrap();
        let load = opened.load.unwrap();
        assert_eq!(load.snapshot, ids[usize::from(expected) - 1]);
        assert_eq!(disk(&opened.sockets[0], None), expected);
        let lost = opened.lost.unwrap();
        assert!(lost.ms.is_some() && lost.evidence.is_some(), "{lost:?}");
        if steps == 0 {
            assert_eq!(lost.bytes, 64 << 10, "what was written since");
        }
        desk.close("web");
    }
    // So far back there is none: it boots from what it has.
    let opened = desk.begin("web", &["root.img"], fallen(2)).unwrap();
    assert_eq!((opened.load, opened.lost), (None, None));
    desk.close("web");

    let all = desk.stored(StoreCommand::List { guest: None }).unwrap();
    let all = all["snapshots"].as_array().unwrap();
    let kept: Vec<_> = all
        .iter()
        .filter(|it| it["labels"]["fallen"] == "fire")
        .collect();
    assert_eq!(kept.len(), 2, "{all:?}");
    // It is not among those that are gone on from.
    let found = desk.ask(What::Find {
        guest: "web".to_owned(),
        snapshot: None,
    });
    assert_eq!(found.unwrap()["snapshot"], json!(ids[2]));
    let verified = desk.stored(StoreCommand::Verify).unwrap();
    assert_eq!(verified["problems"], json!([]));

    // Its disks can be booted from.
    let id = kept[0]["id"].as_u64().unwrap();
    let guest = "web".to_owned();
    let snapshot = Some(id);
    let found = desk.ask(What::Find { guest, snapshot }).unwrap();
    assert_eq!(found["snapshot"], json!(id));
    let opened = desk.open("web", &["root.img"], Some(id)).unwrap();
    assert_eq!((opened.load, opened.disks_of), (None, Some(id)));
    assert_eq!(disk(&opened.sockets[0], None), 4);
    desk.close("web");

    // The last resort: as if it had never run.
    let factory = Begin::Factory {
        reason: "fire".to_owned(),
    };
    let opened = desk.begin("web", &["root.img"], factory).unwrap();
    assert_eq!(opened.load, None);
    assert_eq!(disk(&opened.sockets[0], None), 9);
}

#[test]
fn a_guest_that_fell_before_any_snapshot_proved_itself_tries_those_of_when_it_was_ready() {
    let mut desk = Desk::new();
    drop(lived(&mut desk));
    let labels = BTreeMap::from([(READY.to_owned(), "yes".to_owned())]);
    let mut ready = Vec::new();
    for content in [5, 6] {
        desk.open("web", &["root.img"], None).unwrap();
        let channel = desk.channel("web");
        let vmm = thread::spawn(move || play(&channel, &[0], content, || ()));
        let taken = desk.take_with("web", &labels, None).unwrap();
        vmm.join().unwrap();
        ready.push(taken["id"].as_u64().unwrap());
        desk.close("web");
    }
    for (steps, expected) in [(0, 1), (1, 0)] {
        let opened = desk.begin("web", &["root.img"], fallen(steps)).unwrap();
        assert_eq!(opened.load.unwrap().snapshot, ready[expected]);
        let said = opened.remarks.join("\n");
        assert!(said.contains("no snapshot is known to be good"), "{said}");
        desk.close("web");
    }
    // Not the others, which are of a guest that was not ready.
    let opened = desk.begin("web", &["root.img"], fallen(2)).unwrap();
    assert_eq!(opened.load, None);
    desk.close("web");
    // A power cut is no fall of its own: its disks are what it has written last.
    let mut desk = Desk::over(desk.end());
    let opened = desk.begin("web", &["root.img"], Begin::Resume).unwrap();
    assert_eq!(opened.load, None);
    desk.close("web");
    // As soon as one is known to be good, the others are not gone back to.
    let snapshots = vec![ready[0]];
    desk.ask(What::Good { snapshots }).unwrap();
    let opened = desk.begin("web", &["root.img"], fallen(0)).unwrap();
    assert_eq!(opened.load.unwrap().snapshot, ready[0]);
}

#[test]
fn what_is_kept_of_fallen_guests_is_bounded() {
    let mut desk = Desk::new();
    let ids = lived(&mut desk);
    desk.ask(What::Good { snapshots: ids }).unwrap();
    for _ in 0..8 {
        let opened = desk.begin("web", &["root.img"], fallen(0)).unwrap();
        assert!(opened.lost.unwrap().evidence.is_some());
        desk.close("web");
    }
    let all = desk.stored(StoreCommand::List { guest: None }).unwrap();
    let all = all["snapshots"].as_array().unwrap();
    let kept = all
        .iter()
        .filter(|it| it["labels"].get("fallen").is_some())
        .count();
    assert!((1..=4).contains(&kept), "{kept}");
}

#[test]
fn a_guest_resumes_unless_it_ended_in_order() {
    let mut desk = Desk::new();
    let ids = lived(&mut desk);
    let good = vec![ids[1]];
    desk.ask(What::Good { snapshots: good }).unwrap();
    // The power was cut: the third was not known to be good.
    let mut desk = Desk::over(desk.end());
    let opened = desk.begin("web", &["root.img"], Begin::Resume).unwrap();
    assert_eq!(opened.load.unwrap().snapshot, ids[1]);
    assert_eq!(disk(&opened.sockets[0], Some(5)), 5);
    desk.close("web");
    // It powered off: its disk is what counts.
    let guest = "web".to_owned();
    desk.ask(What::Left { guest }).unwrap();
    let mut desk = Desk::over(desk.end());
    let opened = desk.begin("web", &["root.img"], Begin::Resume).unwrap();
    assert_eq!(opened.load, None);
    assert_eq!(disk(&opened.sockets[0], None), 5);
    // The next snapshot is newer than that; it was suspended, which is good for once.
    let channel = desk.channel("web");
    let vmm = thread::spawn(move || play(&channel, &[0], 5, || ()));
    let labels = BTreeMap::from([(SUSPENDED.to_owned(), "yes".to_owned())]);
    let taken = desk.take_with("web", &labels, None);
    vmm.join().unwrap();
    desk.close("web");
    let mut desk = Desk::over(desk.end());
    let opened = desk.begin("web", &["root.img"], Begin::Resume).unwrap();
    let load = opened.load.unwrap();
    assert_eq!(json!(load.snapshot), taken.unwrap()["id"]);
    assert_eq!(opened.lost, None, "nothing was lost");
    desk.close("web");
    let opened = desk.begin("web", &["root.img"], fallen(0)).unwrap();
    assert_eq!(
        opened.load.unwrap().snapshot,
        ids[1],
        "it was not known to be good"
    );
}
