//! `extlinux.conf`, as Debian's `u-boot-menu` and `extlinux` write it (Syslinux, doc/syslinux.txt).

use super::entry::{Entry, Place, absolute};

/// Labels that are looked at.
const MAX_LABELS: usize = 256;

#[derive(Debug, Default)]
struct Label {
    name: String,
    kernel: Option<String>,
    initrds: Vec<String>,
    append: Option<String>,
    is_default: bool,
}

/// The default entry of a configuration in `folder`: the one that `default` (or `ontimeout`) names, else the first.
pub fn parse(text: &str, folder: &str) -> Option<Entry> {
    let mut default = None;
    let mut global_append = String::new();
    let mut labels: Vec<Label> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let word = word.to_ascii_lowercase();
        if word == "label" {
            if labels.len() == MAX_LABELS {
                break;
            }
            labels.push(Label {
                name: rest.to_owned(),
                ..Label::default()
            });
            continue;
        }
        match (word.as_str(), labels.last_mut()) {
            ("default" | "ontimeout", _) => default = Some(rest.to_owned()),
            ("kernel" | "linux", Some(label)) => label.kernel = Some(rest.to_owned()),
            ("initrd", Some(label)) => {
                label.initrds = rest
                    .split(',')
                    .map(str::trim)
                    .filter(|path| !path.is_empty())
                    .map(str::to_owned)
                    .collect();
            }
            ("append", Some(label)) => label.append = Some(rest.to_owned()),
            ("append", None) => global_append = rest.to_owned(),
            ("menu", Some(label)) => label.is_default |= rest.eq_ignore_ascii_case("default"),
            _ => {}
        }
    }
    let bootable = || labels.iter().filter(|label| label.kernel.is_some());
    let chosen = bootable()
        .find(|label| Some(&label.name) == default.as_ref())
        .or_else(|| bootable().find(|label| label.is_default))
        .or_else(|| bootable().next())?;
    let mut options = chosen.append.clone().unwrap_or(global_append);
    // A lone hyphen means: not even the global one.
    if options == "-" {
        options.clear();
    }
    let mut initrds = chosen.initrds.clone();
    if initrds.is_empty() {
        // The old way: initrd= among the options is the loader's business.
        initrds = options
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("initrd="))
            .flat_map(|paths| paths.split(','))
            .filter(|path| !path.is_empty())
            .map(str::to_owned)
            .collect();
    }
    Some(Entry {
        kernel: absolute(folder, chosen.kernel.as_deref()?),
        initrds: initrds.iter().map(|path| absolute(folder, path)).collect(),
        options,
        place: Place::Same,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEBIAN: &str = include_str!("fixtures/debian-extlinux.conf");

    #[test]
    fn what_debian_writes_is_read() {
        let entry = parse(DEBIAN, "/boot/extlinux").unwrap();
        assert_eq!(
            entry,
            Entry {
                kernel: "/boot/vmlinuz-6.12.117+deb12-cloud-amd64".into(),
                initrds: vec!["/boot/initrd.img-6.12.117+deb12-cloud-amd64".into()],
                options: "root=PARTUUID=7f1c1e0a-5f27-4d3a-9c55-646562696e01 ro quiet".into(),
                place: Place::Same,
            }
        );
    }

    #[test]
    fn the_default_is_obeyed_and_a_wrong_one_means_the_first() {
        let entry = |default: &str| {
            parse(&DEBIAN.replace("default l0", default), "/boot/extlinux")
                .unwrap()
                .kernel
        };
        assert_eq!(entry("default l1"), "/boot/vmlinuz-6.1.0-56-cloud-amd64");
        assert_eq!(
            entry("default nothing"),
            "/boot/vmlinuz-6.12.117+deb12-cloud-amd64"
        );
    }

    #[test]
    fn global_options_relative_paths_and_the_old_initrd_are_understood() {
        let text =
            "APPEND ro quiet initrd=../initrd.gz\nLABEL x\n MENU DEFAULT\n KERNEL ../vmlinuz\n";
        let entry = parse(text, "/extlinux").unwrap();
        assert_eq!(entry.kernel, "/vmlinuz");
        assert_eq!(entry.initrds, ["/initrd.gz"]);
        assert_eq!(parse("label a\nappend x\n", "/"), None);
        assert_eq!(
            parse("append x\nlabel a\nlinux k\nappend -\n", "/")
                .unwrap()
                .options,
            ""
        );
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(label|default|linux|kernel|append|initrd|menu|[a-z/.,-]{0,6}|\\PC|[ \n]){0,60}") {
            let _ = parse(&text, "/boot/extlinux");
        }
    }
}
