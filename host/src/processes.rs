//! What the processes of a VMM use, by proc(5).

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Pid, SysconfVar, sysconf};

/// What the name of a vCPU's thread begins with.
const VCPU: &str = "vcpu";
/// The unit of memory in `statm` on x86, in KiB.
const PAGE_KIB: u64 = 4;
/// Places in `stat` after the name: the process group, the session, and how long it ran in user and in kernel mode.
const GROUP: usize = 2;
const SESSION: usize = 3;
const USER_TIME: usize = 11;
const KERNEL_TIME: usize = 12;

/// What processes use.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Threads of vCPUs.
    pub vcpus: usize,
    /// How long these ran, all together.
    pub vcpu_time: Duration,
    /// Memory.
    pub resident_kib: u64,
}

/// The processes of the group that `leader` leads: a jailed VMM is a child of the process that was started.
#[must_use]
pub fn of_group(leader: Pid) -> Vec<Pid> {
    let leader = leader.as_raw();
    let is_member = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        field(&text, GROUP) == u64::try_from(leader).ok()
    };
    let members = numbers(Path::new("/proc")).filter(is_member);
    members.map(Pid::from_raw).collect()
}

/// All processes, each with the session that it is in.
pub fn sessions() -> impl Iterator<Item = (Pid, Pid)> {
    numbers(Path::new("/proc")).filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let session = i32::try_from(field(&text, SESSION)?).ok()?;
        Some((Pid::from_raw(pid), Pid::from_raw(session)))
    })
}

/// What `processes` use together. Those that are gone use nothing.
#[must_use]
pub fn usage(processes: &[Pid]) -> Usage {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let ticks = ticks.and_then(|ticks| u64::try_from(ticks).ok());
    let tick_ms = 1000
        / ticks
            .filter(|ticks| (1..=1000).contains(ticks))
            .unwrap_or(100);
    let mut usage = Usage::default();
    for process in processes {
        let folder = Path::new("/proc").join(process.to_string());
        let memory = fs::read_to_string(folder.join("statm")).unwrap_or_default();
        let pages = memory.split(' ').nth(1).and_then(|it| it.parse().ok());
        usage.resident_kib += pages.unwrap_or(0) * PAGE_KIB;
        let threads = folder.join("task");
        for thread in numbers(&threads) {
            let stat = threads.join(thread.to_string()).join("stat");
            let text = fs::read_to_string(stat).unwrap_or_default();
            if name(&text).is_some_and(|name| name.starts_with(VCPU)) {
                let ran = [USER_TIME, KERNEL_TIME].map(|it| field(&text, it).unwrap_or(0));
                usage.vcpus += 1;
                usage.vcpu_time += Duration::from_millis((ran[0] + ran[1]) * tick_ms);
            }
        }
    }
    usage
}

/// Names of entries that are numbers.
fn numbers(folder: &Path) -> impl Iterator<Item = i32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The name in a line of `stat`, which may have any characters.
fn name(stat: &str) -> Option<&str> {
    Some(stat.rsplit_once(')')?.0.split_once('(')?.1)
}

/// A number after it.
fn field(stat: &str, place: usize) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    fields.nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;

    use super::*;

    #[test]
    fn names_with_brackets_and_spaces_do_not_shift_the_fields() {
        let stat = "42 (vcpu) 0) R 1 17 17 0 -1 4194560 9 0 0 0 250 31 0 0 20 0 1 0 7 0 0\n";
        assert_eq!(name(stat), Some("vcpu) 0"));
        assert_eq!(field(stat, GROUP), Some(17));
        assert_eq!(
            (field(stat, USER_TIME), field(stat, KERNEL_TIME)),
            (Some(250), Some(31))
        );
        assert_eq!((name(""), field("", 0)), (None, None));
    }

    #[test]
    fn a_thread_of_a_vcpu_counts() {
        let me = nix::unistd::getpid();
        let spinning = std::thread::Builder::new().name("vcpu7".to_owned());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread =
            spinning.spawn(move || while stopped.try_recv() == Err(TryRecvError::Empty) {});
        let mut used = usage(&[me]);
        while used.vcpu_time.is_zero() {
            used = usage(&[me]);
        }
        assert_eq!(used.vcpus, 1);
        assert!(used.resident_kib > 0);
        drop(stop);
        thread.unwrap().join().unwrap();
        assert!(of_group(nix::unistd::getpgrp()).contains(&me));
        let session = nix::unistd::getsid(None).unwrap();
        assert!(sessions().any(|it| it == (me, session)));
        assert_eq!(usage(&[Pid::from_raw(i32::MAX)]), Usage::default());
    }
}
