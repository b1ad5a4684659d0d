//! Firecracker's JSON, as its `--config-file` takes it.
//!
//! Unknown keys are errors. Sections that Firecracker has and we do not yet are errors as soon as they ask for
//! something. Added key of ours: `boot-source.boot_protocol` (`"auto"`, `"pvh"`, `"linux64"`, `"multiboot"`).

mod balloon;
mod boot_source;
mod console;
pub(crate) mod drive;
mod fs;
mod machine_config;
pub(crate) mod network_interfaces;
mod pmem;
pub(crate) mod rate_limiter;
mod vsock;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use api::model::Document;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{BootConfig, BootProtocol, ConfigError, VmConfig};
use crate::mmds;

/// Most bytes of a configuration file: generous for any real one, small enough to hold in memory.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads a configuration file, or another one with a body of the API's.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
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

/// Reads a configuration; `path` is for messages only.
pub fn parse<T: DeserializeOwned>(text: &[u8], path: &Path) -> Result<T, ConfigError> {
    serde_json::from_slice(text).map_err(|source| ConfigError::Json {
        path: path.into(),
        source,
    })
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

/// The guest that `document` describes; `pci` says where its virtio devices are.
pub fn guest(document: &Document, pci: bool) -> Result<VmConfig, ConfigError> {
    let source = document.boot_source.as_ref();
    let boot = boot_source::check(source.ok_or(ConfigError::NoBootSource)?)?;
    assemble(document, boot, pci)
}

/// Checks a document that need not be complete: what to boot may come later.
pub fn check(document: &Document, pci: bool) -> Result<(), ConfigError> {
    let boot = match &document.boot_source {
        Some(source) => boot_source::check(source)?,
        None => BootConfig {
            kernel: "not known yet".into(),
            initrd: None,
            cmdline: String::new(),
            protocol: BootProtocol::Auto,
        },
    };
    assemble(document, boot, pci).map(drop)
}

fn assemble(document: &Document, boot: BootConfig, pci: bool) -> Result<VmConfig, ConfigError> {
    for (what, value) in [
        ("cpu-config", &document.cpu_config),
        ("memory-hotplug", &document.memory_hotplug),
    ] {
        refuse(what, value.as_ref())?;
    }
    let serial = document.serial.clone().unwrap_or_default();
    if serial.rate_limiter.is_some() {
        let what = "serial.rate_limiter";
        return Err(ConfigError::NotSupportedYet { what });
    }
    if serial.serial_out_path.as_deref() == Some(Path::new("")) {
        let field = "serial.serial_out_path";
        return Err(ConfigError::Empty { field });
    }
    let machine = document.machine_config.clone().unwrap_or_default();
    let (vcpus, cpu, memory) = machine_config::check(&machine)?;
    let drives = document.drives.iter().map(drive::check);
    let mut drives = drives.collect::<Result<Vec<_>, _>>()?;
    // The root drive comes first, so that it is /dev/vda whatever the order in the file.
    drives.sort_by_key(|drive| !drive.is_root);
    let interfaces = document.network_interfaces.iter();
    let entropy = document.entropy.as_ref();
    let names = document.network_interfaces.iter();
    let names: Vec<_> = names.map(|net| net.iface_id.as_str()).collect();
    let mmds = document.mmds_config.as_ref();
    let mmds = mmds.map(|asked| mmds::Config::check(asked, &names));
    let vm = VmConfig {
        vcpus,
        cpu,
        memory,
        track_dirty: machine.track_dirty_pages,
        boot,
        pci,
        drives,
        balloon: document.balloon.as_ref().map(balloon::check).transpose()?,
        console: document.console.as_ref().map(console::read),
        vsock: document.vsock.as_ref().map(vsock::read),
        net: interfaces
            .map(network_interfaces::check)
            .collect::<Result<_, _>>()?,
        pmem: document.pmem.iter().map(pmem::read).collect(),
        fs: document.fs.iter().map(fs::read).collect(),
        entropy: entropy.map(|entropy| rate_limiter::read(entropy.rate_limiter)),
        mmds: mmds.transpose()?,
        serial_output: serial.serial_out_path,
    };
    vm.check()?;
    Ok(vm)
}

#[cfg(test)]
mod tests;
