//! The host: everything that runs above the guests' VMMs.
//!
//! - [`config`]: the machine file.
//! - [`flash`], [`disks`], [`images`], [`own_kernel`]: where guests come from.
//! - [`supervisor`]: starts a VMM process for each guest, watches it, starts it again, stops it.
//! - [`net`]: the guests' networks.
//! - [`nbd`]: disks of the store, served to VMMs.
//! - [`snapshots`]: the process that has the store: snapshots, and what guests write to their disks.
//! - [`remote`]: commands from other processes, `daruma metrics` for one.
//! - [`console`]: terminals, each showing the host or one guest.
//! - [`view`]: all guests on a whole terminal, live; [`processes`]: what their VMMs use.
//! - [`init`]: process 1 of the machine in the ROM. [`up`]: the same on an ordinary Linux.
//!
//! One thread runs the supervisor's event loop and owns all state; short-lived threads read flash and wait for disks.

pub mod address;
pub mod cgroups;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod disks;
mod errors;
pub mod flash;
mod handover;
pub mod images;
pub mod init;
mod lines;
pub mod nbd;
pub mod net;
pub mod own_kernel;
mod power;
pub mod processes;
pub mod remote;
mod shell;
pub mod snapshots;
pub mod supervisor;
mod timing;
pub mod up;
pub mod view;
