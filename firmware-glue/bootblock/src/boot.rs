//! The way from the first Rust instruction to the kernel, each step said on the serial port.
#![expect(
    unsafe_code,
    reason = "takes possession of the machine, and leaves for the kernel"
)]

use core::error::Error;
use core::fmt;

use firmware_glue::anchor::{Anchor, AnchorError, MAGIC, SIZE};
use firmware_glue::cbfs::{Cbfs, CbfsError, File};
use firmware_glue::fmap::{Fmap, FmapError, flash_in_window};
use firmware_glue::layout::{AREA_CBFS, CMDLINE, INITRAMFS, KERNEL};
use firmware_glue::linux::{Kernel, KernelError};
use thiserror::Error;

use crate::e820::{E820Error, Kind, Map};
use crate::hw::ecam::Ecam;
use crate::hw::fw_cfg::FwCfg;
use crate::hw::ram::{Ram, flash_window};
use crate::hw::{cpu, display, ecam, q35, serial};
use crate::memory::{Memory, Zone};
use crate::pci::{self, Config, PciError, Windows};
use crate::placement::{PlaceError, place};
use crate::say;
use crate::smbios;
use crate::table_loader::{self, Files, TableError, Zones};
use crate::zero_page::{self, FrameBuffer, Parameters};

const FOUR_GIB: u64 = 1 << 32;
const GIB: u64 = 1 << 30;
/// Memory of the VGA window and of firmware, which no kernel may use as it likes.
const LEGACY_HOLE: core::ops::Range<u64> = 0xa_0000..0x10_0000;
/// Where operating systems look for the roots of ACPI and SMBIOS tables.
const FSEG: core::ops::Range<u64> = 0xf_0000..0x10_0000;
/// I/O ports for PCI: above everything of the chipset.
const PCI_IO: core::ops::Range<u64> = 0x1000..0x1_0000;
/// End of the addresses for PCI below 4 GiB: the I/O APIC.
const PCI_MEMORY_END: u64 = 0xfec0_0000;
/// Size of the addresses for PCI above 4 GiB.
const PCI_HIGH_SIZE: u64 = 32 * GIB;
/// Largest file of fw_cfg that is read to a buffer on the stack or in `.bss`, in bytes.
const SCRIPT_SIZE: usize = 32 << 10;
const ANCHOR_TEXT: usize = 64;

/// Filled in when the ROM is assembled.
#[used]
#[unsafe(link_section = ".anchor")]
static ANCHOR: [u8; SIZE] = Anchor::blank();

/// Why the machine does not start.
#[derive(Debug, Error)]
enum BootError {
    #[error(
        "This machine has no fw_cfg, so it is not QEMU's q35, the only machine that this stage is for; elsewhere use coreboot"
    )]
    NoFwCfg,
    #[error("The host bridge is {:04x}:{:04x}, not that of QEMU's q35: start QEMU with -M q35", .id & 0xffff, .id >> 16)]
    NotQ35 { id: u32 },
    #[error("The machine has no file {name} in fw_cfg")]
    NoFwCfgFile { name: &'static str },
    #[error("fw_cfg file {name} has {size} bytes, at most {max} are possible")]
    FwCfgFileSize {
        name: &'static str,
        size: u32,
        max: usize,
    },
    #[error("There is no memory below 4 GiB")]
    NoMemory,
    #[error("{CMDLINE} has {len} bytes, the kernel takes at most {max}")]
    CmdlineTooLong { len: usize, max: usize },
    #[error("{name} cannot be started")]
    BadKernel {
        name: &'static str,
        #[source]
        source: KernelError,
    },
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    #[error(transparent)]
    Cbfs(#[from] CbfsError),
    #[error(transparent)]
    E820(#[from] E820Error),
    #[error(transparent)]
    Fmap(#[from] FmapError),
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Tables(#[from] TableError),
}

/// What outlives the stage: the kernel reads both before it uses any memory.
struct Handover {
    zero_page: [u8; zero_page::SIZE],
    cmdline: [u8; 4096],
    script: [u8; SCRIPT_SIZE],
    map: Map,
}

/// Runs the stage. Called once, by the assembly that entered 64-bit mode.
///
/// # Safety
///
/// The caller is that assembly: the only processor runs with a stack, memory below 4 GiB is mapped at its own address.
pub unsafe fn run() -> ! {
    serial::set_up();
    say!("Daruma ROM stage {}", env!("CARGO_PKG_VERSION"));
    static mut HANDOVER: Handover = Handover {
        zero_page: [0; zero_page::SIZE],
        cmdline: [0; 4096],
        script: [0; SCRIPT_SIZE],
        map: Map::new(),
    };
    let handover = &raw mut HANDOVER;
    // SAFETY: a live static, and `run` is called once, so this is the only reference.
    let handover = unsafe { &mut *handover };
    // SAFETY: called once; the caller vouches for the mapping.
    let mut ram = unsafe { Ram::new() };
    match prepare(handover, &mut ram) {
        Ok(entry) => {
            say!("kernel entry, tsc={}", cpu::time());
            // SAFETY: `prepare` put the kernel and the zero page there.
            unsafe { cpu::enter_kernel(entry) }
        }
        Err(error) => fail(&error),
    }
}

/// Says why the machine does not start, in one line, and stops.
fn fail(error: &BootError) -> ! {
    match error.source() {
        Some(source) => say!("error: {error}: {source}"),
        None => say!("error: {error}"),
    }
    cpu::halt()
}

/// Says where the stage itself failed, and stops.
pub fn fail_internally(what: fmt::Arguments<'_>) -> ! {
    say!("error: {what}");
    cpu::halt()
}

fn prepare(handover: &mut Handover, ram: &mut Ram) -> Result<cpu::Entry, BootError> {
    let avx = cpu::enable_avx();
    cpu::set_memory_types();

    let cbfs = open_flash()?;
    let kernel_file = checked(&cbfs, KERNEL)?;
    let kernel = Kernel::parse(kernel_file.data()).map_err(|source| BootError::BadKernel {
        name: KERNEL,
        source,
    })?;
    let initramfs = optional(checked(&cbfs, INITRAMFS))?;
    let cmdline = optional(checked(&cbfs, CMDLINE))?.unwrap_or_default();
    say!(
        "kernel {} KiB (protocol {}.{:02}), initramfs {} KiB: hashes match{}",
        kernel_file.data().len() >> 10,
        kernel.version >> 8,
        kernel.version & 0xff,
        initramfs.map_or(0, <[u8]>::len) >> 10,
        if avx { " (AVX)" } else { "" }
    );

    let mut fw_cfg = FwCfg::find().ok_or(BootError::NoFwCfg)?;
    let (frame_buffer, map) = (set_up_devices(&mut fw_cfg, handover)?, &mut handover.map);
    let rsdp = place_tables(&mut fw_cfg, ram, map, &mut handover.script)?;

    let initramfs = initramfs.unwrap_or_default();
    let places = place(map, &kernel, initramfs.len() as u64)?;
    copy(ram, places.kernel, kernel.code())?;
    copy(ram, places.initramfs, initramfs)?;
    let max = (handover.cmdline.len() - 1).min(kernel.cmdline_size as usize);
    if cmdline.len() > max {
        let len = cmdline.len();
        return Err(BootError::CmdlineTooLong { len, max });
    }
    handover.cmdline[..cmdline.len()].copy_from_slice(cmdline);
    say!(
        "kernel at {:#x} (needs {} KiB), initramfs at {:#x}",
        places.kernel,
        kernel.init_size >> 10,
        places.initramfs
    );
    let kernel_at = low(places.kernel);
    let parameters = Parameters {
        kernel_at,
        initramfs: (low(places.initramfs), low(initramfs.len() as u64)),
        cmdline_at: address_of(&handover.cmdline),
        map,
        rsdp,
        frame_buffer,
    };
    zero_page::fill(&mut handover.zero_page, &kernel, &parameters);
    Ok(cpu::Entry {
        kernel: kernel_at,
        zero_page: address_of(&handover.zero_page),
        long_mode: kernel.has_64bit_entry(),
    })
}

/// Finds the CBFS in flash, and checks that the anchor vouches for it.
fn open_flash() -> Result<Cbfs<'static>, BootError> {
    let flash = flash_in_window(flash_window())?;
    let map = Fmap::find(flash)?;
    let cbfs = Cbfs::new(map.region(AREA_CBFS)?);
    // SAFETY: a live static. Read as volatile because its bytes change after the compiler saw them.
    let anchor = unsafe { (&raw const ANCHOR).read_volatile() };
    Anchor::parse_fields(&anchor[MAGIC.len()..])?.verify(&map, &cbfs)?;
    say!(
        "flash {} KiB at {:#x}: metadata hash matches",
        map.size() >> 10,
        map.base()
    );
    Ok(cbfs)
}

fn checked(cbfs: &Cbfs<'static>, name: &str) -> Result<File<'static>, CbfsError> {
    let file = cbfs.find(name)?;
    file.verify()?;
    Ok(file)
}

/// A file that may be missing, but not damaged.
fn optional(file: Result<File<'static>, CbfsError>) -> Result<Option<&'static [u8]>, CbfsError> {
    match file {
        Ok(file) => Ok(Some(file.data())),
        Err(CbfsError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets up the chipset and PCI, and reads the memory map.
// Its list of PCI functions is to leave the stack before files are hashed.
#[inline(never)]
fn set_up_devices(
    fw_cfg: &mut FwCfg,
    handover: &mut Handover,
) -> Result<Option<FrameBuffer>, BootError> {
    let id = q35::host_bridge();
    if id != q35::MCH_ID {
        return Err(BootError::NotQ35 { id });
    }
    q35::open_config_window();
    // SAFETY: just opened.
    let mut config = unsafe { Ecam::new() };
    q35::open_low_memory(&mut config);
    q35::set_up_lpc(&mut config);

    let table = read_file(fw_cfg, "etc/e820", &mut handover.script)?;
    let map = &mut handover.map;
    map.add_table(table)?;
    map.set(LEGACY_HOLE, Kind::RESERVED)?;
    map.set(ecam::BASE..ecam::BASE + ecam::SIZE, Kind::RESERVED)?;
    map.set(q35::RCBA..q35::RCBA + q35::RCBA_SIZE, Kind::RESERVED)?;
    say!(
        "memory {} MiB",
        map.total_ram().next_multiple_of(1 << 20) >> 20
    );

    let frame_buffer = set_up_pci(&mut config, fw_cfg, map)?;
    Ok(frame_buffer)
}

fn set_up_pci(
    config: &mut impl Config,
    fw_cfg: &mut FwCfg,
    map: &Map,
) -> Result<Option<FrameBuffer>, BootError> {
    let found = pci::scan(config)?;
    let low_end = map.ram_end_below(FOUR_GIB).max(ecam::BASE + ecam::SIZE);
    let high = map.ram_end_below(u64::MAX).max(FOUR_GIB);
    // Memory to be plugged in later comes first there, says QEMU if there can be any.
    let mut reserved = [0; 8];
    let high = match read_file(fw_cfg, "etc/reserved-memory-end", &mut reserved) {
        Ok(bytes) => bytes
            .try_into()
            .map_or(high, |bytes| high.max(u64::from_le_bytes(bytes))),
        Err(_) => high,
    };
    let high = high.checked_next_multiple_of(GIB).unwrap_or(FOUR_GIB);
    let windows = Windows {
        io: PCI_IO,
        memory: low_end..PCI_MEMORY_END,
        high: high..high.saturating_add(PCI_HIGH_SIZE),
    };
    let missing = pci::assign(config, &found, &windows)?;
    q35::set_interrupt_lines(config, &found);
    if missing > 0 {
        say!("warning: no addresses for {missing} PCI resources; the kernel must find some");
    }
    let frame_buffer = display::set_up(config, &found);
    say!(
        "PCI: {} functions{}",
        found.len(),
        if frame_buffer.is_some() {
            ", screen 1024x768"
        } else {
            ""
        }
    );
    Ok(frame_buffer)
}

/// Places ACPI and SMBIOS tables and takes their memory off the map. After PCI, because QEMU writes PCI's addresses into the
/// tables when they are read.
fn place_tables(
    fw_cfg: &mut FwCfg,
    ram: &mut Ram,
    map: &mut Map,
    script: &mut [u8],
) -> Result<Option<u64>, BootError> {
    let top = map
        .ram()
        .rfind(|range| range.end <= FOUR_GIB)
        .ok_or(BootError::NoMemory)?;
    let mut zones = Zones {
        high: Zone::new(top.start.max(LEGACY_HOLE.end)..top.end),
        fseg: Zone::new(FSEG),
    };
    let script = read_file(fw_cfg, "etc/table-loader", script)?;
    let rsdp = table_loader::run(script, fw_cfg, ram, &mut zones)?;
    let smbios = place_smbios(fw_cfg, ram, &mut zones);
    let acpi = zones.high.used_from() & !0xfff..top.end;
    map.set_ram(acpi.clone(), Kind::ACPI)?;
    say!(
        "ACPI root {:#x}, tables {} KiB{}",
        rsdp.unwrap_or(0),
        (acpi.end - acpi.start) >> 10,
        if smbios.is_some() { ", SMBIOS" } else { "" }
    );
    Ok(rsdp)
}

/// Places SMBIOS, if there is any; nothing depends on it.
fn place_smbios(fw_cfg: &mut FwCfg, ram: &mut Ram, zones: &mut Zones) -> Option<()> {
    let mut buffer = [0; ANCHOR_TEXT];
    let (file, size) = fw_cfg.find("etc/smbios/smbios-tables")?;
    let anchor_len = read_file(fw_cfg, "etc/smbios/smbios-anchor", &mut buffer)
        .ok()?
        .len();
    let anchor = &mut buffer[..anchor_len];
    let tables = zones.high.allocate(u64::from(size), 16)?;
    if !fw_cfg.read(file, ram.bytes(tables, size as usize)?) || !smbios::set_tables(anchor, tables)
    {
        return None;
    }
    let place = zones.fseg.allocate(anchor.len() as u64, 16)?;
    ram.bytes(place, anchor.len())?.copy_from_slice(anchor);
    Some(())
}

fn read_file<'a>(
    fw_cfg: &mut FwCfg,
    name: &'static str,
    to: &'a mut [u8],
) -> Result<&'a [u8], BootError> {
    let (file, size) = fw_cfg.find(name).ok_or(BootError::NoFwCfgFile { name })?;
    let max = to.len();
    let too_large = BootError::FwCfgFileSize { name, size, max };
    let to = to.get_mut(..size as usize).ok_or(too_large)?;
    if !fw_cfg.read(file, to) {
        return Err(BootError::NoFwCfgFile { name });
    }
    Ok(to)
}

fn copy(ram: &mut Ram, to: u64, from: &[u8]) -> Result<(), BootError> {
    if !from.is_empty() {
        ram.bytes(to, from.len())
            .ok_or(BootError::NoMemory)?
            .copy_from_slice(from);
    }
    Ok(())
}

/// Statics of the stage lie below 1 MiB, and everything else it places below 4 GiB.
fn address_of<T>(place: &T) -> u32 {
    low(core::ptr::from_ref(place).expose_provenance() as u64)
}

fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
