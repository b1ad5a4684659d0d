//! Unified kernel images: a kernel, its initramfs and its command line as one UEFI program.
//!
//! UAPI Group, "Unified Kernel Image". Two ways to make one: the sections go into a stub, a program that starts the kernel
//! in its `.linux`; or into the kernel itself, which is a UEFI program (`CONFIG_EFI_STUB`), with a few instructions that
//! hand it the rest. The second is smaller, is one program where the first is two, and needs nobody else's binary; tools
//! that look for `.linux` know only the first.

pub mod entry;

use thiserror::Error;

use self::entry::Parameters;
use crate::linux::{Kernel, KernelError};
use crate::pe::{NewSection, Pe, PeError, places, with_sections};

/// The instructions and the command line, in an image without a stub.
const START: &str = ".start";
const CMDLINE: &str = ".cmdline";
const INITRAMFS: &str = ".initrd";
const KERNEL: &str = ".linux";
const OS_RELEASE: &str = ".osrel";

/// Why no image can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UkiError {
    /// The kernel is none.
    #[error("The kernel cannot be started")]
    Kernel(#[from] KernelError),
    /// The kernel is no UEFI program.
    #[error("The kernel cannot be started by UEFI: it was built without CONFIG_EFI_STUB")]
    KernelWithoutUefi(#[source] PeError),
    /// The stub is no UEFI program.
    #[error("The stub cannot be used")]
    Stub(#[source] PeError),
    /// The command line is longer than the kernel takes.
    #[error("The command line has {len} bytes, the kernel takes at most {max}")]
    CmdlineTooLong {
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// NUL ends a command line, and it has one line; other than ASCII would be changed on the way through UTF-16.
    #[error("The command line has the byte {byte:#04x} at {at}: printable ASCII is needed")]
    Cmdline {
        /// Offset of the byte.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// The initramfs is empty, so somebody has failed before.
    #[error("The initramfs is empty")]
    NoInitramfs,
    /// It cannot be written.
    #[error("The image cannot be written")]
    Write(#[source] PeError),
}

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub struct Uki<'a> {
    /// A bzImage that is a UEFI program.
    pub kernel: &'a [u8],
    /// An initramfs as the kernel can unpack it.
    pub initramfs: &'a [u8],
    /// The command line, without a line end.
    pub cmdline: &'a str,
    /// What boot menus show: the text of an os-release file.
    pub os_release: &'a str,
}

impl Uki<'_> {
    /// An image that `stub` starts, e.g. systemd's `linuxx64.efi.stub`.
    pub fn with_stub(&self, stub: &[u8]) -> Result<Vec<u8>, UkiError> {
        self.check()?;
        let stub = Pe::parse(stub).map_err(UkiError::Stub)?;
        let section = |name, data| NewSection {
            name,
            data,
            code: false,
        };
        // The kernel last: older stubs have it unpack itself where it is, over what follows.
        let sections = [
            section(OS_RELEASE, self.os_release.as_bytes()),
            section(CMDLINE, self.cmdline.as_bytes()),
            section(INITRAMFS, self.initramfs),
            section(KERNEL, self.kernel),
        ];
        with_sections(&stub, &sections).map_err(UkiError::Write)
    }

    /// An image that is the kernel itself.
    pub fn without_stub(&self) -> Result<Vec<u8>, UkiError> {
        let kernel = self.check()?;
        let cmdline: Vec<u8> = self
            .cmdline
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let sizes = [entry::CODE.len() + cmdline.len(), self.initramfs.len()];
        let places = places(&kernel, &sizes).map_err(UkiError::Write)?;
        let (start, initramfs) = (i64::from(places[0]), i64::from(places[1]));
        let too_large = |len: i64| {
            let len = len.unsigned_abs();
            UkiError::Write(PeError::TooLarge { len })
        };
        let distance = |to: i64| i32::try_from(to - start).map_err(|_| too_large(to));
        let size = |len: usize| {
            let len = len as u64;
            u32::try_from(len).map_err(|_| UkiError::Write(PeError::TooLarge { len }))
        };
        let parameters = Parameters {
            to_kernel: distance(kernel.entry.into())?,
            to_initramfs: distance(initramfs)?,
            initramfs_size: size(self.initramfs.len())?,
            cmdline_size: size(cmdline.len())?,
        };
        let code = [parameters.code(), cmdline].concat();
        let sections = [
            NewSection {
                name: START,
                data: &code,
                code: true,
            },
            NewSection {
                name: INITRAMFS,
                data: self.initramfs,
                code: false,
            },
        ];
        with_sections(&kernel, &sections).map_err(UkiError::Write)
    }

    /// The kernel as a UEFI program, if all can be put together.
    fn check(&self) -> Result<Pe<'_>, UkiError> {
        let kernel = Kernel::parse(self.kernel)?;
        let program = Pe::parse(self.kernel).map_err(UkiError::KernelWithoutUefi)?;
        let max = kernel.cmdline_size as usize;
        if self.cmdline.len() > max {
            let len = self.cmdline.len();
            return Err(UkiError::CmdlineTooLong { len, max });
        }
        for (at, byte) in self.cmdline.bytes().enumerate() {
            if !(byte == b' ' || byte.is_ascii_graphic()) {
                return Err(UkiError::Cmdline { at, byte });
            }
        }
        if self.initramfs.is_empty() {
            return Err(UkiError::NoInitramfs);
        }
        Ok(program)
    }
}

#[cfg(test)]
mod tests;
