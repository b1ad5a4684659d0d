//! The files by which a disk says how it is booted: extlinux, Boot Loader Specification, GRUB; and versions.
#![no_main]

use boot_entry::fuzzing;

fn seeds() -> Vec<Vec<u8>> {
    let grub = "set default=\"0\"\nif [ -s $prefix/grubenv ]; then\n load_env\nfi\nfunction savedefault {\n true\n}\n\
                menuentry 'Debian' --class debian $menuentry_id_option 'gnulinux-simple' {\n insmod ext2\n \
                search --no-floppy --fs-uuid --set=root 1234\n linux /boot/vmlinuz-6.1.0-1 root=UUID=1234 ro ${args}\n \
                initrd /boot/initrd.img-6.1.0-1\n}\nsubmenu 'more' {\n menuentry 'old' { linux /a\n initrd /b /c\n }\n}\n\
                for x in a b; do echo $x; done\n";
    let extlinux = "DEFAULT l0\nTIMEOUT 10\nLABEL l0\n MENU LABEL x\n LINUX ../vmlinuz\n INITRD /initrd,/b\n \
                    APPEND root=/dev/vda1 ro\nLABEL l1\n KERNEL /k\n";
    let bls = "title x\nversion 6.1.0-1\nlinux /vmlinuz-6.1\ninitrd /initrd-6.1 /more\noptions root=/dev/vda ${kernelopts} quiet\n";
    let environment = "# GRUB Environment Block\nsaved_entry=b\nkernelopts=root=/dev/vda ro\n#####";
    [grub, extlinux, bls, "default a*\n6.1.0+1~rc1-2"]
        .map(|text| [text.as_bytes(), &[0], environment.as_bytes()].concat())
        .into()
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (text, other) = text.split_once('\0').unwrap_or((&text, ""));
    fuzzing::texts(text, other);
    if text.len() + other.len() < 60 {
        let (a, b) = other.split_once(' ').unwrap_or((other, ""));
        fuzzing::versions([text, a, b]);
    }
});
