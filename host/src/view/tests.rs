use ratatui_core::layout::Rect;
use serde_json::{Value, json};

use super::*;

fn guest(number: u64, name: &str) -> Value {
    json!({
        "number": number, "name": name, "state": "ready", "detail": "812 ms", "vcpus": 2, "memory_mib": 512,
        "health": "well, load 0.25, 210 MiB available", "falls": 3, "stands": 2, "run": 77, "vcpu_ms": 1000,
        "resident_kib": 345_678, "last_good": { "snapshot": 17, "age_s": 12 },
        "counted": { "ms": 990, "disk_read_bytes": 0, "disk_written_bytes": 0, "net_received_bytes": 0, "net_sent_bytes": 0 },
        "history": [{ "point": "suspended", "snapshot": 9 }, { "point": "good", "snapshot": 17 }, { "point": "fell" },
                    { "point": "taken", "snapshot": 18 }],
    })
}

/// A view of these guests, a second later.
fn view(mut guests: Vec<Value>) -> View {
    let mut view = View::default();
    view.update(Sample::read(&json!({ "ms": 1000, "guests": guests })));
    for guest in &mut guests {
        if guest["run"].is_null() {
            continue;
        }
        guest["vcpu_ms"] = json!(2250);
        guest["counted"] = json!({
            "ms": 1990, "disk_read_bytes": 3 << 20, "disk_written_bytes": 4096, "net_received_bytes": 900, "net_sent_bytes": 20 << 10,
        });
    }
    view.update(Sample::read(&json!({ "ms": 2000, "guests": guests })));
    view
}

fn lines(view: &View, (width, height): (u16, u16)) -> Vec<String> {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    view.draw(&mut buffer);
    let lines = buffer.content().chunks(usize::from(width));
    lines
        .map(|cells| {
            cells
                .iter()
                .map(|cell| cell.symbol())
                .collect::<String>()
                .trim_end()
                .to_owned()
        })
        .collect()
}

#[test]
fn a_terminal_of_80_by_24_shows_all_of_it() {
    let asleep = json!({ "number": 2, "name": "asleep", "state": "stopped", "detail": "powered off", "memory_mib": 64 });
    let lines = lines(&view(vec![guest(1, "debian"), asleep]), DEFAULT_SIZE);
    assert_eq!(lines.len(), 24);
    let expected = [
        "daruma: 1 of 2 guests ready               o good  . not yet  s suspended  X fell",
        "  no guest             state      vcpu    memory  disk r/w   net r/w good falls",
        ">  1 debian            ready      125% 337M/512M 3.0M/4.0K   900/20K  12s   3/2",
        "     well, load 0.25, 210 MiB availab soX.",
        "   2 asleep            stopped       -     -/64M         -         -    -   0/0",
        "     powered off",
    ];
    assert_eq!(lines[..6], expected);
    assert!(lines[6..23].iter().all(String::is_empty));
    assert!(lines[23].ends_with("q: leave"));
    assert!(View::default().is_empty());
}

#[test]
fn the_selected_guest_is_among_those_that_are_shown() {
    let guests = (1..=30).map(|number| guest(number, &format!("g{number}")));
    let mut view = view(guests.collect());
    assert!(lines(&view, DEFAULT_SIZE)[20].contains(" 10 g10 "));
    assert!(lines(&view, DEFAULT_SIZE)[0].contains("1 to 10 here"));
    for _ in 0..40 {
        view.key(Key::Down);
    }
    let lines = lines(&view, DEFAULT_SIZE);
    assert!(lines[20].starts_with("> 30 g30 "), "{}", lines[20]);
    assert_eq!(
        view.key(Key::Byte(b'\r')),
        Some(Wish::Console("g30".to_owned()))
    );
    for _ in 0..40 {
        view.key(Key::Up);
    }
    assert_eq!(
        view.key(Key::Byte(b'c')),
        Some(Wish::Console("g1".to_owned()))
    );
    assert_eq!(view.key(Key::Byte(b'q')), Some(Wish::Leave));
    assert_eq!(view.key(Key::Escape), Some(Wish::Leave));
    // Fewer than before.
    view.key(Key::Down);
    view.update(Sample::default());
    assert_eq!(view.key(Key::Byte(b'\r')), None);
}

#[test]
fn guests_are_told_what_to_do_from_the_host_only() {
    let mut view = view(vec![guest(1, "a"), json!({ "number": 2, "name": "b" })]);
    let news = |view: &View| lines(view, DEFAULT_SIZE)[22].clone();
    for key in *b"sbrly" {
        assert_eq!(view.key(Key::Byte(key)), None);
    }
    assert_eq!(news(&view), "");
    view.acts = true;
    let command = |line: &str| Some(Wish::Command(line.to_owned()));
    assert_eq!(view.key(Key::Byte(b's')), command("snapshot a"));
    assert_eq!(
        view.key(Key::Byte(b'l')),
        Some(Wish::Lines("log a".to_owned()))
    );
    // What cannot be undone is asked about, and a yes is one key.
    assert_eq!(view.key(Key::Byte(b'b')), None);
    assert_eq!(
        news(&view),
        "roll a back to snapshot 17, 12 s old? What it has done since is gone. y/n"
    );
    assert_eq!(view.key(Key::Byte(b'q')), None);
    assert_eq!(news(&view), "");
    view.key(Key::Byte(b'b'));
    assert_eq!(view.key(Key::Byte(b'y')), command("restore a 17"));
    view.key(Key::Byte(b'r'));
    assert_eq!(view.key(Key::Byte(b'y')), command("restart a"));
    view.key(Key::Down);
    view.key(Key::Byte(b'b'));
    assert!(news(&view).contains("its newest snapshot"));
    assert_eq!(view.key(Key::Byte(b'Y')), command("restore b"));
    view.say("host: b: \u{1b}[2Jwell");
    assert_eq!(news(&view), "host: b: ?[2Jwell");
    let keys = &lines(&view, DEFAULT_SIZE)[23];
    assert!(
        keys.contains("b: roll back") && keys.ends_with("q: leave"),
        "{keys}"
    );
}

#[test]
fn no_size_of_a_terminal_and_no_text_breaks_it() {
    let mut odd = guest(1, &"n".repeat(300));
    odd["detail"] = json!("\u{1b}[2J\u{9b}".repeat(50));
    odd["health"] = json!("");
    odd["memory_mib"] = json!(u64::MAX >> 20);
    odd["falls"] = json!(u64::MAX);
    odd["history"] = json!(vec![json!({ "point": "good" }); 500]);
    let view = view(vec![odd, json!({}), json!(null)]);
    for width in (1..200).step_by(7) {
        for height in 1..30 {
            let lines = lines(&view, (width, height));
            assert!(!lines.concat().contains(char::is_control));
        }
    }
    assert!(!view.text(80).replace('\n', "").contains(char::is_control));
}

#[test]
fn the_text_has_all_guests_in_the_same_lines() {
    let guests: Vec<_> = (1..=30).map(|number| guest(number, "g")).collect();
    let view = view(guests);
    let text = view.text(80);
    let text: Vec<_> = text.lines().collect();
    assert_eq!(text.len(), 62);
    assert_eq!(text[1], lines(&view, DEFAULT_SIZE)[1]);
    assert_eq!(text[3], lines(&view, DEFAULT_SIZE)[3]);
}

#[test]
fn what_is_sent_to_a_terminal_has_our_escape_codes_only() {
    let mut odd = guest(1, "a");
    odd["health"] = json!("\u{1b}]0;title\u{7}\u{1b}[?1049h");
    let view = view(vec![odd]);
    let bytes = Screen::default().draw(DEFAULT_SIZE, |buffer| view.draw(buffer));
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("?]0;title??[?1049h"), "{text:?}");
    for code in text.split('\u{1b}').skip(1) {
        assert!(code.starts_with('['), "{code:?}");
        let end = code.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        assert!(["H", "J", "m", "l"].contains(&&code[end..=end]), "{code:?}");
    }
}
