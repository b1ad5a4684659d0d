use proptest::prelude::*;

use super::*;

const DEBIAN: &str = include_str!("../fixtures/debian-grub.cfg");
const UBUNTU: &str = include_str!("../fixtures/ubuntu-grub.cfg");

fn saved(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn boot(text: &str) -> Option<Entry> {
    parse(text, "/boot/grub", HashMap::new())
}

#[test]
fn what_grub_mkconfig_writes_on_debian_is_read() {
    let entry = boot(DEBIAN).unwrap();
    assert_eq!(
        entry,
        Entry {
            kernel: "/boot/vmlinuz-6.12.117+deb12-cloud-amd64".into(),
            initrds: vec!["/boot/initrd.img-6.12.117+deb12-cloud-amd64".into()],
            options: "root=UUID=7f1c1e0a-5f27-4d3a-9c55-646562696e72 ro console=tty0 console=ttyS0,115200 \
                      earlyprintk=ttyS0,115200 consoleblank=0"
                .into(),
            place: Place::Uuid("7f1c1e0a-5f27-4d3a-9c55-646562696e72".into()),
        }
    );
}

#[test]
fn default_is_a_number_a_title_an_id_or_a_path_of_these() {
    let id = "7f1c1e0a-5f27-4d3a-9c55-646562696e72";
    let old = "/boot/vmlinuz-6.1.0-56-cloud-amd64";
    let new = "/boot/vmlinuz-6.12.117+deb12-cloud-amd64";
    for (default, kernel) in [
        ("0", new),
        ("1>2", old),
        ("1", new),
        ("7", new),
        (
            "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-56-cloud-amd64",
            old,
        ),
        (
            &format!("gnulinux-advanced-{id}>gnulinux-6.1.0-56-cloud-amd64-advanced-{id}"),
            old,
        ),
        (&format!("gnulinux-simple-{id}"), new),
        ("no such entry", new),
    ] {
        let text = DEBIAN.replace("set default=\"0\"", &format!("set default=\"{default}\""));
        assert_eq!(boot(&text).unwrap().kernel, kernel, "{default}");
    }
}

#[test]
fn a_saved_default_comes_from_the_environment_block_and_an_entry_for_once_does_not() {
    let text = DEBIAN.replace("set default=\"0\"", "set default=\"${saved_entry}\"");
    let kernel = |saved| parse(&text, "/boot/grub", saved).unwrap().kernel;
    assert!(kernel(saved(&[("saved_entry", "1>2")])).contains("6.1.0-56"));
    assert!(kernel(saved(&[("next_entry", "1>2")])).contains("6.12.117"));
    let block = "# GRUB Environment Block\nsaved_entry=1>2\n# comment\n############";
    assert!(kernel(environment(block)).contains("6.1.0-56"));
    assert_eq!(environment("saved_entry=1>2\n"), HashMap::new());
}

#[test]
fn what_ubuntus_cloud_images_have_is_read() {
    let entry = boot(UBUNTU).unwrap();
    assert_eq!(entry.kernel, "/vmlinuz-6.8.0-60-generic");
    assert_eq!(entry.initrds, Vec::<String>::new());
    assert_eq!(
        entry.options,
        "root=PARTUUID=1b9a7d4e-5f0c-4f0e-8a55-6f9d1e2c3b4a ro console=tty1 console=ttyS0 panic=-1"
    );
    let entry = parse(UBUNTU, "/grub", saved(&[("initrdfail", "1")])).unwrap();
    assert_eq!(entry.initrds, ["/initrd.img-6.8.0-60-generic"]);
    let advanced = UBUNTU.replace("set default=\"0\"", "set default=1");
    let entry = boot(&advanced).unwrap();
    assert_eq!(entry.place, Place::Label("cloudimg-boot".into()));
    assert_eq!(
        entry.initrds,
        ["/microcode.cpio", "/initrd.img-6.8.0-59-generic"]
    );
    assert_eq!(
        entry.options,
        "root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0"
    );
}

#[test]
fn quotes_escapes_devices_and_conditions_are_understood() {
    let text = r#"
set a="x y"; b='$a' # comment }
if [ "$a" = "x y" -a ! -z "$b" ]; then set c=yes; elif true; then set c=no; else set c=never; fi
menuentry "one \"quoted\"" { linux (hd0,gpt3)/k root=/dev/vda1 "$a" $b c=$c ${d}e \
  last ; initrd ($root)/i }
"#;
    let entry = boot(text).unwrap();
    assert_eq!(entry.kernel, "/k");
    assert_eq!(entry.place, Place::Partition(3));
    assert_eq!(entry.initrds, ["/i"]);
    assert_eq!(entry.options, "root=/dev/vda1 x y $a c=yes e last");
}

#[test]
fn a_script_without_a_kernel_has_no_entry() {
    for text in [
        "",
        "menuentry x { chainloader +1 }",
        "blscfg\n",
        "submenu a { }",
        "}}}} fi fi",
    ] {
        assert_eq!(boot(text), None, "{text}");
    }
}

#[test]
fn blocks_without_an_end_are_survived() {
    boot(&"menuentry a { ".repeat(50_000));
    boot(&"if [ a ]; then ".repeat(50_000));
    boot(&"{".repeat(100_000));
    boot(&"submenu a { menuentry b { linux /k }\n".repeat(15));
}

#[test]
fn variables_cannot_grow_without_bound() {
    let doubling = "set a=\"$a$a\"\n".repeat(200);
    boot(&format!(
        "set a=xxxxxxxx\n{doubling}menuentry a {{ linux /k $a }}"
    ))
    .unwrap();
}

proptest! {
    #[test]
    fn any_script_is_survived(text in "(if |then |else |fi |menuentry |submenu |set a=|linux |initrd |search |\\[ |\\] |\\{|\\}|\"|'|\\$|\\\\|;|\n|[a-z(),/ ]{0,4}|\\PC){0,80}") {
        let _ = boot(&text);
    }

    #[test]
    fn a_damaged_script_is_survived(cuts in prop::collection::vec((0usize..8000, 0usize..64), 1..6)) {
        let mut text = DEBIAN.as_bytes().to_vec();
        for (at, length) in cuts {
            let at = at % text.len();
            let end = (at + length).min(text.len());
            text.drain(at..end);
        }
        let _ = boot(&String::from_utf8_lossy(&text));
    }
}
