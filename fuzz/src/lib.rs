//! What fuzz targets share. A target is one file in `fuzz_targets/`.
//!
//! Input is read by [`arbitrary::Unstructured`]: any bytes are a valid series of steps, and a step changed in the middle
//! leaves the others as they were.

mod begin;
pub mod disk;
pub mod driver;
pub mod sockets;
pub mod transport;

pub use arbitrary::Unstructured;
pub use begin::{begin, steps};
pub use libfuzzer_sys::{Corpus, fuzz_target};
