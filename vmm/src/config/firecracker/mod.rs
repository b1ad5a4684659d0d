//! Firecracker's JSON, as its `--config-file` takes it.
//!
//! Unknown keys are errors. Sections that Firecracker has and we do not yet are errors as soon as they ask for
//! something. Added key of ours: `boot-source.boot_protocol` (`"auto"`, `"pvh"`, `"linux64"`, `"multiboot"`).

mod balloon;
mod boot_source;
mod console;
mod drive;
mod fs;
mod machine_config;
mod network_interfaces;
mod pmem;
mod rate_limiter;
mod vsock;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use self::balloon::Balloon;
use self::boot_source::BootSource;
use self::console::Console;
use self::drive::Drive;
use self::fs::Fs;
use self::machine_config::MachineConfig;
use self::network_interfaces::NetworkInterface;
use self::pmem::Pmem;
use self::rate_limiter::RateLimiter;
use self::vsock::Vsock;
use super::{ConfigError, CpuConfig, MemorySize, VcpuCount, VmConfig};

/// Most bytes of a configuration file: generous for any real one, small enough to hold in memory.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// vCPUs of a guest without `machine-config` (Firecracker's default).
const DEFAULT_VCPUS: i64 = 1;
/// MiB of a guest without `machine-config` (Firecracker's default).
const DEFAULT_MEM_SIZE_MIB: i64 = 128;

/// A configuration file, and where its log shall go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The guest.
    pub vm: VmConfig,
    /// `logger.log_path`.
    pub log_path: Option<PathBuf>,
    /// `logger.level`.
    pub log_level: Option<String>,
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let read_error = |source| ConfigError::Read {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let mut text = Vec::new();
    // The size of a pipe or of a /proc file is not known beforehand: bound the read itself.
    (&mut file)
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(read_error)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let size = file
            .metadata()
            .map_err(read_error)?
            .len()
            .max(MAX_FILE_BYTES + 1);
        return Err(ConfigError::FileTooLarge {
            path: path.into(),
            size,
            max: MAX_FILE_BYTES,
        });
    }
    parse(&text, path)
}

/// Checks a configuration; `path` is for messages only.
pub fn parse(text: &[u8], path: &Path) -> Result<Loaded, ConfigError> {
    let file: ConfigFile = serde_json::from_slice(text).map_err(|source| ConfigError::Json {
        path: path.into(),
        source,
    })?;
    file.try_into()
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ConfigFile {
    boot_source: BootSource,
    #[serde(default)]
    drives: Vec<Drive>,
    machine_config: Option<MachineConfig>,
    entropy: Option<Entropy>,
    logger: Option<Logger>,
    #[serde(default)]
    network_interfaces: Vec<NetworkInterface>,
    vsock: Option<Vsock>,
    console: Option<Console>,
    balloon: Option<Balloon>,
    mmds_config: Option<Value>,
    metrics: Option<Value>,
    cpu_config: Option<Value>,
    #[serde(default)]
    pmem: Vec<Pmem>,
    #[serde(default)]
    fs: Vec<Fs>,
    memory_hotplug: Option<Value>,
    serial: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entropy {
    rate_limiter: Option<RateLimiter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Logger {
    log_path: Option<PathBuf>,
    level: Option<String>,
    // What each line of our log carries is fixed; these ask for no more than that.
    #[serde(rename = "show_level")]
    _show_level: Option<bool>,
    #[serde(rename = "show_log_origin")]
    _show_log_origin: Option<bool>,
    module: Option<Value>,
}

/// An error if `value` asks for anything.
fn refuse(what: &'static str, value: Option<&Value>) -> Result<(), ConfigError> {
    let asks = match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    };
    if asks {
        Err(ConfigError::NotSupportedYet { what })
    } else {
        Ok(())
    }
}

impl TryFrom<ConfigFile> for Loaded {
    type Error = ConfigError;

    fn try_from(file: ConfigFile) -> Result<Self, ConfigError> {
        for (what, value) in [
            ("mmds-config", &file.mmds_config),
            ("metrics", &file.metrics),
            ("cpu-config", &file.cpu_config),
            ("memory-hotplug", &file.memory_hotplug),
            ("serial", &file.serial),
        ] {
            refuse(what, value.as_ref())?;
        }
        let (vcpus, cpu, memory) = match file.machine_config {
            Some(machine) => machine.check()?,
            None => (
                VcpuCount::new("machine-config.vcpu_count", DEFAULT_VCPUS)?,
                CpuConfig::default(),
                MemorySize::from_mib("machine-config.mem_size_mib", DEFAULT_MEM_SIZE_MIB)?,
            ),
        };
        let mut drives = file
            .drives
            .into_iter()
            .map(Drive::check)
            .collect::<Result<Vec<_>, _>>()?;
        // The root drive comes first, so that it is /dev/vda whatever the order in the file.
        drives.sort_by_key(|drive| !drive.is_root);

        let (log_path, log_level) = match file.logger {
            Some(logger) => {
                refuse("logger.module", logger.module.as_ref())?;
                (logger.log_path, logger.level)
            }
            None => (None, None),
        };
        let vm = VmConfig {
            vcpus,
            cpu,
            memory,
            boot: file.boot_source.check()?,
            pci: false,
            drives,
            balloon: file.balloon.map(Balloon::check).transpose()?,
            console: file.console.map(Into::into),
            vsock: file.vsock.map(Into::into),
            net: file
                .network_interfaces
                .into_iter()
                .map(NetworkInterface::check)
                .collect::<Result<_, _>>()?,
            pmem: file.pmem.into_iter().map(Into::into).collect(),
            fs: file.fs.into_iter().map(Into::into).collect(),
            entropy: file
                .entropy
                .map(|entropy| rate_limiter::check(entropy.rate_limiter)),
        };
        vm.check()?;
        Ok(Self {
            vm,
            log_path,
            log_level,
        })
    }
}

#[cfg(test)]
mod tests;
