//! What real guests show of the real ROM, nested: every test here boots a machine.

mod bad_guests;
mod bad_roms;
mod balloon;
mod default_machine;
mod disks;
mod hostile;
mod hotplug;
mod loaders;
mod network;
mod shell;
mod stock_kernels;
