//! `kill -9` at every system call by which the store's writer changes something: a process of its own writes snapshots and a
//! disk, deletes, and collects garbage in a real directory, and is killed before its first such call, then another before
//! its second, and so on to the end. Whatever one leaves behind is opened and looked at.
//!
//! What it had heard to be done is there and whole; what it was at is there whole or not at all; and after garbage has been
//! collected nothing is stored that nothing refers to.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "crash/workload.rs"]
#[expect(dead_code, reason = "the power cuts need more of it")]
mod workload;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use store::medium::Directory;
use store::{BlockDevice, Disk, Error, Info, PAGE, Result, Spec, Store, Thoroughness};
use tempfile::TempDir;

use self::workload::{Dice, attach, options, snapshot, step};

/// Names the folder of the process that is to be killed.
const FOLDER: &str = "DARUMA_KILL_FOLDER";
const SEED: u64 = 11;
const STEPS: u64 = 15;
const DISK: &str = "root";
const LEN: usize = 40 * PAGE;
const THREADS: u64 = 2;

/// A store at work, and what its disk should show.
struct Work {
    store: Store,
    disk: Option<Disk>,
    content: Vec<u8>,
    dice: Dice,
}

/// What can be seen of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    snapshots: Vec<Info>,
    /// The disk's bytes, if there is a disk.
    disk: Option<Vec<u8>>,
}

impl Work {
    fn begin(folder: &Path) -> Self {
        let medium = Arc::new(Directory::open(folder).unwrap());
        Self {
            store: Store::create(medium, options()).unwrap(),
            disk: None,
            content: vec![0; LEN],
            dice: Dice::new(SEED),
        }
    }

    fn step(&mut self, number: u64) -> Result<()> {
        let Some(disk) = &self.disk else {
            self.disk = Some(self.store.create_disk(DISK, LEN as u64, None)?);
            return Ok(());
        };
        match number {
            _ if number + 1 == STEPS => {
                self.disk = None;
                self.store.remove_disk(DISK)
            }
            _ if number % 5 == 3 => {
                let frozen = Arc::new(disk.freeze()?);
                let parent = self.store.list()?.last().map(|info| info.id);
                let spec = Spec {
                    parent,
                    ..Spec::default()
                };
                let mut writer = self.store.begin(spec)?;
                writer.disk("disk:root", &frozen)?;
                writer.commit().map(drop)
            }
            _ if number % 5 == 1 => {
                // No byte is changed twice: each is old or new.
                let mut at = |limit: usize| {
                    let at = self.dice.below(limit as u64);
                    usize::try_from(at).unwrap()
                };
                let freed = at(12) * PAGE;
                disk.discard(freed as u64, 2 * PAGE as u64)?;
                self.content[freed..freed + 2 * PAGE].fill(0);
                for first in [14 * PAGE, 26 * PAGE] {
                    let start = first + at(8 * PAGE);
                    let byte = u8::try_from(at(255)).unwrap() + 1;
                    disk.write_at(start as u64, &[byte; PAGE + 300])?;
                    self.content[start..start + PAGE + 300].fill(byte);
                }
                disk.flush()
            }
            _ => step(&self.store, &mut self.dice),
        }
    }

    fn seen(&self) -> Seen {
        Seen {
            snapshots: self.store.list().unwrap(),
            disk: self.disk.as_ref().map(|_| self.content.clone()),
        }
    }
}

/// What is seen after each step of one that is left alone; first, of a store that was just made.
fn undisturbed() -> Vec<Seen> {
    let folder = folder();
    let mut work = Work::begin(folder.path());
    let mut seen = vec![work.seen()];
    for number in 0..STEPS {
        work.step(number).unwrap();
        seen.push(work.seen());
    }
    seen
}

fn folder() -> TempDir {
    // What a killed process has written, the kernel has: no disk is needed, nor one waited for.
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        tempfile::tempdir_in(shm).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn progress(folder: &Path) -> PathBuf {
    folder.join("progress")
}

#[test]
#[ignore = "the process that is killed: the test below starts it"]
fn the_writer() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect(FOLDER));
    let mut heard = File::create(progress(&folder)).unwrap();
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
    let mut work = Work::begin(&folder.join("store"));
    heard.write_all(b"x").unwrap();
    for number in 0..STEPS {
        work.step(number).unwrap();
        heard.write_all(b"x").unwrap();
    }
}

/// Whether a system call can change what is on a disk, or is what makes it durable.
fn changes(number: i64) -> bool {
    [
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_openat,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_mkdir,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_unlink,
        libc::SYS_unlinkat,
    ]
    .contains(&number)
}

/// How a writer ended.
enum End {
    /// It was killed before the call that was to be its last.
    Killed,
    /// It came to its end after so many calls, of which so many change something.
    Finished(u64, u64),
}

/// Runs a writer in `folder` and kills it before its `last` call that changes something.
fn run(folder: &Path, last: u64) -> End {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "the_writer", "--ignored", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let end = follow(&child, last);
    let _ = child.kill();
    child.wait().unwrap();
    end
}

/// The test harness gives the writer a thread of its own, which is the one that is followed.
fn follow(child: &Child, last: u64) -> End {
    let flags = Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD);
    let WaitStatus::Stopped(writer, Signal::SIGSTOP) = waitpid(None, flags).unwrap() else {
        panic!("the writer does not stop");
    };
    let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(writer, options).unwrap();
    let (mut calls, mut changing, mut enters) = (0, 0, true);
    loop {
        ptrace::syscall(writer, None).unwrap();
        match waitpid(writer, flags).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                if enters {
                    calls += 1;
                    let registers = ptrace::getregs(writer).unwrap();
                    changing += u64::from(changes(registers.orig_rax.cast_signed()));
                    if changing == last {
                        kill(process, Signal::SIGKILL).unwrap();
                        let killed = waitpid(writer, flags).unwrap();
                        assert!(matches!(killed, WaitStatus::Signaled(..)), "{killed:?}");
                        return End::Killed;
                    }
                }
                enters = !enters;
            }
            WaitStatus::Exited(_, 0) => return End::Finished(calls, changing),
            other => panic!("the writer: {other:?}"),
        }
    }
}

/// Looks at what a writer has left; says how many steps it had heard to be done.
fn look(folder: &Path, all: &[Seen], what: &str) -> u64 {
    let heard = fs::metadata(progress(folder)).map_or(0, |metadata| metadata.len());
    let path = folder.join("store");
    let medium = Arc::new(Directory::open(&path).unwrap());
    let store = match Store::open(medium, options()) {
        Ok(store) => store,
        Err(Error::NotAStore { .. }) if heard == 0 => {
            let medium = Arc::new(Directory::open(&path).unwrap());
            drop(
                Store::create(medium, options()).unwrap_or_else(|error| panic!("{what}: {error}")),
            );
            return heard;
        }
        Err(error) => panic!("{what}: {error:?}"),
    };
    let before = usize::try_from(heard.saturating_sub(1)).unwrap();
    let before = &all[before];
    let after = &all[usize::try_from(heard).unwrap().min(all.len() - 1)];
    let found = store.list().unwrap();
    let allowed = [&before.snapshots, &after.snapshots];
    assert!(
        allowed.contains(&&found),
        "{what}: {found:?} is none of {allowed:?}"
    );
    whole(&store, what);
    match store.open_disk(DISK) {
        Ok(disk) => {
            let mut bytes = vec![0; LEN];
            disk.read_at(0, &mut bytes).unwrap();
            let nothing = vec![0; LEN];
            let old = before.disk.as_ref().unwrap_or(&nothing);
            let new = after.disk.as_ref().unwrap_or(old);
            let known = before.disk.is_some() || after.disk.is_some();
            assert!(known, "{what}: a disk that nobody has made");
            let all = bytes.iter().zip(old.iter().zip(new));
            let wrong = all.filter(|(byte, (old, new))| byte != old && byte != new);
            assert_eq!(wrong.count(), 0, "{what}: bytes of the disk");
            drop(disk);
            store.remove_disk(DISK).unwrap();
        }
        Err(Error::NoDisk { .. }) => {
            let known = before.disk.is_none() || after.disk.is_none();
            assert!(known, "{what}: the disk is gone");
        }
        Err(error) => panic!("{what}: {error:?}"),
    }
    images(&store, what);
    let collected = store.collect(Thoroughness::All, &mut |_, _| {}).unwrap();
    assert_eq!(collected.damaged, 0, "{what}");
    assert_eq!(store.list().unwrap(), found, "{what}");
    tight(&store, &path, what);
    // The store goes on.
    let parent = found.last().map(|info| info.id);
    snapshot(&store, &mut Dice::new(5), parent, true).unwrap();
    assert_eq!(store.list().unwrap().len(), found.len() + 1, "{what}");
    whole(&store, what);
    heard
}

/// Disks on images, which the steps have made: they can be read, and then they go, and nobody says any longer where the
/// images are.
fn images(store: &Store, what: &str) {
    attach(store);
    whole(store, what);
    for info in store.disks().unwrap() {
        let read = store.open_disk(&info.name).and_then(|disk| {
            let mut bytes = vec![0; usize::try_from(info.len).unwrap()];
            disk.read_at(0, &mut bytes)
        });
        read.unwrap_or_else(|error| panic!("{what}: {info:?}: {error}"));
        store.remove_disk(&info.name).unwrap();
    }
    for (info, _) in store.images().unwrap() {
        store.detach(&info.id);
    }
}

/// Every chunk is there, with its hash, and every reference is counted.
fn whole(store: &Store, what: &str) {
    let problems = store.verify(&mut |_| {}).unwrap().problems;
    assert!(problems.is_empty(), "{what}: {problems:?}");
}

/// Not a byte more than what is referenced, and no file that is nobody's.
fn tight(store: &Store, path: &Path, what: &str) {
    let status = store.status().unwrap();
    let needed = status.referenced + status.segments * 4096;
    assert_eq!(status.stored, needed, "{what}: {status:?}");
    assert_eq!(
        store.files().unwrap(),
        status.segments,
        "{what}: {status:?}"
    );
    let names = fs::read_dir(path).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names.filter(|name| name.starts_with("layer-")).collect();
    assert!(left.is_empty(), "{what}: {left:?}");
}

#[test]
fn a_writer_killed_at_any_system_call_leaves_whole_snapshots_and_nothing_else() {
    let all = undisturbed();
    assert_eq!(undisturbed(), all, "the work is the same each time");
    let whole = folder();
    let End::Finished(calls, changing) = run(whole.path(), u64::MAX) else {
        panic!("it was killed");
    };
    let steps = look(whole.path(), &all, "left alone");
    assert_eq!(steps, STEPS + 1);
    let (next, kills) = (AtomicU64::new(1), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let last = next.fetch_add(1, Ordering::Relaxed);
                    if last > changing {
                        return;
                    }
                    let folder = folder();
                    // The order of calls may differ a little from run to run, at the very end.
                    if matches!(run(folder.path(), last), End::Killed) {
                        kills.fetch_add(1, Ordering::Relaxed);
                    }
                    look(folder.path(), &all, &format!("killed before call {last}"));
                }
            });
        }
    });
    let kills = kills.into_inner();
    assert!(kills > 200 && kills + 5 > changing, "{kills} of {changing}");
    // Not by `println`, which the test harness takes.
    writeln!(
        io::stdout(),
        "counted: {kills} kills of the store's writer, one before each of its system calls that change something ({calls} \
         calls in all)"
    )
    .unwrap();
}
