//! Snapshots of a guest that goes on: what the store asks for, and what it gets.

pub mod protocol;
