//! `cargo xtask run`: the ROM in QEMU, with this terminal attached.

use std::io::{BufRead, BufReader, Read};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use tests::emulation;

use crate::emulator::Emulator;
use crate::image;
use crate::paths::Paths;
use crate::qemu;
use crate::ui;
use crate::world::{Acceleration, World};

#[derive(Args)]
pub struct Options {
    /// Shows the machine's screen in a window too (needs a graphical session)
    #[arg(long)]
    screen: bool,
    /// Further arguments for QEMU, after `--`
    #[arg(last = true)]
    qemu: Vec<String>,
}

pub fn run(paths: &Paths, options: &Options) -> Result<ExitCode> {
    let image = image::build(paths, &image::Options::keep())?;
    let program = Emulator::for_machine(paths)?.program();
    let emulated = match World::detect().acceleration() {
        Acceleration::Kvm => None,
        Acceleration::Tcg => Some(emulation::cpu(&program)?),
    };
    let port = qemu::free_port().context("Could not find a free port on this computer")?;
    let mut command = qemu::command(&program, &image, emulated, port);
    if !options.screen {
        command.args(["-display", "none"]);
    }
    // Ctrl-C goes to the machine; Ctrl-A is QEMU's key, as with -nographic.
    command.args(["-serial", "mon:stdio"]).args(&options.qemu);
    match emulated {
        None => ui::say("run        with hardware virtualization"),
        Some(_) => ui::say(
            "run        everything is emulated (`cargo xtask doctor` says why): about half a minute to the first guest",
        ),
    }
    ui::say(&format!("run        {}", qemu::as_typed(&command)));
    ui::say(&format!(
        "run        the page of `web`, once it is ready: http://localhost:{port}/"
    ));
    ui::say("run        Ctrl-A x ends the machine at once, Ctrl-A h lists QEMU's keys\n");
    let _pause = ui::pause();
    let mut qemu = command
        .stderr(Stdio::piped())
        .spawn()
        .context("Could not start QEMU")?;
    if let Some(words) = qemu.stderr.take() {
        forward_errors(BufReader::new(words));
    }
    let status = qemu.wait().context("Could not wait for QEMU")?;
    if !status.success() {
        bail!("QEMU ended with {status}; it says why above");
    }
    Ok(ExitCode::SUCCESS)
}

/// Passes on what QEMU complains about, until it ends. Two dozen lines about features of the processor model that
/// translation leaves out would hide the ROM's first words: the machine does without them.
fn forward_errors(words: BufReader<impl Read>) {
    for line in words.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if !line.contains("TCG doesn't support requested feature") {
            eprintln!("{line}");
        }
    }
}
