//! One machine under QEMU: how it is started, its console, its power button and its end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Console;
use crate::console::HUNG;
use crate::emulation;
use crate::record::Record;

/// As the search path has it: `cargo xtask` puts the one first that will do.
const QEMU: &str = "qemu-system-x86_64";

/// How long QEMU's monitor may take for an answer.
const ANSWERS: Duration = Duration::from_secs(60);

/// Which clock the machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Real time: as fast as this computer runs it, on two CPUs.
    Wall,
    /// Virtual time: one CPU whose clock counts instructions, 1 instruction = 1 ns.
    Virtual,
}

/// What to boot.
enum Source {
    Rom(PathBuf),
    Trio {
        kernel: PathBuf,
        initramfs: PathBuf,
        cmdline: String,
    },
    /// QEMU's own BIOS, which looks for something to boot itself.
    Bios,
    Uefi {
        firmware: Uefi,
        /// Its variables, which it writes to.
        variables: PathBuf,
    },
}

/// Debian's UEFI firmwares for QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uefi {
    /// Boots everything.
    Open,
    /// With Secure Boot on, and nobody's keys but those of `/usr/share/ovmf/PkKek-1-snakeoil.pem`.
    SecureBoot,
}

impl Uefi {
    const FOLDER: &str = "/usr/share/OVMF";

    fn code(self) -> &'static str {
        match self {
            Self::Open => "OVMF_CODE_4M.fd",
            Self::SecureBoot => "OVMF_CODE_4M.secboot.fd",
        }
    }

    fn variables(self) -> &'static str {
        match self {
            Self::Open => "OVMF_VARS_4M.fd",
            Self::SecureBoot => "OVMF_VARS_4M.snakeoil.fd",
        }
    }

    /// What QEMU must be told. With Secure Boot only code in SMM may write the variables.
    fn arguments(self, variables: &Path) -> Vec<OsString> {
        let mut code = OsString::from("if=pflash,unit=0,format=raw,readonly=on,file=");
        code.push(Path::new(Self::FOLDER).join(self.code()));
        let mut writable = OsString::from("if=pflash,unit=1,format=raw,file=");
        writable.push(variables);
        let mut arguments = vec!["-drive".into(), code, "-drive".into(), writable];
        if self == Self::SecureBoot {
            let secure = "driver=cfi.pflash01,property=secure,value=on";
            arguments.extend(["-global".into(), secure.into()]);
        }
        arguments
    }
}

/// A machine that has not been started yet.
pub struct Builder {
    source: Source,
    memory_mib: u32,
    clock: Clock,
    extra: Vec<OsString>,
}

/// A running machine. Dropping it kills it and writes its record.
pub struct Qemu {
    child: Child,
    /// The host's serial console (COM1).
    pub console: Console,
    monitor: UnixStream,
    accelerator: &'static str,
    /// Holds the monitor's socket.
    _folder: tempfile::TempDir,
    record: Record,
}

/// Whether this computer can lend hardware virtualization to a nested host.
pub(crate) fn hardware_nesting() -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    })
}

impl Builder {
    /// A machine that boots `rom` from the reset vector.
    pub fn rom(rom: &Path) -> Self {
        Self::new(Source::Rom(rom.to_owned()))
    }

    /// A machine whose firmware loads a kernel, an initramfs and a command line.
    pub fn trio(kernel: &Path, initramfs: &Path, cmdline: &str) -> Self {
        Self::new(Source::Trio {
            kernel: kernel.to_owned(),
            initramfs: initramfs.to_owned(),
            cmdline: cmdline.to_owned(),
        })
    }

    /// A machine with QEMU's own BIOS.
    pub fn bios() -> Self {
        Self::new(Source::Bios)
    }

    /// A machine with a UEFI firmware, whose variables go to `folder`.
    pub fn uefi(firmware: Uefi, folder: &Path) -> Result<Self> {
        let variables = folder.join("variables.fd");
        let template = Path::new(Uefi::FOLDER).join(firmware.variables());
        std::fs::copy(&template, &variables)
            .with_context(|| format!("Cannot copy {}", template.display()))?;
        Ok(Self::new(Source::Uefi {
            firmware,
            variables,
        }))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            memory_mib: 3072,
            clock: Clock::Wall,
            extra: Vec::new(),
        }
    }

    /// Memory of the machine in MiB; 3072 if not set.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The machine's clock; wall time if not set.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Attaches a raw image as a virtio disk. With `keep`, what the machine writes stays in it.
    pub fn disk(self, image: &Path, keep: bool) -> Self {
        let snapshot = if keep { "off" } else { "on" };
        let mut drive = OsString::from(format!("format=raw,if=virtio,snapshot={snapshot},file="));
        drive.push(image);
        self.args(["-drive".into(), drive])
    }

    /// Attaches a virtio network card called `card` to a network of QEMU's own. Ports of this computer, first of each
    /// pair, lead to ports of the machine there.
    pub fn network(self, forwards: &[(u16, u16)]) -> Self {
        let mut netdev = "user,id=wire".to_owned();
        for (outside, inside) in forwards {
            netdev.push_str(&format!(",hostfwd=tcp:127.0.0.1:{outside}-:{inside}"));
        }
        let card = "virtio-net-pci,netdev=wire,id=card";
        self.args([
            "-netdev".into(),
            netdev.into(),
            "-device".into(),
            card.into(),
        ])
    }

    /// Attaches a raw image as a USB stick; what the machine writes is gone afterwards.
    pub fn stick(self, image: &Path) -> Self {
        let mut drive = OsString::from("if=none,id=stick,format=raw,snapshot=on,file=");
        drive.push(image);
        let (hub, stick) = (
            "qemu-xhci,id=usb",
            "usb-storage,bus=usb.0,drive=stick,removable=on",
        );
        self.args(["-drive".into(), drive])
            .args(["-device", hub, "-device", stick].map(OsString::from))
    }

    /// Further arguments for QEMU.
    pub fn args(mut self, args: impl IntoIterator<Item = OsString>) -> Self {
        self.extra.extend(args);
        self
    }

    /// Starts the machine.
    pub fn boot(self) -> Result<Qemu> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("monitor");
        let mut command = Command::new(QEMU);
        let accelerator = match (self.clock, hardware_nesting()) {
            (Clock::Virtual, _) => {
                command.args(["-accel", "tcg,thread=single"]);
                command.args(["-icount", "shift=0,sleep=off", "-smp", "1"]);
                "tcg-icount"
            }
            (Clock::Wall, true) => {
                command.args(["-accel", "kvm", "-smp", "2"]);
                "kvm"
            }
            (Clock::Wall, false) => {
                command.args(["-accel", "tcg,thread=multi", "-smp", "2"]);
                "tcg"
            }
        };
        let cpu = match accelerator {
            "kvm" => "host",
            // There is one guest, and shadowed page tables would count.
            "tcg-icount" => "EPYC,+svm,+npt",
            _ => emulation::cpu(Path::new(QEMU))?,
        };
        let board = match self.source {
            Source::Uefi {
                firmware: Uefi::SecureBoot,
                ..
            } => "q35,smm=on",
            _ => "q35",
        };
        command
            .args(["-M", board, "-cpu", cpu, "-m", &self.memory_mib.to_string()])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        match &self.source {
            Source::Rom(rom) => {
                command.arg("-bios").arg(rom);
            }
            Source::Bios => {}
            Source::Uefi {
                firmware,
                variables,
            } => {
                command.args(firmware.arguments(variables));
            }
            Source::Trio {
                kernel,
                initramfs,
                cmdline,
            } => {
                command
                    .arg("-kernel")
                    .arg(kernel)
                    .arg("-initrd")
                    .arg(initramfs);
                command.args(["-append", cmdline]);
            }
        }
        let mut child = command
            .args(&self.extra)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(
                "Cannot start qemu-system-x86_64; `cargo xtask doctor` says what is missing",
            )?;
        let output = child.stdout.take().context("QEMU has no standard output")?;
        let input = child.stdin.take().context("QEMU has no standard input")?;
        let monitor = connect(&socket, &mut child)?;
        let record = Record::new()?;
        let console = Console::new(output, input, record.transcript()?);
        Ok(Qemu {
            child,
            console,
            record,
            monitor,
            accelerator,
            _folder: folder,
        })
    }
}

/// Connects to QEMU's monitor, which appears a moment after the process.
fn connect(socket: &Path, child: &mut Child) -> Result<UnixStream> {
    let deadline = Instant::now() + HUNG;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                // A QEMU that does not answer is not waited for for ever.
                stream.set_read_timeout(Some(ANSWERS))?;
                return Ok(stream);
            }
            Err(error) => {
                if let Some(status) = child.try_wait()? {
                    bail!("QEMU ended at once ({status}): its arguments or its image are bad");
                }
                if Instant::now() > deadline {
                    return Err(error).context("QEMU's monitor did not appear");
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl Qemu {
    /// Sends one command of the QEMU Machine Protocol, e.g. `{"execute": "system_powerdown"}`; returns its answer.
    pub fn monitor(&mut self, command: &str) -> Result<String> {
        let mut lines = BufReader::new(self.monitor.try_clone()?).lines();
        let mut answer = String::new();
        for request in [r#"{"execute": "qmp_capabilities"}"#, command] {
            self.monitor.write_all(request.as_bytes())?;
            loop {
                answer = lines.next().context("QEMU closed its monitor")??;
                // A second `qmp_capabilities` is refused, which is as good as agreed.
                if answer.contains("\"return\"") || answer.contains("CommandNotFound") {
                    break;
                }
                if answer.contains("\"error\"") {
                    bail!("QEMU refused {request}: {answer}");
                }
            }
        }
        Ok(answer)
    }

    /// What is known of a machine that stands still: what emulates it, and where its processors are, a few times, a second
    /// apart.
    fn standstill(&mut self) -> Result<String> {
        let mut text = emulation::version(Path::new(QEMU))? + "\n";
        for _ in 0..5 {
            let registers = r#"{"execute": "human-monitor-command", "arguments": {"command-line": "info registers -a"}}"#;
            let answer = self.monitor(registers)?;
            let lines = answer.split("\\r\\n");
            let places = lines.filter(|line| line.starts_with("CPU#") || line.starts_with("RIP="));
            text.push_str(&places.collect::<Vec<_>>().join("  "));
            text.push('\n');
            thread::sleep(Duration::from_secs(1));
        }
        Ok(text)
    }

    /// How the whole machine was lost, which may be its emulator's doing.
    pub fn lost(&self) -> Option<&'static str> {
        if self.console.stood_still() {
            return Some("it stood still");
        }
        let transcript = self.console.transcript();
        // No guest has QEMU's name.
        let of_host = transcript.contains("Hardware name: QEMU");
        let fell = transcript.contains("Kernel panic - not syncing: Fatal exception");
        (of_host && fell).then_some("its host's kernel fell")
    }

    /// Waits until the machine has powered itself off; returns everything its console said.
    pub fn wait_off(mut self) -> Result<(ExitStatus, String)> {
        let text = self.console.wait_closed()?;
        let status = self.child.wait()?;
        Ok((status, text))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if self.console.stood_still() {
            let known = (self.standstill()).unwrap_or_else(|error| format!("{error:#}"));
            println!("The machine stands still:\n{known}");
        }
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let transcript = self.console.transcript();
        if !transcript.is_empty() {
            let written = (self.record).boot(self.accelerator, &transcript, self.lost());
            written.expect("the record can be written");
        }
    }
}
