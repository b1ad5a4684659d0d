use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"
[machine]
name = "test"

[[guest]]
name = "pocket"
memory = "128M"
kernel = "flash:daruma/kernel"
ready = { console = "login:" }
"#;

fn parse(text: &str) -> Machine {
    let limits = Limits {
        host_memory_mib: Some(3000),
    };
    Machine::parse("default.toml", text, limits).unwrap()
}

/// The message of guest number `index` (from 0), which must have failed.
fn failure(text: &str, index: usize) -> String {
    parse(text).guests[index]
        .config
        .as_ref()
        .unwrap_err()
        .to_string()
}

fn with(line: &str) -> String {
    format!("{GOOD}{line}\n")
}

fn replaced(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from));
    GOOD.replace(from, to)
}

#[test]
fn defaults_are_filled_in() {
    let machine = parse(GOOD);
    assert_eq!(machine.name, "test");
    let guest = machine.guests[0].config.as_ref().unwrap();
    assert!(guest.autostart);
    assert_eq!((guest.vcpus, guest.memory_mib), (1, 128));
    assert_eq!(guest.restart, Restart::OnFailure);
    assert_eq!(guest.stop_timeout, Duration::from_secs(20));
    assert_eq!(guest.ready, Ready::Console("login:".to_owned()));
    assert_eq!(
        guest.kernel,
        Kernel::File(Source::Flash("daruma/kernel".to_owned()))
    );
}

#[test]
fn typo_names_line_and_nearest_key() {
    assert_eq!(
        failure(&replaced("memory =", "memroy ="), 0),
        "default.toml line 7: unknown key 'memroy' in guest 'pocket'; did you mean 'memory'?"
    );
    let text = with("[[guest.disk]]\nsource = \"disk:a\"\nreadonly = true");
    assert_eq!(
        failure(&text, 0),
        "default.toml line 12: unknown key 'readonly' in a disk of guest 'pocket'; did you mean 'read-only'?"
    );
}

#[test]
fn a_bad_guest_does_not_stop_the_others() {
    let text = format!(
        "{}{}",
        replaced("memory =", "memroy ="),
        GOOD.replace("pocket", "other")
    )
    .replacen("[machine]\nname = \"test\"\n", "", 1);
    let machine = parse(&text);
    assert!(machine.guests[0].config.is_err());
    assert!(machine.guests[1].config.is_ok());
}

#[test]
fn vcpus_outside_1_to_32_are_refused() {
    for count in ["0", "33", "-1", "9223372036854775807"] {
        let message = failure(&with(&format!("vcpus = {count}")), 0);
        assert_eq!(
            message,
            format!(
                "default.toml line 10: 'vcpus' in guest 'pocket' is {count}: a guest has 1 to 32 vCPUs"
            )
        );
    }
    for count in [1, 32] {
        assert!(
            parse(&with(&format!("vcpus = {count}"))).guests[0]
                .config
                .is_ok()
        );
    }
}

#[test]
fn memory_is_bounded_by_the_host_and_by_sense() {
    assert_eq!(
        failure(&replaced("\"128M\"", "\"4G\""), 0),
        "default.toml line 7: guest 'pocket' wants 4096 MiB of memory, but the host has 3000 MiB"
    );
    for bad in [
        "0",
        "-5",
        "\"0M\"",
        "\"128\"",
        "\"M\"",
        "\"99999999999999999999G\"",
        "\"12 apples\"",
    ] {
        assert!(
            failure(&replaced("\"128M\"", bad), 0).contains("line 7: 'memory'"),
            "{bad}"
        );
    }
    for (good, mib) in [("96", 96), ("\"1G\"", 1024), ("\"64 MiB\"", 64)] {
        let machine = parse(&replaced("\"128M\"", good));
        assert_eq!(machine.guests[0].config.as_ref().unwrap().memory_mib, mib);
    }
}

#[test]
fn second_guest_of_a_name_fails_and_names_both_lines() {
    let text = with(
        "[[guest]]\nname = \"pocket\"\nmemory = 64\nkernel = \"k\"\nready = { boot-timer = true }",
    );
    assert!(parse(&text).guests[0].config.is_ok());
    assert_eq!(
        failure(&text, 1),
        "default.toml line 10: guest name 'pocket' is already taken in line 5; each guest needs its own"
    );
}

#[test]
fn disk_written_by_two_guests_fails_the_later_one() {
    let second = |source: &str, read_only: &str| {
        with(&format!(
            "[[guest.disk]]\nsource = \"disk:guests/a.img\"\n\
             [[guest]]\nname = \"b\"\nmemory = 64\nkernel = \"k\"\nready = {{ boot-timer = true }}\n\
             [[guest.disk]]\nsource = \"{source}\"\n{read_only}"
        ))
    };
    for source in ["disk:guests/a.img", "disk:/guests//./a.img"] {
        let message = failure(&second(source, ""), 1);
        assert!(
            message.contains("is already used by guest 'pocket' (line 5)"),
            "{message}"
        );
    }
    assert!(
        parse(&second("disk:guests/b.img", "")).guests[1]
            .config
            .is_ok()
    );
    // A reader beside a writer sees a torn file system.
    assert!(
        parse(&second("disk:guests/a.img", "read-only = true")).guests[1]
            .config
            .is_err()
    );
}

#[test]
fn ready_rule_is_one_of_three() {
    for (rule, expected) in [
        (
            "{ console = \"\" }",
            "'console' in 'ready' of guest 'pocket' is \"\"",
        ),
        ("{ console = \"x\", boot-timer = true }", "choose one"),
        ("{ console = \"x\", vsock = 52 }", "choose one"),
        ("{ vsock = 0 }", "1 to 4294967294"),
        ("{ vsock = 4294967295 }", "1 to 4294967294"),
        ("{ vsock = \"52\" }", "integer"),
        ("{ boot-timer = false }", "write true"),
        ("{}", "empty"),
        ("{ consoel = \"x\" }", "did you mean 'console'?"),
        ("true", "must be a table, not boolean"),
    ] {
        let message = failure(&replaced("{ console = \"login:\" }", rule), 0);
        assert!(message.contains(expected), "{rule}: {message}");
        assert!(message.starts_with("default.toml line 9: "), "{message}");
    }
    let missing = failure(&replaced("ready = { console = \"login:\" }", ""), 0);
    assert!(missing.contains("key 'ready' is missing"), "{missing}");
}

#[test]
fn restart_policy_is_checked() {
    let message = failure(&with("restart = \"on-failur\""), 0);
    assert!(
        message.contains("did you mean \"on-failure\"?"),
        "{message}"
    );
}

#[test]
fn flash_disk_must_be_read_only() {
    let message = failure(&with("[[guest.disk]]\nsource = \"flash:root\""), 0);
    assert!(message.contains("flash cannot be written"), "{message}");
}

#[test]
fn source_cannot_leave_its_disk() {
    assert_eq!(Source::parse("disk:../etc/shadow"), None);
    assert_eq!(
        Source::parse("disk:/a/b"),
        Some(Source::Disk("a/b".to_owned()))
    );
    assert_eq!(Source::parse("flash:"), None);
    assert_eq!(Source::parse(""), None);
}

#[test]
fn only_syntax_and_the_machine_section_are_fatal() {
    let limits = Limits::default();
    let message = Machine::parse("m.toml", "[machine]\nname = ", limits).unwrap_err();
    assert!(
        message
            .to_string()
            .starts_with("m.toml line 2: not valid TOML: "),
        "{message}"
    );
    let message = Machine::parse("m.toml", "[machine]\nnaem = \"a\"", limits).unwrap_err();
    assert!(
        message.to_string().ends_with("did you mean 'name'?"),
        "{message}"
    );
    let machine = parse(&with("[[gest]]\nname = \"x\""));
    assert!(machine.guests[0].config.is_ok());
    assert!(
        machine.remarks[0]
            .to_string()
            .contains("unknown key 'gest'")
    );
}

#[test]
fn a_guest_that_is_no_table_fails_alone() {
    assert!(Machine::parse("m.toml", "guest = 3", Limits::default()).is_err());
    assert!(parse("guest = [3]").guests[0].config.is_err());
}

#[test]
fn the_shipped_machine_is_right() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/default.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let machine = parse(&text);
    assert!(machine.remarks.is_empty(), "{:?}", machine.remarks);
    let names: Vec<_> = machine
        .guests
        .iter()
        .map(|entry| {
            entry
                .config
                .as_ref()
                .unwrap_or_else(|error| panic!("{error}"))
                .name
                .as_str()
        })
        .collect();
    assert_eq!(names, ["pocket", "debian", "web"]);
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in "(?s).{0,400}") {
        let _ = Machine::parse("x", &text, Limits::default());
    }

    #[test]
    fn any_value_for_any_key_is_read_without_panic(
        key in prop::sample::select(vec![
            "name", "vcpus", "memory", "kernel", "cmdline", "ready", "restart", "stop-timeout", "disk", "autostart",
        ]),
        value in prop_oneof![
            "[-+0-9_xob.einf]{1,24}",
            "\"[^\"\\\\\n]{0,40}\"",
            Just("{}".to_owned()), Just("[]".to_owned()), Just("[{}]".to_owned()), Just("true".to_owned()),
            Just("1979-05-27".to_owned()), Just("{ console = 3 }".to_owned()),
        ],
    ) {
        let text = format!("[[guest]]\n{key} = {value}\n");
        if let Ok(machine) = Machine::parse("x", &text, Limits::default()) {
            // Each lacks most keys, so each must have failed with a place.
            let error = machine.guests[0].config.as_ref().unwrap_err();
            prop_assert!((1..=2).contains(&error.line), "{error}");
        }
    }
}

#[test]
fn a_guest_boots_from_its_own_disk_if_it_has_one_and_names_no_initrd() {
    let guest = |rest: &str| {
        let kernel = GOOD.replace("flash:daruma/kernel", "disk");
        let mut machine = parse(&format!("{kernel}{rest}"));
        machine.guests.remove(0).config
    };
    let disk = "[[guest.disk]]\nsource = \"disk:root.img\"\n";
    assert_eq!(guest(disk).unwrap().kernel, Kernel::OwnDisk);
    let error = guest("").unwrap_err().to_string();
    assert!(error.contains("first disk"), "{error}");
    let error = guest(&format!("initrd = \"flash:x\"\n{disk}"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("leave 'initrd' out"), "{error}");
}

#[test]
fn an_image_is_a_disk_or_memory() {
    let disk = |rest: &str| {
        let text =
            format!("{GOOD}[[guest.disk]]\nsource = \"flash:guest/x\"\nread-only = true\n{rest}");
        let guest = parse(&text).guests.remove(0).config;
        guest.map(|mut config| config.disks.remove(0))
    };
    assert!(!disk("").unwrap().pmem);
    assert!(disk("pmem = true").unwrap().pmem);
    let error = disk("format = \"qcow2\"\npmem = true")
        .unwrap_err()
        .to_string();
    assert!(error.contains("only a raw image"), "{error}");
}

#[test]
fn a_disk_is_raw_unless_its_format_is_said() {
    let guest = |kernel: &str, format: &str| {
        let kernel = GOOD.replace("flash:daruma/kernel", kernel);
        let text = format!("{kernel}[[guest.disk]]\nsource = \"disk:x\"\n{format}");
        parse(&text).guests.remove(0).config
    };
    let format = |format| guest("flash:daruma/kernel", format).map(|config| config.disks[0].format);
    assert_eq!(format("").unwrap(), DiskFormat::Raw);
    assert_eq!(format("format = \"raw\"").unwrap(), DiskFormat::Raw);
    assert_eq!(format("format = \"qcow2\"").unwrap(), DiskFormat::Qcow2);
    let error = format("format = \"vmdk\"").unwrap_err().to_string();
    assert!(error.contains("\"raw\" or \"qcow2\""), "{error}");
    let error = guest("disk", "format = \"qcow2\"").unwrap_err().to_string();
    assert!(error.contains("raw disks only"), "{error}");
}
