//! System calls: each kind of thread has a table of those that it makes, and a filter that ends the process at any other.
//!
//! One filter is for the whole process, from before an image of the guest's is read on; it permits what building a guest
//! takes and what any of its threads may do. Each thread then enters the narrower one of its kind, which adds to it.
//!
//! ```text
//!   process ──┬── event    the main thread, once the guest runs
//!             ├── vcpu
//!             ├── device   one for each device that moves data, and the console's writer
//!             ├── api
//!             ├── live     takes snapshots for the store
//!             ├── memory   while a program serves the guest's memory
//!             └── hotplug ─── device   of devices that come while the guest runs
//! ```
//!
//! A call that is not permitted is not made: the kernel sends SIGSYS, whose handler ([`trap`]) says which call of which
//! kind of thread it was and ends the process. Where that signal is blocked or its handler cannot run, the kernel kills
//! the process by itself.

mod allocator;
mod api;
mod common;
mod device;
mod event;
mod hotplug;
mod keeper;
mod live;
mod memory;
mod process;
mod program;
mod requests;
pub mod rule;
mod trap;
mod vcpu;

use std::collections::hash_map::RandomState;
use std::io;
use std::sync::{Arc, OnceLock};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::logger::chain;

pub use self::rule::Rule;
pub use self::trap::{CODE_DENIED, log, set_log, set_parent};

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThreadKind {
    /// Any, while the guest is being built.
    Process,
    /// The main thread while the guest runs.
    Event,
    /// Runs a vCPU.
    Vcpu,
    /// Does a device's work.
    Device,
    /// Serves the API.
    Api,
    /// Makes devices while the guest runs, and takes them apart.
    Hotplug,
    /// Takes snapshots for the store while the guest runs.
    Live,
    /// Waits for the program that serves the guest's memory.
    Memory,
    /// Waits for the jail.
    Keeper,
}

impl ThreadKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Process,
        Self::Event,
        Self::Vcpu,
        Self::Device,
        Self::Api,
        Self::Hotplug,
        Self::Live,
        Self::Memory,
        Self::Keeper,
    ];

    /// How messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "starting",
            Self::Event => "event",
            Self::Vcpu => "vCPU",
            Self::Device => "device",
            Self::Api => "API",
            Self::Hotplug => "hot-plug",
            Self::Live => "live",
            Self::Memory => "memory",
            Self::Keeper => "keeper",
        }
    }

    /// What it may do.
    pub fn rules(self) -> Vec<Rule> {
        let own = self.own_rules().iter();
        match self {
            // The rules of a call are tried one after the other, and most calls are a vCPU's that runs.
            Self::Process => [
                Self::Vcpu,
                Self::Event,
                Self::Device,
                Self::Api,
                Self::Hotplug,
                Self::Live,
                Self::Memory,
            ]
            .into_iter()
            .flat_map(Self::rules)
            .chain(own.copied())
            .collect(),
            Self::Keeper => own.copied().collect(),
            // The filter of the one is also that of the devices' threads that it starts; the other ends what devices do.
            Self::Hotplug | Self::Live => {
                let devices = Self::Device.rules().into_iter();
                devices.chain(own.copied()).collect()
            }
            _ => common_rules().iter().chain(own).copied().collect(),
        }
    }

    /// Its table, without what others have as well.
    pub fn own_rules(self) -> &'static [Rule] {
        match self {
            Self::Process => process::RULES,
            Self::Event => event::RULES,
            Self::Vcpu => vcpu::RULES,
            Self::Device => device::RULES,
            Self::Api => api::RULES,
            Self::Hotplug => hotplug::RULES,
            Self::Live => live::RULES,
            Self::Memory => memory::RULES,
            Self::Keeper => keeper::RULES,
        }
    }
}

/// What every kind may do but the keeper.
pub fn common_rules() -> &'static [Rule] {
    common::RULES
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A table makes no program.
    #[error("Cannot compile the system call filter of {kind} threads", kind = .kind.name())]
    Compile {
        /// Whose.
        kind: ThreadKind,
        /// Cause.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The kernel does not take it.
    #[error(
        "Cannot install the system call filter of {kind} threads: does this kernel have CONFIG_SECCOMP_FILTER? \
         --no-seccomp goes without",
        kind = .kind.name()
    )]
    Install {
        /// Whose.
        kind: ThreadKind,
        /// Cause.
        #[source]
        source: seccompiler::Error,
    },
    /// Nobody would say which call was denied.
    #[error("Cannot install the handler of denied system calls")]
    Handler(#[source] io::Error),
}

/// The filters of this process, or none of them. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Seccomp(Option<Arc<Programs>>);

/// Those of this process, once it has any.
static OF_PROCESS: OnceLock<Seccomp> = OnceLock::new();

/// Filters this thread as one that does a device's work, if the process has filters; whether that worked.
pub fn begin_device() -> bool {
    let entered = OF_PROCESS
        .get()
        .map_or(Ok(()), |seccomp| seccomp.enter(ThreadKind::Device));
    if let Err(error) = &entered {
        log::error!("A device's thread is not started: {}", chain(error));
    }
    entered.is_ok()
}

#[derive(Debug, Default)]
struct Programs([OnceLock<BpfProgram>; ThreadKind::ALL.len()]);

impl Seccomp {
    /// Filters nothing: `--no-seccomp`.
    pub fn off() -> Self {
        Self(None)
    }

    /// The filters. To be called in the process that is to have them: they know its number.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub fn on() -> Result<Self, SeccompError> {
        trap::install().map_err(SeccompError::Handler)?;
        allocator::keep_to_one_arena();
        // A static program has its random numbers from /dev/urandom, which the standard library and the crate each keep
        // open from the first time on: later, no thread may open it. Where that fails, who needs them says so.
        let _ = (RandomState::new(), getrandom::fill(&mut [0]));
        Ok(Self(Some(Arc::default())))
    }

    /// Filters this thread from now on, and every thread it starts. There is no way back. [`ThreadKind::Process`] comes
    /// first, before there is another thread; then each thread once.
    ///
    /// # Errors
    /// The kernel does not take the filter.
    pub fn enter(&self, kind: ThreadKind) -> Result<(), SeccompError> {
        let Some(programs) = &self.0 else {
            return Ok(());
        };
        let place = &programs.0[kind as usize];
        let program = match place.get() {
            Some(program) => program,
            None => {
                let program =
                    compile(kind).map_err(|source| SeccompError::Compile { kind, source })?;
                place.get_or_init(|| program)
            }
        };
        let mut result = Ok(());
        if kind == ThreadKind::Process {
            let first = without_clone3();
            let first = first.map_err(|source| SeccompError::Compile { kind, source })?;
            result = seccompiler::apply_filter(&first);
        }
        let result = result.and_then(|()| seccompiler::apply_filter(program));
        result.map_err(|source| SeccompError::Install { kind, source })?;
        trap::set_kind(kind);
        if kind == ThreadKind::Process {
            // It enters once.
            let _ = OF_PROCESS.set(self.clone());
        }
        Ok(())
    }
}

fn compile(kind: ThreadKind) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = rule::compile(kind.rules())?;
    program::compile(rules, &SeccompAction::Allow, &SeccompAction::Trap)
}

/// `clone3` has its flags in memory, where no filter sees them. The C library then uses `clone`.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let enosys = libc::ENOSYS.cast_unsigned();
    SeccompFilter::new(
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(enosys),
        TargetArch::x86_64,
    )?
    .try_into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn calls(kind: ThreadKind) -> BTreeSet<&'static str> {
        let rules = kind.rules();
        // What only builds such as this one have is no part of what is shipped.
        let shipped = rules
            .iter()
            .filter(|rule| !rule.why.starts_with("debug builds"));
        shipped.map(Rule::name).collect()
    }

    #[test]
    fn no_kind_of_thread_has_more_system_calls_than_it_may() {
        for (kind, limit) in [
            (ThreadKind::Vcpu, 25),
            (ThreadKind::Device, 45),
            (ThreadKind::Event, 45),
            (ThreadKind::Api, 35),
            (ThreadKind::Memory, 25),
            // More than a device's: no number was set for it.
            (ThreadKind::Hotplug, 65),
            (ThreadKind::Live, 50),
        ] {
            let calls = calls(kind);
            println!("{}: {} of {limit}: {calls:?}", kind.name(), calls.len());
            assert!(calls.len() <= limit, "{}: {}", kind.name(), calls.len());
        }
    }

    #[test]
    fn every_rule_has_a_reason_and_is_there_once() {
        for kind in ThreadKind::ALL {
            let rules = kind.rules();
            assert!(rules.iter().all(|rule| rule.why.len() > 5));
        }
        for kind in ThreadKind::ALL.into_iter().skip(1) {
            let rules = kind.rules();
            for (index, rule) in rules.iter().enumerate() {
                let again = rules[index + 1..].iter().find(|other| {
                    other.number == rule.number && (other.when.is_empty() || rule.when.is_empty())
                });
                assert!(again.is_none(), "{}: {rule:?} and {again:?}", kind.name());
            }
        }
    }

    #[test]
    fn all_tables_compile() {
        for kind in ThreadKind::ALL {
            let program = compile(kind).unwrap();
            println!("{}: {} instructions", kind.name(), program.len());
            assert!(program.len() < 4096);
        }
        without_clone3().unwrap();
    }

    #[test]
    fn nothing_that_reaches_other_processes_or_makes_code_is_in_any_table() {
        for name in [
            "execve",
            "execveat",
            "ptrace",
            "kill",
            "tkill",
            "process_vm_readv",
            "process_vm_writev",
            "bpf",
            "mount",
            "umount2",
            "unshare",
            "setns",
            "pidfd_open",
            "init_module",
            "finit_module",
            "fork",
            "vfork",
            "perf_event_open",
            "keyctl",
            "add_key",
            "chroot",
            "pivot_root",
            "open_by_handle_at",
            "memfd_secret",
            "kexec_load",
            "reboot",
            "userfaultfd",
            "process_madvise",
            "pidfd_getfd",
            "pidfd_send_signal",
        ] {
            for kind in ThreadKind::ALL {
                if kind == ThreadKind::Keeper && name == "kill" {
                    // The only one that is outside, and hears nothing of the guest.
                    continue;
                }
                assert!(!calls(kind).contains(name), "{}: {name}", kind.name());
            }
        }
        for rule in ThreadKind::Process.rules() {
            if ["mmap", "mprotect", "clone", "socket", "ioctl", "prctl"].contains(&rule.name()) {
                assert!(!rule.when.is_empty(), "{rule:?}");
            }
        }
    }
}
