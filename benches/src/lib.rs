//! What Daruma measures of itself, in virtual time: the machine's clock counts instructions
//! (1 instruction = 1 ns), so that a number means the same on every computer, and a peer measured
//! in the same run gives the ratio. Only the store is measured by itself, in this computer's processor time.

pub mod blk;
pub mod chain;
pub mod heal;
pub mod laboratory;
pub mod many;
pub mod metric;
pub mod net;
pub mod pause;
pub mod resume;
pub mod start;
pub mod store;
pub mod whole;

pub use metric::Metric;
