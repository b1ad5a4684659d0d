//! What real guests show of the real ROM, nested: every test here boots a machine.

mod agent;
mod bad_guests;
mod bad_roms;
mod balloon;
mod coreboot;
mod default_machine;
mod disks;
mod falls;
mod flipped;
mod forks;
mod full_disk;
mod healing;
mod hostile;
mod hotplug;
mod loaders;
mod netboot;
mod network;
mod power_cut;
mod shell;
mod snapshots;
mod stock_kernels;
mod supervisor_falls;
mod uefi;
mod upgrade;
