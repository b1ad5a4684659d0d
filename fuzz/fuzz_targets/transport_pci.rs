//! Registers of the PCI transport, with a device and its device thread behind them.
#![no_main]

use devices::virtio::testing::Transport;

fuzz::fuzz_target!(init: fuzz::begin(fuzz::steps), |data: &[u8]| fuzz::transport::drive(Transport::Pci, data));
