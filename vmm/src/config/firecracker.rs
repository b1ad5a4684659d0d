//! Firecracker's JSON, as its `--config-file` takes it.
//!
//! Unknown keys are errors. Sections that Firecracker has and we do not yet are errors as soon as they ask for
//! something. Added key of ours: `boot-source.boot_protocol` (`"auto"`, `"pvh"`, `"linux64"`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{
    BootConfig, BootProtocol, ConfigError, DEFAULT_BOOT_ARGS, DriveConfig, DriveId, MemorySize,
    VcpuCount, VmConfig,
};

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
    network_interfaces: Option<Value>,
    vsock: Option<Value>,
    balloon: Option<Value>,
    mmds_config: Option<Value>,
    metrics: Option<Value>,
    cpu_config: Option<Value>,
    pmem: Option<Value>,
    memory_hotplug: Option<Value>,
    serial: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BootSource {
    kernel_image_path: PathBuf,
    initrd_path: Option<PathBuf>,
    boot_args: Option<String>,
    boot_protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drive {
    drive_id: String,
    path_on_host: Option<PathBuf>,
    is_root_device: bool,
    is_read_only: Option<bool>,
    partuuid: Option<String>,
    cache_type: Option<String>,
    io_engine: Option<String>,
    rate_limiter: Option<Value>,
    socket: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineConfig {
    vcpu_count: i64,
    mem_size_mib: i64,
    smt: Option<bool>,
    track_dirty_pages: Option<bool>,
    cpu_template: Option<String>,
    huge_pages: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entropy {
    rate_limiter: Option<Value>,
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
            ("network-interfaces", &file.network_interfaces),
            ("vsock", &file.vsock),
            ("balloon", &file.balloon),
            ("mmds-config", &file.mmds_config),
            ("metrics", &file.metrics),
            ("cpu-config", &file.cpu_config),
            ("pmem", &file.pmem),
            ("memory-hotplug", &file.memory_hotplug),
            ("serial", &file.serial),
        ] {
            refuse(what, value.as_ref())?;
        }
        let (vcpus, memory) = match file.machine_config {
            Some(machine) => machine.check()?,
            None => (
                VcpuCount::new("machine-config.vcpu_count", DEFAULT_VCPUS)?,
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

        if let Some(entropy) = &file.entropy {
            refuse("entropy.rate_limiter", entropy.rate_limiter.as_ref())?;
        }
        let (log_path, log_level) = match file.logger {
            Some(logger) => {
                refuse("logger.module", logger.module.as_ref())?;
                (logger.log_path, logger.level)
            }
            None => (None, None),
        };
        let vm = VmConfig {
            vcpus,
            memory,
            boot: file.boot_source.check()?,
            drives,
            entropy: file.entropy.is_some(),
        };
        vm.check()?;
        Ok(Self {
            vm,
            log_path,
            log_level,
        })
    }
}

impl BootSource {
    fn check(self) -> Result<BootConfig, ConfigError> {
        let protocol = match self.boot_protocol.as_deref() {
            None | Some("auto") => BootProtocol::Auto,
            Some("pvh") => BootProtocol::Pvh,
            Some("linux64") => BootProtocol::Linux64,
            Some(other) => {
                return Err(ConfigError::UnknownWord {
                    field: "boot-source.boot_protocol",
                    value: other.into(),
                    permitted: "\"auto\", \"pvh\" and \"linux64\"",
                });
            }
        };
        let boot = BootConfig {
            kernel: self.kernel_image_path,
            initrd: self.initrd_path,
            cmdline: self.boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.into()),
            protocol,
        };
        boot.check()?;
        Ok(boot)
    }
}

impl Drive {
    fn check(self) -> Result<DriveConfig, ConfigError> {
        refuse("drives.rate_limiter", self.rate_limiter.as_ref())?;
        refuse("drives.socket (vhost-user)", self.socket.as_ref())?;
        // Only how the VMM does its I/O, not what the guest sees: the engine is ours to choose.
        if let Some(engine) = self
            .io_engine
            .filter(|e| !matches!(e.as_str(), "Sync" | "Async"))
        {
            return Err(ConfigError::UnknownWord {
                field: "drives.io_engine",
                value: engine,
                permitted: "\"Sync\" and \"Async\"",
            });
        }
        // A guest's flush always reaches the disk: "Unsafe" permits the VMM to skip it and does not ask for that.
        if let Some(cache) = self
            .cache_type
            .filter(|c| !matches!(c.as_str(), "Unsafe" | "Writeback"))
        {
            return Err(ConfigError::UnknownWord {
                field: "drives.cache_type",
                value: cache,
                permitted: "\"Unsafe\" and \"Writeback\"",
            });
        }
        let path = self
            .path_on_host
            .filter(|path| !path.as_os_str().is_empty())
            .ok_or(ConfigError::Empty {
                field: "drives.path_on_host",
            })?;
        Ok(DriveConfig {
            id: DriveId::new(self.drive_id)?,
            path,
            read_only: self.is_read_only.unwrap_or(false),
            is_root: self.is_root_device,
            partuuid: self.partuuid,
        })
    }
}

impl MachineConfig {
    fn check(self) -> Result<(VcpuCount, MemorySize), ConfigError> {
        if self.smt == Some(true) {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.smt",
            });
        }
        if self.track_dirty_pages == Some(true) {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.track_dirty_pages",
            });
        }
        if self.cpu_template.is_some_and(|template| template != "None") {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.cpu_template",
            });
        }
        if self.huge_pages.is_some_and(|pages| pages != "None") {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.huge_pages",
            });
        }
        Ok((
            VcpuCount::new("machine-config.vcpu_count", self.vcpu_count)?,
            MemorySize::from_mib("machine-config.mem_size_mib", self.mem_size_mib)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Loaded, ConfigError> {
        parse(text.as_bytes(), Path::new("vm.json"))
    }

    fn with(section: &str) -> Result<Loaded, ConfigError> {
        read(&format!(
            r#"{{"boot-source": {{"kernel_image_path": "k"}}, {section}}}"#
        ))
    }

    #[test]
    fn the_smallest_file_gets_firecrackers_defaults() {
        let vm = read(r#"{"boot-source": {"kernel_image_path": "k"}}"#)
            .unwrap()
            .vm;
        assert_eq!((vm.vcpus.get(), vm.memory.mib()), (1, 128));
        assert_eq!(vm.boot.cmdline, DEFAULT_BOOT_ARGS);
        assert_eq!(vm.boot.protocol, BootProtocol::Auto);
        assert!(!vm.entropy && vm.drives.is_empty());
    }

    #[test]
    fn a_full_file_of_firecracker_is_understood() {
        let loaded = read(
            r#"{
              "boot-source": {"kernel_image_path": "vmlinux.bin", "boot_args": "console=ttyS0", "initrd_path": null},
              "drives": [
                {"drive_id": "data", "partuuid": null, "is_root_device": false, "cache_type": "Writeback",
                 "is_read_only": true, "path_on_host": "data.img", "io_engine": "Sync", "rate_limiter": null,
                 "socket": null},
                {"drive_id": "rootfs", "is_root_device": true, "path_on_host": "root.ext4"}],
              "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
                                 "huge_pages": "None"},
              "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null,
              "logger": {"log_path": "l", "level": "Info", "show_level": true}, "metrics": null,
              "mmds-config": null, "entropy": {}, "pmem": [], "memory-hotplug": null
            }"#,
        )
        .unwrap();
        assert_eq!(
            loaded.vm.drives[0].id.as_str(),
            "rootfs",
            "the root drive is the first"
        );
        assert!(loaded.vm.drives[1].read_only && !loaded.vm.drives[0].read_only);
        assert!(loaded.vm.entropy);
        assert_eq!(loaded.log_path.unwrap(), Path::new("l"));
    }

    #[test]
    fn sections_to_come_are_named_when_they_ask_for_something() {
        for (section, what) in [
            (
                r#""network-interfaces": [{"iface_id": "eth0"}]"#,
                "network-interfaces",
            ),
            (r#""vsock": {"guest_cid": 3}"#, "vsock"),
            (r#""balloon": {"amount_mib": 1}"#, "balloon"),
            (r#""mmds-config": {"version": "V2"}"#, "mmds-config"),
        ] {
            let text = with(section).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("{what} is not supported yet")),
                "{text}"
            );
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_place() {
        let error = read("{\n \"boot-source\": {\"kernel_image\": \"k\"}}").unwrap_err();
        assert!(error.to_string().contains("vm.json"), "{error}");
        let detail = error.source().unwrap().to_string();
        assert!(
            detail.contains("`kernel_image`") && detail.contains("line 2"),
            "{detail}"
        );
    }

    #[test]
    fn values_out_of_range_are_named_with_the_range() {
        for (config, expected) in [
            (
                r#"{"vcpu_count": 33, "mem_size_mib": 128}"#,
                "machine-config.vcpu_count is 33, permitted are 1 to 32 vCPUs",
            ),
            (
                r#"{"vcpu_count": 0, "mem_size_mib": 128}"#,
                "machine-config.vcpu_count is 0, permitted are 1 to 32 vCPUs",
            ),
            (
                r#"{"vcpu_count": 1, "mem_size_mib": 0}"#,
                "machine-config.mem_size_mib is 0, permitted are 2 to 1048576 MiB",
            ),
        ] {
            let text = with(&format!(r#""machine-config": {config}"#))
                .unwrap_err()
                .to_string();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn two_drives_of_one_name_are_refused() {
        let drive = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
        let other = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "y"}"#;
        let error = with(&format!(r#""drives": [{drive}, {other}]"#)).unwrap_err();
        assert_eq!(error.to_string(), "Two drives are named \"a\"");
    }

    #[test]
    fn one_image_written_through_two_drives_is_refused() {
        let drive = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
        let other = r#"{"drive_id": "b", "is_root_device": false, "is_read_only": true, "path_on_host": "x"}"#;
        let error = with(&format!(r#""drives": [{drive}, {other}]"#)).unwrap_err();
        assert!(
            matches!(error, ConfigError::DriveSharedForWriting { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_control_character_in_the_command_line_is_refused() {
        let text = r#"{"boot-source": {"kernel_image_path": "k", "boot_args": "a\nb"}}"#;
        assert!(matches!(
            read(text).unwrap_err(),
            ConfigError::CmdlineCharacter {
                position: 1,
                byte: b'\n'
            }
        ));
    }

    #[test]
    fn more_devices_than_interrupt_lines_are_refused() {
        let drives: Vec<_> = (0..19)
            .map(|i| {
                format!(r#"{{"drive_id": "d{i}", "is_root_device": false, "path_on_host": "{i}"}}"#)
            })
            .collect();
        let error = with(&format!(r#""drives": [{}]"#, drives.join(","))).unwrap_err();
        assert!(
            matches!(error, ConfigError::TooManyDevices { devices: 19, .. }),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_value_or_an_error(text in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&text, Path::new("x")));
        }
    }
}
