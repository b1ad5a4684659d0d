//! Everything about getting the host started from flash: the container formats a ROM is made of, and the ROM itself.
//!
//! - [`fmap`]: the flash map, which names the areas of a flash image.
//! - [`cbfs`]: coreboot's file system, in which kernel, initramfs and guests lie.
//! - [`anchor`]: the hash in the boot block that protects all CBFS metadata.
//! - [`branches`]: code made easier to compress.
//! - [`linux`]: the header of a bzImage.
//! - [`payload`]: SELF, what coreboot starts.
//! - [`pe`]: UEFI programs.
//! - [`layout`]: what a Daruma ROM contains, by name.
//! - `uki` (feature `std`): kernel, initramfs and command line as one UEFI program.
//! - `image`, `pack` (feature `std`): someone's flash image, changed in one place and as it was elsewhere.
//! - `compress`, `initramfs`, `rom`, `stage` (feature `std`): what writers need, and our own ROM.
//!
//! The readers need no allocator and no `std`: the ROM stage runs them from flash before there is any operating system,
//! the host runs them on the flash it finds. Every byte they read is untrusted: all arithmetic is checked, every loop is
//! bounded by the size of the slice, and nothing panics.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod anchor;
pub mod branches;
mod bytes;
pub mod cbfs;
#[cfg(feature = "std")]
pub mod compress;
pub mod fmap;
pub mod hash;
#[cfg(feature = "std")]
pub mod image;
#[cfg(feature = "std")]
pub mod initramfs;
pub mod layout;
pub mod linux;
pub mod name;
#[cfg(feature = "std")]
pub mod pack;
pub mod payload;
pub mod pe;
#[cfg(feature = "std")]
pub mod rom;
#[cfg(feature = "std")]
pub mod stage;
#[cfg(feature = "std")]
pub mod uki;
