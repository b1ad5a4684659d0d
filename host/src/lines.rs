//! Bytes that arrive in pieces, cut into lines.

/// Collects bytes until a line is whole. A longer line than the limit is cut there, its rest is dropped: the writer is
/// a guest's VMM or a terminal, and neither may grow the host's memory.
#[derive(Debug)]
pub struct LineBuffer {
    line: Vec<u8>,
    limit: usize,
}

impl LineBuffer {
    /// An empty buffer for lines of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            limit,
        }
    }

    /// Takes bytes in and hands each whole line, without its end, to `each`.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(String)) {
        for byte in bytes {
            match byte {
                b'\n' => each(self.take()),
                b'\r' => {}
                byte if self.line.len() < self.limit => self.line.push(*byte),
                _ => {}
            }
        }
    }

    /// The line begun so far, if any: the last words of a writer that is gone.
    pub fn finish(&mut self) -> Option<String> {
        (!self.line.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        // What a guest made its VMM say is shown on a terminal: no escape sequences.
        let text = String::from_utf8_lossy(&self.line).replace(char::is_control, " ");
        self.line.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(buffer: &mut LineBuffer, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        buffer.push(bytes, |line| lines.push(line));
        lines
    }

    #[test]
    fn pieces_become_lines() {
        let mut buffer = LineBuffer::new(100);
        assert!(lines(&mut buffer, b"he").is_empty());
        assert_eq!(lines(&mut buffer, b"llo\r\nyou\nrest"), ["hello", "you"]);
        assert_eq!(buffer.finish().as_deref(), Some("rest"));
        assert_eq!(buffer.finish(), None);
    }

    #[test]
    fn long_line_is_cut_and_control_bytes_are_blanked() {
        let mut buffer = LineBuffer::new(4);
        assert_eq!(lines(&mut buffer, b"abcdefgh\n\x1b[2J\n"), ["abcd", " [2J"]);
    }
}
