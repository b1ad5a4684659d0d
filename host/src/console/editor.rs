//! The host's prompt: one line, typed on a raw terminal.

/// What a key did.
#[derive(Debug, PartialEq, Eq)]
pub enum Key {
    /// Nothing to show.
    Nothing,
    /// Show these bytes.
    Echo(Vec<u8>),
    /// A line is complete.
    Line(String),
    /// Ctrl-C; true if a line had been begun.
    Interrupt(bool),
}

/// Before what is typed.
pub const PROMPT: &str = "daruma> ";
const MAX_LINE: usize = 200;

/// A line being typed. There is no prompt until the first key, so that an unwatched console shows state lines only.
#[derive(Debug, Default)]
pub struct Editor {
    line: String,
    active: bool,
    /// Inside an escape sequence (an arrow key, say), which is swallowed.
    escape: Escape,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Started,
    Inside,
}

impl Editor {
    /// The prompt and what was typed, if the user has begun.
    #[must_use]
    pub fn visible(&self) -> Option<String> {
        self.active.then(|| format!("{PROMPT}{}", self.line))
    }

    /// Takes one byte from the keyboard.
    pub fn key(&mut self, byte: u8) -> Key {
        match (&self.escape, byte) {
            (Escape::Started, b'[' | b'O') => {
                self.escape = Escape::Inside;
                return Key::Nothing;
            }
            (Escape::Started, _) => {
                self.escape = Escape::None;
                return Key::Nothing;
            }
            (Escape::Inside, b'@'..=b'~') => {
                self.escape = Escape::None;
                return Key::Nothing;
            }
            (Escape::Inside, _) => return Key::Nothing,
            (Escape::None, _) => {}
        }
        match byte {
            0x1b => {
                self.escape = Escape::Started;
                Key::Nothing
            }
            b'\r' | b'\n' if !self.active => {
                self.active = true;
                Key::Echo(PROMPT.into())
            }
            b'\r' | b'\n' => {
                self.active = false;
                Key::Line(std::mem::take(&mut self.line))
            }
            0x03 => {
                let begun = std::mem::take(&mut self.active);
                self.line.clear();
                Key::Interrupt(begun)
            }
            // Backspace and delete.
            0x08 | 0x7f if self.line.pop().is_some() => Key::Echo(b"\x08 \x08".to_vec()),
            // Ctrl-U.
            0x15 if self.active => {
                self.line.clear();
                Key::Echo(format!("\r\x1b[K{PROMPT}").into_bytes())
            }
            b' '..=b'~' if self.line.len() < MAX_LINE => {
                self.line.push(char::from(byte));
                let mut echo = Vec::new();
                if !std::mem::replace(&mut self.active, true) {
                    echo.extend_from_slice(PROMPT.as_bytes());
                }
                echo.push(byte);
                Key::Echo(echo)
            }
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_in(editor: &mut Editor, keys: &[u8]) -> Vec<Key> {
        keys.iter()
            .map(|key| editor.key(*key))
            .filter(|key| *key != Key::Nothing)
            .collect()
    }

    #[test]
    fn prompt_comes_with_the_first_key() {
        let mut editor = Editor::default();
        assert_eq!(editor.visible(), None);
        assert_eq!(editor.key(b'l'), Key::Echo(b"daruma> l".to_vec()));
        assert_eq!(editor.visible().as_deref(), Some("daruma> l"));
    }

    #[test]
    fn line_is_edited() {
        let mut editor = Editor::default();
        let keys = type_in(&mut editor, b"lisx\x7ft\r");
        assert_eq!(keys.last(), Some(&Key::Line("list".to_owned())));
        assert_eq!(editor.visible(), None);
    }

    #[test]
    fn arrow_keys_leave_no_trace() {
        let mut editor = Editor::default();
        assert!(type_in(&mut editor, b"\x1b[A\x1bOP\x1b[1;5C").is_empty());
        assert_eq!(editor.visible(), None);
    }

    #[test]
    fn interrupt_drops_the_line() {
        let mut editor = Editor::default();
        type_in(&mut editor, b"poweroff");
        assert_eq!(editor.key(3), Key::Interrupt(true));
        assert_eq!(editor.key(3), Key::Interrupt(false));
    }

    #[test]
    fn endless_line_is_bounded() {
        let mut editor = Editor::default();
        type_in(&mut editor, &[b'a'; 10_000]);
        assert_eq!(editor.visible().unwrap().len(), PROMPT.len() + MAX_LINE);
    }
}
