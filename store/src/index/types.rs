//! Keys and values of the largest table. The database's own arrays compare and convert byte by byte.

use std::cmp::Ordering;

use redb::{Key, TypeName, Value};

use super::Entry;
use crate::hash::Digest;

impl Value for Digest {
    type SelfType<'a> = Self;
    type AsBytes<'a> = [u8; 32];

    fn fixed_width() -> Option<usize> {
        Some(32)
    }

    fn from_bytes<'a>(data: &'a [u8]) -> Self
    where
        Self: 'a,
    {
        // The database has checked the width.
        Self(data.first_chunk().copied().unwrap_or_default())
    }

    fn as_bytes<'a, 'b: 'a>(value: &'a Self) -> [u8; 32]
    where
        Self: 'b,
    {
        value.0
    }

    fn type_name() -> TypeName {
        TypeName::new("store::Digest")
    }
}

impl Key for Digest {
    fn compare(left: &[u8], right: &[u8]) -> Ordering {
        left.cmp(right)
    }
}

impl Value for Entry {
    type SelfType<'a> = Self;
    type AsBytes<'a> = [u8; 20];

    fn fixed_width() -> Option<usize> {
        Some(20)
    }

    fn from_bytes<'a>(data: &'a [u8]) -> Self
    where
        Self: 'a,
    {
        Self::of_bytes(data.first_chunk().copied().unwrap_or_default())
    }

    fn as_bytes<'a, 'b: 'a>(value: &'a Self) -> [u8; 20]
    where
        Self: 'b,
    {
        value.to_bytes()
    }

    fn type_name() -> TypeName {
        TypeName::new("store::Entry")
    }
}
