//! Why a guest's run ended, and the numbers a parent process sees for it.

use std::fmt;
use std::process::ExitCode;

/// Exit code for a configuration that cannot be run (Firecracker's number).
pub const CODE_BAD_CONFIGURATION: u8 = 152;
/// Exit code for arguments that cannot be understood (Firecracker's number).
pub const CODE_BAD_ARGUMENTS: u8 = 153;

/// How one run of a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest switched its power off.
    PowerOff,
    /// The guest asked for a reset.
    Reboot,
    /// A vCPU faulted while it handled a double fault.
    TripleFault,
    /// The guest's watchdog expired: it hangs.
    Watchdog,
    /// The VMM's parent asked for an immediate end.
    Stopped,
    /// The VMM cannot go on.
    Error(String),
}

impl ExitReason {
    /// The word for this reason in control-socket events.
    pub fn word(&self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::TripleFault => "triple-fault",
            Self::Watchdog => "watchdog",
            Self::Stopped => "stopped",
            Self::Error(_) => "error",
        }
    }

    /// The process's exit code for this reason.
    pub fn code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Stopped => 0,
            Self::Error(_) => 1,
            Self::Reboot => 16,
            Self::TripleFault => 17,
            Self::Watchdog => 18,
        }
    }
}

impl From<&ExitReason> for ExitCode {
    fn from(reason: &ExitReason) -> Self {
        Self::from(reason.code())
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "The guest powered off"),
            Self::Reboot => write!(f, "The guest asked for a reboot"),
            Self::TripleFault => write!(f, "A vCPU of the guest triple-faulted"),
            Self::Watchdog => write!(f, "The guest's watchdog expired"),
            Self::Stopped => write!(f, "Stopped on request"),
            Self::Error(message) => f.write_str(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word() {
        let all = [
            ExitReason::PowerOff,
            ExitReason::Reboot,
            ExitReason::TripleFault,
            ExitReason::Watchdog,
            ExitReason::Stopped,
            ExitReason::Error("x".into()),
        ];
        let words: std::collections::HashSet<_> = all.iter().map(ExitReason::word).collect();
        assert_eq!(words.len(), all.len());
    }

    #[test]
    fn only_an_end_that_somebody_wanted_is_code_zero() {
        assert_eq!(ExitReason::PowerOff.code(), 0);
        assert_eq!(ExitReason::Stopped.code(), 0);
        assert_eq!(ExitReason::Error(String::new()).code(), 1);
        assert_eq!(ExitReason::Reboot.code(), 16);
        assert_eq!(ExitReason::TripleFault.code(), 17);
        assert_eq!(ExitReason::Watchdog.code(), 18);
    }
}
