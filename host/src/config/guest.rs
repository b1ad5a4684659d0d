//! Reading one `[[guest]]` section.

use std::ops::Range;
use std::time::Duration;

use toml::de::DeTable;

use super::checkpoints::read_checkpoints;
use super::error::{ConfigError, Problem, nearest};
use super::health::{Rest, read_health};
use super::reader::{Document, Located, Section};
use super::{
    Disk, DiskFormat, Entry, GuestConfig, Kernel, Limits, MAX_VCPUS, Ready, Restart, Source,
    Transport, network,
};

const KEYS: &[&str] = &[
    "name",
    "autostart",
    "vcpus",
    "memory",
    "kernel",
    "initrd",
    "cmdline",
    "ready",
    "restart",
    "stop-timeout",
    "checkpoints",
    "health",
    "disk",
    "network",
    "net",
    "publish",
    "transport",
];

/// The kernel's COMMAND_LINE_SIZE on x86 is 2048 with the closing NUL; the VMM appends its devices to ours.
const MAX_CMDLINE: usize = 1536;
/// Longer is not a prompt but a mistake, and the text is searched for in every byte a guest prints.
const MAX_READY_TEXT: usize = 256;
const MAX_NAME: usize = 32;
const DEFAULT_STOP_TIMEOUT: u64 = 20;
const MAX_STOP_TIMEOUT: i64 = 3600;

/// Reads one section; a mistake ends up inside the entry.
pub fn read_entry(
    document: &Document<'_>,
    table: &DeTable<'_>,
    span: Range<usize>,
    label: String,
    limits: Limits,
) -> Entry {
    let line = document.line(span.clone());
    let name = match read_name(&Section::new(document, table, span.clone(), label.clone())) {
        Ok(name) => name,
        Err(error) => {
            return Entry {
                name: label,
                line,
                config: Err(error),
            };
        }
    };
    let section = Section::new(document, table, span, format!("guest '{name}'"));
    let config = read_guest(&section, name.clone(), limits);
    Entry { name, line, config }
}

fn read_name(section: &Section<'_, '_>) -> Result<String, ConfigError> {
    let Some(name) = section.string("name")? else {
        // A typo in the very key: say that, not that the name is missing.
        section.refuse_unknown(KEYS)?;
        return Err(section.missing(
            "name",
            "give the guest a name of letters a-z, digits and '-'",
        ));
    };
    let text = name.value;
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > MAX_NAME || !text.chars().all(valid) {
        return Err(section.bad_value(
            "name",
            name.span,
            format!("{text:?}"),
            format!("write 1 to {MAX_NAME} letters a-z, digits or '-'"),
        ));
    }
    Ok(text)
}

fn read_guest(
    section: &Section<'_, '_>,
    name: String,
    limits: Limits,
) -> Result<GuestConfig, ConfigError> {
    section.refuse_unknown(KEYS)?;
    let memory_mib = read_memory(section, &name, limits)?;
    let disks = read_disks(section, &name)?;
    let kernel = read_kernel(section, &disks)?;
    let nics = network::read_nics(section, &name)?;
    let ready = read_ready(section, &name)?;
    let restart = read_restart(section)?;
    let checkpoints = read_checkpoints(section)?;
    let rest = Rest {
        ready: &ready,
        restart,
        checkpoints: checkpoints.as_ref(),
    };
    Ok(GuestConfig {
        health: read_health(section, &rest)?,
        autostart: section.boolean("autostart")?.unwrap_or(true),
        vcpus: read_vcpus(section)?,
        memory_mib,
        kernel,
        initrd: read_source(section, "initrd")?,
        cmdline: read_cmdline(section)?,
        ready,
        restart,
        stop_timeout: read_stop_timeout(section)?,
        checkpoints,
        disks,
        publish: network::read_published(section, &name, &nics)?,
        nics,
        transport: read_transport(section)?,
        name,
    })
}

fn read_vcpus(section: &Section<'_, '_>) -> Result<u8, ConfigError> {
    let Some(count) = section.integer("vcpus")? else {
        return Ok(1);
    };
    u8::try_from(count.value)
        .ok()
        .filter(|n| (1..=MAX_VCPUS).contains(n))
        .ok_or_else(|| {
            let reason = format!("a guest has 1 to {MAX_VCPUS} vCPUs");
            section.bad_value("vcpus", count.span, count.value.to_string(), reason)
        })
}

fn read_memory(section: &Section<'_, '_>, name: &str, limits: Limits) -> Result<u64, ConfigError> {
    const HINT: &str = "write megabytes (128) or a string such as \"128M\" or \"2G\"";
    let (mib, span) = if section.is_string("memory") {
        let Some(Located { value, span }) = section.string("memory")? else {
            return Err(section.missing("memory", HINT));
        };
        let mib = parse_mib(&value)
            .ok_or_else(|| section.bad_value("memory", span.clone(), format!("{value:?}"), HINT))?;
        (mib, span)
    } else {
        let Some(Located { value, span }) = section.integer("memory")? else {
            return Err(section.missing("memory", HINT));
        };
        let mib = u64::try_from(value)
            .map_err(|_| section.bad_value("memory", span.clone(), value.to_string(), HINT))?;
        (mib, span)
    };
    if mib == 0 {
        return Err(section.bad_value("memory", span, "0", "a guest needs memory"));
    }
    match limits.host_memory_mib {
        Some(host_mib) if mib > host_mib => Err(section.document().error(
            span,
            Problem::MemoryTooLarge {
                guest: name.to_owned(),
                wanted_mib: mib,
                host_mib,
            },
        )),
        _ => Ok(mib),
    }
}

/// MiB of `128M`, `128MiB`, `2G` or `2GiB`.
pub(super) fn parse_mib(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim_start() {
        "M" | "MiB" => 1,
        "G" | "GiB" => 1024,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn read_source(section: &Section<'_, '_>, key: &str) -> Result<Option<Source>, ConfigError> {
    let Some(text) = section.string(key)? else {
        return Ok(None);
    };
    Source::parse(&text.value).map(Some).ok_or_else(|| {
        let reason = "write flash:NAME, disk:PATH (without '..') or a path";
        section.bad_value(key, text.span, format!("{:?}", text.value), reason)
    })
}

/// `kernel = "disk"`: the guest's own disk says what it boots.
const OWN_DISK: &str = "disk";

fn read_kernel(section: &Section<'_, '_>, disks: &[Disk]) -> Result<Kernel, ConfigError> {
    let Some(text) = section.string("kernel")? else {
        return Err(section.missing(
            "kernel",
            "name a bzImage or ELF, e.g. \"flash:daruma/kernel\", or write \"disk\" to boot what its first disk says",
        ));
    };
    if text.value != OWN_DISK {
        return Ok(read_source(section, "kernel")?.map_or(Kernel::OwnDisk, Kernel::File));
    }
    let bad = |reason| section.bad_value("kernel", text.span.clone(), "\"disk\"", reason);
    if disks.is_empty() {
        return Err(bad(
            "it boots from its first disk, so give it a [[guest.disk]]",
        ));
    }
    if disks[0].format != DiskFormat::Raw {
        return Err(bad(
            "the boot entry is read from raw disks only; convert it (qemu-img convert -O raw) or name a kernel",
        ));
    }
    if section.has("initrd") {
        return Err(bad(
            "the disk's boot entry names the initial RAM disk; leave 'initrd' out",
        ));
    }
    Ok(Kernel::OwnDisk)
}

fn read_cmdline(section: &Section<'_, '_>) -> Result<String, ConfigError> {
    let Some(text) = section.string("cmdline")? else {
        return Ok(String::new());
    };
    let bad = |reason: String| {
        section.bad_value(
            "cmdline",
            text.span.clone(),
            "not a kernel command line",
            reason,
        )
    };
    if text.value.len() > MAX_CMDLINE {
        return Err(bad(format!(
            "it has {} bytes of at most {MAX_CMDLINE}",
            text.value.len()
        )));
    }
    if text.value.chars().any(|c| !(' '..='~').contains(&c)) {
        return Err(bad("it may hold printable ASCII only".to_owned()));
    }
    Ok(text.value)
}

fn read_ready(section: &Section<'_, '_>, name: &str) -> Result<Ready, ConfigError> {
    const KEYS: &[&str] = &["console", "boot-timer", "vsock"];
    const HINT: &str = "say how the guest reports it, e.g. ready = { console = \"login:\" } or { boot-timer = true }";
    let Some(rule) = section.table("ready", format!("'ready' of guest '{name}'"))? else {
        return Err(section.missing("ready", HINT));
    };
    rule.refuse_unknown(KEYS)?;
    let ways = KEYS.iter().filter(|key| rule.has(key));
    if ways.count() > 1 {
        let value = "more than one way";
        return Err(section.bad_value("ready", rule.span(), value, "choose one"));
    }
    if let Some(port) = rule.integer("vsock")? {
        // The last one means "any".
        let number = u32::try_from(port.value).ok();
        let number = number.filter(|number| (1..u32::MAX).contains(number));
        return number.map(Ready::Vsock).ok_or_else(|| {
            let reason = "write the port of the host that the guest calls, 1 to 4294967294";
            rule.bad_value("vsock", port.span, port.value.to_string(), reason)
        });
    }
    let timer = rule.boolean("boot-timer")?;
    match (rule.string("console")?, timer) {
        (Some(text), _) if text.value.is_empty() || text.value.len() > MAX_READY_TEXT => {
            let reason =
                format!("write 1 to {MAX_READY_TEXT} bytes that the guest prints when it serves");
            Err(rule.bad_value("console", text.span, format!("{:?}", text.value), reason))
        }
        (Some(text), _) => Ok(Ready::Console(text.value)),
        (None, Some(true)) => Ok(Ready::BootTimer),
        (None, Some(false)) => Err(rule.bad_value(
            "boot-timer",
            rule.span(),
            "false",
            "leave it out, or write true",
        )),
        (None, None) => Err(section.bad_value("ready", rule.span(), "empty", HINT)),
    }
}

fn read_restart(section: &Section<'_, '_>) -> Result<Restart, ConfigError> {
    const WORDS: [&str; 3] = ["always", "on-failure", "never"];
    let Some(word) = section.string("restart")? else {
        return Ok(Restart::OnFailure);
    };
    match word.value.as_str() {
        "always" => Ok(Restart::Always),
        "on-failure" => Ok(Restart::OnFailure),
        "never" => Ok(Restart::Never),
        other => {
            let meant = nearest(other, WORDS)
                .map(|word| format!("did you mean \"{word}\"? "))
                .unwrap_or_default();
            let reason = format!("{meant}(one of always, on-failure, never)");
            Err(section.bad_value("restart", word.span, format!("{other:?}"), reason))
        }
    }
}

fn read_transport(section: &Section<'_, '_>) -> Result<Transport, ConfigError> {
    let Some(word) = section.string("transport")? else {
        return Ok(Transport::Pci);
    };
    match word.value.as_str() {
        "pci" => Ok(Transport::Pci),
        "mmio" => Ok(Transport::Mmio),
        other => {
            let value = format!("{other:?}");
            Err(section.bad_value("transport", word.span, value, "write \"pci\" or \"mmio\""))
        }
    }
}

fn read_stop_timeout(section: &Section<'_, '_>) -> Result<Duration, ConfigError> {
    let Some(seconds) = section.integer("stop-timeout")? else {
        return Ok(Duration::from_secs(DEFAULT_STOP_TIMEOUT));
    };
    let range = 0..=MAX_STOP_TIMEOUT;
    u64::try_from(seconds.value)
        .ok()
        .filter(|_| range.contains(&seconds.value))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            let reason = format!("write seconds, 0 to {MAX_STOP_TIMEOUT}");
            section.bad_value(
                "stop-timeout",
                seconds.span,
                seconds.value.to_string(),
                reason,
            )
        })
}

/// What the image is, and whether the guest has it as memory.
fn read_format(disk: &Section<'_, '_>) -> Result<(DiskFormat, bool), ConfigError> {
    let pmem = disk.boolean("pmem")?.unwrap_or(false);
    let Some(word) = disk.string("format")? else {
        return Ok((DiskFormat::Raw, pmem));
    };
    match word.value.as_str() {
        "raw" => Ok((DiskFormat::Raw, pmem)),
        "qcow2" if pmem => {
            let reason = "only a raw image can be the guest's memory; leave 'pmem' out";
            Err(disk.bad_value("format", word.span, "\"qcow2\"", reason))
        }
        "qcow2" => Ok((DiskFormat::Qcow2, pmem)),
        other => {
            let value = format!("{other:?}");
            Err(disk.bad_value("format", word.span, value, "write \"raw\" or \"qcow2\""))
        }
    }
}

fn read_disks(section: &Section<'_, '_>, name: &str) -> Result<Vec<Disk>, ConfigError> {
    let mut disks = Vec::new();
    for disk in section.tables("disk", &format!("a disk of guest '{name}'"))? {
        disk.refuse_unknown(&["source", "format", "read-only", "pmem"])?;
        let Some(source) = read_source(&disk, "source")? else {
            return Err(disk.missing("source", "name the image, e.g. \"disk:guests/a/root.img\""));
        };
        let read_only = disk.boolean("read-only")?.unwrap_or(false);
        if matches!(source, Source::Flash(_)) && !read_only {
            return Err(disk.bad_value(
                "source",
                disk.span(),
                source.to_string(),
                "flash cannot be written; add read-only = true",
            ));
        }
        let (format, pmem) = read_format(&disk)?;
        disks.push(Disk {
            source,
            format,
            read_only,
            pmem,
        });
    }
    Ok(disks)
}
