//! Interrupt messages by KVM: a route from a global interrupt number to each message, and an eventfd bound to it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use devices::interrupt::Interrupt;
use devices::pci::{MsiMessage, MsiSink};
use devices::throttle::Throttle;
use devices::virtio::pci::DoorbellBinder;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Pins of KVM's I/O APIC: its interrupt numbers come first.
const IOAPIC_PINS: u32 = 24;
/// Pins of the first of the PC's two old interrupt controllers.
const PIC_PINS: u32 = 8;

/// The routes of one guest. KVM takes them as one table: it is written whole whenever a message changes.
#[derive(Debug)]
pub struct MsiRoutes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    messages: BTreeMap<u32, MsiMessage>,
    failures: Throttle,
}

impl Table {
    /// The lowest interrupt number that is free.
    fn free(&self) -> u32 {
        let mut taken = self.messages.keys();
        (IOAPIC_PINS..)
            .find(|number| taken.next() != Some(number))
            .unwrap_or(u32::MAX)
    }

    /// As KVM takes it: the lines of old, which it had by itself before, and the messages.
    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let mut entries = Vec::with_capacity(self.messages.len() + 40);
        for line in 0..IOAPIC_PINS {
            entries.push(pin(line, KVM_IRQCHIP_IOAPIC, line));
        }
        for line in 0..PIC_PINS {
            entries.push(pin(line, KVM_IRQCHIP_PIC_MASTER, line));
            entries.push(pin(line + PIC_PINS, KVM_IRQCHIP_PIC_SLAVE, line));
        }
        entries.extend(self.messages.iter().map(|(&number, message)| {
            let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
            let msi = kvm_irq_routing_msi {
                address_lo: u32::from_le_bytes([a, b, c, d]),
                address_hi: u32::from_le_bytes([e, f, g, h]),
                data: message.data,
                ..Default::default()
            };
            entry(
                number,
                KVM_IRQ_ROUTING_MSI,
                kvm_irq_routing_entry__bindgen_ty_1 { msi },
            )
        }));
        entries
    }
}

fn pin(number: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry(
        number,
        KVM_IRQ_ROUTING_IRQCHIP,
        kvm_irq_routing_entry__bindgen_ty_1 { irqchip },
    )
}

fn entry(
    number: u32,
    kind: u32,
    target: kvm_irq_routing_entry__bindgen_ty_1,
) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: number,
        type_: kind,
        u: target,
        ..Default::default()
    }
}

impl MsiRoutes {
    /// No message has a route yet.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { vm, table })
    }

    /// Routes `number`, or a new one, to `message`.
    fn set(&self, number: Option<u32>, message: MsiMessage) -> io::Result<u32> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let number = number.unwrap_or_else(|| table.free());
        let before = table.messages.insert(number, message);
        let result = self.write(&table);
        if result.is_err() {
            // What KVM refuses must not stand in the way of the other messages.
            match before {
                Some(message) => table.messages.insert(number, message),
                None => table.messages.remove(&number),
            };
        }
        result.map(|()| number)
    }

    fn release(&self, number: u32) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.messages.remove(&number);
        if let Err(error) = self.write(&table) {
            let what = format_args!("The route of interrupt {number} stays: {error}");
            table.failures.warn(what);
        }
    }

    fn write(&self, table: &Table) -> io::Result<()> {
        let routing = KvmIrqRouting::from_entries(&table.entries())
            .map_err(|error| io::Error::other(format!("too many routes: {error:?}")))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }
}

/// A vector that has a route: writing the eventfd sends the message, without a way through this process.
#[derive(Debug)]
struct Vector {
    event: EventFd,
    number: u32,
}

/// The interrupt vectors of one PCI function.
#[derive(Debug)]
pub struct MsiVectors {
    routes: Arc<MsiRoutes>,
    vectors: Box<[OnceLock<Vector>]>,
}

impl MsiVectors {
    /// `count` vectors, each connected when the guest first uses it.
    pub fn new(routes: Arc<MsiRoutes>, count: u16) -> Self {
        let vectors = (0..count).map(|_| OnceLock::new()).collect();
        Self { routes, vectors }
    }

    fn slot(&self, vector: u16) -> io::Result<&OnceLock<Vector>> {
        let slot = self.vectors.get(usize::from(vector));
        slot.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl MsiSink for MsiVectors {
    fn route(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
        let slot = self.slot(vector)?;
        if let Some(connected) = slot.get() {
            self.routes.set(Some(connected.number), message)?;
            return Ok(());
        }
        let event = EventFd::new(EFD_NONBLOCK)?;
        let number = self.routes.set(None, message)?;
        if let Err(error) = self.routes.vm.register_irqfd(&event, number) {
            self.routes.release(number);
            return Err(error.into());
        }
        // The function's lock is held: nobody else connects this vector.
        let _ = slot.set(Vector { event, number });
        Ok(())
    }

    fn send(&self, vector: u16) -> io::Result<()> {
        // One without a route has a message that KVM refused, which was said then.
        self.slot(vector)?
            .get()
            .map_or(Ok(()), |vector| vector.event.trigger())
    }
}

impl Drop for MsiVectors {
    fn drop(&mut self) {
        for Vector { event, number } in self.vectors.iter().filter_map(OnceLock::get) {
            if let Err(error) = self.routes.vm.unregister_irqfd(event, *number) {
                log::warn!("Interrupt {number} stays connected: {error}");
            }
            self.routes.release(*number);
        }
    }
}

/// Doorbells by KVM's ioeventfds: any write of any width, which KVM answers faster than one it must compare.
#[derive(Debug)]
pub struct Doorbells(pub Arc<VmFd>);

impl DoorbellBinder for Doorbells {
    fn bind(&self, doorbell: &EventFd, address: u64) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.register_ioevent(doorbell, &address, NoDatamatch)?)
    }

    fn unbind(&self, doorbell: &EventFd, address: u64) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.unregister_ioevent(doorbell, &address, NoDatamatch)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(data: u32) -> MsiMessage {
        MsiMessage {
            address: 0x1_fee0_0000,
            data,
        }
    }

    #[test]
    fn numbers_above_the_lines_are_given_out_and_come_back() {
        let mut table = Table::default();
        for expected in 24..30 {
            assert_eq!(table.free(), expected);
            table.messages.insert(expected, message(expected));
        }
        table.messages.remove(&26);
        assert_eq!(table.free(), 26);
    }

    #[test]
    fn table_holds_the_lines_of_old_and_the_messages() {
        let mut table = Table::default();
        table.messages.insert(24, message(0x41));
        let entries = table.entries();
        let of = |number: u32| entries.iter().filter(move |entry| entry.gsi == number);
        assert_eq!(entries.len(), 24 + 16 + 1);
        assert_eq!((of(4).count(), of(15).count(), of(16).count()), (2, 2, 1));
        let msi = of(24).next().unwrap();
        assert_eq!((msi.type_, msi.flags), (KVM_IRQ_ROUTING_MSI, 0));
    }
}
