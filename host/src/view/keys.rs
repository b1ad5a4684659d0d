//! Keys of a terminal, from the bytes that it sends.

use std::time::Duration;

/// After so long without another byte an escape was the key of that name.
pub const ESCAPE_PATIENCE: Duration = Duration::from_millis(150);

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// One that is a byte.
    Byte(u8),
    /// The arrow.
    Up,
    /// The arrow.
    Down,
    /// The key of that name.
    Escape,
}

/// Keys that come in pieces.
#[derive(Debug, Default)]
pub struct Keys {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    Escaped,
    /// Inside of a sequence.
    Sequence,
}

impl Keys {
    /// Takes a byte.
    pub fn take(&mut self, byte: u8) -> Option<Key> {
        match (self.state, byte) {
            (State::Ground, 0x1b) => {
                self.state = State::Escaped;
                None
            }
            (State::Ground, byte) => Some(Key::Byte(byte)),
            (State::Escaped, b'[' | b'O') => {
                self.state = State::Sequence;
                None
            }
            (State::Escaped, 0x1b) => Some(Key::Escape),
            // With the Alt key, or so soon after an escape that they count as one.
            (State::Escaped, _) => {
                self.state = State::Ground;
                None
            }
            (State::Sequence, b'@'..=b'~') => {
                self.state = State::Ground;
                match byte {
                    b'A' => Some(Key::Up),
                    b'B' => Some(Key::Down),
                    _ => None,
                }
            }
            (State::Sequence, 0x1b) => {
                self.state = State::Escaped;
                None
            }
            (State::Sequence, _) => None,
        }
    }

    /// Whether an escape was the last byte: what it means, the next says, or [`ESCAPE_PATIENCE`].
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.state == State::Escaped
    }

    /// There was no other byte for so long.
    pub fn pause(&mut self) -> Option<Key> {
        let escape = self.is_waiting().then_some(Key::Escape);
        self.state = State::Ground;
        escape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        let taken = bytes.iter().filter_map(|byte| keys.take(*byte));
        let mut taken: Vec<_> = taken.collect();
        taken.extend(keys.pause());
        taken
    }

    #[test]
    fn arrows_are_keys_and_other_sequences_are_none() {
        let pressed = keys(b"a\x1b[A\x1bOB\x1b[1;5C\x1b[15~q");
        let expected = [Key::Byte(b'a'), Key::Up, Key::Down, Key::Byte(b'q')];
        assert_eq!(pressed, expected);
    }

    #[test]
    fn an_escape_alone_is_one_only_after_a_pause() {
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        assert_eq!(keys(b"\x1b\x1b"), [Key::Escape, Key::Escape]);
        assert_eq!(keys(b"\x1bx"), []);
        let mut keys = Keys::default();
        assert_eq!(keys.take(0x1b), None);
        assert!(keys.is_waiting());
        assert_eq!((keys.take(b'['), keys.pause()), (None, None));
        assert_eq!(keys.take(b'A'), Some(Key::Byte(b'A')));
    }
}
