use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::partitions::Partition;

const MIB: usize = 1 << 20;
const EXTLINUX: &str =
    "label a\n linux /boot/vmlinuz\n initrd /boot/one,/boot/two\n append root=/dev/vda1 ro\n";

/// An ext4 of `mib` MiB that `fill` put files into, made by the real tool.
fn ext4(mib: usize, options: &[&str], fill: impl Fn(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (tree, image) = (folder.path().join("tree"), folder.path().join("image"));
    fs::create_dir_all(tree.join("boot/extlinux")).unwrap();
    fill(&tree);
    let path = std::env::var("PATH").unwrap_or_default();
    let made = Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-L", "root"])
        .args(["-U", "8c1f7a2e-7d9b-4b5a-9df7-07a5d9a4a3c1"])
        .args(options)
        .arg("-d")
        .args([&tree, &image])
        .arg(format!("{mib}M"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::read(image).unwrap()
}

/// A disk with an MBR and these file systems in its partitions.
fn disk(volumes: &[&[u8]]) -> Vec<u8> {
    let mut disk = vec![0; MIB];
    for (index, volume) in volumes.iter().enumerate() {
        let (first, count) = (disk.len() / 512, volume.len() / 512);
        let at = 446 + index * 16;
        disk[at + 4] = 0x83;
        disk[at + 8..at + 12].copy_from_slice(&u32::try_from(first).unwrap().to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&u32::try_from(count).unwrap().to_le_bytes());
        disk.extend_from_slice(volume);
    }
    disk[440..444].copy_from_slice(&[4, 3, 2, 1]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn open(disk: Vec<u8>) -> Result<Disk, BootError> {
    let disk: Arc<dyn Bytes> = Arc::new(disk);
    Disk::new(&disk)
}

fn contents(loaded: &Loaded<'_>) -> (Vec<u8>, Vec<u8>) {
    let (mut kernel, mut initrd) = (Vec::new(), Vec::new());
    loaded.write_kernel(&mut kernel).unwrap();
    loaded.write_initrd(&mut initrd).unwrap();
    assert_eq!(kernel.len() as u64, loaded.kernel_size);
    assert_eq!(initrd.len() as u64, loaded.initrd_size);
    (kernel, initrd)
}

fn root(tree: &Path) {
    fs::write(tree.join("boot/vmlinuz-1"), vec![7; 300_000]).unwrap();
    symlink("vmlinuz-1", tree.join("boot/vmlinuz")).unwrap();
    fs::write(tree.join("boot/one"), "12345").unwrap();
    fs::write(tree.join("boot/two"), "67").unwrap();
    fs::write(tree.join("boot/extlinux/extlinux.conf"), EXTLINUX).unwrap();
}

#[test]
fn kernel_and_initial_ram_disks_come_from_the_disk_with_or_without_a_table() {
    let volume = ext4(8, &[], root);
    for (disk, place) in [
        (disk(&[&volume]), "partition 1"),
        (volume, "the whole disk"),
    ] {
        let disk = open(disk).unwrap();
        let loaded = disk.entry().unwrap();
        assert_eq!(
            loaded.origin,
            format!("/boot/extlinux/extlinux.conf of {place}")
        );
        assert_eq!(loaded.cmdline, "root=/dev/vda1 ro");
        let (kernel, initrd) = contents(&loaded);
        assert_eq!(kernel, vec![7; 300_000]);
        // The second archive begins at a multiple of four.
        assert_eq!(initrd, b"12345\0\0\x0067");
    }
}

#[test]
fn a_boot_partition_of_its_own_serves_as_well() {
    let boot = ext4(8, &[], |tree| {
        fs::write(tree.join("vmlinuz-6.8.0-60-generic"), "kernel").unwrap();
        fs::create_dir(tree.join("grub")).unwrap();
        let config = include_str!("../fixtures/ubuntu-grub.cfg");
        fs::write(tree.join("grub/grub.cfg"), config).unwrap();
    });
    let root = ext4(8, &["-U", "random"], |_| {});
    let disk = open(disk(&[&root, &boot])).unwrap();
    let loaded = disk.entry().unwrap();
    assert_eq!(loaded.origin, "/grub/grub.cfg of partition 2");
    assert!(loaded.cmdline.ends_with("console=ttyS0 panic=-1"));
    assert_eq!(contents(&loaded), (b"kernel".to_vec(), Vec::new()));
}

#[test]
fn the_boot_loader_specification_goes_before_all_others() {
    let volume = ext4(8, &[], |tree| {
        root(tree);
        fs::create_dir_all(tree.join("boot/loader/entries")).unwrap();
        fs::write(tree.join("boot/bls"), "from bls").unwrap();
        let entry = "title x\nlinux /boot/bls\noptions ro\n";
        fs::write(tree.join("boot/loader/entries/x.conf"), entry).unwrap();
    });
    let disk = open(disk(&[&volume])).unwrap();
    assert_eq!(contents(&disk.entry().unwrap()).0, b"from bls");
}

#[test]
fn without_a_configuration_the_links_to_the_newest_kernel_serve() {
    let volume = ext4(8, &[], |tree| {
        fs::write(tree.join("boot/vmlinuz-1"), "kernel").unwrap();
        symlink("boot/vmlinuz-1", tree.join("vmlinuz")).unwrap();
    });
    let disk = open(disk(&[&volume])).unwrap();
    let loaded = disk.entry().unwrap();
    assert_eq!(loaded.cmdline, "root=PARTUUID=01020304-01 ro");
    assert_eq!(loaded.initrd_size, 0);
}

fn error(fill: impl Fn(&Path)) -> String {
    let volume = ext4(8, &[], fill);
    let disk = open(disk(&[&volume])).unwrap();
    disk.entry().err().unwrap().to_string()
}

#[test]
fn what_is_missing_is_named() {
    let text = error(|_| {});
    assert!(
        text.contains("no boot entry") && text.contains("partition 1"),
        "{text}"
    );
    let text = error(|tree| {
        fs::write(tree.join("boot/extlinux/extlinux.conf"), "timeout 3\n").unwrap();
    });
    assert!(
        text.contains("extlinux.conf of partition 1 names no kernel"),
        "{text}"
    );
    let text = error(|tree| {
        fs::write(tree.join("boot/extlinux/extlinux.conf"), EXTLINUX).unwrap();
    });
    assert!(
        text.contains("names /boot/vmlinuz, which cannot be read"),
        "{text}"
    );
    let text = error(|tree| {
        fs::create_dir(tree.join("boot/vmlinuz")).unwrap();
        fs::write(tree.join("boot/extlinux/extlinux.conf"), EXTLINUX).unwrap();
    });
    assert!(text.contains("not a regular file"), "{text}");
}

#[test]
fn other_file_systems_are_named() {
    let mut xfs = vec![0; MIB];
    xfs[..4].copy_from_slice(b"XFSB");
    let text = open(disk(&[&xfs, &vec![0; MIB]]))
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("ext2, ext3 and ext4 are supported"), "{text}");
    assert!(
        text.contains("found XFS in partition 1, nothing known in partition 2"),
        "{text}"
    );
    let text = open(vec![0; 100]).err().unwrap().to_string();
    assert!(text.contains("nothing known and no partitions"), "{text}");
}

#[test]
fn links_that_loop_or_lead_out_are_refused() {
    for target in [
        "vmlinuz",
        "../../../../../../../../boot/vmlinuz",
        "/dev/sda",
    ] {
        let text = error(|tree| {
            symlink(target, tree.join("boot/vmlinuz")).unwrap();
            fs::write(tree.join("boot/extlinux/extlinux.conf"), EXTLINUX).unwrap();
        });
        assert!(
            text.contains("names /boot/vmlinuz, which cannot be read"),
            "{text}"
        );
    }
}

#[test]
fn sizes_are_bounded() {
    let text = error(|tree| {
        root(tree);
        // A hole: no space on the disk, and more than any kernel has.
        let kernel = File::create(tree.join("boot/vmlinuz-1")).unwrap();
        kernel.set_len(MAX_KERNEL + 1).unwrap();
    });
    assert!(
        text.contains("134217729 bytes; 134217728 are the limit"),
        "{text}"
    );
    let text = error(|tree| {
        root(tree);
        let long = format!("{EXTLINUX} append {}\n", "x".repeat(2048));
        fs::write(tree.join("boot/extlinux/extlinux.conf"), long).unwrap();
    });
    assert!(
        text.contains("command line of 2048 bytes; 2047 are the limit"),
        "{text}"
    );
}

/// A small real disk: ext4 with all that is looked for.
fn real() -> &'static Vec<u8> {
    static DISK: OnceLock<Vec<u8>> = OnceLock::new();
    DISK.get_or_init(|| disk(&[&ext4(2, &["-N", "32"], root)]))
}

/// Everything that a host does with a disk.
fn use_all(disk: Vec<u8>) {
    let Ok(disk) = open(disk) else { return };
    let Ok(loaded) = disk.entry() else { return };
    let _ = loaded.write_kernel(&mut io::sink());
    let _ = loaded.write_initrd(&mut io::sink());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    // Superblock, group descriptors, inode table and folders of a 2 MiB ext4 lie in its first 128 KiB.
    #[test]
    fn damage_never_panics(changes in prop::collection::vec((0usize..128 << 10, any::<u8>()), 1..40)) {
        let mut bytes = real().clone();
        for (at, value) in changes {
            bytes[MIB + at] = value;
        }
        use_all(bytes);
    }

    #[test]
    fn damaged_superblocks_never_panic(changes in prop::collection::vec((0usize..1024, any::<u8>()), 1..6)) {
        let mut bytes = real().clone();
        for (at, value) in changes {
            bytes[MIB + 1024 + at] = value;
        }
        use_all(bytes);
    }

    // Without checksums damage goes deeper than to the first check.
    #[test]
    fn unchecked_damage_never_panics(changes in prop::collection::vec((1024usize..128 << 10, any::<u8>()), 1..40)) {
        static DISK: OnceLock<Vec<u8>> = OnceLock::new();
        let mut bytes = DISK
            .get_or_init(|| disk(&[&ext4(2, &["-N", "32", "-O", "^metadata_csum,^uninit_bg"], root)]))
            .clone();
        for (at, value) in changes {
            bytes[MIB + at] = value;
        }
        use_all(bytes);
    }

    #[test]
    fn a_cut_disk_never_panics(length in 0usize..3 << 20) {
        use_all(real()[..length].to_vec());
    }
}

/// Changes the superblock's 32-bit word at `at`.
fn patched(volume: &[u8], at: usize, value: u32) -> Vec<u8> {
    let mut volume = volume.to_vec();
    volume[1024 + at..1028 + at].copy_from_slice(&value.to_le_bytes());
    volume
}

#[test]
fn superblock_that_asks_for_the_hosts_memory_is_refused() {
    let volume = ext4(8, &["-O", "^metadata_csum,^64bit"], root);
    assert!(open(volume.clone()).is_ok());
    // Blocks of a gibibyte, more blocks than the disk has room for, groups of one block.
    for (at, value, what) in [
        (0x18, 20, "blocks of 2^30 bytes"),
        (0x04, u32::MAX, "blocks, room is for"),
        (0x150, 1, "blocks, room is for"),
    ] {
        let Err(BootError::NoVolume { found }) = open(patched(&volume, at, value)) else {
            panic!("word {at:#x} = {value:#x} is taken");
        };
        assert!(found.contains(what), "{found}");
    }
    let partition = Partition {
        number: 0,
        start: 0,
        length: 1 << 40,
        uuid: None,
    };
    struct Endless(Vec<u8>);
    impl Bytes for Endless {
        fn length(&self) -> u64 {
            1 << 40
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
            self.0.read(offset, buffer)
        }
    }
    let many = patched(&patched(&volume, 0x20, 1), 0x04, 1 << 29);
    let many: Arc<dyn Bytes> = Arc::new(Endless(many));
    let error = Volume::open(&many, &partition).err().unwrap();
    assert!(error.contains("groups of blocks"), "{error}");
}

#[test]
fn link_that_says_it_is_a_terabyte_long_is_refused() {
    let target = format!("/{}", "x".repeat(100));
    let volume = ext4(8, &["-O", "^metadata_csum"], |tree| {
        symlink(&target, tree.join("vmlinuz")).unwrap();
    });
    // Its inode: a link, with its length behind mode and owner.
    let (mode, len) = (0xa1ff_u16.to_le_bytes(), 101_u32.to_le_bytes());
    let inode = volume
        .chunks_exact(256)
        .position(|inode| inode[..2] == mode && inode[4..8] == len);
    let at = inode.expect("an inode of 256 bytes") * 256;
    let mut hostile = volume;
    hostile[at + 108..at + 112].copy_from_slice(&0xff_u32.to_le_bytes());
    let disk = open(hostile).unwrap();
    let error = disk.volumes[0].size("/vmlinuz").unwrap_err();
    assert_eq!(
        error.to_string(),
        ext4_view::Ext4Error::PathTooLong.to_string()
    );
}

#[test]
fn links_are_followed_within_their_file_system_and_not_for_ever() {
    let volume = ext4(8, &[], |tree| {
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/file"), "1234").unwrap();
        symlink("../file", tree.join("a/b/up")).unwrap();
        symlink("/a/b", tree.join("c")).unwrap();
        symlink("../../../../a/./file", tree.join("far")).unwrap();
        symlink("round", tree.join("round")).unwrap();
        symlink("nowhere", tree.join("dead")).unwrap();
    });
    let disk = open(volume).unwrap();
    let size = |path| disk.volumes[0].size(path);
    for path in ["/a/file", "/c/up", "/far", "//c/../file", "/c/./up"] {
        assert_eq!(size(path).unwrap(), Some(4), "{path}");
    }
    assert_eq!(size("/c").unwrap(), None, "a folder");
    assert!(size("/round").is_err() && size("/dead").is_err() && size("/a/file/x").is_err());
    assert_eq!(disk.volumes[0].list("/c"), [".", "..", "up"]);
}
