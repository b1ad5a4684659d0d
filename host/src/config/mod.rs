//! The machine file: one TOML text that names the machine and its guests.
//!
//! A mistake inside one guest is that guest's own: the text is read into a [`Machine`] whose entries are each a
//! [`GuestConfig`] or the reason why there is none, so that the others still run. Only text that is no TOML, or a bad
//! `[machine]` section, leaves nothing to run.

mod check;
mod checkpoints;
mod error;
mod guest;
mod health;
mod network;
mod reader;
mod store;

use std::fmt;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

pub use checkpoints::Checkpoints;
pub use error::{ConfigError, Problem, nearest};
pub use health::Health;
pub use network::{HostAddress, Mode, NetworkConfig, Nic, Protocol, Publish};
use reader::{Document, Section};
pub use store::StoreConfig;

/// Most vCPUs a guest may have.
pub const MAX_VCPUS: u8 = 32;

/// What the machine file is checked against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// RAM of the host in MiB; `None` where it is not known, then the check is left out.
    pub host_memory_mib: Option<u64>,
}

/// A machine: the host's name and its guests in the order of the file.
#[derive(Debug)]
pub struct Machine {
    /// `name` in `[machine]`, `daruma` without it.
    pub name: String,
    /// The machine's network; `None` where a mistake in `[network]`, told in `remarks`, leaves the guests without one.
    pub network: Option<NetworkConfig>,
    /// Where snapshots are kept, and what guests write.
    pub store: StoreConfig,
    /// The guests, right or wrong, in the order of the file.
    pub guests: Vec<Entry>,
    /// Mistakes that belong to no guest and stop none, such as an unknown section.
    pub remarks: Vec<ConfigError>,
}

/// One `[[guest]]` section.
#[derive(Debug)]
pub struct Entry {
    /// The guest's name, or `guest-N` (N counts from 1) where it has no usable one.
    pub name: String,
    /// Line of the section's first key, counted from 1.
    pub line: usize,
    /// The guest, or why it cannot run.
    pub config: Result<GuestConfig, ConfigError>,
}

/// A guest that passed every check which needs nothing but the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// Unique, `[a-z0-9-]`.
    pub name: String,
    /// Started with the machine.
    pub autostart: bool,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// RAM in MiB, at least 1.
    pub memory_mib: u64,
    /// What it boots.
    pub kernel: Kernel,
    /// Initial RAM disk.
    pub initrd: Option<Source>,
    /// Kernel command line; what is added to the boot entry's own with [`Kernel::OwnDisk`].
    pub cmdline: String,
    /// How the guest says that it is ready.
    pub ready: Ready,
    /// When it is started again.
    pub restart: Restart,
    /// How long a guest may take to power off when asked, before it is stopped.
    pub stop_timeout: Duration,
    /// Snapshots that are taken without a word.
    pub checkpoints: Option<Checkpoints>,
    /// When it has fallen, and what is done then.
    pub health: Health,
    /// Disks, the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// Ports of the host that lead to the first card.
    pub publish: Vec<Publish>,
    /// How the guest finds its devices.
    pub transport: Transport,
}

/// How a guest finds its virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// On a PCI bus, as any kernel does.
    Pci,
    /// In ACPI and on the kernel's command line.
    Mmio,
}

/// Where a guest's kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// A bzImage or ELF file.
    File(Source),
    /// `kernel = "disk"`: kernel, initial RAM disk and command line of the boot entry on the guest's own first disk.
    OwnDisk,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskFormat {
    /// Byte `n` of the disk is byte `n` of the image.
    #[default]
    Raw,
    /// QEMU's copy-on-write format, without a backing file.
    Qcow2,
}

impl DiskFormat {
    /// Its name, in machine files as in the VMM's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its image.
    pub source: Source,
    /// What the image is. Never guessed: a guest can write any format's header to a raw disk.
    pub format: DiskFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// The guest has it as persistent memory (`/dev/pmem0`) and not as a disk: guests with the same image share its pages.
    pub pmem: bool,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// `flash:NAME`: a CBFS file in the ROM.
    Flash(String),
    /// `disk:PATH`: a file on an attached file system labelled `daruma`.
    Disk(String),
    /// A path on the host.
    Path(String),
}

impl Source {
    /// Reads `flash:NAME`, `disk:PATH` or a plain path; `None` for an empty name or a path that leaves its disk.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let inside = |path: &str| {
            let path = path.trim_start_matches('/');
            let ok = !path.is_empty() && !path.split('/').any(|part| part == "..");
            ok.then(|| path.to_owned())
        };
        match text.split_once(':') {
            _ if text.contains('\0') => None,
            Some(("flash", name)) => (!name.is_empty()).then(|| Self::Flash(name.to_owned())),
            Some(("disk", path)) => inside(path).map(Self::Disk),
            _ => (!text.is_empty()).then(|| Self::Path(text.to_owned())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flash(name) => write!(f, "flash:{name}"),
            Self::Disk(path) => write!(f, "disk:{path}"),
            Self::Path(path) => f.write_str(path),
        }
    }
}

/// How a guest says that it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// This text appears on its serial console.
    Console(String),
    /// It writes 123 to the boot timer (I/O port 0x3f0, or MMIO 0xd000_0000).
    BootTimer,
    /// It says something at this port of the host's, by vsock.
    Vsock(u32),
}

/// When a guest whose VMM ended is started again. A guest that asks for a reboot always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Whatever the end was.
    Always,
    /// After a fall, not after it powered itself off.
    OnFailure,
    /// Not at all.
    Never,
}

impl Machine {
    /// Reads the text of the machine file `file` (the name used in messages).
    ///
    /// # Errors
    /// The text is no TOML, or its `[machine]` section is wrong.
    pub fn parse(file: &str, text: &str, limits: Limits) -> Result<Self, ConfigError> {
        let document = Document::new(file, text);
        let root = DeTable::parse(text).map_err(|error| document.syntax_error(&error))?;
        let root = Section::new(&document, root.get_ref(), root.span(), "the machine file");

        let mut remarks = Vec::new();
        if let Err(error) = root.refuse_unknown(&["machine", "network", "store", "guest"]) {
            remarks.push(error);
        }
        let name = match root.table("machine", "[machine]")? {
            None => "daruma".to_owned(),
            Some(section) => {
                section.refuse_unknown(&["name"])?;
                section
                    .string("name")?
                    .map_or_else(|| "daruma".to_owned(), |name| name.value)
            }
        };
        let network = match root.table("network", "[network]") {
            Ok(None) => Ok(NetworkConfig::default()),
            Ok(Some(section)) => network::read_network(&section),
            Err(error) => Err(error),
        };
        let network = network.map_err(|error| remarks.push(error)).ok();
        let store = match root.table("store", "[store]") {
            Ok(None) => Ok(StoreConfig::Off),
            Ok(Some(section)) => store::read_store(&section),
            Err(error) => Err(error),
        };
        let store = store.unwrap_or_else(|error| {
            remarks.push(error);
            StoreConfig::Wrong
        });
        let mut guests = Vec::new();
        for (index, value) in root.array("guest")?.iter().enumerate() {
            let line = document.line(value.span());
            let label = format!("guest-{}", index + 1);
            guests.push(match value.get_ref() {
                DeValue::Table(table) => {
                    guest::read_entry(&document, table, value.span(), label, limits)
                }
                other => Entry {
                    name: label,
                    line,
                    config: Err(document.error(
                        value.span(),
                        Problem::WrongType {
                            key: "guest".to_owned(),
                            place: "the machine file".to_owned(),
                            expected: "sections written as [[guest]]",
                            found: other.type_str(),
                        },
                    )),
                },
            });
        }
        if guests.is_empty() {
            remarks.push(document.error(0..0, Problem::NoGuests));
        }
        check::names(&document, &mut guests);
        check::disks(&document, &mut guests);
        check::networks(&document, &mut guests);
        Ok(Self {
            name,
            network,
            store,
            guests,
            remarks,
        })
    }
}

/// RAM of this host in MiB as the kernel counts it (`MemTotal`).
#[must_use]
pub fn host_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;
