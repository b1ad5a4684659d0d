//! A node: which of its children there are, their digests, and where they were last seen.

use super::FANOUT;
use crate::error::Fault;
use crate::hash::Digest;
use crate::segment::Location;

/// A child of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    pub digest: Digest,
    /// A hint: the chunk may have moved.
    pub location: Location,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    level: u8,
    present: u32,
    children: Vec<Child>,
}

/// Level, three zero bytes, bits of the children that are there.
const HEADER: usize = 8;
const DIGEST: usize = 32;
const HINT: usize = 8;

impl Node {
    /// A node of these children, or nothing if there are none.
    pub fn new(level: u8, children: &[Option<Child>; FANOUT]) -> Option<Self> {
        let mut present = 0;
        for (slot, child) in children.iter().enumerate() {
            present |= u32::from(child.is_some()) << slot;
        }
        let children: Vec<Child> = children.iter().copied().flatten().collect();
        (present != 0).then_some(Self {
            level,
            present,
            children,
        })
    }

    pub fn level(&self) -> u8 {
        self.level
    }

    /// Slot and child, in order.
    pub fn children(&self) -> impl Iterator<Item = (usize, &Child)> {
        (0..FANOUT)
            .filter(|slot| self.present >> slot & 1 == 1)
            .zip(&self.children)
    }

    /// The child in a slot.
    pub fn child(&self, slot: usize) -> Option<&Child> {
        let below = self.present & ((1 << slot) - 1);
        let there = self.present >> slot & 1 == 1;
        self.children
            .get(usize::try_from(below.count_ones()).ok()?)
            .filter(|_| there)
    }

    /// The payload of its record, and its digest.
    pub fn encode(&self) -> (Vec<u8>, Digest) {
        let mut bytes = Vec::with_capacity(HEADER + self.children.len() * (DIGEST + HINT));
        bytes.extend_from_slice(&[self.level, 0, 0, 0]);
        bytes.extend_from_slice(&self.present.to_le_bytes());
        for child in &self.children {
            bytes.extend_from_slice(&child.digest.0);
        }
        let digest = Digest::of(&bytes);
        for child in &self.children {
            bytes.extend_from_slice(&child.location.to_bytes());
        }
        (bytes, digest)
    }

    /// Whether a payload is a node with this digest.
    pub fn genuine(payload: &[u8], wanted: &Digest) -> bool {
        (payload.first()).is_some_and(|level| Self::decode(payload, wanted, *level).is_ok())
    }

    /// The node that a payload is, if it is the one with this digest and level.
    pub fn decode(payload: &[u8], wanted: &Digest, level: u8) -> Result<Self, Fault> {
        let (&header, rest) = payload
            .split_first_chunk::<HEADER>()
            .ok_or(Fault::Node("it is cut off"))?;
        let [found, a, b, c, bits @ ..] = header;
        let present = u32::from_le_bytes(bits);
        let count = usize::try_from(present.count_ones()).unwrap_or(FANOUT);
        if count == 0 || rest.len() != count * (DIGEST + HINT) {
            return Err(Fault::Node("its length does not fit its children"));
        }
        let hashed = HEADER + count * DIGEST;
        if Digest::of(&payload[..hashed]) != *wanted {
            return Err(Fault::Hash {
                expected: wanted.to_string(),
            });
        }
        // From here on it is what somebody once committed, who may still have meant harm: an imported file.
        if found != level || [a, b, c] != [0; 3] {
            return Err(Fault::Node("it is of another level"));
        }
        let (digests, hints) = rest.split_at(count * DIGEST);
        let children = digests.as_chunks().0.iter().zip(hints.as_chunks().0);
        let children = children.map(|(digest, hint)| Child {
            digest: Digest(*digest),
            location: Location::from_bytes(*hint),
        });
        Ok(Self {
            level,
            present,
            children: children.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn child(seed: u8) -> Child {
        Child {
            digest: Digest::of(&[seed]),
            location: Location {
                segment: u32::from(seed),
                offset: 77,
            },
        }
    }

    #[test]
    fn an_empty_node_is_none() {
        assert_eq!(Node::new(0, &[None; FANOUT]), None);
    }

    proptest! {
        #[test]
        fn nodes_come_back(level in 0_u8..8, seeds in prop::array::uniform32(prop::option::of(any::<u8>()))) {
            let children = seeds.map(|seed| seed.map(child));
            if let Some(node) = Node::new(level, &children) {
                for (slot, child) in children.iter().enumerate() {
                    prop_assert_eq!(node.child(slot), child.as_ref());
                }
                let (payload, digest) = node.encode();
                prop_assert_eq!(&Node::decode(&payload, &digest, level).unwrap(), &node);
                prop_assert!(Node::decode(&payload, &digest, level + 1).is_err());
            }
        }

        #[test]
        fn any_changed_bit_is_refused_or_a_hint(bit in 0_usize..8 * (8 + 3 * 40)) {
            let mut children = [None; FANOUT];
            for slot in [0_u8, 9, 31] {
                children[usize::from(slot)] = Some(child(slot));
            }
            let node = Node::new(2, &children).unwrap();
            let (mut payload, digest) = node.encode();
            payload[bit / 8] ^= 1 << (bit % 8);
            match Node::decode(&payload, &digest, 2) {
                Err(_) => prop_assert!(bit / 8 < 8 + 3 * 32),
                Ok(read) => {
                    prop_assert!(bit / 8 >= 8 + 3 * 32);
                    for (slot, child) in read.children() {
                        prop_assert_eq!(Some(child.digest), children[slot].map(|child| child.digest));
                    }
                }
            }
        }

        #[test]
        fn what_is_no_node_is_refused(payload in prop::collection::vec(any::<u8>(), 0..1400), level: u8) {
            // Even with the digest that it has.
            let hashed = payload.get(..payload.len().min(40)).unwrap_or_default();
            prop_assert!(Node::decode(&payload, &Digest::of(hashed), level).is_err() || payload.len() == 48);
        }
    }
}
