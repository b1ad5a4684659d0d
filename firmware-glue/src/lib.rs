//! Everything about getting the host started from flash: the container formats a ROM is made of, and the ROM itself.
//!
//! - [`fmap`]: the flash map, which names the areas of a flash image.
//! - [`cbfs`]: coreboot's file system, in which kernel, initramfs and guests lie.
//! - [`anchor`]: the hash in the boot block that protects all CBFS metadata.
//! - [`linux`]: the header of a bzImage.
//! - [`layout`]: what a Daruma ROM contains, by name.
//! - `initramfs`, `rom`, `stage` (feature `std`): writers.
//!
//! The readers need no allocator and no `std`: the ROM stage runs them from flash before there is any operating system,
//! the host runs them on the flash it finds. Every byte they read is untrusted: all arithmetic is checked, every loop is
//! bounded by the size of the slice, and nothing panics.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod anchor;
mod bytes;
pub mod cbfs;
pub mod fmap;
pub mod hash;
#[cfg(feature = "std")]
pub mod initramfs;
pub mod layout;
pub mod linux;
pub mod name;
#[cfg(feature = "std")]
pub mod rom;
#[cfg(feature = "std")]
pub mod stage;
