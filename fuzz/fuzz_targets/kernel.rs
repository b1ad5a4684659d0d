//! Kernels: ELF with and without a PVH note, bzImage, Multiboot, to the structures in guest memory that they start with.
#![no_main]

use std::cell::LazyCell;
use std::os::fd::AsRawFd;

use devices::memory::{self, GuestMemory};
use fuzz::disk::file_of;
use vm_memory::GuestAddress;
use vmm::boot;
use vmm::config::{BootConfig, BootProtocol};

/// Bytes of the guest's memory. What a kernel asks for beyond it is refused.
const MEMORY: usize = 8 << 20;

fn elf(class: u8, machine: u16, note: bool) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1, 0]);
    file[16..18].copy_from_slice(&2_u16.to_le_bytes());
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[20] = 1;
    let word = |file: &mut Vec<u8>, at: usize, value: u64| {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    word(&mut file, 24, 0x10_0000);
    word(&mut file, 32, 64);
    file[52..58].copy_from_slice(&[64, 0, 56, 0, 2, 0]);
    for (index, kind) in [(0, 1_u32), (1, if note { 4 } else { 1 })] {
        let at = 64 + 56 * index;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (field, value) in [
            (8, 0x100),
            (16, 0x10_0000),
            (24, 0x10_0000),
            (32, 0x40),
            (40, 0x80),
        ] {
            word(&mut file, at + field, value);
        }
    }
    // Xen's note of the PVH entry: name length 4, descriptor length 4, type 18.
    file[0x100..0x114].copy_from_slice(&[
        4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0, 0, 0x10, 0,
    ]);
    file
}

fn seeds() -> Vec<Vec<u8>> {
    let mut bzimage = vec![0; 0x800];
    bzimage[0x1f1] = 1;
    bzimage[0x1f4] = 0x20;
    bzimage[0x1fe..0x202].copy_from_slice(&[0x55, 0xaa, 0xeb, 0x6a]);
    bzimage[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    bzimage[0x211] = 1;
    bzimage[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    bzimage[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    bzimage[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    bzimage[0x234..0x238].copy_from_slice(&[1, 21, 3, 0]);
    bzimage[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    bzimage[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    let mut multiboot = vec![0; 0x100];
    let (magic, flags) = (0x1bad_b002_u32, 0x1_0003_u32);
    let check = 0_u32.wrapping_sub(magic.wrapping_add(flags));
    let words = [
        magic, flags, check, 0x10_0000, 0x10_0000, 0x10_0080, 0x10_0100, 0x10_0040,
    ];
    for (word, place) in words.iter().zip(multiboot.chunks_exact_mut(4)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let files = [
        elf(2, 62, true),
        elf(2, 62, false),
        elf(1, 3, false),
        bzimage,
        multiboot,
    ];
    files
        .into_iter()
        .flat_map(|file| (0..4).map(move |protocol| [vec![protocol, 4], file.clone()].concat()))
        .collect()
}

thread_local! {
    static GUEST: LazyCell<GuestMemory> =
        LazyCell::new(|| memory::anonymous(&[(GuestAddress(0), MEMORY)]).expect("8 MiB"));
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let [protocol, initrd, data @ ..] = data else {
        return;
    };
    let path = |file: &std::fs::File| format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    let kernel = file_of(data, 0);
    let initrd = (initrd & 3 == 0).then(|| file_of(&[0x55; 100], u64::from(*initrd) << 12));
    let config = BootConfig {
        kernel: path(&kernel),
        initrd: initrd.as_ref().map(path),
        cmdline: String::new(),
        protocol: match protocol % 4 {
            0 => BootProtocol::Auto,
            1 => BootProtocol::Pvh,
            2 => BootProtocol::Linux64,
            _ => BootProtocol::Multiboot,
        },
    };
    GUEST.with(|memory| match boot::load(memory, &config, "console=ttyS0", Some(0xe_0000)) {
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    });
});
