//! The state machine as a value, and from one.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::{
    ACKNOWLEDGE, DRIVER, DRIVER_BITS, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, VirtioState,
};
use crate::virtio::saved::{QueueSaved, RestoreError, SaveError, VirtioSaved};

impl VirtioState {
    /// The device with all that its driver has set, and nothing in flight: what its queues have begun is ended, or will
    /// be found again. The device goes on from there. As long as the caller has it locked, it does not touch the guest's
    /// memory.
    pub fn save(&mut self) -> Result<VirtioSaved, SaveError> {
        let device_id = self.traits.device_id;
        if let Some(why) = self.device.unsavable() {
            return Err(SaveError { device_id, why });
        }
        let states: Vec<_> = (0_u16..)
            .zip(&self.queues)
            .map(|(index, _)| self.device.stop_queue(index))
            .collect();
        let queues = self.queues.iter().zip(&states);
        let saved = VirtioSaved {
            device_id,
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: queues
                .map(|(registers, state)| QueueSaved {
                    registers: *registers,
                    state: *state,
                })
                .collect(),
            config_generation: self.config_generation,
            device: self.device.save(),
        };
        if let Err((index, error)) = self.start_queues_at(&states) {
            // They ran a moment ago, and guest memory stays where it is.
            self.fail(format_args!("queue {index}"), &error);
        }
        Ok(saved)
    }

    /// Goes on from `saved`, in place of a device without a driver. Each running queue interrupts the driver once: an
    /// interrupt that was on its way is in no state, and one too many does no harm (§2.7.7.1).
    ///
    /// After an error the device is as it was.
    pub fn restore(&mut self, saved: &VirtioSaved) -> Result<(), RestoreError> {
        self.check(saved)?;
        self.device.restore(&saved.device)?;
        self.status = saved.status;
        self.device_features_select = saved.device_features_select;
        self.driver_features_select = saved.driver_features_select;
        self.driver_features = saved.driver_features;
        self.queue_select = saved.queue_select;
        self.config_generation = saved.config_generation;
        self.queues = saved.queues.iter().map(|queue| queue.registers).collect();
        let states: Vec<_> = saved.queues.iter().map(|queue| queue.state).collect();
        if let Err((index, source)) = self.start_queues_at(&states) {
            self.reset();
            return Err(RestoreError::Queue { index, source });
        }
        for (index, state) in (0_u16..).zip(&states) {
            if state.is_some() {
                self.interrupt.signal_queue(index);
            }
        }
        if self.status & NEEDS_RESET != 0 {
            self.interrupt.signal_config();
        }
        Ok(())
    }

    /// Whether a driver that keeps to the rules could have come here.
    fn check(&self, saved: &VirtioSaved) -> Result<(), RestoreError> {
        let contradiction = |what| Err(RestoreError::Contradiction { what });
        let expected = self.traits.device_id;
        if saved.device_id != expected {
            let found = saved.device_id;
            return Err(RestoreError::OtherDevice { found, expected });
        }
        RestoreError::count("queues", saved.queues.len(), self.queues.len())?;
        let status = saved.status;
        if status & !(DRIVER_BITS | NEEDS_RESET) != 0 {
            return contradiction("its device status has unknown bits");
        }
        for (bit, before) in [
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
        ] {
            if status & bit != 0 && status & before == 0 {
                return contradiction("its device status misses a step");
            }
        }
        if status & FEATURES_OK != 0 {
            let missing = saved.driver_features & !self.offered_features();
            if missing != 0 {
                return Err(RestoreError::Features { missing });
            }
            if saved.driver_features & 1 << VIRTIO_F_VERSION_1 == 0 {
                return contradiction("its features are those of a driver from before virtio 1.0");
            }
        }
        let runs = status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK;
        for queue in &saved.queues {
            match queue.state {
                Some(_) if !(runs && queue.registers.ready) => {
                    return contradiction("a queue runs that its driver has not started");
                }
                None if runs && queue.registers.ready => {
                    return contradiction("a queue stands still that its driver has started");
                }
                Some(state) if state.next_available != state.next_used => {
                    return contradiction("a queue has requests in flight");
                }
                _ => {}
            }
        }
        Ok(())
    }
}
