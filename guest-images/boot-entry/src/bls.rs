//! Boot Loader Specification entries, type #1 (UAPI.1), as Fedora, systemd-boot and kernel-install write them.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::entry::{Entry, Place, absolute};
use super::version::compare;

/// One file of `loader/entries`.
#[derive(Debug, Default)]
struct Candidate {
    /// File name without `.conf` and without a boot counter.
    id: String,
    /// A boot counter says that every try of it failed.
    exhausted: bool,
    sort_key: Option<String>,
    machine_id: String,
    version: String,
    kernel: String,
    initrds: Vec<String>,
    options: String,
}

/// What is beside the entries and has a say in which is the default.
#[derive(Debug, Default)]
pub struct Choice<'a> {
    /// `loader/loader.conf`.
    pub loader_conf: &'a str,
    /// Variables of GRUB's environment block: `saved_entry`, `kernelopts` …
    pub environment: HashMap<String, String>,
}

/// The default of the entries `files` (names and texts).
pub fn choose(files: &[(String, String)], choice: &Choice<'_>) -> Option<Entry> {
    let candidates: Vec<Candidate> = files
        .iter()
        .filter_map(|(name, text)| parse(name, text, &choice.environment))
        .collect();
    let wanted = choice
        .loader_conf
        .lines()
        .find_map(|line| {
            let (word, rest) = line.trim().split_once(char::is_whitespace)?;
            (word == "default").then(|| rest.trim())
        })
        .or_else(|| choice.environment.get("saved_entry").map(String::as_str))
        .filter(|wanted| !wanted.is_empty());
    let matching = wanted.and_then(|wanted| {
        best(
            candidates
                .iter()
                .filter(|candidate| matches(wanted.trim_end_matches(".conf"), &candidate.id)),
        )
    });
    let chosen = matching.or_else(|| best(candidates.iter()))?;
    Some(Entry {
        kernel: chosen.kernel.clone(),
        initrds: chosen.initrds.clone(),
        options: chosen.options.clone(),
        place: Place::Same,
    })
}

fn best<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    candidates.reduce(|best, other| {
        if order(other, best) == Ordering::Less {
            other
        } else {
            best
        }
    })
}

/// The specification's order of a menu, the first is the default ("Sorting").
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    let newest_first = |a: &str, b: &str| compare(b, a);
    a.exhausted
        .cmp(&b.exhausted)
        .then_with(|| match (&a.sort_key, &b.sort_key) {
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
            (Some(x), Some(y)) => x
                .cmp(y)
                .then_with(|| a.machine_id.cmp(&b.machine_id))
                .then_with(|| newest_first(&a.version, &b.version)),
        })
        .then_with(|| newest_first(&a.id, &b.id))
}

/// Shell patterns with `*` only, which is what `default` has in practice.
fn matches(pattern: &str, id: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else {
        return pattern == id;
    };
    let Some(mut id) = id.strip_prefix(head) else {
        return false;
    };
    while let Some((middle, after)) = rest.split_once('*') {
        let Some(at) = id.find(middle) else {
            return false;
        };
        (id, rest) = (&id[at + middle.len()..], after);
    }
    id.ends_with(rest)
}

fn parse(name: &str, text: &str, environment: &HashMap<String, String>) -> Option<Candidate> {
    let stem = name.strip_suffix(".conf")?;
    let (id, exhausted) = counter(stem);
    let mut candidate = Candidate {
        id: id.to_owned(),
        exhausted,
        ..Candidate::default()
    };
    let mut options: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let Some((key, value)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let value = value.trim();
        match key {
            "linux" => candidate.kernel = absolute("/", &expand(value, environment)),
            "initrd" => candidate.initrds.extend(
                expand(value, environment)
                    .split_whitespace()
                    .map(|path| absolute("/", path)),
            ),
            "options" => options.push(expand(value, environment)),
            "sort-key" => candidate.sort_key = Some(value.to_owned()),
            "machine-id" => value.clone_into(&mut candidate.machine_id),
            "version" => value.clone_into(&mut candidate.version),
            _ => {}
        }
    }
    let words: Vec<_> = options
        .iter()
        .flat_map(|line| line.split_whitespace())
        .collect();
    candidate.options = words.join(" ");
    (!candidate.kernel.is_empty()).then_some(candidate)
}

/// Name and whether its boot counter (`name+LEFT-DONE`) is at zero ("Boot counting", UAPI.1).
fn counter(stem: &str) -> (&str, bool) {
    let Some((name, count)) = stem.rsplit_once('+') else {
        return (stem, false);
    };
    let left = count.split('-').next().unwrap_or_default();
    let is_counter = !left.is_empty()
        && count
            .split('-')
            .all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    if is_counter {
        (name, left.bytes().all(|byte| byte == b'0'))
    } else {
        (stem, false)
    }
}

/// Replaces `$name`, which GRUB's `blscfg` takes from its environment.
fn expand(text: &str, environment: &HashMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let length = after
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
            .count();
        let (name, after) = after.split_at(length);
        out.push_str(environment.get(name).map_or("", String::as_str));
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As kernel-install writes it on Fedora.
    fn fedora(version: &str) -> (String, String) {
        let text = format!(
            "title Fedora Linux ({version}) 40 (Cloud Edition)\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img $tuned_initrd\noptions root=UUID=5a1b2c3d-0000-4000-8000-000000000001 ro \
             $tuned_params no_timer_check console=tty1 console=ttyS0,115200n8\ngrub_users $grub_users\n\
             grub_arg --unrestricted\ngrub_class fedora\n"
        );
        (
            format!("7c2a8a1a5a0a4e0c8d1f0e2b3c4d5e6f-{version}.conf"),
            text,
        )
    }

    #[test]
    fn fedoras_newest_kernel_is_the_default() {
        let files = ["6.8.5-301.fc40.x86_64", "6.10.3-200.fc40.x86_64"].map(fedora);
        let entry = choose(&files, &Choice::default()).unwrap();
        assert_eq!(entry.kernel, "/vmlinuz-6.10.3-200.fc40.x86_64");
        assert_eq!(entry.initrds, ["/initramfs-6.10.3-200.fc40.x86_64.img"]);
        assert_eq!(
            entry.options,
            "root=UUID=5a1b2c3d-0000-4000-8000-000000000001 ro no_timer_check console=tty1 console=ttyS0,115200n8"
        );
    }

    #[test]
    fn the_saved_entry_and_the_environment_are_obeyed() {
        let mut files = ["6.8.5-301.fc40.x86_64", "6.10.3-200.fc40.x86_64"]
            .map(fedora)
            .to_vec();
        files[0].1 = "linux /vmlinuz-old\noptions $kernelopts extra\n".to_owned();
        let environment = [
            ("saved_entry", files[0].0.trim_end_matches(".conf")),
            ("kernelopts", "root=/dev/vda2 ro"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let choice = Choice {
            environment: environment.into(),
            ..Choice::default()
        };
        let entry = choose(&files, &choice).unwrap();
        assert_eq!(
            (&*entry.kernel, &*entry.options),
            ("/vmlinuz-old", "root=/dev/vda2 ro extra")
        );
    }

    #[test]
    fn systemd_boots_default_pattern_and_counters_are_obeyed() {
        let file = |name: &str, kernel: &str, more: &str| {
            (
                name.to_owned(),
                format!("linux /{kernel}\nsort-key debian\n{more}"),
            )
        };
        let files = [
            file("debian-6.12+0-3.conf", "failed", "version 6.12\n"),
            file("debian-6.9+3.conf", "good", "version 6.9\n"),
            file("rescue.conf", "rescue", "version 99\nsort-key zz\n"),
            file("readme.txt", "no", ""),
        ];
        let kernel = |loader_conf| {
            let choice = Choice {
                loader_conf,
                ..Choice::default()
            };
            choose(&files, &choice).unwrap().kernel
        };
        assert_eq!(kernel(""), "/good");
        assert_eq!(kernel("timeout 3\ndefault resc*\n"), "/rescue");
        assert_eq!(kernel("default debian-*\n"), "/good");
        assert_eq!(kernel("default none\n"), "/good");
    }

    #[test]
    fn an_entry_without_a_kernel_is_none() {
        let files = [("a.conf".to_owned(), "title x\nefi /EFI/x.efi\n".to_owned())];
        assert_eq!(choose(&files, &Choice::default()), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(names in prop::collection::vec("[a-z0-9+.*-]{0,8}(\\.conf)?", 0..4), text in "(linux|options|initrd|\\$|[ \n]|\\PC){0,40}", wanted in "[a-z*.]{0,6}") {
            let files: Vec<_> = names.into_iter().map(|name| (name, format!("linux /k\n{text}"))).collect();
            let loader_conf = format!("default {wanted}");
            let _ = choose(&files, &Choice { loader_conf: &loader_conf, environment: HashMap::new() });
        }
    }
}
