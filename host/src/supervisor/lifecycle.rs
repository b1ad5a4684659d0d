//! What follows when a VMM ends: restart, rest, or give up.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::config::Restart;

/// Falls in a row without getting ready after which a guest is `failed`.
pub const MAX_FALLS: u32 = 5;

/// State of a guest as the console says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its images are being found, or it boots.
    Starting,
    /// It goes on from a snapshot.
    Restoring,
    /// It said so.
    Ready,
    /// It has fallen, and is about to stand up again.
    Unhealthy,
    /// It does not run, and that is in order, or it is about to be started again.
    Stopped,
    /// It does not run and will not by itself.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Restoring => "restoring",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// How a VMM ended: its exit status, read by the contract between host and VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest powered off, or the VMM stopped on request.
    Clean,
    /// The guest asked for a reboot.
    Reboot,
    /// The guest's CPU gave up.
    TripleFault,
    /// The guest's watchdog expired.
    Watchdog,
    /// The VMM refused its configuration or its arguments.
    Refused,
    /// Any other exit code.
    Error(i32),
    /// The VMM was killed by a signal.
    Signal(Signal),
}

impl End {
    /// `None` for a status that is no end (stopped, continued).
    #[must_use]
    pub fn from_status(status: WaitStatus) -> Option<Self> {
        match status {
            WaitStatus::Exited(_, 0) => Some(Self::Clean),
            WaitStatus::Exited(_, 16) => Some(Self::Reboot),
            WaitStatus::Exited(_, 17) => Some(Self::TripleFault),
            WaitStatus::Exited(_, 18) => Some(Self::Watchdog),
            WaitStatus::Exited(_, 152 | 153) => Some(Self::Refused),
            WaitStatus::Exited(_, code) => Some(Self::Error(code)),
            WaitStatus::Signaled(_, signal, _) => Some(Self::Signal(signal)),
            _ => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("powered off"),
            Self::Reboot => f.write_str("rebooted"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::Watchdog => f.write_str("its watchdog expired"),
            Self::Refused => f.write_str("the VMM refused its configuration"),
            Self::Error(1) => f.write_str("VMM error"),
            Self::Error(code) => write!(f, "VMM exit code {code}"),
            Self::Signal(signal) => write!(f, "VMM killed by {signal}"),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start it again after this time.
    Again(Duration),
    /// Leave it; all is in order.
    Rest,
    /// Leave it; it does not work.
    GiveUp,
}

/// Counts the falls of one guest.
#[derive(Debug, Default)]
pub struct Lifecycle {
    /// Ends in a row without getting ready in between.
    falls: u32,
    /// The current run got ready.
    was_ready: bool,
}

impl Lifecycle {
    /// The guest got ready: what was before is forgiven.
    pub fn ready(&mut self) {
        self.falls = 0;
        self.was_ready = true;
    }

    /// Someone started the guest by hand: the count begins anew.
    pub fn forgive(&mut self) {
        *self = Self::default();
    }

    /// Ends in a row without getting ready.
    #[must_use]
    pub fn falls(&self) -> u32 {
        self.falls
    }

    /// The run is over and nobody had asked for that.
    ///
    /// A run that got ready is followed at once. Runs that never do wait 1, 2, 4 … seconds in between and end after
    /// [`MAX_FALLS`]; reboots count too, for a kernel that panics early may be set to reboot.
    pub fn ended(&mut self, end: End, policy: Restart) -> Next {
        let was_ready = std::mem::take(&mut self.was_ready);
        let again = match (end, policy) {
            (End::Refused, _) => return Next::GiveUp,
            (End::Reboot, _) | (_, Restart::Always) => true,
            (End::Clean, _) => return Next::Rest,
            (_, policy) => policy == Restart::OnFailure,
        };
        if !again {
            return Next::GiveUp;
        }
        if was_ready {
            return Next::Again(Duration::ZERO);
        }
        self.falls += 1;
        if self.falls >= MAX_FALLS {
            return Next::GiveUp;
        }
        Next::Again(Duration::from_secs(1 << (self.falls - 1)))
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    const CRASH: End = End::Signal(Signal::SIGKILL);

    #[test]
    fn guest_that_never_gets_ready_backs_off_and_fails() {
        let mut life = Lifecycle::default();
        let delays: Vec<_> = (0..5)
            .map(|_| life.ended(CRASH, Restart::OnFailure))
            .collect();
        let seconds = |s| Next::Again(Duration::from_secs(s));
        assert_eq!(
            delays,
            [seconds(1), seconds(2), seconds(4), seconds(8), Next::GiveUp]
        );
    }

    #[test]
    fn guest_that_was_ready_is_back_at_once() {
        let mut life = Lifecycle::default();
        life.ended(CRASH, Restart::OnFailure);
        life.ready();
        assert_eq!(
            life.ended(CRASH, Restart::OnFailure),
            Next::Again(Duration::ZERO)
        );
        assert_eq!(
            life.ended(CRASH, Restart::OnFailure),
            Next::Again(Duration::from_secs(1))
        );
    }

    #[test]
    fn policy_decides_after_power_off_and_after_a_fall() {
        let next = |end, policy| Lifecycle::default().ended(end, policy);
        let again = Next::Again(Duration::from_secs(1));
        assert_eq!(next(End::Clean, Restart::Always), again);
        assert_eq!(next(End::Clean, Restart::OnFailure), Next::Rest);
        assert_eq!(next(End::Clean, Restart::Never), Next::Rest);
        assert_eq!(next(CRASH, Restart::Never), Next::GiveUp);
        assert_eq!(next(End::Error(1), Restart::OnFailure), again);
        assert_eq!(next(End::TripleFault, Restart::OnFailure), again);
    }

    #[test]
    fn reboot_starts_again_under_every_policy() {
        for policy in [Restart::Always, Restart::OnFailure, Restart::Never] {
            let mut life = Lifecycle::default();
            life.ready();
            assert_eq!(life.ended(End::Reboot, policy), Next::Again(Duration::ZERO));
        }
    }

    #[test]
    fn refused_configuration_is_not_tried_again() {
        assert_eq!(
            Lifecycle::default().ended(End::Refused, Restart::Always),
            Next::GiveUp
        );
    }

    #[test]
    fn exit_codes_follow_the_contract() {
        let end = |code| End::from_status(WaitStatus::Exited(Pid::from_raw(7), code));
        assert_eq!(end(0), Some(End::Clean));
        assert_eq!(end(1), Some(End::Error(1)));
        assert_eq!(end(16), Some(End::Reboot));
        assert_eq!(end(17), Some(End::TripleFault));
        assert_eq!(end(18), Some(End::Watchdog));
        assert_eq!(end(152), Some(End::Refused));
        assert_eq!(end(153), Some(End::Refused));
        assert_eq!(End::from_status(WaitStatus::StillAlive), None);
    }
}
