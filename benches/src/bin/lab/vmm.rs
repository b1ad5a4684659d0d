//! One VMM with one guest: how ours and the peer are started, and what can be asked of them while they run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::api;
use crate::system::monotonic_us;
use crate::{LAB, MARKER};

/// The guest's command line, the same for every VMM.
const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1";

/// Hardware address of the guest's network interface.
const MAC: &str = "52:54:00:00:00:02";

/// Where the peer's monitor listens.
const MONITOR: &str = "/run/monitor";

/// Which VMM, and its choices that are not the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// Ours; with `pci` its devices are on PCI, without on MMIO.
    Daruma { pci: bool },
    /// Ours in its jail, without a cgroup.
    DarumaJailed,
    /// Ours without the filters that it has by itself.
    DarumaOpen,
    /// Ours, configured and started by its API instead of a file.
    DarumaByApi,
    /// The peer.
    Qemu {
        machine: Machine,
        /// `aio=` of its files: `io_uring` or `threads`.
        aio: &'static str,
        /// The disk's queues are served by a thread of their own instead of the main loop.
        iothread: bool,
    },
}

/// A machine type of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The leanest: virtio on MMIO.
    Microvm,
    /// The same with virtio on PCI Express.
    MicrovmPci,
    /// A PC with PCI Express.
    Q35,
}

/// What the guest is.
#[derive(Clone, Debug)]
pub struct Guest {
    /// A file in the laboratory's folder.
    pub kernel: &'static str,
    /// What its init is told to do.
    pub words: &'static str,
    /// MiB of memory.
    pub memory: u64,
    /// Path of its disk.
    pub disk: Option<&'static str>,
    /// Its network interface's tap.
    pub tap: Option<&'static str>,
    /// It has a vsock.
    pub vsock: bool,
}

impl Guest {
    /// A guest without devices.
    pub fn bare(kernel: &'static str, words: &'static str, memory: u64) -> Self {
        Self {
            kernel,
            words,
            memory,
            disk: None,
            tap: None,
            vsock: false,
        }
    }
}

/// A VMM that runs.
pub struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The control socket of ours, the monitor of the peer.
    socket: BufReader<UnixStream>,
    vmm: Vmm,
    /// When it was started, in microseconds.
    pub start: u64,
    /// When its API answered for the first time, in microseconds after that.
    pub answered: Option<u64>,
    memory: u64,
    /// Closed when the VMM has ended in time.
    patience: Sender<()>,
    /// The VMM was ended because it took too long.
    hung: Arc<AtomicBool>,
}

/// Virtual time after which a guest hangs: the longest work, and the start of many guests, takes a third of it.
const PATIENCE: Duration = Duration::from_secs(6);

/// Counters of KVM by their names.
pub type Counters = BTreeMap<String, u64>;

impl Vmm {
    /// Whether it speaks the language of our control socket.
    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Daruma { .. } | Self::DarumaJailed | Self::DarumaOpen | Self::DarumaByApi
        )
    }

    /// Its name in reports.
    pub fn name(self) -> String {
        match self {
            Self::Daruma { pci: false } => "daruma".into(),
            Self::Daruma { pci: true } => "daruma-pci".into(),
            Self::DarumaJailed => "daruma-jailed".into(),
            Self::DarumaOpen => "daruma-open".into(),
            Self::DarumaByApi => "daruma-by-api".into(),
            Self::Qemu {
                machine,
                aio,
                iothread,
            } => {
                let machine = match machine {
                    Machine::Microvm => "microvm",
                    Machine::MicrovmPci => "microvm-pci",
                    Machine::Q35 => "q35",
                };
                let thread = if iothread { "+iothread" } else { "" };
                format!("qemu-{machine}+{aio}{thread}")
            }
        }
    }

    /// Starts `guest`. `number` tells guests that run at the same time apart.
    pub fn start(self, guest: &Guest, number: usize) -> Result<Running> {
        let (socket, start, mut command) = match self {
            Self::Daruma { .. } | Self::DarumaJailed | Self::DarumaOpen | Self::DarumaByApi => {
                let (ours, theirs) = UnixStream::pair()?;
                let start = monotonic_us();
                let mut command = match self {
                    Self::DarumaByApi => api::command(number)?,
                    Self::DarumaJailed => {
                        let mut command = daruma(guest, number, false, start)?;
                        command.arg("--jail");
                        command
                    }
                    Self::DarumaOpen => {
                        let mut command = daruma(guest, number, false, start)?;
                        command.arg("--no-seccomp");
                        command
                    }
                    _ => daruma(guest, number, self == Self::Daruma { pci: true }, start)?,
                };
                let descriptor = theirs.as_raw_fd();
                command.args(["--control-fd", &descriptor.to_string()]);
                keep_open(&mut command, descriptor);
                // The descriptor must stay open until the child has it.
                (Some((ours, theirs)), start, command)
            }
            Self::Qemu {
                machine,
                aio,
                iothread,
            } => {
                if fs::exists(MONITOR)? {
                    fs::remove_file(MONITOR)?;
                }
                (None, monotonic_us(), qemu(guest, machine, aio, iothread))
            }
        };
        let program = command.get_program().to_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("Cannot start {}", program.display()))?;
        let socket = match socket {
            Some((ours, _theirs)) => ours,
            None => connect(&mut child)?,
        };
        let answered = match self {
            Self::DarumaByApi => Some(api::start(&mut child, guest, number)? - start),
            _ => None,
        };
        let (patience, hung) = limit(child.id());
        let input = child.stdin.take().context("No standard input")?;
        let output = child.stdout.take().context("No standard output")?;
        Ok(Running {
            child,
            input,
            output: BufReader::new(output),
            socket: BufReader::new(socket),
            vmm: self,
            start,
            answered,
            memory: guest.memory,
            patience,
            hung,
        })
    }
}

/// Ends process `pid` after [`PATIENCE`], unless the sender is gone by then.
#[expect(
    unsafe_code,
    reason = "std kills only by a handle that another thread has"
)]
fn limit(pid: u32) -> (Sender<()>, Arc<AtomicBool>) {
    let (patience, ended) = mpsc::channel();
    let hung = Arc::new(AtomicBool::new(false));
    let flag = hung.clone();
    thread::spawn(move || {
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            flag.store(true, Ordering::Relaxed);
            // SAFETY: kill(2) takes two numbers; the process is not waited for before the sender is gone.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        }
    });
    (patience, hung)
}

/// The peer's monitor appears a moment after its process.
fn connect(child: &mut Child) -> Result<UnixStream> {
    loop {
        if let Ok(socket) = UnixStream::connect(MONITOR) {
            return Ok(socket);
        }
        if let Some(status) = child.try_wait()? {
            bail!("The peer ended at once: {status}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// What is said of `guest`, by section.
pub(crate) fn config(guest: &Guest, number: usize) -> Value {
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": format!("{LAB}/{}", guest.kernel),
            "initrd_path": format!("{LAB}/guest.cpio"),
            "boot_args": format!("{CMDLINE} {}", guest.words),
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": guest.memory },
        "drives": [],
    });
    if let Some(disk) = guest.disk {
        config["drives"] = json!([{
            "drive_id": "disk", "path_on_host": disk, "is_root_device": false, "is_read_only": false,
        }]);
    }
    if let Some(tap) = guest.tap {
        config["network-interfaces"] =
            json!([{ "iface_id": "eth0", "host_dev_name": tap, "guest_mac": MAC }]);
    }
    if guest.vsock {
        config["vsock"] = json!({ "guest_cid": 3, "uds_path": format!("/run/vsock{number}") });
    }
    config
}

fn daruma(guest: &Guest, number: usize, pci: bool, start: u64) -> Result<Command> {
    let config = config(guest, number);
    let file = format!("/run/vm{number}.json");
    fs::write(&file, config.to_string())?;
    let mut command = Command::new("/bin/daruma-vmm");
    command
        .args(["--id", &format!("lab{number}"), "--no-api", "--boot-timer"])
        .args(["--config-file", &file])
        .args(["--start-time-us", &start.to_string()]);
    if pci {
        command.arg("--enable-pci");
    }
    Ok(command)
}

fn qemu(guest: &Guest, machine: Machine, aio: &str, iothread: bool) -> Command {
    let (kind, bus) = match machine {
        Machine::Microvm => (
            "microvm,x-option-roms=off,isa-serial=on,rtc=on,acpi=off",
            "device",
        ),
        Machine::MicrovmPci => (
            "microvm,x-option-roms=off,isa-serial=on,rtc=on,acpi=on,pcie=on",
            "pci",
        ),
        Machine::Q35 => ("q35,smm=off,vmport=off,hpet=off,sata=off,smbus=off", "pci"),
    };
    let mut command = Command::new("/peer/lib/ld-linux-x86-64.so.2");
    command
        .args(["--library-path", "/peer/lib", "/peer/qemu"])
        .args(["-M", kind, "-accel", "kvm", "-cpu", "host", "-smp", "1"])
        .args(["-m", &guest.memory.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "stdio"])
        .args(["-qmp", &format!("unix:{MONITOR},server=on,wait=off")])
        .args(["-L", "/peer/share", "-kernel"])
        .arg(format!("{LAB}/{}", guest.kernel))
        .args(["-initrd", &format!("{LAB}/guest.cpio")])
        .args(["-append", &format!("{CMDLINE} {}", guest.words)])
        .args(["-global", "virtio-mmio.force-legacy=off"]);
    if let Some(disk) = guest.disk {
        let mut device = format!("virtio-blk-{bus},drive=disk,num-queues=1");
        if iothread {
            command.args(["-object", "iothread,id=thread"]);
            device += ",iothread=thread";
        }
        command
            .arg("-blockdev")
            .arg(format!(
                "driver=file,node-name=disk,filename={disk},cache.direct=off,aio={aio}"
            ))
            .args(["-device", &device]);
    }
    if let Some(tap) = guest.tap {
        let rom = if bus == "pci" { ",romfile=" } else { "" };
        command
            .args([
                "-netdev",
                &format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off"),
            ])
            .arg("-device")
            .arg(format!("virtio-net-{bus},netdev=net,mac={MAC}{rom}"));
    }
    command
}

/// Lets the child inherit `descriptor`, which std opens close-on-exec.
#[expect(
    unsafe_code,
    reason = "only fcntl(2) in the child can clear the flag for it alone"
)]
pub fn keep_open(command: &mut Command, descriptor: i32) {
    let clear = move || {
        // SAFETY: fcntl(2) is async-signal-safe and takes no pointer here.
        match unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only calls an async-signal-safe function and allocates nothing.
    unsafe { command.pre_exec(clear) };
}

/// The next event of ours on `socket`, which must be called `name`.
pub fn event(socket: &mut BufReader<UnixStream>, name: &str) -> Result<Value> {
    let mut line = String::new();
    socket.read_line(&mut line)?;
    let event: Value = serde_json::from_str(&line)
        .with_context(|| format!("The VMM says {line:?} instead of an event"))?;
    if event["event"] != name {
        bail!("The VMM says {line}");
    }
    Ok(event)
}

impl Running {
    /// The next event of ours, which must be called `name`.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        let event = event(&mut self.socket, name);
        if self.hung.load(Ordering::Relaxed) {
            bail!("The guest hung");
        }
        event
    }

    /// Reads the console until the guest's init has spoken; returns the microseconds since the start.
    pub fn wait_for_marker(&mut self) -> Result<u64> {
        let mut text = Vec::new();
        while !text.ends_with(MARKER.as_bytes()) {
            let mut byte = [0];
            if self.output.read(&mut byte)? == 0 {
                bail!(
                    "No init in the guest; it said: {}",
                    String::from_utf8_lossy(&text)
                );
            }
            text.push(byte[0]);
        }
        Ok(monotonic_us() - self.start)
    }

    /// The next line that the guest says.
    pub fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        if self.output.read_until(b'\n', &mut line)? == 0 {
            if self.hung.load(Ordering::Relaxed) {
                bail!("The guest hung");
            }
            return Ok(None);
        }
        Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()))
    }

    /// Lets the guest go on with its next phase.
    pub fn go(&mut self) -> Result<()> {
        Ok(self.input.write_all(b"\n")?)
    }

    /// KVM's counters of the guest's vCPU.
    pub fn counters(&mut self) -> Result<Counters> {
        if self.vmm.is_ours() {
            self.socket
                .get_mut()
                .write_all(b"{\"action\":\"stats\"}\n")?;
            let mut event = self.event("stats")?;
            return Ok(serde_json::from_value(event["vcpus"][0].take())?);
        }
        self.command(&json!({ "execute": "qmp_capabilities" }))?;
        let answer = self.command(&json!({
            "execute": "query-stats", "arguments": { "target": "vcpu" },
        }))?;
        let stats = answer[0]["stats"]
            .as_array()
            .context("The peer has no counters")?;
        let counters = stats.iter().filter_map(|stat| {
            let name = stat["name"].as_str()?;
            // KVM says `halt_exits`, the peer `halt-exits`.
            Some((name.replace('-', "_"), stat["value"].as_u64()?))
        });
        Ok(counters.collect())
    }

    /// One command to the peer's monitor; an error as its answer is none.
    fn command(&mut self, command: &Value) -> Result<Value> {
        self.socket
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.socket.read_line(&mut line)? == 0 {
                bail!("The peer closed its monitor");
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            if answer.get("error").is_some() {
                return Ok(Value::Null);
            }
        }
    }

    /// Resident memory of the VMM without the one mapping that is the guest's RAM, in KiB.
    pub fn overhead_kib(&self) -> Result<u64> {
        let mut total = 0;
        let mut is_guest = false;
        for line in fs::read_to_string(format!("/proc/{}/smaps", self.child.id()))?.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Size:"), Some(kib)) => is_guest = kib.parse::<u64>()? >= self.memory * 1024,
                (Some("Rss:"), Some(kib)) if !is_guest => total += kib.parse::<u64>()?,
                _ => {}
            }
        }
        Ok(total)
    }

    /// Ends the VMM and its guest.
    pub fn end(mut self) -> Result<()> {
        drop(self.patience);
        self.child.kill()?;
        self.child.wait()?;
        // The kernel gives an io_uring's files, and the locks on them, back only after the process has ended.
        thread::sleep(Duration::from_millis(50));
        Ok(())
    }
}
