//! A VMM made to misbehave: a child process enters the jail and its thread's filter as the VMM does, by the library, and
//! then tries what a guest that has taken it over would try. And the real VMM's jail, looked at from outside.
//!
//! Without the test harness: the jail is for a process with one thread, which a test of the harness never has.
#![expect(unsafe_code, reason = "makes the system calls that must not succeed")]
#![expect(
    clippy::unwrap_used,
    clippy::zombie_processes,
    reason = "a test whose world cannot be set up has failed; children end with a code that says what they saw"
)]

#[expect(dead_code, reason = "one guest of many is used here")]
mod guest;
#[expect(dead_code, reason = "other tests need more of it")]
mod trace;

use std::ffi::CStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest::Code;
use vmm::jail::seccomp::{CODE_DENIED, Seccomp, ThreadKind};
use vmm::jail::{self, Plan};

/// The call returned an error.
const REFUSED: i32 = 42;
/// The call succeeded.
const BREACH: i32 = 43;
/// There is no jail to test.
const NO_JAIL: i32 = 44;
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something that a VMM must not be able to do.
struct Case {
    what: &'static str,
    /// Tries it; the number of another process may be needed. What the kernel returned.
    attempt: fn(i64) -> i64,
    /// The jail forbids it without the filter's help.
    by_jail: bool,
}

const fn case(what: &'static str, attempt: fn(i64) -> i64) -> Case {
    Case {
        what,
        attempt,
        by_jail: true,
    }
}

/// Only the filter forbids it.
const fn by_filter(what: &'static str, attempt: fn(i64) -> i64) -> Case {
    Case {
        what,
        attempt,
        by_jail: false,
    }
}

const CASES: [Case; 20] = [
    case("opens a file of the host", |_| open(c"/etc/passwd")),
    case("opens its own memory by /proc", |_| open(c"/proc/self/mem")),
    case("opens a device", |_| open(c"/dev/kvm")),
    case("goes up from the root folder", |_| {
        open(c"/../proc/1/environ")
    }),
    case("makes a file", |_| {
        let flags = i64::from(libc::O_CREAT | libc::O_RDWR);
        call(
            libc::SYS_openat,
            [HERE, at(c"/x".as_ptr()), flags, 0o600, 0],
        )
    }),
    case("connects by TCP", |_| connect()),
    case("makes a packet socket", |_| {
        socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
    }),
    case("makes a raw socket", |_| {
        socket(libc::AF_INET, libc::SOCK_RAW, 1)
    }),
    case("signals another process", |pid| {
        call(libc::SYS_kill, [pid, 9, 0, 0, 0])
    }),
    case("signals a thread of another process", |pid| {
        call(libc::SYS_tgkill, [pid, pid, 9, 0, 0])
    }),
    case("traces another process", |pid| {
        call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), pid, 0, 0, 0])
    }),
    case("reads another process's memory", |pid| {
        let mut byte = [0u8];
        let vector = [at(byte.as_mut_ptr()), 1];
        let vector = at(vector.as_ptr());
        call(libc::SYS_process_vm_readv, [pid, vector, 1, vector, 1])
    }),
    case("mounts", |_| {
        let (kind, place) = (at(c"tmpfs".as_ptr()), at(c"/".as_ptr()));
        call(libc::SYS_mount, [kind, place, kind, 0, 0])
    }),
    case("runs a program", |_| {
        call(libc::SYS_execve, [at(c"/bin/true".as_ptr()), 0, 0, 0, 0])
    }),
    case("loads a kernel module", |_| {
        call(libc::SYS_init_module, [0, 0, at(c"".as_ptr()), 0, 0])
    }),
    case("changes the host's name", |_| {
        call(libc::SYS_sethostname, [at(c"x".as_ptr()), 1, 0, 0, 0])
    }),
    by_filter("makes a user namespace", |_| {
        call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0])
    }),
    by_filter("loads a BPF program", |_| call(libc::SYS_bpf, [0; 5])),
    by_filter("makes an io_uring", |_| {
        let mut parameters = [0u64; 15];
        call(
            libc::SYS_io_uring_setup,
            [1, at(parameters.as_mut_ptr()), 0, 0, 0],
        )
    }),
    by_filter("makes memory executable", |_| {
        let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        call(libc::SYS_mmap, [0, 4096, 7, flags, -1])
    }),
];

/// The current folder, for paths.
const HERE: i64 = -100;

fn at<T>(pointer: *const T) -> i64 {
    pointer.expose_provenance().try_into().unwrap()
}

fn call(number: i64, [a, b, c, d, e]: [i64; 5]) -> i64 {
    // SAFETY: what the arguments point to is there, and is as the call in question wants it.
    unsafe { libc::syscall(number, a, b, c, d, e, 0) }
}

fn socket(family: i32, kind: i32, protocol: i64) -> i64 {
    call(
        libc::SYS_socket,
        [family.into(), kind.into(), protocol, 0, 0],
    )
}

fn open(path: &CStr) -> i64 {
    call(libc::SYS_openat, [HERE, at(path.as_ptr()), 0, 0, 0])
}

fn connect() -> i64 {
    // 192.0.2.1, port 80.
    let address: [u8; 16] = [2, 0, 0, 80, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    call(libc::SYS_connect, [socket, at(address.as_ptr()), 16, 0, 0])
}

/// The child: behind which walls, as which kind of thread, what, against whom.
fn misbehave(arguments: &[String]) -> i32 {
    let (walls, kind) = (arguments[0].as_str(), arguments[1].as_str());
    let case: usize = arguments[2].parse().unwrap();
    let victim = arguments[3].parse().unwrap();
    if walls != "filter"
        && let Err(error) = jail::enter(Plan::default())
    {
        println!("{error}: {:?}", std::error::Error::source(&error));
        return NO_JAIL;
    }
    if walls != "jail" {
        let kind = ThreadKind::ALL
            .into_iter()
            .find(|one| one.name() == kind)
            .unwrap();
        let seccomp = Seccomp::on().unwrap();
        seccomp.enter(ThreadKind::Process).unwrap();
        seccomp.enter(kind).unwrap();
    }
    if (CASES[case].attempt)(victim) < 0 {
        REFUSED
    } else {
        BREACH
    }
}

fn wait(mut child: Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < until, "the child does not end");
        thread::sleep(Duration::from_millis(5));
    }
}

fn nothing_that_a_vmm_tries_succeeds() {
    let mut victim = Command::new("sleep").arg("600").spawn().unwrap();
    for (number, case) in CASES.iter().enumerate() {
        let Case { what, by_jail, .. } = case;
        for kind in ["vCPU", "device", "event", "API"] {
            for walls in ["jail", "filter", "both"] {
                if walls == "jail" && (!by_jail || kind != "vCPU") {
                    continue;
                }
                let child = Command::new(std::env::current_exe().unwrap())
                    .args([
                        "--misbehave",
                        walls,
                        kind,
                        &number.to_string(),
                        &victim.id().to_string(),
                    ])
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                let code = wait(child).code();
                let expected = if walls == "jail" {
                    REFUSED
                } else {
                    CODE_DENIED.into()
                };
                assert_eq!(
                    code,
                    Some(expected),
                    "a {kind} thread {what}, walls: {walls}"
                );
            }
        }
        println!("  {what}: denied");
    }
    assert!(victim.try_wait().unwrap().is_none(), "the victim lives");
    victim.kill().unwrap();
    victim.wait().unwrap();
}

/// A jailed VMM with a disk, and the process inside.
struct Vmm {
    keeper: Child,
    inside: u32,
    disk: tempfile::NamedTempFile,
    _files: (tempfile::NamedTempFile, tempfile::NamedTempFile),
}

fn start() -> Vmm {
    let kernel = Code::new().spin().image();
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "machine-config": {{"vcpu_count": 1, "mem_size_mib": 4}},
            "drives": [{{"drive_id": "d", "is_root_device": false, "path_on_host": "{}"}}]}}"#,
        kernel.path().display(),
        disk.path().display()
    );
    fs::write(config.path(), text).unwrap();
    // One that the VMM inherits and has no use for.
    let leak = fs::File::open("/etc/passwd").unwrap();
    // SAFETY: changes a flag of an open descriptor.
    unsafe { libc::fcntl(leak.as_raw_fd(), libc::F_SETFD, 0) };
    let keeper = trace::vmm()
        .args(["--no-api", "--jail", "--config-file"])
        .arg(config.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", keeper.id());
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "no vCPU runs");
        let children = fs::read_to_string(&children).unwrap_or_default();
        let Some(inside) = children.split_whitespace().next() else {
            continue;
        };
        let inside = inside.parse().unwrap();
        // When a vCPU's filter is there, all is.
        if threads(inside)
            .iter()
            .any(|(name, filters)| name.starts_with("vcpu") && *filters >= 3)
        {
            thread::sleep(Duration::from_millis(100));
            let files = (kernel, config);
            return Vmm {
                keeper,
                inside,
                disk,
                _files: files,
            };
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Name and number of filters of each thread.
fn threads(pid: u32) -> Vec<(String, u32)> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let status = |task: PathBuf| {
        let text = fs::read_to_string(task.join("status")).unwrap_or_default();
        let field = |name| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        (
            field("Name:"),
            field("Seccomp_filters:").parse().unwrap_or_default(),
        )
    };
    tasks.map(|task| status(task.unwrap().path())).collect()
}

fn a_vmm_has_what_it_serves_and_nothing_else() {
    let mut vmm = start();
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", vmm.inside)).unwrap() {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).unwrap();
        let name = target.display().to_string();
        // Events, timers, loops, KVM's, the line to the keeper: none of them a way to anything outside.
        if !["anon_inode:", "socket:", "pipe:"]
            .iter()
            .any(|kind| name.starts_with(kind))
        {
            files.push(name);
        }
    }
    files.sort();
    files.dedup();
    let disk = vmm.disk.path().display().to_string();
    let mut expected = vec!["/dev/null".to_owned(), disk];
    expected.sort();
    assert_eq!(files, expected);
    let root = fs::read_dir(format!("/proc/{}/root/", vmm.inside)).unwrap();
    assert_eq!(root.count(), 0, "the root folder is empty");
    let status = fs::read_to_string(format!("/proc/{}/status", vmm.inside)).unwrap();
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "NSpid:\t",
    ] {
        assert!(status.contains(line), "{line} in {status}");
    }
    for space in ["user", "mnt", "pid", "net"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(of(&vmm.inside.to_string()), of("self"), "{space}");
    }
    for (name, filters) in threads(vmm.inside) {
        assert!(filters >= 3, "thread {name} has {filters} filters");
    }
    vmm.keeper.kill().unwrap();
    vmm.keeper.wait().unwrap();
}

fn a_vmm_ends_with_its_keeper_and_the_keeper_as_the_vmm() {
    let mut vmm = start();
    let inside = format!("/proc/{}", vmm.inside);
    vmm.keeper.kill().unwrap();
    vmm.keeper.wait().unwrap();
    let until = Instant::now() + PATIENCE;
    while Path::new(&inside).exists() {
        assert!(Instant::now() < until, "it lives on");
        thread::sleep(Duration::from_millis(5));
    }
    let vmm = start();
    // SAFETY: a signal to a process of ours.
    unsafe { libc::kill(vmm.inside.try_into().unwrap(), libc::SIGKILL) };
    let mut keeper = vmm.keeper;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut keeper.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(wait(keeper).signal(), Some(libc::SIGKILL));
    assert!(said.contains("killed by SIGKILL"), "{said}");
}

/// Its name, whether it needs KVM, and what it does.
type Test = (&'static str, bool, fn());

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "--misbehave") {
        std::process::exit(misbehave(&arguments[2..]));
    }
    let tests: [Test; 3] = [
        (
            "nothing_that_a_vmm_tries_succeeds",
            false,
            nothing_that_a_vmm_tries_succeeds,
        ),
        (
            "a_vmm_has_what_it_serves_and_nothing_else",
            true,
            a_vmm_has_what_it_serves_and_nothing_else,
        ),
        (
            "a_vmm_ends_with_its_keeper_and_the_keeper_as_the_vmm",
            true,
            a_vmm_ends_with_its_keeper_and_the_keeper_as_the_vmm,
        ),
    ];
    let filter = arguments.get(1).filter(|first| !first.starts_with('-'));
    for (name, needs_kvm, test) in tests {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        if needs_kvm && !Path::new("/dev/kvm").exists() {
            assert_eq!(
                std::env::var("DARUMA_NO_KVM").as_deref(),
                Ok("1"),
                "/dev/kvm does not exist"
            );
            println!("test {name} ... skipped: there is no /dev/kvm");
            continue;
        }
        test();
        println!("test {name} ... ok");
    }
}
