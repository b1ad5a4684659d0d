//! The `web` appliance: an initial RAM disk with one program in it.
//!
//! The program is the crate in `guest-images/web`; how an initial RAM disk is packed is `firmware-glue`'s matter.

/// Path of the program in the initial RAM disk: where the kernel looks for PID 1.
pub const PROGRAM: &str = "init";

/// Folders the program mounts the kernel's file systems on.
pub const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
