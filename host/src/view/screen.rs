//! A picture of cells on a terminal: what has changed is sent, by the escape codes that every VT100 knows.

use std::fmt::Write;
use std::os::fd::AsFd;

use ratatui_core::buffer::{Buffer, Cell};
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};

/// The size of a terminal that does not know its own, as those on serial lines.
pub const DEFAULT_SIZE: (u16, u16) = (80, 24);
/// More is a mistake.
const MAX_SIZE: (u16, u16) = (500, 200);
/// An empty screen, with a cursor, as it is when there is no picture.
pub const LEAVE: &[u8] = b"\x1b[0m\x1b[2J\x1b[H\x1b[?25h";
const ENTER: &str = "\x1b[0m\x1b[?25l\x1b[2J";

/// What a terminal shows.
#[derive(Debug, Default)]
pub struct Screen {
    /// `None` if that is not known.
    shown: Option<Buffer>,
}

impl Screen {
    /// The next picture is sent whole.
    pub fn forget(&mut self) {
        self.shown = None;
    }

    /// The bytes that make the picture that `paint` paints of what is shown.
    pub fn draw(
        &mut self,
        (width, height): (u16, u16),
        paint: impl FnOnce(&mut Buffer),
    ) -> Vec<u8> {
        let area = Rect::new(0, 0, width, height);
        let mut next = Buffer::empty(area);
        paint(&mut next);
        let mut bytes = String::new();
        let shown = match self.shown.take().filter(|shown| shown.area == area) {
            Some(shown) => shown,
            None => {
                bytes.push_str(ENTER);
                Buffer::empty(area)
            }
        };
        let mut place = None;
        let plain = Cell::EMPTY.style();
        let mut style = plain;
        for (x, y, cell) in shown.diff_iter(&next) {
            // Writing to a string cannot fail.
            if place != Some((x, y)) {
                let _ = write!(bytes, "\x1b[{};{}H", y + 1, x + 1);
            }
            if cell.style() != style {
                style = cell.style();
                set_style(&mut bytes, style);
            }
            bytes.push_str(cell.symbol());
            // Where a character of another width leaves the cursor, the terminal knows.
            place = cell.symbol().is_ascii().then_some((x + 1, y));
        }
        if style != plain {
            bytes.push_str("\x1b[0m");
        }
        self.shown = Some(next);
        bytes.into_bytes()
    }
}

fn set_style(bytes: &mut String, style: Style) {
    bytes.push_str("\x1b[0");
    for (modifier, code) in [(Modifier::BOLD, ";1"), (Modifier::REVERSED, ";7")] {
        if style.add_modifier.contains(modifier) {
            bytes.push_str(code);
        }
    }
    bytes.push_str(match style.fg {
        Some(Color::Red) => ";31",
        Some(Color::Green) => ";32",
        Some(Color::Yellow) => ";33",
        Some(Color::Cyan) => ";36",
        // No other is used.
        _ => "",
    });
    bytes.push('m');
}

/// Columns and lines of a terminal, as the kernel knows them.
pub fn size_of(terminal: impl AsFd) -> (u16, u16) {
    let (width, height) = match window_size(terminal) {
        Some(size) if size.0 > 0 && size.1 > 0 => size,
        _ => DEFAULT_SIZE,
    };
    (width.min(MAX_SIZE.0), height.min(MAX_SIZE.1))
}

#[expect(unsafe_code, reason = "the call fills in a structure")]
fn window_size(terminal: impl AsFd) -> Option<(u16, u16)> {
    use std::os::fd::AsRawFd;

    nix::ioctl_read_bad!(get_window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);
    let mut size = nix::libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open as long as `terminal` is, and `size` is what this call writes.
    unsafe { get_window_size(terminal.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    Some((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paint(text: &'static str, style: Style) -> impl FnOnce(&mut Buffer) {
        move |buffer| {
            buffer.set_string(0, 0, text, style);
        }
    }

    #[test]
    fn only_what_has_changed_is_sent() {
        let mut screen = Screen::default();
        let plain = Style::default();
        let first = screen.draw((8, 2), paint("one two", plain));
        let first = String::from_utf8(first).unwrap();
        assert_eq!(first, format!("{ENTER}\x1b[1;1Hone\x1b[1;5Htwo"));
        assert_eq!(screen.draw((8, 2), paint("one two", plain)), b"");
        let next = screen.draw((8, 2), paint("one tea", plain));
        assert_eq!(next, b"\x1b[1;6Hea");
        let red = screen.draw((8, 2), paint("one tea", Style::new().fg(Color::Red)));
        assert!(red.starts_with(b"\x1b[1;1H\x1b[0;31mone"), "{red:?}");
        assert!(red.ends_with(b"\x1b[0m"));
        screen.forget();
        assert!(screen.draw((8, 2), |_| ()).starts_with(ENTER.as_bytes()));
        assert!(screen.draw((9, 2), |_| ()).starts_with(ENTER.as_bytes()));
    }

    #[test]
    fn wide_characters_do_not_shift_what_follows() {
        let mut screen = Screen::default();
        let bytes = screen.draw((8, 1), paint("日本x", Style::default()));
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.ends_with("日\x1b[1;3H本\x1b[1;5Hx"), "{text:?}");
    }

    #[test]
    fn what_is_no_terminal_has_the_usual_size() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(size_of(&reader), DEFAULT_SIZE);
        let size = |columns, lines| {
            let size = nix::pty::Winsize {
                ws_col: columns,
                ws_row: lines,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            size_of(&nix::pty::openpty(&size, None).unwrap().slave)
        };
        assert_eq!(size(132, 43), (132, 43));
        assert_eq!(size(0, 0), DEFAULT_SIZE);
        assert_eq!(size(65535, 65535), MAX_SIZE);
    }
}
