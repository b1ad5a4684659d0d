//! What a guest says about itself as a whole: power, reset, boot progress.

use std::sync::Arc;

/// An event of the guest as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlatformEvent {
    /// The guest turned itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset (i8042 or the ACPI reset register).
    Reset,
    /// The guest wrote the boot timer's magic byte: it says it has booted.
    BootTimer,
    /// The guest's kernel has panicked and says so. It goes on as it was told to in that case.
    Panicked,
    /// The guest's kernel has panicked and starts its crash kernel.
    CrashLoaded,
    /// The guest has started its watchdog and then been silent for too long.
    WatchdogExpired,
}

/// Where [`PlatformEvent`]s go.
///
/// Called on the vCPU thread, inside the access that caused the event, so that the receiver may read its
/// clock at once; [`WatchdogExpired`](PlatformEvent::WatchdogExpired) comes from the event thread. It must not block and must not access the device that calls it.
pub type EventSink = Arc<dyn Fn(PlatformEvent) + Send + Sync>;

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Mutex;

    use super::*;

    /// A sink that remembers all events, and what it remembers.
    pub(crate) fn recording_sink() -> (EventSink, Arc<Mutex<Vec<PlatformEvent>>>) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        (
            Arc::new(move |event| log.lock().unwrap().push(event)),
            events,
        )
    }
}
