//! The control socket between the host and one VMM: JSON, one object a line.

use serde::Deserialize;

/// What a VMM reports. Times are microseconds since the host asked for its start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The guest's first instruction is next.
    Running {
        /// Microseconds.
        us: u64,
    },
    /// The guest goes on from its snapshot.
    Restored {
        /// Microseconds.
        us: u64,
    },
    /// The guest wrote to the boot timer.
    BootTimer {
        /// Microseconds.
        us: u64,
    },
    /// The guest's kernel has panicked; the guest decides what follows.
    Panicked,
    /// The guest's kernel has panicked and starts its crash kernel.
    CrashLoaded,
    /// What it has counted since its start.
    Metrics {
        /// Numbers by their names, by group.
        metrics: serde_json::Value,
    },
    /// The VMM ends; its exit status says the same in short.
    Exit {
        /// `poweroff`, `reboot`, `triple-fault`, `watchdog`, `stopped` or `error`.
        reason: String,
        /// More about it, may be empty.
        #[serde(default)]
        message: String,
    },
}

/// What the host asks of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Press the guest's ACPI power button.
    PowerButton,
    /// End now, without the guest.
    Stop,
    /// Say what was counted.
    Metrics,
}

impl Action {
    /// The line to send.
    #[must_use]
    pub fn line(self) -> &'static [u8] {
        match self {
            Self::PowerButton => b"{\"action\":\"power-button\"}\n",
            Self::Stop => b"{\"action\":\"stop\"}\n",
            Self::Metrics => b"{\"action\":\"metrics\"}\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read() {
        let read = |line| serde_json::from_str::<Event>(line).unwrap();
        assert_eq!(
            read(r#"{"event":"running","us":12}"#),
            Event::Running { us: 12 }
        );
        assert_eq!(
            read(r#"{"event":"boot-timer","us":7}"#),
            Event::BootTimer { us: 7 }
        );
        assert_eq!(read(r#"{"event":"panicked"}"#), Event::Panicked);
        assert_eq!(read(r#"{"event":"crash-loaded"}"#), Event::CrashLoaded);
        let exit = Event::Exit {
            reason: "reboot".to_owned(),
            message: String::new(),
        };
        assert_eq!(read(r#"{"event":"exit","reason":"reboot"}"#), exit);
    }

    #[test]
    fn unknown_event_is_an_error() {
        assert!(serde_json::from_str::<Event>(r#"{"event":"dance"}"#).is_err());
    }

    #[test]
    fn actions_are_json_lines() {
        for action in [Action::PowerButton, Action::Stop, Action::Metrics] {
            assert!(action.line().ends_with(b"}\n"));
            assert!(serde_json::from_slice::<serde_json::Value>(action.line()).is_ok());
        }
    }
}
