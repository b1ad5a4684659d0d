//! The picture: two lines for each guest, what it uses and what it has been through.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};

use super::{Guest, Point, Rates, View};

/// A line of a title, and one of column names.
const ABOVE: u16 = 2;
/// A line of news and one of keys.
const BELOW: u16 = 2;
/// Lines of a guest.
const LINES: u16 = 2;
/// The room for names; they grow with the terminal, to the longest that there may be.
const NAMES: (usize, usize) = (16, 32);
/// Columns without the name.
const OTHERS: usize = 63;
/// Before a guest's second line.
const INDENT: u16 = 5;
/// The room for words there, at 80 columns.
const WORDS: u16 = 32;

const LEGEND: &str = "o good  . not yet  s suspended  X fell";
const KEYS: &str = "up, down: select   Enter: its console   q: leave";
const MORE_KEYS: &str = "Enter: console  s: snapshot  b: roll back  r: restart  l: log  q: leave";

/// Draws the whole of it.
pub(super) fn draw(view: &View, buffer: &mut Buffer) {
    let area = *buffer.area();
    let room = usize::from(area.height.saturating_sub(ABOVE + BELOW) / LINES).max(1);
    // The selected guest is among those that are shown.
    let first = view.selected.saturating_sub(room - 1);
    let shown = first..(first + room).min(view.sample.guests.len());
    heading(view, buffer, &shown);
    let mut line = ABOVE;
    for (index, (guest, rates)) in view.guests().enumerate().skip(first).take(room) {
        guest_lines(buffer, line, (guest, rates), index == view.selected);
        line += LINES;
    }
    let news = area.height.saturating_sub(BELOW);
    put(
        buffer,
        0,
        news,
        &view.news(),
        Style::new().add_modifier(Modifier::BOLD),
    );
    let keys = if view.acts { MORE_KEYS } else { KEYS };
    let last = area.height.saturating_sub(1);
    // Not into the last cell of the terminal: some scroll by that.
    buffer_line(
        buffer,
        (0, last),
        keys,
        area.width.saturating_sub(1),
        reversed(),
    );
}

/// All of it, as lines.
pub(super) fn text(view: &View, width: u16) -> String {
    let guests = u16::try_from(view.sample.guests.len()).unwrap_or(u16::MAX / LINES);
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, ABOVE + guests.saturating_mul(LINES)));
    heading(view, &mut buffer, &(0..view.sample.guests.len()));
    for (line, of) in (ABOVE..).step_by(usize::from(LINES)).zip(view.guests()) {
        guest_lines(&mut buffer, line, of, false);
    }
    let lines = buffer.content().chunks(usize::from(width.max(1)));
    let line = |cells: &[_]| {
        let line: String = cells
            .iter()
            .map(ratatui_core::buffer::Cell::symbol)
            .collect();
        line.trim_end().to_owned()
    };
    lines.map(line).collect::<Vec<_>>().join("\n")
}

fn heading(view: &View, buffer: &mut Buffer, shown: &std::ops::Range<usize>) {
    let guests = &view.sample.guests;
    let ready = guests.iter().filter(|guest| guest.state == "ready").count();
    let all = guests.len();
    let title = if shown.len() < all {
        let (first, last) = (shown.start + 1, shown.end);
        format!("daruma: {all} guests, {first} to {last} here")
    } else {
        format!("daruma: {ready} of {all} guests ready")
    };
    let width = buffer.area().width;
    put(
        buffer,
        0,
        0,
        &title,
        Style::new().add_modifier(Modifier::BOLD),
    );
    let legend = u16::try_from(LEGEND.len()).unwrap_or(width);
    put(
        buffer,
        width.saturating_sub(legend),
        0,
        LEGEND,
        Style::new(),
    );
    let names = names(width);
    let columns = format!(
        "  no {:names$} {:9} {:>5} {:>9} {:>9} {:>9} {:>4} {:>5}",
        "guest", "state", "vcpu", "memory", "disk r/w", "net r/w", "good", "falls"
    );
    put(
        buffer,
        0,
        1,
        &format!("{columns:0$}", usize::from(width)),
        reversed(),
    );
}

fn guest_lines(buffer: &mut Buffer, line: u16, (guest, rates): (&Guest, &Rates), selected: bool) {
    let width = buffer.area().width;
    let names = names(width);
    let style = match selected {
        true => Style::new().add_modifier(Modifier::BOLD),
        false => Style::new(),
    };
    let mark = if selected { '>' } else { ' ' };
    let name: String = guest.name.chars().take(names).collect();
    let start = format!("{mark}{:>3} {name:names$} ", guest.number);
    let at = put(buffer, 0, line, &start, style);
    let at = put(
        buffer,
        at,
        line,
        &format!("{:9.9}", guest.state),
        style.fg(state_colour(&guest.state)),
    );
    let cpu = rates
        .cpu_percent
        .map_or_else(dash, |percent| format!("{percent}%"));
    let given = short(guest.memory_mib << 20);
    let memory = match guest.resident_kib {
        Some(kib) => format!("{}/{given}", short(kib << 10)),
        None => format!("-/{given}"),
    };
    let pair = |bytes: [u64; 2]| format!("{}/{}", short(bytes[0]), short(bytes[1]));
    let (disk, net) = match rates.bytes {
        Some([read, written, received, sent]) => (pair([read, written]), pair([received, sent])),
        None => (dash(), dash()),
    };
    let good = guest.good.map_or_else(dash, |(_, age)| short_age(age));
    let falls = format!("{}/{}", guest.falls, guest.stands);
    let rest = format!(" {cpu:>5} {memory:>9} {disk:>9} {net:>9} {good:>4} {falls:>5}");
    put(buffer, at, line, &rest, style);

    let words = match guest.health.as_str() {
        "" => &guest.detail,
        health => health,
    };
    let room = (width * 2 / 5).max(WORDS);
    buffer_line(buffer, (INDENT, line + 1), words, room, style);
    history(buffer, (INDENT + room + 1, line + 1), &guest.history);
}

/// As many of the newest as there is room for.
fn history(buffer: &mut Buffer, (x, y): (u16, u16), points: &[Point]) {
    let room = usize::from(buffer.area().width.saturating_sub(x));
    let newest = &points[points.len().saturating_sub(room)..];
    let mut at = x;
    for point in newest {
        let (symbol, colour) = match point {
            Point::Good => ("o", Color::Green),
            Point::Taken => (".", Color::Yellow),
            Point::Suspended => ("s", Color::Cyan),
            Point::Fell => ("X", Color::Red),
        };
        at = put(buffer, at, y, symbol, Style::new().fg(colour));
    }
}

/// Puts as much of a text as there is room for; returns where it ends.
fn put(buffer: &mut Buffer, x: u16, y: u16, text: &str, style: Style) -> u16 {
    let room = buffer.area().width.saturating_sub(x);
    buffer_line(buffer, (x, y), text, room, style)
}

fn buffer_line(
    buffer: &mut Buffer,
    (x, y): (u16, u16),
    text: &str,
    room: u16,
    style: Style,
) -> u16 {
    if x >= buffer.area().width || y >= buffer.area().height {
        return x;
    }
    buffer.set_stringn(x, y, text, usize::from(room), style).0
}

fn reversed() -> Style {
    Style::new().add_modifier(Modifier::REVERSED)
}

fn state_colour(state: &str) -> Color {
    match state {
        "ready" => Color::Green,
        "starting" | "restoring" => Color::Yellow,
        "unhealthy" | "failed" => Color::Red,
        _ => Color::Reset,
    }
}

fn names(width: u16) -> usize {
    usize::from(width)
        .saturating_sub(OTHERS)
        .clamp(NAMES.0, NAMES.1)
}

fn dash() -> String {
    "-".to_owned()
}

/// A number of bytes in at most four characters.
fn short(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let (mut whole, mut tenths, mut unit) = (bytes, 0, 0);
    while whole >= 1000 {
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    match UNITS[unit] {
        "" => whole.to_string(),
        unit if whole < 10 => format!("{whole}.{tenths}{unit}"),
        unit => format!("{whole}{unit}"),
    }
}

/// Seconds in at most four characters, as long as that is possible.
fn short_age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_short() {
        let sizes = [
            0,
            999,
            1000,
            1024,
            1536,
            10 << 10,
            999 << 10,
            1000 << 10,
            512 << 20,
            64 << 30,
            u64::MAX,
        ];
        let expected = [
            "0", "999", "0.9K", "1.0K", "1.5K", "10K", "999K", "0.9M", "512M", "64G", "15E",
        ];
        assert_eq!(sizes.map(short), expected);
        assert_eq!(
            [119, 120, 7200, 172_800].map(short_age),
            ["119s", "2m", "2h", "2d"]
        );
    }
}
