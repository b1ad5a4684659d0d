//! What the VMM may do to the world outside, should a guest ever get hold of it: nothing that it does not need.

pub mod seccomp;
