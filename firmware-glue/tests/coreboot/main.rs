//! coreboot's own tools as oracles: what they write we read, what we write they read, over generated images; and
//! `daruma-fw` on images that they have made.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cbfs;
mod command;
mod flash;
mod fmap;
mod pack;
mod payload;
mod tools;
