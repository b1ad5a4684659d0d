//! Drives and network interfaces that come and go while a guest runs, with the real process, KVM and system call filters.
//!
//! The guest is a few instructions of a loop that does what Linux's drivers do: hears of a device, switches it on with a
//! doorbell and an interrupt vector, hears that it shall let go, and lets go.
use std::process::Command;

use tempfile::NamedTempFile;

use crate::guest::Code;
use crate::process::{self, Parent, Run, config, have_kvm, is_root};

const STOP: &str = r#"{"action":"stop"}"#;
/// The first empty device number of a guest without devices.
const SLOT: u8 = 1;

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

fn attach(id: &str, image: &NamedTempFile, more: &str) -> String {
    format!(
        r#"{{"action":"attach-drive","drive":{{"drive_id":"{id}","is_root_device":false,"path_on_host":"{}"{more}}}}}"#,
        image.path().display()
    )
}

fn detach(id: &str) -> String {
    format!(r#"{{"action":"detach-drive","drive_id":"{id}"}}"#)
}

/// Runs a guest that obeys; `answer` says what the parent does at each event.
fn run(code: &Code, answer: impl FnMut(&serde_json::Value, &mut Parent)) -> Run {
    process::talk(&config(code.image(), "", 2), &["--enable-pci"], answer)
}

#[test]
fn a_hundred_drives_come_and_go_and_leave_nothing_behind() {
    if !have_kvm() {
        return;
    }
    const CYCLES: usize = 100;
    let image = image();
    let (mut cycle, mut counts) = (0, Vec::new());
    // Every engine and format: each brings descriptors of its own.
    let kinds = ["", r#","io_engine":"Sync""#, r#","queues":4"#];
    let run = run(&Code::new().obey_hotplug(SLOT), |event, parent| {
        let line = match event["event"].as_str().unwrap() {
            "running" => attach("d0", &image, kinds[0]),
            "attached" => {
                assert_eq!(event["slot"], SLOT, "{event}");
                detach(event["id"].as_str().unwrap())
            }
            "detached" => {
                assert_eq!(event["requested"], true, "{event}");
                counts.push((parent.descriptors(), parent.threads()));
                cycle += 1;
                if cycle == CYCLES {
                    STOP.into()
                } else {
                    attach(&format!("d{cycle}"), &image, kinds[cycle % kinds.len()])
                }
            }
            "exit" => return,
            _ => panic!("{event}"),
        };
        parent.say(&line);
    });
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(counts.len(), CYCLES);
    // From the first to the last: not one descriptor or thread more. (The kernel may close an io_uring a moment later.)
    let (first, last) = (counts[0], counts.iter().rev().take(10).min().unwrap());
    println!(
        "descriptors and threads after the first and after the last of {CYCLES} cycles: {first:?}, {last:?}"
    );
    assert!(*last <= first, "{counts:?}");
    assert!(
        !run.stderr.contains("cannot") && !run.stderr.contains("stays"),
        "{}",
        run.stderr
    );
    // The guest saw each come (a driver's view of its identity) and go (nobody there).
    let seen = b"\xf4\xff".repeat(CYCLES);
    assert_eq!(run.stdout, seen, "{} bytes", run.stdout.len());
}

#[test]
fn a_network_interface_comes_and_goes() {
    if !have_kvm() {
        return;
    }
    let name = format!("hp{}", std::process::id());
    let made = Command::new("ip")
        .args(["tuntap", "add", "dev", &name, "mode", "tap", "vnet_hdr"])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: this user may not make tap interfaces, or there is no ip(8)");
        return;
    }
    plug_interface(&name, 20);
    let _ = Command::new("ip").args(["link", "del", &name]).status();
}

#[test]
fn a_tap_that_is_not_there_yet_is_made() {
    if have_kvm() && is_root() {
        plug_interface(&format!("hq{}", std::process::id()), 2);
    }
}

/// Plugs the tap `name` in and asks for it back, `cycles` times.
fn plug_interface(name: &str, cycles: u32) {
    let net = format!(
        r#"{{"action":"attach-net","interface":{{"iface_id":"eth1","host_dev_name":"{name}"}}}}"#
    );
    let mut left = cycles;
    let run = run(
        &Code::new().obey_hotplug(SLOT),
        |event, parent| match event["event"].as_str().unwrap() {
            "running" => parent.say(&net),
            "attached" => parent.say(r#"{"action":"detach-net","iface_id":"eth1"}"#),
            "detached" => {
                left -= 1;
                parent.say(if left == 0 { STOP } else { &net });
            }
            "exit" => {}
            _ => panic!("{event}"),
        },
    );
    assert_eq!((run.code, left), (Some(0), 0), "{run:?}");
}

#[test]
fn a_qcow2_image_can_be_plugged_in() {
    if !have_kvm() {
        return;
    }
    let image = NamedTempFile::new().unwrap();
    let mut qemu_img = Command::new("qemu-img");
    qemu_img.args(["create", "-q", "-f", "qcow2"]);
    let made = qemu_img.arg(image.path()).arg("1M").status().unwrap();
    assert!(made.success());
    let run = run(
        &Code::new().obey_hotplug(SLOT),
        |event, parent| match event["event"].as_str().unwrap() {
            "running" => parent.say(&attach("d", &image, r#","format":"qcow2""#)),
            "attached" => parent.say(&detach("d")),
            "detached" => parent.say(STOP),
            "exit" => {}
            _ => panic!("{event}"),
        },
    );
    assert_eq!(run.stdout, b"\xf4\xff", "{run:?}");
}

#[test]
fn in_the_jail_a_drive_is_plugged_in_from_the_folder_that_stays() {
    if !have_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = std::fs::File::create(folder.path().join("image")).unwrap();
    image.set_len(1 << 20).unwrap();
    let config = config(Code::new().obey_hotplug(SLOT).image(), "", 2);
    let root = folder.path().to_str().unwrap();
    let drive = |path: &str| {
        format!(
            r#"{{"action":"attach-drive","drive":{{"drive_id":"d","is_root_device":false,"path_on_host":"{path}"}}}}"#
        )
    };
    let arguments = ["--enable-pci", "--jail", "--jail-root", root];
    let mut refused = 0;
    let run = process::talk(&config, &arguments, |event, parent| {
        match event["event"].as_str().unwrap() {
            // What is outside is not there.
            "running" => parent.say(&drive("/etc/passwd")),
            "attach-failed" => {
                refused += 1;
                parent.say(&drive("/image"));
            }
            "attached" => parent.say(&detach("d")),
            "detached" => parent.say(STOP),
            "exit" => {}
            _ => panic!("{event}"),
        }
    });
    assert_eq!((run.code, refused), (Some(0), 1), "{run:?}");
    assert_eq!(run.stdout, b"\xf4\xff", "{run:?}");
}

#[test]
fn what_is_refused_is_said_and_the_guest_runs_on() {
    if !have_kvm() {
        return;
    }
    let image = image();
    let asks = [
        attach("d", &image, r#","format":"vmdk""#),
        r#"{"action":"attach-drive","drive":{"drive_id":"d","is_root_device":false,"path_on_host":"/nonexistent"}}"#.into(),
        attach("d", &image, "").replace("\"is_root_device\":false", "\"is_root_device\":true"),
        r#"{"action":"attach-net","interface":{"iface_id":"n","host_dev_fd":0}}"#.into(),
        r#"{"action":"attach-net","interface":{"iface_id":"n","host_dev_fd":4}}"#.into(),
        detach("d"),
        r#"{"action":"detach-net","iface_id":"n"}"#.into(),
    ];
    let mut failed = Vec::new();
    let run = run(&Code::new().obey_hotplug(SLOT), |event, parent| {
        if event["event"] == "running" {
            asks.iter().for_each(|ask| parent.say(ask));
        } else if event["event"] != "exit" {
            failed.push(event["message"].as_str().unwrap().to_owned());
            if failed.len() == asks.len() {
                parent.say(STOP);
            }
        }
    });
    assert_eq!(run.code, Some(0), "{run:?}");
    failed.sort();
    let starts = [
        "Cannot plug in drive \"d\" as root device",
        "Cannot plug in drive \"d\": Cannot open /nonexistent",
        "Cannot plug in drive \"d\": drives.format is \"vmdk\"",
        "Cannot plug in network interface \"n\" by host_dev_fd",
        "Cannot plug in network interface \"n\" by host_dev_fd",
        "There is no drive \"d\"",
        "There is no network interface \"n\"",
    ];
    for (message, start) in failed.iter().zip(starts) {
        assert!(message.starts_with(start), "{message}");
    }
}

#[test]
fn without_pci_the_answer_is_how_to_have_it() {
    if !have_kvm() {
        return;
    }
    let image = image();
    let config = config(Code::new().spin().image(), "", 2);
    let run = process::talk(&config, &[], |event, parent| {
        match event["event"].as_str().unwrap() {
            "running" => parent.say(&attach("d", &image, "")),
            "attach-failed" => {
                let message = event["message"].as_str().unwrap();
                assert!(message.contains("--enable-pci"), "{message}");
                parent.say(STOP);
            }
            "exit" => {}
            _ => panic!("{event}"),
        }
    });
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn a_guest_that_ends_takes_its_new_devices_with_it() {
    if !have_kvm() {
        return;
    }
    let image = image();
    // It does not listen: the device is there until the end.
    let run = run(&Code::new().spin(), |event, parent| {
        match event["event"].as_str().unwrap() {
            "running" => parent.say(&attach("d", &image, "")),
            "attached" => {
                parent.say(&detach("d"));
                parent.say(STOP);
            }
            "exit" => {}
            _ => panic!("{event}"),
        }
    });
    assert_eq!(run.code, Some(0), "{run:?}");
    image.as_file().lock().unwrap();
}
