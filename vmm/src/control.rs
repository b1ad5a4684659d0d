//! What the VMM's parent asks for on the control socket: JSON lines.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::controller::{Desk, Order};

/// Most bytes of one line: a drive with a few paths of its backing files.
const MAX_LINE: usize = 16 << 10;
/// Most bytes that are taken at once: other events have their turn in between.
const READ_BYTES: usize = 4 << 10;

/// Reads actions and hands them on.
pub struct Control {
    socket: UnixStream,
    line: Vec<u8>,
    /// The rest of an overlong line is being skipped.
    skipping: bool,
    desk: Desk,
}

impl Control {
    /// Actions come from `socket`, which does not block, and go to `desk`.
    pub fn new(socket: UnixStream, desk: Desk) -> Self {
        Self {
            socket,
            line: Vec::new(),
            skipping: false,
            desk,
        }
    }

    /// Takes what is there; `false` at the end of the stream.
    fn pump(&mut self) -> bool {
        let mut buffer = [0; READ_BYTES];
        match self.socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.take(&buffer[..length]);
                true
            }
            Err(error) => {
                matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                )
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    if !std::mem::take(&mut self.skipping) {
                        self.act(&line);
                    }
                }
                _ if self.skipping => {}
                _ if self.line.len() == MAX_LINE => {
                    log::warn!("A control line of more than {MAX_LINE} bytes is ignored");
                    self.skipping = true;
                    self.line.clear();
                }
                byte => self.line.push(*byte),
            }
        }
    }

    fn act(&self, line: &[u8]) {
        match serde_json::from_slice(line) {
            Ok(action) => {
                if let Err(error) = self.desk.put(Order::Control(action)) {
                    log::error!("A control line is lost: {error}");
                }
            }
            Err(error) => log::warn!("A control line is ignored: {error}"),
        }
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.socket, EventSet::IN)) {
            log::error!("The control socket cannot be served: {error}");
        }
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        // A parent that is gone takes nothing with it: the guest goes on.
        if !self.pump()
            && let Err(error) = ops.remove(Events::empty(&self.socket))
        {
            log::error!("The control socket cannot be given up: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{Action, Inbox};
    use std::io::Write;

    struct World {
        control: Control,
        parent: UnixStream,
        inbox: Inbox,
    }

    fn world() -> World {
        let (ours, parent) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (inbox, desk, _bell) = Inbox::new().unwrap();
        World {
            control: Control::new(ours, desk),
            parent,
            inbox,
        }
    }

    impl World {
        fn next(&self) -> Option<Action> {
            match self.inbox.take()? {
                Order::Control(action) => Some(action),
                _ => None,
            }
        }
    }

    #[test]
    fn lines_are_actions() {
        let mut world = world();
        for (line, action) in [
            (r#"{"action":"power-button"}"#, Action::PowerButton),
            (r#"{"action":"stats"}"#, Action::Stats),
            (
                r#"{"action":"renew-generation-id"}"#,
                Action::RenewGenerationId,
            ),
            (
                r#"{"action":"resize","columns":80,"rows":25}"#,
                Action::Resize {
                    columns: 80,
                    rows: 25,
                },
            ),
            (
                r#"{"action":"balloon","amount_mib":3}"#,
                Action::Balloon { amount_mib: 3 },
            ),
        ] {
            writeln!(world.parent, "{line}").unwrap();
            assert!(world.control.pump());
            assert_eq!(world.next(), Some(action));
        }
    }

    #[test]
    fn half_a_line_is_no_action() {
        let mut world = world();
        world.parent.write_all(b"{\"action\":").unwrap();
        world.control.pump();
        assert_eq!(world.next(), None);
        world.parent.write_all(b"\"stop\"}\n").unwrap();
        world.control.pump();
        assert_eq!(world.next(), Some(Action::Stop));
    }

    #[test]
    fn nonsense_and_overlong_lines_are_skipped() {
        let mut world = world();
        let mut text = b"nonsense\n{\"action\":\"explode\"}\n".to_vec();
        text.extend(vec![b'x'; 3 * MAX_LINE]);
        text.extend(b"{\"action\":\"stop\"}\n{\"action\":\"power-button\"}\n");
        world.parent.write_all(&text).unwrap();
        for _ in 0..4 * MAX_LINE / READ_BYTES {
            world.control.pump();
        }
        // The end of an overlong line is no action.
        assert_eq!(world.next(), Some(Action::PowerButton));
        assert_eq!(world.next(), None);
    }

    #[test]
    fn the_end_of_the_stream_is_seen() {
        let mut world = world();
        drop(world.parent);
        assert!(!world.control.pump());
    }
}
