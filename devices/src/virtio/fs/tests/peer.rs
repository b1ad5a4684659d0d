//! A back-end that speaks vhost-user byte for byte, and on demand breaks it. It answers each FUSE request with success.
#![expect(unsafe_code, reason = "owns the descriptors that it is sent")]

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::memory::{self, GuestMemory, RegionSpec};
use crate::virtio::chain::Chain;
use crate::virtio::device::Progress;
use crate::virtio::interrupt::{QueueInterrupt, VirtioInterrupt};
use crate::virtio::queue::{QueueRegisters, QueueState, RING_FEATURES, Virtqueue};

/// Requests of a frontend, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    SetVringEnable = 18,
}

const ALL: [Request; 13] = [
    Request::GetFeatures,
    Request::SetFeatures,
    Request::SetOwner,
    Request::SetMemTable,
    Request::SetVringNum,
    Request::SetVringAddr,
    Request::SetVringBase,
    Request::GetVringBase,
    Request::SetVringKick,
    Request::SetVringCall,
    Request::GetProtocolFeatures,
    Request::SetProtocolFeatures,
    Request::SetVringEnable,
];

/// How the protocol is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection ends.
    Close,
    /// The answer is one to another request.
    Garbage,
    /// The answer is a failure, or a number that cannot be.
    Refuse,
    /// The connection ends within the answer.
    Short,
    /// A descriptor comes with the answer.
    File,
    /// There is no answer.
    Silent,
    /// After it, only every other request of the guest is answered.
    Hold,
}

const REPLY: u32 = 1 << 2 | 1;
const NEED_REPLY: u32 = 1 << 3;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const REPLY_ACK: u64 = 1 << 3;

/// What a back-end has seen.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) requests: Vec<u32>,
    pub(super) served: u32,
}

/// A back-end on a thread of its own.
pub(super) struct Peer {
    thread: JoinHandle<Report>,
    stream: UnixStream,
}

impl Peer {
    pub(super) fn honest() -> (UnixStream, Self) {
        Self::new(RING_FEATURES | PROTOCOL_FEATURES, None)
    }

    pub(super) fn with_features(features: u64) -> (UnixStream, Self) {
        Self::new(features, None)
    }

    /// Breaks the protocol whenever `request` comes.
    pub(super) fn faulty(request: Request, fault: Fault) -> (UnixStream, Self) {
        Self::new(RING_FEATURES | PROTOCOL_FEATURES, Some((request, fault)))
    }

    fn new(features: u64, fault: Option<(Request, Fault)>) -> (UnixStream, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = ours.try_clone().unwrap();
        let thread = thread::spawn(move || {
            let mut server = Server {
                stream: ours,
                features,
                fault,
                accepted: 0,
                memory: None,
                vrings: Default::default(),
                report: Report::default(),
            };
            let result = server.run();
            let gone = [
                ErrorKind::UnexpectedEof,
                ErrorKind::BrokenPipe,
                ErrorKind::ConnectionReset,
            ];
            if let Err(error) = result {
                assert!(gone.contains(&error.kind()), "{error}");
            }
            let _ = server.stream.shutdown(Shutdown::Both);
            server.report
        });
        (theirs, Self { thread, stream })
    }

    /// Waits for its end, which is that of the connection.
    pub(super) fn join(self) -> Report {
        self.thread.join().unwrap()
    }

    /// Ends it now.
    pub(super) fn kill(self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
        self.join();
    }
}

/// The guest's memory, as mapped by the back-end, and where it is in the frontend.
struct Shared {
    memory: Arc<GuestMemory>,
    /// Address in the guest, length, address in the frontend.
    regions: Vec<(u64, u64, u64)>,
}

impl Shared {
    fn guest_address(&self, address: u64) -> u64 {
        let region = self
            .regions
            .iter()
            .find(|(_, len, user)| (*user..user + len).contains(&address));
        let (guest, _, user) = region.expect("rings are in memory that was shared");
        address - user + guest
    }
}

#[derive(Default)]
struct Vring {
    registers: QueueRegisters,
    base: u16,
    kick: Option<File>,
    call: Option<File>,
    queue: Option<Virtqueue>,
}

struct Call(File);

impl VirtioInterrupt for Call {
    fn signal_queue(&self, _index: u16) {
        (&self.0).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    fn signal_config(&self) {}
}

struct Server {
    stream: UnixStream,
    features: u64,
    fault: Option<(Request, Fault)>,
    accepted: u64,
    memory: Option<Shared>,
    vrings: [Vring; 2],
    report: Report,
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let mut watched = vec![PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            let mut rung = [false; 2];
            for kick in self.vrings.iter().filter_map(|ring| ring.kick.as_ref()) {
                watched.push(PollFd::new(kick.as_fd(), PollFlags::POLLIN));
            }
            poll(&mut watched, PollTimeout::NONE)?;
            let message = watched[0].any() == Some(true);
            drop(watched);
            for (ring, rung) in self.vrings.iter().zip(&mut rung) {
                if let Some(kick) = &ring.kick {
                    *rung = { kick }.read(&mut [0; 8]).is_ok();
                }
            }
            for index in (0..2).filter(|&index| rung[index]) {
                self.serve(index);
            }
            if message && !self.message()? {
                return Ok(());
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let Some(queue) = &mut self.vrings[index].queue else {
            return;
        };
        let mut chain = Chain::default();
        if self.fault.is_some_and(|(_, fault)| fault == Fault::Hold) {
            let memory = queue.memory().clone();
            while queue.pop(&mut chain).unwrap() || queue.resume_notifications().unwrap() {
                let mut request = [0; 16];
                assert!(chain.readable.read(&memory, &mut request).unwrap());
                if request[8] % 2 == 0 {
                    queue.complete(chain.head(), 0).unwrap();
                }
                queue.signal_used().unwrap();
            }
            return;
        }
        let served = &mut self.report.served;
        let mut answer = |memory: &GuestMemory, chain: &mut Chain| {
            let mut request = [0; 16];
            assert!(chain.readable.read(memory, &mut request)?);
            let mut answer = [0; 16];
            answer[0] = 16;
            answer[8..].copy_from_slice(&request[8..]);
            assert!(chain.writable.write(memory, &answer)?);
            *served += 1;
            Ok(16)
        };
        while queue.serve(&mut chain, &mut answer).unwrap() == Progress::More {}
    }

    /// Receives one message and answers it. `false` at the end of the connection.
    fn message(&mut self) -> io::Result<bool> {
        let mut header = [0; 12];
        let mut files = Vec::new();
        let mut space = nix::cmsg_space!([i32; 8]);
        let mut parts = [IoSliceMut::new(&mut header)];
        let fd = self.stream.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_WAITALL)?;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = message {
                // SAFETY: the kernel has made these descriptors for us just now.
                files.extend(fds.into_iter().map(|fd| unsafe { File::from_raw_fd(fd) }));
            }
        }
        match received.bytes {
            0 => return Ok(false),
            n => assert_eq!(n, 12, "part of a header"),
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (number, flags, size) = (word(0), word(4), word(8));
        let mut body = vec![0; size as usize];
        self.stream.read_exact(&mut body)?;
        self.report.requests.push(number);
        let request = ALL.into_iter().find(|request| *request as u32 == number);
        let request = request.expect("a request that a device of queues has a use for");

        let reply = self.handle(request, &body, files);
        let reply =
            reply.or_else(|| (flags & NEED_REPLY != 0).then(|| 0u64.to_le_bytes().to_vec()));
        let fault = self.fault.filter(|(at, _)| *at == request);
        let message = |number: u32, body: &[u8]| {
            let len = u32::try_from(body.len()).unwrap();
            [
                &number.to_le_bytes(),
                &REPLY.to_le_bytes(),
                &len.to_le_bytes(),
                body,
            ]
            .concat()
        };
        match (fault.map(|(_, fault)| fault), reply) {
            (None | Some(Fault::Hold), None) | (Some(Fault::Silent), _) => {}
            (None | Some(Fault::Hold), Some(reply)) => {
                self.stream.write_all(&message(number, &reply))?;
            }
            (Some(Fault::Close), _) => return Ok(false),
            (Some(Fault::Garbage), _) => self.stream.write_all(&message(99, &[0xff; 8]))?,
            (Some(Fault::Refuse), _) => {
                self.stream.write_all(&message(number, &[0xff; 8]))?;
            }
            (Some(Fault::Short), _) => {
                self.stream.write_all(&message(number, &[0; 8])[..15])?;
                return Ok(false);
            }
            (Some(Fault::File), reply) => {
                let message = message(number, &reply.unwrap_or_default());
                let fd = self.stream.as_raw_fd();
                self.stream.send_with_fds(&[&message[..]], &[fd])?;
            }
        }
        Ok(true)
    }

    /// Does what a request asks for. What has a reply of its own, returns it.
    fn handle(&mut self, request: Request, body: &[u8], files: Vec<File>) -> Option<Vec<u8>> {
        let u32_at = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let mut ring = match request as u32 {
            8..=13 | 18 => Some(&mut self.vrings[u32_at(0) as usize]),
            _ => None,
        };
        let mut files = files.into_iter();
        match (request, &mut ring) {
            (Request::SetOwner | Request::SetProtocolFeatures, _) => {}
            (Request::GetFeatures, _) => return Some(self.features.to_le_bytes().into()),
            (Request::GetProtocolFeatures, _) => return Some(REPLY_ACK.to_le_bytes().into()),
            (Request::SetFeatures, _) => {
                self.accepted = u64_at(0);
                assert_eq!(self.accepted, self.features);
            }
            (Request::SetMemTable, _) => {
                let places: Vec<_> = (0..u32_at(0) as usize)
                    .map(|index| [0, 8, 16, 24].map(|at| u64_at(8 + 32 * index + at)))
                    .collect();
                let specs = places.iter().map(|[guest, len, _, offset]| RegionSpec {
                    base: GuestAddress(*guest),
                    len: usize::try_from(*len).unwrap(),
                    file: Some(FileOffset::new(files.next().unwrap(), *offset)),
                });
                let memory = Arc::new(memory::map(specs.collect(), false).unwrap());
                let regions = places
                    .iter()
                    .map(|[guest, len, user, _]| (*guest, *len, *user));
                let regions = regions.collect();
                self.memory = Some(Shared { memory, regions });
            }
            (Request::SetVringNum, Some(ring)) => ring.registers.size = u32_at(4),
            (Request::SetVringAddr, Some(ring)) => {
                let shared = self.memory.as_ref().expect("memory comes first");
                let [descriptors, used, available] =
                    [8, 16, 24].map(|at| shared.guest_address(u64_at(at)));
                ring.registers = QueueRegisters {
                    size: ring.registers.size,
                    ready: true,
                    descriptors,
                    available,
                    used,
                };
            }
            (Request::SetVringBase, Some(ring)) => ring.base = u16::try_from(u32_at(4)).unwrap(),
            (Request::SetVringCall, Some(ring)) => ring.call = files.next(),
            (Request::SetVringKick, Some(ring)) => ring.kick = files.next(),
            (Request::SetVringEnable, Some(ring)) => {
                assert_eq!(u32_at(4), 1);
                let call = Arc::new(Call(ring.call.take().expect("a call")));
                let state = QueueState {
                    next_available: ring.base,
                    next_used: ring.base,
                };
                let memory = self.memory.as_ref().unwrap().memory.clone();
                let interrupt = QueueInterrupt::new(call, 0);
                let (registers, accepted) = (&ring.registers, self.accepted);
                let queue =
                    Virtqueue::new(registers, 1024, accepted, memory, interrupt, Some(state));
                ring.queue = Some(queue.unwrap());
                self.serve(u32_at(0) as usize);
            }
            (Request::GetVringBase, Some(ring)) => {
                ring.kick = None;
                let base = ring.queue.take().unwrap().state().next_available;
                return Some([u32_at(0), base.into()].map(u32::to_le_bytes).concat());
            }
            (request, None) => unreachable!("{request:?} is about a queue"),
        }
        None
    }
}
