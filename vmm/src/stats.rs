//! KVM's own counters of a vCPU: how often it left the guest, and why (KVM API §4.133 `KVM_GET_STATS_FD`).
#![expect(
    unsafe_code,
    reason = "kvm-ioctls has no call for the counters' descriptor"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(kvm_get_stats_fd, KVMIO, 0xce);

/// `struct kvm_stats_header`: six 32-bit numbers.
const HEADER_LEN: usize = 24;
/// `struct kvm_stats_desc` before the name.
const DESCRIPTOR_LEN: usize = 16;
/// Far more than any kernel has: bounds what is read on the kernel's word.
const MAX_COUNTERS: u32 = 1024;
const MAX_NAME: u32 = 256;

/// Counters by KVM's names for them, e.g. `exits`.
pub type Counters = BTreeMap<String, u64>;

/// The counters of one vCPU, readable from any thread while it runs.
#[derive(Debug)]
pub struct VcpuStats(File);

impl VcpuStats {
    /// Opens the counters of `vcpu`, which must not run yet: KVM gives them out only between two runs.
    pub fn open(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the call takes no argument, and returns a new descriptor or an error.
        let fd = unsafe { ioctl(vcpu, kvm_get_stats_fd()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// What the counters say now. Histograms are left out.
    pub fn read(&self) -> io::Result<Counters> {
        read(|buffer, offset| self.0.read_exact_at(buffer, offset))
    }
}

/// Reads the format that the kernel describes in `include/uapi/linux/kvm.h`.
fn read(read_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Counters> {
    let mut header = [0; HEADER_LEN];
    read_at(&mut header, 0)?;
    let (name_len, count) = (u32_at(&header, 4), u32_at(&header, 8));
    let (descriptors, data) = (u32_at(&header, 16), u32_at(&header, 20));
    if name_len > MAX_NAME || count > MAX_COUNTERS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut counters = Counters::new();
    let mut descriptor = vec![0; DESCRIPTOR_LEN + name_len as usize];
    for index in 0..u64::from(count) {
        let at = u64::from(descriptors) + index * descriptor.len() as u64;
        read_at(&mut descriptor, at)?;
        let values = u16::from_le_bytes([descriptor[6], descriptor[7]]);
        if values != 1 {
            continue;
        }
        let mut value = [0; 8];
        let at = u64::from(data) + u64::from(u32_at(&descriptor, 8));
        read_at(&mut value, at)?;
        let name = &descriptor[DESCRIPTOR_LEN..];
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        counters.insert(name, u64::from_le_bytes(value));
    }
    Ok(counters)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as the kernel lays it out: header, two descriptors, data of one counter and a histogram of two.
    fn file(name_len: u32, count: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0, name_len, count, 24, 24, 200] {
            bytes.extend(u32::to_le_bytes(word));
        }
        for (values, offset, name) in [(2_u16, 8_u32, "waits"), (1, 0, "exits")] {
            bytes.extend([0; 6]);
            bytes.extend(values.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend([0; 4]);
            let mut field = [0; 16];
            field[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend(field);
        }
        bytes.resize(200, 0);
        for value in [7_u64, 1, 2] {
            bytes.extend(value.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> io::Result<Counters> {
        read(|buffer, offset| {
            let from = usize::try_from(offset).unwrap();
            let part = bytes.get(from..from + buffer.len());
            buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    #[test]
    fn single_counters_are_read_and_histograms_are_not() {
        let counters = parse(&file(16, 2)).unwrap();
        assert_eq!(counters, Counters::from([("exits".to_owned(), 7)]));
    }

    #[test]
    fn absurd_headers_are_refused() {
        assert!(parse(&file(MAX_NAME + 1, 2)).is_err());
        assert!(parse(&file(16, MAX_COUNTERS + 1)).is_err());
        assert!(parse(&file(16, 2)[..100]).is_err());
    }
}
