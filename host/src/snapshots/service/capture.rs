//! One VMM's live channel: a snapshot of the guest while it runs, from the order to the commit.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use store::{Compression, Disk, Frozen, Info, ObjectId, Spec, Store, Writer};
use thiserror::Error;
use vmm::live::protocol::{
    Decoder, End, Failure, Kept, Memory, Message, Order, ProtocolError, Report, Take,
};

/// Names of a snapshot's objects.
pub const RAM: &str = "ram";
pub const STATE: &str = "state";
/// Before the name of a drive.
pub const DISK: &str = "disk:";
/// How long the VMM may say nothing: it gives up itself before that. Tests have less of it.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 30 });

/// Why there is no snapshot.
#[derive(Debug, Error)]
pub enum TakeError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The VMM could not.
    #[error("the VMM took no snapshot: {0}")]
    Vmm(String),
    /// The VMM is gone.
    #[error("the VMM's end of the live channel does not answer")]
    Channel(#[source] io::Error),
    /// It says nothing. What it says later is passed over.
    #[error("the VMM has been silent for {} s: this computer is too busy, or the VMM is stopped", PATIENCE.as_secs())]
    Silent,
    /// It said what it may not say.
    #[error("the VMM said what cannot be understood")]
    Protocol(#[source] ProtocolError),
    /// It said what it may not say there.
    #[error("the VMM said something else than expected: {0}")]
    Order(&'static str),
}

impl From<ProtocolError> for TakeError {
    fn from(error: ProtocolError) -> Self {
        match error {
            // What a socket's time limit ends with.
            ProtocolError::Io(error) if error.kind() == ErrorKind::WouldBlock => Self::Silent,
            ProtocolError::Io(error) => Self::Channel(error),
            error => Self::Protocol(error),
        }
    }
}

impl TakeError {
    /// Whether another snapshot can be taken over the same channel.
    fn leaves_channel(&self) -> bool {
        matches!(self, Self::Vmm(_) | Self::Silent | Self::Store(_))
    }
}

/// A disk of the guest, by the name of its drive.
pub type Drive = (String, Arc<Disk>);

/// The channel.
pub struct Channel {
    /// `None` once it is of no use any more.
    stream: Option<UnixStream>,
    decoder: Decoder<Report>,
    number: u64,
    /// What the VMM counts changes from.
    kept: Option<u64>,
}

/// What is to be taken.
pub struct Errand<'a> {
    /// Where to.
    pub store: &'a Store,
    /// Of whom.
    pub guest: &'a str,
    /// Its disks.
    pub drives: &'a [Drive],
    /// The snapshot that the guest went on from last.
    pub parent: Option<u64>,
    /// What is said of it.
    pub labels: BTreeMap<String, String>,
}

/// A snapshot that is being received.
struct Draft {
    writer: Writer,
    ram: Option<ObjectId>,
    len: u64,
    state: Vec<u8>,
    frozen: Vec<(String, Arc<Frozen>)>,
}

impl Channel {
    /// A channel that nothing was said on.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: Some(stream),
            decoder: Decoder::new(),
            number: 0,
            kept: None,
        })
    }

    /// Takes a snapshot. `progress` gets the bytes of memory that have come, and all that may come.
    pub fn take(
        &mut self,
        errand: Errand<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Info, End), TakeError> {
        let Some(stream) = self.stream.take() else {
            return Err(TakeError::Order("the channel broke off earlier"));
        };
        let taken = self.take_over(&stream, errand, progress);
        if taken.as_ref().err().is_none_or(TakeError::leaves_channel) {
            self.stream = Some(stream);
        }
        taken
    }

    fn take_over(
        &mut self,
        stream: &UnixStream,
        errand: Errand<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Info, End), TakeError> {
        // Deleted meanwhile: then nothing is left that changes could be added to.
        let kept = self
            .kept
            .filter(|id| errand.parent == Some(*id) && errand.store.info(*id).is_ok());
        let parent = errand.parent.filter(|id| errand.store.info(*id).is_ok());
        let spec = Spec {
            guest: errand.guest.to_owned(),
            parent,
            time_ms: now_ms(),
            labels: errand.labels,
        };
        for (_, disk) in errand.drives {
            disk.prepare()?;
        }
        let mut draft = Draft {
            // The guest waits for pages that it writes to: nothing that takes time.
            writer: errand.store.begin_with(spec, Compression::Off)?,
            ram: None,
            len: 0,
            state: Vec::new(),
            frozen: Vec::new(),
        };
        self.number += 1;
        let number = self.number;
        let full = kept.is_none();
        say(stream, &Order::Take(Take { number, full }))?;
        let received = self.receive(stream, &mut draft, errand.drives, full, progress);
        let end = match received {
            Ok(end) => end,
            Err(error @ TakeError::Vmm(_)) => return Err(error),
            Err(error) => {
                self.lost(stream, &error);
                return Err(error);
            }
        };
        match draft.commit() {
            Ok(info) => {
                self.kept = Some(info.id);
                say(stream, &Order::Kept(Kept { number }))?;
                Ok((info, end))
            }
            Err(error) => {
                self.lost(stream, &error);
                Err(error)
            }
        }
    }

    /// Tells the VMM that there is no snapshot, and reads what it still says of it.
    fn lost(&mut self, stream: &UnixStream, error: &dyn std::error::Error) {
        let number = self.number;
        let reason = crate::errors::chain(error);
        // If this does not reach it the channel is of no use, which the next snapshot finds.
        let _ = say(stream, &Order::Lost(Failure { number, reason }));
    }

    fn receive(
        &mut self,
        stream: &UnixStream,
        draft: &mut Draft,
        drives: &[Drive],
        full: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<End, TakeError> {
        let number = self.number;
        let mut reader = stream;
        let mut came = 0;
        loop {
            let report = self.decoder.receive(&mut reader)?;
            let Some(report) = report else {
                return Err(TakeError::Channel(ErrorKind::UnexpectedEof.into()));
            };
            match report {
                Report::Memory(memory) if memory.number == number => {
                    draft.begin(memory, full)?;
                }
                // Each is answered: what is left of an earlier snapshot has no number.
                Report::Freeze if draft.ram.is_none() => say(stream, &Order::Frozen)?,
                Report::State(_) | Report::Pages(_) if draft.ram.is_none() && number > 1 => {}
                Report::Freeze => {
                    if !draft.frozen.is_empty() {
                        return Err(TakeError::Order("the guest stood still twice"));
                    }
                    for (name, disk) in drives {
                        draft.frozen.push((name.clone(), Arc::new(disk.freeze()?)));
                    }
                    say(stream, &Order::Frozen)?;
                }
                Report::State(part) => draft.state.extend_from_slice(part.bytes()),
                Report::Pages(pages) => {
                    let ram = draft.ram.ok_or(TakeError::Order("pages of no memory"))?;
                    draft.writer.write(ram, pages.offset(), pages.bytes())?;
                    came += pages.bytes().len() as u64;
                    progress(came, draft.len);
                    self.decoder.recycle(Report::Pages(pages));
                }
                Report::End(end) if end.number == number => return Ok(end),
                Report::Failed(failure) if failure.number == number => {
                    return Err(TakeError::Vmm(failure.reason));
                }
                // What it says of an earlier one that was lost.
                Report::Failed(_) | Report::End(_) | Report::Memory(_) => {}
            }
        }
    }
}

impl Draft {
    fn begin(&mut self, memory: Memory, full: bool) -> Result<(), TakeError> {
        if self.ram.is_some() {
            return Err(TakeError::Order("the memory began twice"));
        }
        // The VMM may know better that all of it is needed, not that less is.
        let ram = match (memory.full, full) {
            (false, true) => return Err(TakeError::Order("changes, where all was asked for")),
            (true, _) => self.writer.fresh(RAM, memory.len)?,
            (false, false) => self.writer.object(RAM, memory.len)?,
        };
        self.ram = Some(ram);
        self.len = memory.len;
        Ok(())
    }

    fn commit(mut self) -> Result<Info, TakeError> {
        if self.ram.is_none() || self.state.is_empty() {
            return Err(TakeError::Order("an end without memory or state"));
        }
        self.writer.blob(STATE, &self.state)?;
        for (name, frozen) in &self.frozen {
            self.writer.disk(&format!("{DISK}{name}"), frozen)?;
        }
        Ok(self.writer.commit()?)
    }
}

fn say(mut stream: &UnixStream, order: &Order) -> Result<(), TakeError> {
    // Cut off anywhere, it is of no use any more.
    stream
        .write_all(&order.encode())
        .map_err(TakeError::Channel)
}

/// Milliseconds since 1970, by the host's clock.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
