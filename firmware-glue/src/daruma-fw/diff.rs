//! `daruma-fw diff`: which areas and files of two images differ.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use firmware_glue::cbfs::File;
use firmware_glue::image::{Image, Region};
use firmware_glue::rom::human_size;

use crate::open;

/// Says what differs; whether the images are the same.
pub fn run(a: &Path, b: &Path) -> Result<bool> {
    let lines = differences(&open(a)?, &open(b)?);
    for line in &lines {
        println!("{line}");
    }
    Ok(lines.is_empty())
}

/// One line for each difference; none if the images are the same byte for byte.
pub fn differences(a: &Image, b: &Image) -> Vec<String> {
    let mut lines = Vec::new();
    if a.bytes() == b.bytes() {
        return lines;
    }
    if a.bytes().len() != b.bytes().len() {
        lines.push(format!(
            "size: {} and {}",
            human_size(a.bytes().len()),
            human_size(b.bytes().len())
        ));
    }
    let mut told: Vec<Range<usize>> = Vec::new();
    for one in a.regions() {
        let Some(other) = b.regions().iter().find(|other| other.name == one.name) else {
            lines.push(format!("{}: only in the first", one.name));
            continue;
        };
        if one.range != other.range {
            lines.push(format!(
                "{}: at {:#x} to {:#x}, and at {:#x} to {:#x}",
                one.name, one.range.start, one.range.end, other.range.start, other.range.end
            ));
        }
        let is_leaf = !a.regions().iter().any(|inner| {
            inner.name != one.name
                && inner.range.start >= one.range.start
                && inner.range.end <= one.range.end
                && inner.range.len() < one.range.len()
        });
        if !is_leaf {
            continue;
        }
        told.push(one.range.clone());
        area(&mut lines, (a, one), (b, other));
    }
    for other in b.regions() {
        if !a.regions().iter().any(|one| one.name == other.name) {
            lines.push(format!("{}: only in the second", other.name));
        }
    }
    // Bytes that are in no innermost area.
    let outside = |at: &usize| !told.iter().any(|range| range.contains(at));
    let count = differing(a.bytes(), b.bytes()).filter(outside).count();
    if count > 0 {
        lines.push(format!("outside of all areas: {count} bytes differ"));
    }
    lines
}

fn differing<'a>(a: &'a [u8], b: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let both = a.iter().zip(b).enumerate();
    both.filter(|(_, (a, b))| a != b).map(|(at, _)| at)
}

fn area(lines: &mut Vec<String>, (a, one): (&Image, &Region), (b, other): (&Image, &Region)) {
    let count = differing(a.bytes_of(one), b.bytes_of(other)).count();
    if count == 0 {
        return;
    }
    lines.push(format!("{}: {count} bytes differ", one.name));
    if !one.is_cbfs || !other.is_cbfs {
        return;
    }
    let (mut first, mut second) = (files(a, one), files(b, other));
    for (name, file) in &first {
        let Some(other) = second.remove(name) else {
            lines.push(format!("  - {name} ({})", human_size(file.data().len())));
            continue;
        };
        if file.data() != other.data() || file.kind() != other.kind() {
            lines.push(format!(
                "  ~ {name} ({} and {})",
                human_size(file.data().len()),
                human_size(other.data().len())
            ));
        } else if file.start() != other.start() {
            lines.push(format!(
                "  > {name} (the same at {:#x} and {:#x})",
                file.start(),
                other.start()
            ));
        } else if file.metadata() != other.metadata() {
            lines.push(format!("  ~ {name} (other attributes)"));
        }
    }
    first.clear();
    for (name, file) in &second {
        lines.push(format!("  + {name} ({})", human_size(file.data().len())));
    }
}

/// The files by name; a damaged header is no file.
fn files<'a>(image: &'a Image, region: &Region) -> BTreeMap<String, File<'a>> {
    image
        .cbfs(region)
        .files()
        .filter_map(Result::ok)
        .map(|file| (file.name().to_owned(), file))
        .collect()
}
