//! A disk that a guest is booted from: partition table, ext4, and the files that say what to boot.
#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::process::Command;

use boot_entry::Disk;
use fuzz::disk::file_of;

/// Bytes of a disk that is only its first sectors.
const SMALL: u64 = 64 << 10;

/// An ext4 file system with every kind of boot entry, made by the tool that makes them.
fn base() -> Vec<u8> {
    let folder = std::env::temp_dir().join(format!("fuzz-boot-disk-{}", std::process::id()));
    let root = folder.join("root");
    let files = [
        ("boot/vmlinuz-6.1.0-1", "kernel"),
        ("boot/initrd.img-6.1.0-1", "initrd"),
        (
            "boot/extlinux/extlinux.conf",
            "DEFAULT a\nLABEL a\n LINUX /boot/vmlinuz-6.1.0-1\n INITRD ../initrd.img-6.1.0-1\n",
        ),
        (
            "boot/grub/grub.cfg",
            "menuentry 'a' {\n linux /boot/vmlinuz-6.1.0-1 root=x\n initrd /boot/initrd.img-6.1.0-1\n}\n",
        ),
        ("boot/grub/grubenv", "saved_entry=a\n"),
        (
            "boot/loader/entries/a.conf",
            "title a\nlinux /boot/vmlinuz-6.1.0-1\ninitrd /boot/initrd.img-6.1.0-1\n",
        ),
        ("boot/loader/loader.conf", "default a\n"),
    ];
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("room for a folder");
        fs::write(path, text).expect("room for a file");
    }
    for (link, to) in [
        ("vmlinuz", "boot/vmlinuz-6.1.0-1"),
        ("initrd.img", "/boot/initrd.img-6.1.0-1"),
    ] {
        std::os::unix::fs::symlink(to, root.join(link)).expect("room for a link");
    }
    let image = folder.join("image");
    let made = Command::new("/sbin/mke2fs")
        // Checksums would keep mutations from what is behind them.
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "1024",
            "-N",
            "64",
            "-O",
            "^has_journal,^metadata_csum,^64bit,^resize_inode",
        ])
        .args([
            "-U",
            "01234567-89ab-cdef-0123-456789abcdef",
            "-E",
            "hash_seed=01234567-89ab-cdef-0123-456789abcdef",
        ])
        .arg("-d")
        .args([&root, &image])
        .arg("192")
        .env("SOURCE_DATE_EPOCH", "1")
        .env("E2FSPROGS_FAKE_TIME", "1")
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "mke2fs makes a file system"
    );
    let bytes = fs::read(&image).expect("the file system");
    fs::remove_dir_all(&folder).expect("our own folder");
    bytes
}

thread_local! {
    static BASE: OnceCell<Vec<u8>> = const { OnceCell::new() };
}

fn seeds() -> Vec<Vec<u8>> {
    let mut mbr = vec![0; 1024];
    mbr[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
    mbr[462..478].copy_from_slice(&[0, 0, 0, 0, 0x05, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0]);
    let mut gpt = vec![0; 2048];
    gpt[446 + 4] = 0xee;
    gpt[512..520].copy_from_slice(b"EFI PART");
    gpt[520..528].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
    gpt[536] = 1;
    gpt[552] = 34;
    gpt[560] = 120;
    gpt[584] = 2;
    gpt[592] = 4;
    gpt[596] = 128;
    gpt[1024..1056].fill(0x11);
    gpt[1056] = 34;
    gpt[1064] = 40;
    let mut seeds: Vec<_> = [mbr, gpt].map(|start| [vec![1], start].concat()).into();
    // The superblock, group descriptors, inodes, directories; each in its place a byte.
    for place in [
        0x400_u32, 0x418, 0x458, 0x460, 0x800, 0x808, 0x1400, 0x1480, 0x1900, 0x3000,
    ] {
        let [low, middle, high, _] = place.to_le_bytes();
        seeds.push(vec![0, low, middle, high, 1, 0xff, 0xff]);
    }
    seeds.push(vec![0]);
    seeds
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let [kind, data @ ..] = data else {
        return;
    };
    let image = if kind & 1 == 0 {
        let mut image = BASE.with(|place| place.get_or_init(base).clone());
        let mut rest = data;
        while let [low, middle, high, len, after @ ..] = rest {
            let len = (usize::from(*len % 8) + 1).min(after.len());
            let (patch, after) = after.split_at(len);
            let at = u32::from_le_bytes([*low, *middle, *high, 0]) as usize % (image.len() - 8);
            image[at..at + len].copy_from_slice(patch);
            rest = after;
        }
        file_of(&image, 0)
    } else {
        let mut image = data.to_vec();
        image.resize(image.len().max(1024), 0);
        // Without these nothing is looked at.
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        file_of(&image, SMALL)
    };
    match Disk::open(image) {
        Ok(disk) => {
            if let Ok(loaded) = disk.entry() {
                let _ = loaded.write_kernel(&mut io::sink());
                let _ = loaded.write_initrd(&mut io::sink());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
