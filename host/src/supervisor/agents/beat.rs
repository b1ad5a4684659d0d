//! What a guest's agent says: JSON, one object a line. The guest may say anything.

use serde::Deserialize;

/// The longest line of an agent's.
const MAX_LINE: usize = 1024;
/// Characters of a reason.
const MAX_WHY: usize = 200;

/// A line of an agent's. Fields that are not known are passed over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Beat {
    /// Its number.
    pub beat: u64,
    /// What its checks have found since the last line; nothing while they are under way.
    #[serde(default)]
    pub well: Option<bool>,
    /// Why it is not well.
    #[serde(default)]
    why: String,
    /// Processes that want to run, as a mean over a minute.
    #[serde(default)]
    pub load: f64,
    /// Memory that programs could have, in KiB.
    #[serde(default)]
    pub available_kib: u64,
    /// The agent ends because the guest shuts down: nothing more is to be expected of it.
    #[serde(default)]
    pub bye: bool,
}

impl Beat {
    /// Why it is not well, fit for a terminal.
    pub fn why(&self) -> String {
        let why = self.why.chars().take(MAX_WHY);
        let why: String = why.map(|c| if c.is_control() { ' ' } else { c }).collect();
        if why.trim().is_empty() {
            "something is wrong".to_owned()
        } else {
            why
        }
    }
}

/// What is said is no word of an agent's.
#[derive(Debug, PartialEq, Eq)]
pub struct Nonsense;

/// Lines that arrive in pieces.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes bytes in and hands over what they say.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Beat>, Nonsense> {
        let mut beats = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                if self.0.len() == MAX_LINE {
                    return Err(Nonsense);
                }
                self.0.push(*byte);
                continue;
            }
            let beat: Beat = serde_json::from_slice(&self.0).map_err(|_| Nonsense)?;
            if !beat.load.is_finite() {
                return Err(Nonsense);
            }
            beats.push(beat);
            self.0.clear();
        }
        Ok(beats)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> Beat {
        let mut beats = Lines::default()
            .feed(format!("{line}\n").as_bytes())
            .unwrap();
        assert_eq!(beats.len(), 1, "{line}");
        beats.remove(0)
    }

    #[test]
    fn what_the_agent_says_is_read_and_what_is_not_known_passed_over() {
        let beat = one(r#"{"beat":7,"well":true,"load":0.12,"available_kib":38912,"mood":[1]}"#);
        assert_eq!((beat.beat, beat.well, beat.bye), (7, Some(true), false));
        assert_eq!((beat.load, beat.available_kib), (0.12, 38912));
        let beat = one(r#"{"beat":8,"well":false,"why":"cannot start a program: EAGAIN"}"#);
        assert_eq!(beat.well, Some(false));
        assert_eq!(beat.why(), "cannot start a program: EAGAIN");
        assert_eq!(one(r#"{"beat":9}"#).well, None);
        assert!(one(r#"{"beat":10,"bye":true}"#).bye);
    }

    #[test]
    fn a_reason_is_short_and_no_escape_sequence() {
        let beat = one(&format!(
            r#"{{"beat":1,"well":false,"why":"\u001b[2J{}"}}"#,
            "é".repeat(300)
        ));
        let why = beat.why();
        assert_eq!(why.chars().count(), MAX_WHY);
        assert!(why.starts_with(" [2Jé"), "{why:?}");
        let silent = one(r#"{"beat":1,"well":false}"#);
        assert_eq!(silent.why(), "something is wrong");
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "GET / HTTP/1.1",
            "{}",
            r#"{"beat":-1}"#,
            r#"{"beat":1,"load":1e999}"#,
            r#"{"beat":1,"well":"yes"}"#,
            "[[[[[[",
            "",
        ] {
            let said = Lines::default().feed(format!("{line}\n").as_bytes());
            assert_eq!(said, Err(Nonsense), "{line}");
        }
        assert!(Lines::default().feed(&[b'x'; MAX_LINE]).is_ok());
        assert_eq!(Lines::default().feed(&[b' '; MAX_LINE + 1]), Err(Nonsense));
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_are_cut(numbers in prop::collection::vec(any::<u64>(), 0..6), cut in 1usize..40) {
            let text: String = numbers.iter().map(|n| format!("{{\"beat\":{n},\"well\":true}}\n")).collect();
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                found.extend(lines.feed(piece).unwrap().iter().map(|beat| beat.beat));
            }
            prop_assert_eq!(found, numbers);
        }

        #[test]
        fn any_bytes_are_read_or_refused_and_never_pile_up(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut lines = Lines::default();
            let _ = lines.feed(&bytes);
            prop_assert!(lines.0.len() <= MAX_LINE);
        }
    }
}
