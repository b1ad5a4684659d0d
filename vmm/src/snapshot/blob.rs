//! KVM's structures in a state file: strings of hexadecimal digits. Version 1 of the format had a JSON number for each byte,
//! which takes ten times as long to read; such files are read as well.

use std::fmt;
use std::io;

use serde::de::value::BytesDeserializer;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde_json::ser::Formatter;

const DIGITS: [u8; 16] = *b"0123456789abcdef";

/// Writes JSON whose byte arrays are strings of hexadecimal digits, and all else as ever.
#[derive(Clone, Copy, Debug)]
pub struct Blobs;

impl Formatter for Blobs {
    fn write_byte_array<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        value: &[u8],
    ) -> io::Result<()> {
        let mut text = Vec::with_capacity(2 * value.len() + 2);
        text.push(b'"');
        for byte in value {
            text.extend([high(*byte), low(*byte)]);
        }
        text.push(b'"');
        writer.write_all(&text)
    }
}

fn high(byte: u8) -> u8 {
    DIGITS[usize::from(byte >> 4)]
}

fn low(byte: u8) -> u8 {
    DIGITS[usize::from(byte & 15)]
}

/// One structure: for a field's `deserialize_with`.
pub fn one<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Blob::deserialize(deserializer).map(|Blob(value)| value)
}

/// Several of them.
pub fn all<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let blobs = Vec::<Blob<T>>::deserialize(deserializer)?;
    Ok(blobs.into_iter().map(|Blob(value)| value).collect())
}

/// A structure that is made of bytes.
struct Blob<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Blob<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_bytes(Bytes)?;
        T::deserialize(BytesDeserializer::new(&bytes)).map(Self)
    }
}

/// Reads the bytes.
struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an even number of hexadecimal digits, or bytes")
    }

    fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<Self::Value, E> {
        let (pairs, rest) = text.as_chunks::<2>();
        let decode = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
        let bytes: Option<Vec<u8>> = pairs.iter().map(decode).collect();
        let wrong =
            || E::custom("a structure of KVM's is not an even number of hexadecimal digits");
        bytes.filter(|_| rest.is_empty()).ok_or_else(wrong)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(byte) = bytes.next_element()? {
            all.push(byte);
        }
        Ok(all)
    }
}

fn digit(text: u8) -> Option<u8> {
    match text {
        b'0'..=b'9' => Some(text - b'0'),
        b'a'..=b'f' => Some(text - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_msr_entry, kvm_regs};
    use proptest::prelude::*;
    use serde::Serialize;
    use serde_json::Serializer;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct State {
        #[serde(deserialize_with = "one")]
        regs: kvm_regs,
        #[serde(deserialize_with = "all")]
        msrs: Vec<kvm_msr_entry>,
        other: Vec<u8>,
    }

    fn state(rax: u64, data: Vec<u64>) -> State {
        let entry = |data| kvm_msr_entry {
            index: 0x6e0,
            data,
            ..kvm_msr_entry::default()
        };
        State {
            regs: kvm_regs {
                rax,
                ..kvm_regs::default()
            },
            msrs: data.into_iter().map(entry).collect(),
            other: vec![1, 2],
        }
    }

    fn write(state: &State) -> String {
        let mut text = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut text, Blobs);
        state.serialize(&mut serializer).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn structures_are_digits_and_lists_of_numbers_stay_lists() {
        let text = write(&state(0xab, vec![1]));
        assert!(text.starts_with(r#"{"regs":"ab0000"#), "{text}");
        assert!(text.contains(r#""msrs":["e006000000000000"#), "{text}");
        assert!(text.ends_with(r#""other":[1,2]}"#), "{text}");
    }

    #[test]
    fn what_is_neither_digits_nor_bytes_is_refused() {
        for regs in [
            r#""0""#, r#""0G""#, r#""AB""#, r#""é""#, "[256]", "7", "{}", "null",
        ] {
            let text = format!(r#"{{"regs":{regs},"msrs":[],"other":[]}}"#);
            assert!(serde_json::from_str::<State>(&text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_now_and_what_was_written_before_is_read(rax in any::<u64>(), data in any::<Vec<u64>>()) {
            let state = state(rax, data);
            let before = serde_json::to_string(&state).unwrap();
            prop_assert_eq!(&serde_json::from_str::<State>(&before).unwrap(), &state);
            prop_assert_eq!(&serde_json::from_str::<State>(&write(&state)).unwrap(), &state);
        }
    }
}
