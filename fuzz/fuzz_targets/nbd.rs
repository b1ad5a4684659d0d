//! A client of the host's NBD server that says anything, before and after it has chosen a disk. The disk is asked only for
//! what it has, one that is read-only is not changed, and replies are those of the requests, in their order, with the data that
//! was written.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use devices::virtio::block::nbd::protocol::{
    DISCONNECT, FIXED_NEWSTYLE, FLUSH, MAX_DATA, NO_ZEROES, OPTION_ABORT, OPTION_EXPORT_NAME,
    OPTION_GO, OPTION_INFO, OPTION_LIST, READ, REPLY_LEN, REQUEST_LEN, Reply, Request, TRIM, WRITE,
    WRITE_ZEROES, ask_for, option,
};
use host::nbd::{Export, Exports, Report, attend};
use store::BlockDevice;

/// Bytes of the disk.
const LEN: usize = 16 << 10;
/// Bytes that the server says before the first reply, to a client that asks for a disk the old way, without padding.
const BEGINNING: usize = 18 + 10;

/// A disk that is never asked for what it has not.
struct Disk(Mutex<Vec<u8>>, bool);

impl Disk {
    fn with(&self, offset: u64, len: u64, what: impl FnOnce(&mut [u8])) -> store::Result<()> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (offset, offset.checked_add(len).expect("an end"));
        let place = usize::try_from(start).expect("small")..usize::try_from(end).expect("small");
        what(&mut bytes[place]);
        Ok(())
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        LEN as u64
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> store::Result<()> {
        self.with(offset, bytes.len() as u64, |disk| {
            bytes.copy_from_slice(disk)
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> store::Result<()> {
        assert!(!self.1, "it is read-only");
        self.with(offset, bytes.len() as u64, |disk| {
            disk.copy_from_slice(bytes)
        })
    }

    fn flush(&self) -> store::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> store::Result<()> {
        assert!(!self.1, "it is read-only");
        self.with(offset, len, |disk| disk.fill(0))
    }
}

/// Who hears what the server says, so that it never waits.
type Listener = (Sender<UnixStream>, Mutex<Receiver<Vec<u8>>>);

fn listener() -> &'static Listener {
    static LISTENER: OnceLock<Listener> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let (streams, arriving) = channel::<UnixStream>();
        let (heard, all) = channel();
        thread::spawn(move || {
            for mut stream in arriving {
                let mut said = Vec::new();
                // A connection that breaks off ends what was said.
                let _ = stream.read_to_end(&mut said);
                heard.send(said).expect("the target");
            }
        });
        (streams, Mutex::new(all))
    })
}

/// What the server says to `client`.
fn answer(client: &[u8], export: Export) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (streams, heard) = listener();
    let hearing = ours.try_clone().expect("a socket");
    streams.send(hearing).expect("the thread");
    // It fits the socket's buffer.
    ours.write_all(client).expect("a socket");
    ours.shutdown(Shutdown::Write).expect("a socket");
    let report: Report = Arc::new(|_| {});
    attend(theirs, &Exports::one("disk", export), &report);
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.recv().expect("the thread")
}

/// Compares what was said with the requests: a disk that was full of zeroes.
fn compare(mut requests: &[u8], mut said: &[u8]) {
    let mut disk = vec![0; LEN];
    while let Some((head, rest)) = requests.split_first_chunk::<REQUEST_LEN>() {
        let Ok(request) = Request::decode(head) else {
            break;
        };
        requests = rest;
        let len = usize::try_from(request.len).expect("32 bits");
        let mut data = &[][..];
        if request.command == DISCONNECT {
            break;
        }
        if request.command == WRITE {
            let Some((written, rest)) = requests.split_at_checked(len) else {
                break;
            };
            if request.len > MAX_DATA {
                break;
            }
            (data, requests) = (written, rest);
        }
        // Replies to who breaks the protocol later may never have been sent.
        let Some((head, rest)) = said.split_first_chunk::<REPLY_LEN>() else {
            break;
        };
        let reply = Reply::decode(head).expect("a reply");
        assert_eq!(reply.handle, request.handle);
        said = rest;
        if reply.error != 0 {
            continue;
        }
        let place = usize::try_from(request.offset).expect("inside the disk");
        match request.command {
            READ => {
                let (read, rest) = said.split_at(len);
                assert!(read == &disk[place..][..len], "other data was written");
                said = rest;
            }
            WRITE => disk[place..][..len].copy_from_slice(data),
            TRIM | WRITE_ZEROES => disk[place..][..len].fill(0),
            _ => {}
        }
    }
    assert!(said.is_empty(), "nobody has asked for {} bytes", said.len());
}

/// The start of a client that takes what there is.
fn beginning() -> Vec<u8> {
    let flags = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
    let mut bytes = flags.to_be_bytes().to_vec();
    bytes.extend(option(OPTION_EXPORT_NAME, &[]));
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let request = |command, offset: u64, len: u32| {
        let request = Request {
            flags: 0,
            command,
            handle: offset.wrapping_add(7),
            offset,
            len,
        };
        request.encode().to_vec()
    };
    let all = [
        request(WRITE, 512, 16),
        vec![5; 16],
        request(READ, 500, 100),
        request(TRIM, 0, 4096),
        request(WRITE_ZEROES, 516, 4),
        request(READ, 0, 4096),
        request(FLUSH, 0, 0),
        request(READ, LEN as u64 - 8, 9),
        request(WRITE, u64::MAX, 1),
        vec![1],
        request(DISCONNECT, 0, 0),
    ]
    .concat();
    let options = [
        option(OPTION_LIST, &[]),
        option(OPTION_INFO, &ask_for("disk")),
        option(OPTION_GO, &ask_for("")),
        option(OPTION_ABORT, &[]),
    ];
    let flags = u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
    vec![
        [vec![0], all.clone()].concat(),
        [vec![1], all.clone()].concat(),
        [vec![2], flags.clone(), options[..3].concat(), all].concat(),
        [vec![2], flags, options[0].clone(), options[3].clone()].concat(),
    ]
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let Some((how, data)) = data.split_first() else {
        return;
    };
    let data = &data[..data.len().min(64 << 10)];
    let read_only = how & 1 != 0;
    let disk = Disk(Mutex::new(vec![0; LEN]), read_only);
    let export = Export { disk: Arc::new(disk), read_only };
    if how & 2 != 0 {
        answer(data, export);
        return;
    }
    let said = answer(&[&beginning(), data].concat(), export);
    compare(data, &said[BEGINNING..]);
});
