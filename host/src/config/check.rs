//! Checks that look at all guests together. The later guest is the one refused: what ran before still runs.

use super::error::Problem;
use super::reader::Document;
use super::{Entry, GuestConfig, Source};

/// Each name once.
pub fn names(document: &Document<'_>, guests: &mut [Entry]) {
    for later in 1..guests.len() {
        let (before, rest) = guests.split_at_mut(later);
        let Some(entry) = rest.first_mut() else {
            continue;
        };
        let Some(first) = before.iter().find(|other| other.name == entry.name) else {
            continue;
        };
        let problem = Problem::DuplicateName {
            name: entry.name.clone(),
            first: first.line,
        };
        entry.config = Err(document.error_at(entry.line, problem));
        // Both keep apart on the console and in commands.
        entry.name = format!("{}-line-{}", entry.name, entry.line);
    }
}

/// No image is written by one guest and used by another. Two names of one file show only when the files are there:
/// [`crate::images`] compares those when it has found them.
pub fn disks(document: &Document<'_>, guests: &mut [Entry]) {
    for later in 1..guests.len() {
        let (before, rest) = guests.split_at_mut(later);
        let Some(entry) = rest.first_mut() else {
            continue;
        };
        let Some(problem) = shared_disk(before, entry) else {
            continue;
        };
        entry.config = Err(document.error_at(entry.line, problem));
    }
}

fn shared_disk(before: &[Entry], entry: &Entry) -> Option<Problem> {
    let config = entry.config.as_ref().ok()?;
    let (own, other) = config.disks.iter().find_map(|own| {
        let other = before.iter().find(|other| {
            other.config.as_ref().is_ok_and(|guest| {
                guest.disks.iter().any(|disk| {
                    same_place(&disk.source, &own.source) && !(disk.read_only && own.read_only)
                })
            })
        })?;
        Some((own, other))
    })?;
    Some(Problem::SharedDisk {
        source_text: own.source.to_string(),
        guest: config.name.clone(),
        other: other.name.clone(),
        other_line: other.line,
    })
}

fn same_place(a: &Source, b: &Source) -> bool {
    match (a, b) {
        (Source::Disk(a), Source::Disk(b)) => parts(a).eq(parts(b)),
        (Source::Path(a), Source::Path(b)) => {
            a.starts_with('/') == b.starts_with('/') && parts(a).eq(parts(b))
        }
        _ => false,
    }
}

/// `guests//a/./root.img` and `guests/a/root.img` are one path.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
}

/// Each hardware address and each port of the host once, within a guest as well.
pub fn networks(document: &Document<'_>, guests: &mut [Entry]) {
    for later in 0..guests.len() {
        let (before, rest) = guests.split_at_mut(later);
        let Some(entry) = rest.first_mut() else {
            continue;
        };
        let Ok(config) = &entry.config else { continue };
        let others = before.iter().filter_map(|other| {
            let guest = other.config.as_ref().ok()?;
            Some((guest, other.line))
        });
        let problem = within(config, entry.line).or_else(|| {
            others
                .clone()
                .find_map(|(other, line)| shared_mac(other, line, config))
                .or_else(|| {
                    others
                        .clone()
                        .find_map(|(other, line)| shared_port(other, line, config))
                })
        });
        if let Some(problem) = problem {
            entry.config = Err(document.error_at(entry.line, problem));
        }
    }
}

/// Two cards or two ports of one guest.
fn within(config: &GuestConfig, line: usize) -> Option<Problem> {
    let mut first = config.clone();
    let mut second = config.clone();
    for split in 1..config.nics.len().max(config.publish.len()) {
        first.nics = config.nics.iter().take(split).copied().collect();
        second.nics = config.nics.iter().skip(split).copied().collect();
        first.publish = config.publish.iter().take(split).copied().collect();
        second.publish = config.publish.iter().skip(split).copied().collect();
        let problem = shared_mac(&first, line, &second);
        if let Some(problem) = problem.or_else(|| shared_port(&first, line, &second)) {
            return Some(problem);
        }
    }
    None
}

fn shared_mac(first: &GuestConfig, line: usize, second: &GuestConfig) -> Option<Problem> {
    let mac = second.nics.iter().find_map(|nic| {
        let mac = nic.mac?;
        first
            .nics
            .iter()
            .any(|other| other.mac == Some(mac))
            .then_some(mac)
    })?;
    Some(Problem::SharedMac {
        mac,
        guest: second.name.clone(),
        other: first.name.clone(),
        other_line: line,
    })
}

fn shared_port(first: &GuestConfig, line: usize, second: &GuestConfig) -> Option<Problem> {
    let port = second.publish.iter().find(|port| {
        let same =
            |other: &&super::Publish| (other.protocol, other.port) == (port.protocol, port.port);
        first.publish.iter().any(|other| same(&other))
    })?;
    Some(Problem::SharedPort {
        protocol: port.protocol,
        port: port.port,
        guest: second.name.clone(),
        other: first.name.clone(),
        other_line: line,
    })
}
