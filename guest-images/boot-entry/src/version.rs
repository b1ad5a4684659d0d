//! How boot entries are ordered: version numbers compared as the Boot Loader Specification asks ("Version Format", UAPI.10).

use std::cmp::Ordering;

/// Compares `a` and `b` part by part: digits as numbers, letters as text, `~` below everything, `-` below `.`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.~^".contains(byte);
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = &a[a.iter().take_while(|byte| !valid(byte)).count()..];
        b = &b[b.iter().take_while(|byte| !valid(byte)).count()..];
        let first = |text: &[u8]| text.first().copied();
        // `~` is older than the end, the end is older than all else.
        for mark in *b"~" {
            match (first(a) == Some(mark), first(b) == Some(mark)) {
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                _ => {}
            }
        }
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        let mut skip = 0;
        for mark in *b"-^." {
            match (first(a) == Some(mark), first(b) == Some(mark)) {
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (true, true) => {
                    skip = 1;
                    break;
                }
                (false, false) => {}
            }
        }
        if first(a) == Some(b'~') {
            skip = 1;
        }
        if skip == 1 {
            (a, b) = (&a[1..], &b[1..]);
            continue;
        }
        let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let order = if first(a).is_some_and(|byte| byte.is_ascii_digit())
            || first(b).is_some_and(|byte| byte.is_ascii_digit())
        {
            let (x, y) = (a.split_at(digits(a)), b.split_at(digits(b)));
            (a, b) = (x.1, y.1);
            number(x.0, y.0)
        } else {
            let letters = |text: &[u8]| {
                text.iter()
                    .take_while(|byte| byte.is_ascii_alphabetic())
                    .count()
            };
            let (x, y) = (a.split_at(letters(a)), b.split_at(letters(b)));
            (a, b) = (x.1, y.1);
            x.0.cmp(y.0)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Digits of any length as numbers.
fn number(a: &[u8], b: &[u8]) -> Ordering {
    let plain = |text: &[u8]| {
        let zeros = text.iter().take_while(|byte| **byte == b'0').count();
        text[zeros..].to_vec()
    };
    let (a, b) = (plain(a), plain(b));
    a.len().cmp(&b.len()).then_with(|| a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn newer_kernels_come_after_older_ones() {
        let rising = [
            "6.1~rc1",
            "6.1",
            "6.1-1",
            "6.1.0-9",
            "6.1.0-10",
            "6.1.0-10a",
            "6.9",
            "6.10.3-100.fc40",
            "6.10.3-200.fc40",
            "6.12",
        ];
        for pair in rising.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn the_order_is_one(a in "[0-9a-c.~^_-]{0,8}", b in "[0-9a-c.~^_-]{0,8}", c in "[0-9a-c.~^_-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b) == Ordering::Less && compare(&b, &c) == Ordering::Less {
                prop_assert_eq!(compare(&a, &c), Ordering::Less);
            }
        }
    }
}
