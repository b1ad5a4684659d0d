use std::io::{PipeReader, PipeWriter, Read, pipe};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::*;

/// A console of one head with two guests; the other ends of the head's pipes.
fn console() -> (Console, PipeReader, PipeWriter) {
    let (input, keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    for end in [
        OwnedFd::from(screen.try_clone().unwrap()),
        output.try_clone().unwrap().into(),
    ] {
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    }
    let mut console = Console::new(vec![Head::new(input.into(), output.into())]);
    assert_eq!(console.add_channel("pocket"), 1);
    assert_eq!(console.add_channel("debian"), 2);
    (console, screen, keyboard)
}

fn shown(screen: &mut PipeReader) -> String {
    let mut bytes = vec![0; 1 << 20];
    let length = screen.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).replace("\x1b[0m\x1b[?25h", "")
}

#[test]
fn guest_in_the_background_is_shown_on_return() {
    let (mut console, mut screen, _keyboard) = console();
    console.output(2, b"booting\r\nlogin: ");
    assert_eq!(shown(&mut screen), "");
    assert!(console.keys(0, b"\x1d2").is_empty());
    assert_eq!(
        shown(&mut screen),
        "\r\n--- debian (Ctrl-] 0 for the host) ---\r\nbooting\r\nlogin: "
    );
    console.output(2, b"root\r\n");
    assert_eq!(shown(&mut screen), "root\r\n");
    console.output(1, b"unseen");
    assert_eq!(shown(&mut screen), "");
}

#[test]
fn host_lines_are_kept_while_a_guest_is_shown() {
    let (mut console, mut screen, _keyboard) = console();
    console.keys(0, b"\x1d1");
    shown(&mut screen);
    console.say("daruma: debian: ready: 12 ms");
    assert_eq!(shown(&mut screen), "");
    console.keys(0, b"\x1d0");
    assert!(shown(&mut screen).ends_with("---\r\ndaruma: debian: ready: 12 ms\r\n"));
}

#[test]
fn keys_reach_the_guest_raw() {
    let (mut console, _screen, _keyboard) = console();
    let requests = console.keys(0, b"\x1d2root\r\x03\x1d\x1dx");
    let bytes = b"root\r\x03\x1dx".to_vec();
    assert_eq!(
        requests,
        [Request::Input {
            head: 0,
            channel: 2,
            bytes
        }]
    );
}

#[test]
fn chord_is_recognized_across_reads() {
    let (mut console, mut screen, _keyboard) = console();
    console.keys(0, b"\x1d");
    console.keys(0, b"n");
    assert!(shown(&mut screen).contains("--- pocket"));
}

#[test]
fn unknown_guest_number_rings_the_bell() {
    let (mut console, mut screen, _keyboard) = console();
    console.keys(0, b"\x1d9");
    assert_eq!(shown(&mut screen), "\x07");
}

#[test]
fn shell_chord_is_the_command_in_every_view() {
    let (mut console, _screen, _keyboard) = console();
    for view in [&b"\x1d0"[..], b"\x1d2"] {
        console.keys(0, view);
        let line = "shell".to_owned();
        assert_eq!(
            console.keys(0, b"\x1ds"),
            [Request::Command { head: 0, line }]
        );
    }
}

#[test]
fn state_line_does_not_break_a_line_being_typed() {
    let (mut console, mut screen, _keyboard) = console();
    console.keys(0, b"li");
    shown(&mut screen);
    console.say("daruma: pocket: starting");
    assert_eq!(
        shown(&mut screen),
        "\r\x1b[Kdaruma: pocket: starting\r\ndaruma> li"
    );
    let requests = console.keys(0, b"st\r");
    assert_eq!(
        requests,
        [Request::Command {
            head: 0,
            line: "list".to_owned()
        }]
    );
}

#[test]
fn terminal_that_takes_nothing_costs_bounded_memory() {
    let (mut console, mut screen, _keyboard) = console();
    console.keys(0, b"\x1d1");
    for _ in 0..100 {
        console.output(1, &[b'x'; 64 * 1024]);
    }
    console.output(1, b"newest");
    let mut total = Vec::new();
    loop {
        let text = shown(&mut screen);
        if text.is_empty() {
            break;
        }
        total.extend_from_slice(text.as_bytes());
        console.head_mut(0).unwrap().flush();
    }
    assert!(total.len() < 400 * 1024, "{}", total.len());
    assert!(total.ends_with(b"newest"));
}

#[test]
fn table_takes_the_terminal_and_gives_it_back() {
    let (mut console, mut screen, _keyboard) = console();
    let line = |line: &str| Request::Command {
        head: 0,
        line: line.to_owned(),
    };
    assert_eq!(console.keys(0, b"\x1dv"), [line("view")]);
    console.show_table(0);
    assert!(console.has_tables());
    console.update_tables(&serde_json::json!({ "guests": [{ "number": 1, "name": "pocket" }] }));
    assert!(shown(&mut screen).contains(">  1 pocket"));
    // The host's lines wait; the last is seen in the picture.
    console.say("daruma: pocket: failed\x1b[2J");
    assert_eq!(shown(&mut screen), "");
    console.reply(0, "snapshot 7 of pocket");
    let news = shown(&mut screen);
    assert!(
        news.contains("snapshot 7 of pocket") && !news.contains('\n'),
        "{news:?}"
    );
    assert_eq!(console.keys(0, b"s"), [line("snapshot pocket")]);
    assert!(console.keys(0, b"r").is_empty());
    assert_eq!(
        console.keys(0, b"y\r"),
        [line("restart pocket"), line("view pocket")]
    );
    assert_eq!(console.keys(0, b"l"), [line("log pocket")]);
    let after = shown(&mut screen);
    assert!(
        after.contains("\x1b[2J\x1b[H") && after.contains("--- host"),
        "{after:?}"
    );
    assert!(after.contains("daruma: pocket: failed"));
    assert!(!console.has_tables());
}

#[test]
fn escape_leaves_the_table_when_nothing_follows() {
    let (mut console, mut screen, _keyboard) = console();
    console.show_table(0);
    assert!(console.keys(0, b"\x1b").is_empty());
    let due = console.due().unwrap();
    assert!(console.timers(due - Duration::from_millis(1)).is_empty());
    assert!(console.has_tables());
    console.keys(0, b"[B");
    assert_eq!(console.due(), None);
    console.keys(0, b"\x1b");
    assert!(console.timers(console.due().unwrap()).is_empty());
    assert!(!console.has_tables());
    assert!(shown(&mut screen).contains("--- host"));
    // A chord leads out as well.
    console.show_table(0);
    console.keys(0, b"\x1d2");
    assert!(!console.has_tables());
    assert!(shown(&mut screen).contains("--- debian"));
    console.show_table(0);
    console.leave_tables();
    assert!(shown(&mut screen).contains("--- host"));
}

#[test]
fn absent_keyboard_leaves_the_screen_alive() {
    let (mut console, mut screen, keyboard) = console();
    drop(keyboard);
    assert!(console.head_mut(0).unwrap().read().is_empty());
    assert!(console.heads()[0].input().is_none());
    console.say("still here");
    assert_eq!(shown(&mut screen), "still here\r\n");
}
