//! Commands that only concern what is stored.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use store::{Info, Store, Thoroughness};
use thiserror::Error;

use super::super::protocol::StoreCommand;
use crate::errors::chain;

/// Most ranges of a difference that are told one by one.
const MAX_RANGES: usize = 10_000;

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum StoredError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A file of the user's.
    #[error("cannot {doing} {path}", path = .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

/// How far it is: what is done, how much of it, of how much.
pub type Tell<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// Carries out `command`.
pub fn perform(
    store: &Store,
    command: StoreCommand,
    tell: &mut Tell<'_>,
) -> Result<Value, StoredError> {
    Ok(match command {
        StoreCommand::List { guest } => {
            let all = store.list()?.into_iter();
            let wanted = all.filter(|info| guest.as_ref().is_none_or(|guest| info.guest == *guest));
            json!({ "snapshots": wanted.map(|info| described(&info)).collect::<Vec<_>>() })
        }
        StoreCommand::Delete { snapshot } => {
            tell("deleting", 0, 0);
            store.delete(snapshot)?;
            json!({ "deleted": snapshot })
        }
        StoreCommand::Diff { old, new } => {
            let all = store.diff(old, new)?;
            let bytes: u64 = all.iter().map(|range| range.len).sum();
            let ranges = all.iter().take(MAX_RANGES);
            let ranges: Vec<_> = ranges
                .map(|range| {
                    json!({ "object": range.object, "offset": range.offset, "bytes": range.len })
                })
                .collect();
            json!({ "old": old, "new": new, "bytes": bytes, "ranges": all.len(), "changed": ranges })
        }
        StoreCommand::Export { snapshot, path } => export(store, snapshot, &path, tell)?,
        StoreCommand::Import { path } => {
            let file = File::open(&path).map_err(at("open", &path))?;
            let total = file.metadata().map_or(0, |metadata| metadata.len());
            let mut file = BufReader::with_capacity(1 << 20, file);
            let info = store.import(&mut file, &mut |done| tell("importing", done, total))?;
            described(&info)
        }
        StoreCommand::Status => {
            let status = store.status()?;
            json!({
                "machine": status.machine,
                "format": status.format,
                "snapshots": status.snapshots,
                "stored_bytes": status.stored,
                "referenced_bytes": status.referenced,
                "index_bytes": status.index,
                "segments": status.segments,
                "foreign_files": status.foreign,
            })
        }
        StoreCommand::Verify => {
            let verified = store.verify(&mut |progress| {
                tell("verifying", progress.done, progress.total);
            })?;
            let problems: Vec<_> = verified.problems.iter().map(|error| chain(error)).collect();
            json!({
                "snapshots": verified.snapshots,
                "chunks": verified.chunks,
                "problems": problems,
            })
        }
        StoreCommand::Collect { all } => {
            let thoroughness = if all {
                Thoroughness::All
            } else {
                Thoroughness::Worthwhile
            };
            let collected = store.collect(thoroughness, &mut |done, total| {
                tell("collecting", done, total);
            })?;
            json!({ "freed_bytes": collected.freed, "damaged_chunks": collected.damaged })
        }
    })
}

/// A snapshot as users see it.
pub fn described(info: &Info) -> Value {
    let objects = info.objects.iter();
    let objects: Vec<_> = objects
        .map(|object| json!({ "name": object.name, "bytes": object.len }))
        .collect();
    json!({
        "id": info.id,
        "guest": info.guest,
        "parent": info.parent,
        "time_ms": info.time_ms,
        "good": info.good,
        "labels": info.labels,
        "objects": objects,
    })
}

/// Whole or not at all: a file of this name is there only once all of it is durable.
fn export(
    store: &Store,
    snapshot: u64,
    path: &Path,
    tell: &mut Tell<'_>,
) -> Result<Value, StoredError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let fresh = |path: &Path| {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).open(path)
    };
    // Nobody's file is written over.
    let place = fresh(path).map_err(at("create", path))?;
    let written = (|| {
        let file = fresh(&part).map_err(at("create", &part))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        store.export(snapshot, &mut out, &mut |done, total| {
            tell("exporting", done, total);
        })?;
        out.flush().map_err(at("write", &part))?;
        out.get_ref().sync_all().map_err(at("write", &part))?;
        fs::rename(&part, path).map_err(at("write", path))?;
        let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
        Ok(json!({ "exported": snapshot, "path": path, "bytes": bytes }))
    })();
    drop(place);
    if written.is_err() {
        // What was begun is of no use.
        let _ = (fs::remove_file(&part), fs::remove_file(path));
    }
    written
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoredError {
    let path = path.to_owned();
    move |source| StoredError::File {
        doing,
        path,
        source,
    }
}
