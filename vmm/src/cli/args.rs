//! Firecracker's flags that make sense here, and ours.

use std::os::fd::RawFd;
use std::path::PathBuf;

use api::http::DEFAULT_MAX_BODY;
use clap::{ArgGroup, Parser};
use log::LevelFilter;

use crate::logger;

/// Where the API is, unless the command line says otherwise (Firecracker's path).
const DEFAULT_API_SOCK: &str = "/run/firecracker.socket";
/// Most that sizes of the API may be set to: what a client sends is held in memory.
const MAX_SIZE: usize = 64 << 20;

/// Runs one guest on KVM. The guest's serial port is standard input and output.
#[derive(Debug, Parser)]
#[command(name = "daruma-vmm", version, disable_help_subcommand = true)]
#[command(group = ArgGroup::new("guest").args(["config_file", "load_file"]))]
pub(super) struct Args {
    /// Name of the guest, for the log
    #[arg(long, default_value = "anonymous-instance", value_parser = parse_id)]
    pub(super) id: String,

    /// The guest's configuration: JSON in Firecracker's format
    #[arg(long, value_name = "FILE")]
    pub(super) config_file: Option<PathBuf>,

    /// Go on from a snapshot: JSON as the body of PUT /snapshot/load
    #[arg(long, value_name = "FILE")]
    pub(super) load_file: Option<PathBuf>,

    /// Serve no API socket
    #[arg(long, requires = "guest")]
    pub(super) no_api: bool,

    /// Path of the API socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_API_SOCK, conflicts_with = "no_api")]
    pub(super) api_sock: PathBuf,

    /// Most bytes of the body of an API request
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_BODY, value_parser = parse_size)]
    pub(super) http_api_max_payload_size: usize,

    /// Metadata for the guest, in JSON
    #[arg(long, value_name = "FILE")]
    pub(super) metadata: Option<PathBuf>,

    /// Most bytes of the guest's metadata, by default as many as of a request
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(super) mmds_size_limit: Option<usize>,

    /// Write metrics to this file or FIFO: one line of JSON a minute, and one at the end
    #[arg(long, value_name = "PATH")]
    pub(super) metrics_path: Option<PathBuf>,

    /// Say of which version the snapshot with this state file is, if it is whole
    #[arg(long, value_name = "FILE")]
    pub(super) describe_snapshot: Option<PathBuf>,

    /// Put virtio devices on PCI, with MSI-X, instead of MMIO
    #[arg(long)]
    pub(super) enable_pci: bool,

    /// Log the time at which the guest writes to the boot timer
    #[arg(long)]
    pub(super) boot_timer: bool,

    /// When the start was asked for: CLOCK_MONOTONIC in microseconds
    #[arg(long, value_name = "US")]
    pub(super) start_time_us: Option<u64>,

    /// CPU time in microseconds that the parent spent on the start
    #[arg(long, value_name = "US")]
    pub(super) start_time_cpu_us: Option<u64>,

    /// Log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub(super) log_path: Option<PathBuf>,

    /// Log level: off, error, warning, info, debug or trace
    #[arg(long, value_parser = parse_level)]
    pub(super) level: Option<LevelFilter>,

    /// Show the level in log lines (they have it unless the configuration says otherwise)
    #[arg(long, hide = true)]
    pub(super) show_level: bool,

    /// Show the place in the source that log lines come from
    #[arg(long)]
    pub(super) show_log_origin: bool,

    /// Log only records of modules whose path begins so
    #[arg(long, value_name = "PATH")]
    pub(super) module: Option<String>,

    /// Firecracker's: time that the parent spent
    #[arg(long, value_name = "US", hide = true)]
    pub(super) parent_cpu_time_us: Option<u64>,

    /// Run in a jail: namespaces of its own, an empty root folder, no capabilities
    #[arg(long)]
    pub(super) jail: bool,

    /// In the jail, this folder is "/": paths that come later are below it
    #[arg(long, value_name = "DIR", requires = "jail")]
    pub(super) jail_root: Option<PathBuf>,

    /// Limit the guest by this folder of cgroup v2, which is its alone
    #[arg(long, value_name = "DIR", requires = "jail")]
    pub(super) jail_cgroup: Option<PathBuf>,

    /// Filter no system calls
    #[arg(long)]
    pub(super) no_seccomp: bool,

    /// Descriptor of a connected Unix stream socket: events out and actions in, as JSON lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    pub(super) control_fd: Option<RawFd>,

    /// Descriptor of a connected Unix stream socket: the store asks there for snapshots of the guest while it runs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    pub(super) store_fd: Option<RawFd>,
}

fn parse_id(text: &str) -> Result<String, String> {
    let permitted = |character: char| character.is_ascii_alphanumeric() || character == '-';
    if text.is_empty() || text.len() > 64 || !text.chars().all(permitted) {
        return Err("permitted are 1 to 64 letters, digits and \"-\"".into());
    }
    Ok(text.into())
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    logger::parse_level(text)
        .ok_or_else(|| "permitted are off, error, warning, info, debug and trace".to_owned())
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if (1..=MAX_SIZE).contains(&size) => Ok(size),
        _ => Err(format!("permitted are 1 to {MAX_SIZE} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn ids_follow_firecrackers_rule() {
        assert!(parse_id("guest-1").is_ok());
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(parse_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels_are_firecrackers() {
        assert_eq!(parse_level("Warning"), Ok(LevelFilter::Warn));
        assert_eq!(parse_level("Info"), Ok(LevelFilter::Info));
        assert!(parse_level("loud").is_err());
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(parse_size("51200"), Ok(51_200));
        for bad in ["0", "-1", "67108865", "1k", ""] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
