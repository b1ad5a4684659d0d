//! `daruma-fw inspect`: what is in an image, for people and for programs.

use anyhow::Result;
use firmware_glue::cbfs::{Attribute, Compression, File, Kind};
use firmware_glue::fmap::{FLAG_COMPRESSED, FLAG_PRESERVE, FLAG_READ_ONLY, FLAG_STATIC};
use firmware_glue::image::{Image, Region};
use firmware_glue::payload::{Payload, SegmentKind};
use firmware_glue::rom::human_size;
use serde_json::{Value, json};

pub fn run(image: &Image, as_json: bool) -> Result<()> {
    if as_json {
        println!("{:#}", describe(image));
    } else {
        tables(image);
    }
    Ok(())
}

fn tables(image: &Image) {
    match image.map() {
        Some(map) => println!(
            "Flash: {} at {:#x}, flash map at offset {:#x}\n",
            human_size(map.size() as usize),
            map.base(),
            map.offset()
        ),
        None => println!(
            "Flash: {}, without a flash map (CBFS by its master header)\n",
            human_size(image.bytes().len())
        ),
    }
    println!("{:<24} {:>10} {:>12}  FLAGS", "AREA", "OFFSET", "SIZE");
    for region in image.regions() {
        println!(
            "{:<24} {:>#10x} {:>12}  {}",
            format!("{}{}", "  ".repeat(depth(image, region)), region.name),
            region.range.start,
            human_size(region.range.len()),
            flags(region).join(", ")
        );
    }
    for region in image.cbfs_regions() {
        files(image, region);
    }
    println!("\nMetadata hash: {}", anchor(image));
}

fn files(image: &Image, region: &Region) {
    println!(
        "\n{:<32} {:<12} {:>10} {:>12}  CONTENTS",
        format!("FILE IN {}", region.name),
        "TYPE",
        "OFFSET",
        "SIZE"
    );
    let mut free = 0;
    for file in image.cbfs(region).walk() {
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                println!("{error}");
                continue;
            }
        };
        if file.kind().is_free() {
            free += file.data().len();
        }
        println!(
            "{:<32} {:<12} {:>#10x} {:>12}  {}",
            if file.kind().is_free() {
                "(free)"
            } else {
                file.name()
            },
            file.kind().to_string(),
            file.start(),
            human_size(file.data().len()),
            contents(&file).join("; ")
        );
        if file.kind() == Kind::SELF {
            segments(&file);
        }
    }
    println!(
        "{:<32} {:<12} {:>10} {:>12}",
        "free in all",
        "",
        "",
        human_size(free)
    );
}

fn segments(file: &File<'_>) {
    match Payload::parse(file.data()) {
        Ok(payload) => {
            for segment in payload.segments() {
                println!(
                    "    {:<12} {} of memory at {:#x}, {} stored{}",
                    kind(segment.kind),
                    human_size(segment.mem_len as usize),
                    segment.load,
                    human_size(segment.data.len()),
                    method(segment.compression)
                );
            }
            println!("    entry point  {:#x}", payload.entry());
        }
        Err(error) => println!("    {error}"),
    }
}

fn kind(kind: SegmentKind) -> &'static str {
    match kind {
        SegmentKind::Code => "code",
        SegmentKind::Data => "data",
        SegmentKind::Bss => "zeros",
        SegmentKind::Parameters => "parameters",
        SegmentKind::Entry => "entry point",
    }
}

fn method(number: u32) -> String {
    match firmware_glue::compress::Method::of_number(number) {
        Ok(firmware_glue::compress::Method::None) => String::new(),
        Ok(method) => format!(" by {method}"),
        Err(_) => format!(" by unknown compression {number}"),
    }
}

/// What the attributes of a file say, and whether its hashes are right.
fn contents(file: &File<'_>) -> Vec<String> {
    if file.kind().is_free() {
        return Vec::new();
    }
    let mut parts = Vec::new();
    let mut hashes = Vec::new();
    for attribute in file.attributes() {
        match attribute {
            Ok(Attribute::Compression(Compression::None)) => {}
            Ok(Attribute::Compression(compression)) => parts.push(compression.to_string()),
            Ok(Attribute::Sha256(_)) => hashes.push("SHA-256"),
            Ok(Attribute::Sha512(_)) => hashes.push("SHA-512"),
            Ok(Attribute::Blake3(_)) => hashes.push("BLAKE3"),
            Ok(Attribute::Position(at)) => parts.push(format!("fixed at {at:#x}")),
            Ok(Attribute::Alignment(to)) => parts.push(format!("aligned to {to:#x}")),
            Ok(Attribute::Other { .. }) => {}
            Err(error) => parts.push(error.to_string()),
        }
    }
    if !hashes.is_empty() {
        match file.verify_all() {
            Ok(_) => parts.push(format!("{} valid", hashes.join(", "))),
            Err(error) => parts.push(error.to_string()),
        }
    }
    parts
}

fn anchor(image: &Image) -> String {
    match image.check_anchor() {
        Ok(true) => "valid: vouches for the flash map and all file headers".to_owned(),
        Ok(false) => "none: nothing vouches for the file headers".to_owned(),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    }
}

/// In how many other areas it lies.
fn depth(image: &Image, region: &Region) -> usize {
    image
        .regions()
        .iter()
        .filter(|other| {
            other.range.len() > region.range.len()
                && other.range.start <= region.range.start
                && other.range.end >= region.range.end
        })
        .count()
}

fn flags(region: &Region) -> Vec<&'static str> {
    let mut names = Vec::new();
    if region.is_cbfs {
        names.push("CBFS");
    }
    for (flag, name) in [
        (FLAG_STATIC, "static"),
        (FLAG_COMPRESSED, "compressed"),
        (FLAG_READ_ONLY, "read-only"),
        (FLAG_PRESERVE, "kept by updates"),
    ] {
        if region.flags & flag != 0 {
            names.push(name);
        }
    }
    names
}

fn describe(image: &Image) -> Value {
    let areas: Vec<Value> = image
        .regions()
        .iter()
        .map(|region| {
            let mut area = json!({
                "name": region.name,
                "offset": region.range.start,
                "size": region.range.len(),
                "flags": region.flags,
            });
            if region.is_cbfs {
                area["files"] = image
                    .cbfs(region)
                    .walk()
                    .map(|file| match file {
                        Ok(file) => describe_file(&file),
                        Err(error) => json!({"error": error.to_string()}),
                    })
                    .collect();
            }
            area
        })
        .collect();
    let map = image
        .map()
        .map(|map| json!({"offset": map.offset(), "base": map.base(), "size": map.size()}));
    let anchor = match image.check_anchor() {
        Ok(true) => json!("valid"),
        Ok(false) => json!("none"),
        Err(error) => json!({"error": format!("{:#}", anyhow::Error::from(error))}),
    };
    json!({"size": image.bytes().len(), "flash_map": map, "areas": areas, "metadata_hash": anchor})
}

fn describe_file(file: &File<'_>) -> Value {
    let mut value = json!({
        "name": file.name(),
        "type": file.kind().0,
        "offset": file.start(),
        "data_offset": file.data_range().start,
        "size": file.data().len(),
        "free": file.kind().is_free(),
    });
    if file.kind().is_free() {
        return value;
    }
    if let Some(kind) = file.kind().name() {
        value["type_name"] = json!(kind);
    }
    let mut hashes = Vec::new();
    for attribute in file.attributes() {
        match attribute {
            Ok(Attribute::Compression(compression)) => {
                value["compression"] = json!(compression.to_string());
            }
            Ok(Attribute::Position(at)) => value["position"] = json!(at),
            Ok(Attribute::Alignment(to)) => value["alignment"] = json!(to),
            Ok(Attribute::Sha256(digest)) => hashes.push(json!({"sha256": digest.to_string()})),
            Ok(Attribute::Blake3(digest)) => hashes.push(json!({"blake3": digest.to_string()})),
            Ok(Attribute::Sha512(_)) => hashes.push(json!("sha512")),
            Ok(Attribute::Other { .. }) => {}
            Err(error) => value["error"] = json!(error.to_string()),
        }
    }
    if !hashes.is_empty() {
        value["hashes"] = json!(hashes);
        value["hashes_valid"] = json!(file.verify_all().is_ok());
    }
    if file.kind() == Kind::SELF {
        value["payload"] = match Payload::parse(file.data()) {
            Ok(payload) => json!({
                "entry": payload.entry(),
                "memory_end": payload.memory_end(),
                "segments": payload.segments().map(|segment| json!({
                    "kind": kind(segment.kind),
                    "compression": segment.compression,
                    "load": segment.load,
                    "size": segment.data.len(),
                    "memory": segment.mem_len,
                })).collect::<Vec<_>>(),
            }),
            Err(error) => json!({"error": error.to_string()}),
        };
    }
    value
}
