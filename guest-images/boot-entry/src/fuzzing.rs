//! The readers of single files, for fuzz targets: a disk reaches them only through a whole file system.

use std::collections::HashMap;

use crate::{bls, extlinux, grub, version};

/// Reads `text` as each kind of boot entry.
pub fn texts(text: &str, other: &str) {
    let _ = extlinux::parse(text, "/boot/extlinux");
    let environment = grub::environment(other);
    let _ = grub::parse(text, "/boot/grub", environment.clone());
    let _ = grub::parse(text, "/", HashMap::new());
    let files = [
        ("a.conf".to_owned(), text.to_owned()),
        ("b-6.1.0+1-2.conf".to_owned(), other.to_owned()),
    ];
    let choice = bls::Choice {
        loader_conf: other,
        environment,
    };
    let _ = bls::choose(&files, &choice);
}

/// How versions are ordered must be an order, whatever they are.
pub fn versions(texts: [&str; 3]) {
    use std::cmp::Ordering;
    let [a, b, c] = texts;
    assert_eq!(version::compare(a, a), Ordering::Equal, "{a:?}");
    assert_eq!(
        version::compare(a, b),
        version::compare(b, a).reverse(),
        "{a:?} {b:?}"
    );
    if version::compare(a, b).is_le() && version::compare(b, c).is_le() {
        assert!(version::compare(a, c).is_le(), "{a:?} {b:?} {c:?}");
    }
}
