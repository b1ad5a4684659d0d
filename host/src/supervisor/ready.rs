//! The console rule: a text somewhere in what a guest prints.

/// Searches a stream for one text, each byte looked at once (Knuth-Morris-Pratt), however the stream is cut.
#[derive(Debug)]
pub struct ConsoleRule {
    text: Vec<u8>,
    /// For each prefix of `text`: the length of its longest proper border.
    border: Vec<usize>,
    matched: usize,
}

impl ConsoleRule {
    /// A rule for a non-empty text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut border = vec![0; text.len()];
        let mut length = 0;
        for at in 1..text.len() {
            while length > 0 && text[at] != text[length] {
                length = border[length - 1];
            }
            if text[at] == text[length] {
                length += 1;
            }
            border[at] = length;
        }
        Self {
            text,
            border,
            matched: 0,
        }
    }

    /// Takes the next bytes in; true once the text is complete.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            while self.matched > 0 && *byte != self.text[self.matched] {
                self.matched = self.border[self.matched - 1];
            }
            if *byte == self.text[self.matched] {
                self.matched += 1;
            }
            if self.matched == self.text.len() {
                self.matched = 0;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_cut_in_two_is_found() {
        let mut rule = ConsoleRule::new("pocket login:");
        assert!(!rule.feed(b"Welcome\r\npocket lo"));
        assert!(rule.feed(b"gin: "));
    }

    proptest! {
        #[test]
        fn agrees_with_plain_search(text in "[ab]{1,6}", stream in "[ab]{0,60}", cut in 0usize..60) {
            let mut rule = ConsoleRule::new(&text);
            let (head, tail) = stream.as_bytes().split_at(cut.min(stream.len()));
            let found = rule.feed(head) || rule.feed(tail);
            prop_assert_eq!(found, stream.contains(&text));
        }
    }
}
