//! A payload that is a Linux: kernel, initramfs and command line, with a few instructions of ours between coreboot and
//! them.
//!
//! The initramfs goes behind all the memory that the kernel needs to unpack itself (`init_size`), not behind the size of
//! its file: a kernel that unpacks over its initramfs finds none.

use thiserror::Error;

use super::{NewSegment, SegmentKind, WriteError, entry, write};
use crate::compress::Method;
use crate::linux::{Kernel, KernelError, SETUP_HEADER};

/// Where the zero page goes.
pub const ZERO_PAGE: u32 = 0x9_0000;
/// Where the command line goes.
pub const CMDLINE: u32 = 0x9_1000;
/// Where the video BIOS's data may begin: the command line must end before.
const LOW_END: u32 = 0x9_f000;
const ZERO_PAGE_SIZE: usize = 4096;
const PAGE: u64 = 4096;
/// Kernels below this would overwrite what firmware keeps there.
const LOWEST: u64 = 1 << 20;

const VIDEO_MODE: usize = 0x1fa;
const LOADER_TYPE: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMDLINE_POINTER: usize = 0x228;

/// Why no payload can be made.
#[derive(Debug, Error)]
pub enum LinuxError {
    /// The kernel is one, but for another processor or in another wrapping.
    #[error("The kernel is {what}, and coreboot on x86 starts a bzImage for x86 only")]
    Foreign {
        /// What it is.
        what: &'static str,
    },
    /// No kernel.
    #[error("The kernel cannot be started")]
    Kernel(#[from] KernelError),
    /// The command line is longer than the kernel takes, or than there is room for.
    #[error("The command line has {len} bytes, at most {max} can be given to this kernel")]
    CmdlineTooLong {
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// NUL ends a command line, and it has one line.
    #[error("The command line contains a NUL or a line end at byte {at}")]
    CmdlineNotOneLine {
        /// Offset of the byte.
        at: usize,
    },
    /// The initramfs is empty, so somebody has failed before.
    #[error("The initramfs is empty")]
    NoInitramfs,
    /// Kernel or initramfs would end above what the kernel can reach.
    #[error("{what} would end at {end:#x}, above the {limit:#x} that it may reach")]
    TooHigh {
        /// What it is.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// The limit.
        limit: u64,
    },
    /// The payload cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a payload is made of.
#[derive(Clone, Copy, Debug)]
pub struct Trio<'a> {
    /// A bzImage.
    pub kernel: &'a [u8],
    /// An initramfs as the kernel can unpack it; none is needed if the kernel has one inside.
    pub initramfs: Option<&'a [u8]>,
    /// The command line, without a line end.
    pub cmdline: &'a str,
    /// How to store kernel and initramfs, if that makes them smaller, which it will not if they are compressed already.
    pub method: Method,
}

/// A payload, and where things go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxPayload {
    /// The SELF file, for `fallback/payload`.
    pub bytes: Vec<u8>,
    /// Address of the kernel.
    pub kernel_at: u64,
    /// Address of the initramfs, if there is one.
    pub initramfs_at: Option<u64>,
    /// The end of the memory that both need until the kernel runs: the board must have so much.
    pub memory_end: u64,
}

impl Trio<'_> {
    /// Makes the payload.
    pub fn payload(&self) -> Result<LinuxPayload, LinuxError> {
        if let Some(what) = foreign(self.kernel) {
            return Err(LinuxError::Foreign { what });
        }
        let kernel = Kernel::parse(self.kernel)?;
        let room = (LOW_END - CMDLINE - 1) as usize;
        let max = room.min(kernel.cmdline_size as usize);
        if self.cmdline.len() > max {
            return Err(LinuxError::CmdlineTooLong {
                len: self.cmdline.len(),
                max,
            });
        }
        let ends = |byte: u8| matches!(byte, 0 | b'\n' | b'\r');
        if let Some(at) = self.cmdline.bytes().position(ends) {
            return Err(LinuxError::CmdlineNotOneLine { at });
        }
        if self.initramfs.is_some_and(<[u8]>::is_empty) {
            return Err(LinuxError::NoInitramfs);
        }
        let kernel_at = place(&kernel)?;
        let kernel_end = kernel_at + u64::from(kernel.init_size);
        let initramfs = match self.initramfs {
            Some(data) => Some((initramfs_at(&kernel, kernel_end, data.len())?, data)),
            None => None,
        };
        let zero_page = zero_page(&kernel, kernel_at, initramfs);
        let segment = |kind, load, data, method| NewSegment {
            kind,
            load,
            data,
            more: 0,
            method,
        };
        let cmdline = [self.cmdline.as_bytes(), &[0]].concat();
        let stub = entry::CODE.to_vec();
        let code = kernel.code().to_vec();
        let (kind_of_code, kind_of_data) = (SegmentKind::Code, SegmentKind::Data);
        let mut segments = vec![
            segment(kind_of_data, ZERO_PAGE.into(), zero_page, Method::None),
            segment(kind_of_code, kernel_at, code, self.method),
            segment(kind_of_code, entry::ADDRESS.into(), stub, Method::None),
            segment(kind_of_data, CMDLINE.into(), cmdline, Method::None),
        ];
        if let Some((at, data)) = initramfs {
            segments.push(segment(kind_of_data, at, data.to_vec(), self.method));
        }
        Ok(LinuxPayload {
            bytes: write(&segments, entry::ADDRESS.into())?,
            kernel_at,
            initramfs_at: initramfs.map(|(at, _)| at),
            memory_end: initramfs.map_or(kernel_end, |(at, data)| at + data.len() as u64),
        })
    }
}

/// Where the kernel wants to be, or the first place above 1 MiB that it can be at.
fn place(kernel: &Kernel<'_>) -> Result<u64, LinuxError> {
    let wanted = if kernel.relocatable {
        let alignment = u64::from(kernel.alignment);
        let lowest = kernel.pref_address.max(LOWEST);
        lowest
            .checked_next_multiple_of(alignment)
            .unwrap_or(u64::MAX)
    } else {
        kernel.pref_address
    };
    let end = wanted.saturating_add(u64::from(kernel.init_size));
    // The entry is in 32 bits, and so is its page of addresses.
    let limit = 3 << 30;
    if wanted < LOWEST || end > limit {
        let what = "The kernel";
        return Err(LinuxError::TooHigh { what, end, limit });
    }
    Ok(wanted)
}

fn initramfs_at(kernel: &Kernel<'_>, kernel_end: u64, len: usize) -> Result<u64, LinuxError> {
    let at = kernel_end.next_multiple_of(PAGE);
    let end = at.saturating_add(len as u64);
    let limit = u64::from(kernel.initrd_addr_max) + 1;
    if end > limit {
        let what = "The initramfs";
        return Err(LinuxError::TooHigh { what, end, limit });
    }
    Ok(at)
}

fn zero_page(kernel: &Kernel<'_>, kernel_at: u64, initramfs: Option<(u64, &[u8])>) -> Vec<u8> {
    let mut page = vec![0; ZERO_PAGE_SIZE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    // All addresses were checked to have 32 bits.
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    put(SETUP_HEADER, kernel.setup_header());
    put(VIDEO_MODE, &u16::MAX.to_le_bytes());
    put(LOADER_TYPE, &[0xff]);
    put(CODE32_START, &low(kernel_at));
    let (at, len) = initramfs.map_or((0, 0), |(at, data)| (at, data.len() as u64));
    put(RAMDISK_IMAGE, &low(at));
    put(RAMDISK_SIZE, &low(len));
    put(CMDLINE_POINTER, &CMDLINE.to_le_bytes());
    page
}

/// What `file` is, if it is a kernel that x86 firmware cannot start. By the magic numbers of Linux's own documents.
fn foreign(file: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| file.get(offset..).is_some_and(|f| f.starts_with(magic));
    let elf = at(0, b"\x7fELF");
    if at(0x202, b"HdrS") {
        None
    } else if at(0x38, b"ARM\x64") {
        Some("an arm64 Image")
    } else if at(0x38, b"RSC\x05") {
        Some("a RISC-V Image")
    } else if at(0x24, &0x016f_2818_u32.to_le_bytes()) {
        Some("an ARM zImage")
    } else if at(0, &0x2705_1956_u32.to_be_bytes()) {
        Some("a U-Boot uImage")
    } else if at(0, &0xd00d_feed_u32.to_be_bytes()) {
        Some("a FIT image")
    } else if elf && !at(0x12, &[62, 0]) && !at(0x12, &[3, 0]) {
        Some("an ELF file for another processor")
    } else if elf {
        Some("an ELF file (a vmlinux)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
