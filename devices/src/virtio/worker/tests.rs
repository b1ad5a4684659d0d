use std::sync::Mutex;

use event_manager::{EventManager, SubscriberOps};

use super::*;
use crate::virtio::device::{DeviceTraits, VirtioDevice};
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};
use crate::virtio::state::VirtioState;
use crate::virtio::testing::{InterruptCounter, guest_memory};

/// Two descriptors of its own; each write to one is that many turns of work.
struct Clockwork {
    sources: [EventFd; 2],
    left: [u64; 2],
    turns: Arc<Mutex<Vec<usize>>>,
}

impl VirtioDevice for Clockwork {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_id: 42,
            features: 0,
            queue_sizes: vec![4],
            config_len: 0,
        }
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn start_queue(&mut self, _index: u16, _queue: Virtqueue, _features: u64) {}

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        None
    }

    fn process(&mut self, _index: u16) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }

    fn sources(&self) -> Vec<Source> {
        let source = |fd: &EventFd| Source {
            fd: fd.as_raw_fd(),
            events: EventSet::IN,
        };
        self.sources.iter().map(source).collect()
    }

    fn wake(&mut self, index: usize) -> Result<Progress, QueueError> {
        self.left[index] += self.sources[index].read().unwrap_or(0);
        self.turns.lock().unwrap().push(index);
        self.left[index] -= 1;
        Ok(if self.left[index] > 0 {
            Progress::More
        } else {
            Progress::Idle
        })
    }

    fn reset(&mut self) {}
}

#[test]
fn sources_are_served_without_a_driver_and_in_turns() {
    let sources = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    let bells = [0, 1].map(|i: usize| sources[i].try_clone().unwrap());
    let turns = Arc::<Mutex<Vec<usize>>>::default();
    let device = Clockwork {
        sources,
        left: [0; 2],
        turns: turns.clone(),
    };
    let interrupt = Arc::new(InterruptCounter::default());
    let state = VirtioState::new(Box::new(device), guest_memory(), interrupt).unwrap();
    let worker = VirtioWorker::new(Arc::new(Mutex::new(state))).unwrap();
    let mut thread = EventManager::new().unwrap();
    thread.add_subscriber(worker);

    bells[0].write(3).unwrap();
    bells[1].write(1).unwrap();
    while thread.run_with_timeout(0).unwrap() > 0 {}
    let turns = turns.lock().unwrap();
    assert_eq!(turns.iter().filter(|source| **source == 0).count(), 3);
    assert_eq!(turns.iter().filter(|source| **source == 1).count(), 1);
    // The second source was not kept waiting until all of the first's work was done.
    assert!(turns[..2].contains(&1), "{turns:?}");
}
