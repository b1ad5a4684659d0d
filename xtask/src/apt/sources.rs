//! The machine's apt sources, in both their forms, and the ones we take from them.
//!
//! One-line form: sources.list(5) "ONE-LINE-STYLE FORMAT"; stanzas: "DEB822-STYLE FORMAT".

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::System;

/// One mirror with its suites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub uri: String,
    pub suites: Vec<String>,
    pub components: Vec<String>,
    /// Everything else as stanza fields: `Signed-By`, `Trusted` … A value may have several lines.
    pub options: Vec<(String, String)>,
}

impl Source {
    /// The file that its signature is checked against, where it names one.
    pub fn keyring(&self) -> Option<&str> {
        let (_, value) = self.options.iter().find(|(name, _)| name == "Signed-By")?;
        value.starts_with('/').then_some(value.as_str())
    }
}

/// What we use of the machine's sources.
#[derive(Debug)]
pub struct Chosen {
    pub all: Vec<Source>,
    /// The mirror that carries the distribution itself.
    pub base: Source,
}

impl Chosen {
    /// URI of the mirror that carries the security updates of release `codename`.
    pub fn security(&self, codename: &str) -> Option<String> {
        let suite = format!("{codename}-security");
        let carries = |source: &&Source| source.suites.contains(&suite);
        self.all
            .iter()
            .find(carries)
            .map(|source| source.uri.clone())
    }
}

/// Every source of the machine that is switched on.
pub fn read_all(etc_apt: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(folder) = fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut parts: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.append(&mut parts);
    }
    let mut sources = Vec::new();
    for file in files.into_iter().filter(|file| file.is_file()) {
        let text = fs::read_to_string(&file)
            .with_context(|| format!("Could not read {}", file.display()))?;
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.append(&mut parse_list(&text)),
            Some("sources") => sources.append(&mut parse_deb822(&text)),
            _ => {}
        }
    }
    Ok(sources)
}

/// The distribution's own suites out of all `sources`, with backports on Debian and universe on Ubuntu.
pub fn choose(sources: &[Source], system: &System) -> Result<Chosen> {
    let codename = &system.codename;
    let is_own = |suite: &String| {
        suite.strip_prefix(codename.as_str()).is_some_and(|rest| {
            matches!(
                rest,
                "" | "-updates" | "-security" | "-backports" | "/updates"
            )
        })
    };
    let mut all: Vec<Source> = sources
        .iter()
        .filter(|source| {
            source
                .components
                .iter()
                .any(|component| component == "main")
        })
        .map(|source| Source {
            suites: source
                .suites
                .iter()
                .filter(|suite| is_own(suite))
                .cloned()
                .collect(),
            ..source.clone()
        })
        .filter(|source| !source.suites.is_empty() && !source.uri.starts_with("cdrom:"))
        .collect();
    if system.id == "ubuntu" {
        for source in &mut all {
            if !source
                .components
                .iter()
                .any(|component| component == "universe")
            {
                source.components.push("universe".to_owned());
            }
        }
    }
    // Other projects use the distribution's code names for their own suites; the distribution's mirror says its name.
    let carries = |source: &&Source| source.suites.contains(codename);
    let named = |source: &&Source| {
        source
            .uri
            .trim_end_matches('/')
            .ends_with(system.id.as_str())
    };
    let base = all
        .iter()
        .filter(carries)
        .find(named)
        .or_else(|| all.iter().find(carries))
        .cloned();
    let Some(base) = base else {
        bail!(
            "No source of {codename} main in /etc/apt/sources.list or /etc/apt/sources.list.d: add the mirror there"
        );
    };
    if system.id == "debian" {
        let backports = format!("{codename}-backports");
        if !all.iter().any(|source| source.suites.contains(&backports)) {
            all.push(Source {
                suites: vec![backports],
                ..base.clone()
            });
        }
    }
    Ok(Chosen { all, base })
}

/// The stanza form, which can say everything that the one-line form can.
pub fn to_deb822(sources: &[Source]) -> String {
    let mut text = String::new();
    for source in sources {
        let Source {
            uri,
            suites,
            components,
            options,
        } = source;
        writeln!(
            text,
            "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: {}",
            suites.join(" "),
            components.join(" ")
        )
        .ok();
        for (name, value) in options {
            writeln!(text, "{name}: {}", value.replace('\n', "\n ")).ok();
        }
        text.push('\n');
    }
    text
}

/// Parses `deb [option=value …] uri suite component …` lines.
fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_list_line).collect()
}

fn parse_list_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let options = options
        .split_whitespace()
        .filter_map(|option| option.split_once('='))
        .map(|(name, value)| (field_name(name), value.replace(',', " ")))
        .collect();
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source {
        uri,
        suites: vec![suite],
        components: words.collect(),
        options,
    })
}

/// The stanza field of a one-line option.
fn field_name(option: &str) -> String {
    match option {
        "arch" => "Architectures".to_owned(),
        "lang" => "Languages".to_owned(),
        "target" => "Targets".to_owned(),
        other => {
            let capital = |part: &str| {
                let mut letters = part.chars();
                letters
                    .next()
                    .map(|first| first.to_uppercase().chain(letters).collect::<String>())
            };
            other
                .split('-')
                .filter_map(capital)
                .collect::<Vec<_>>()
                .join("-")
        }
    }
}

/// Parses stanzas of `Field: value` with continuation lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza_sources(std::mem::take(&mut stanza)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

/// One source for each URI of a stanza; none if it is switched off or has no binary packages.
fn stanza_sources(stanza: Vec<(String, String)>) -> Vec<Source> {
    let words = |wanted: &str| -> Vec<String> {
        let field = stanza
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        field.map_or_else(Vec::new, |(_, value)| {
            value.split_whitespace().map(str::to_owned).collect()
        })
    };
    let off = words("Enabled")
        .first()
        .is_some_and(|value| matches!(value.as_str(), "no" | "false" | "0" | "off"));
    if off || !words("Types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let (uris, suites, components) = (words("URIs"), words("Suites"), words("Components"));
    let known = ["Types", "URIs", "Suites", "Components", "Enabled"];
    let options: Vec<_> = stanza
        .into_iter()
        .filter(|(name, _)| !known.iter().any(|known| name.eq_ignore_ascii_case(known)))
        .collect();
    let source = |uri| Source {
        uri,
        suites: suites.clone(),
        components: components.clone(),
        options: options.clone(),
    };
    uris.into_iter().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian() -> System {
        System {
            id: "debian".into(),
            codename: "bookworm".into(),
        }
    }

    #[test]
    fn one_line_sources_keep_their_options() {
        let text = "\
# deb http://off bookworm main
deb [arch=amd64,i386 signed-by=/k.gpg] http://m/debian bookworm main contrib # own mirror
deb-src http://m/debian bookworm main
debris http://m/debian bookworm main
deb http://m/debian
";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].uri, "http://m/debian");
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].keyring(), Some("/k.gpg"));
        assert_eq!(
            sources[0].options[0],
            ("Architectures".into(), "amd64 i386".into())
        );
    }

    #[test]
    fn stanzas_give_a_source_for_each_mirror_and_none_when_off() {
        let text = "\
Types: deb deb-src
# comment
URIs: http://a/debian
 http://b/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Enabled: no
Types: deb
URIs: http://c
Suites: x
Components: main

Types: deb-src
URIs: http://d
Suites: x
Components: main";
        let sources = parse_deb822(text);
        let uris: Vec<_> = sources.iter().map(|source| source.uri.as_str()).collect();
        assert_eq!(uris, ["http://a/debian", "http://b/debian"]);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(sources[0].keyring(), None, "a key in the stanza is no file");
        let written = to_deb822(&sources);
        assert_eq!(parse_deb822(&written), sources, "{written}");
    }

    #[test]
    fn foreign_suites_are_left_out_and_backports_come_from_the_distributions_mirror() {
        let sources = parse_list(
            "deb http://other.example/apt bookworm main\n\
             deb http://pg.example/apt bookworm-pgdg main\n\
             deb cdrom:[Debian]/ bookworm main\n\
             deb [signed-by=/k.gpg] http://m/debian/ bookworm main\n\
             deb http://m/debian-security bookworm-security main\n",
        );
        let chosen = choose(&sources, &debian()).unwrap();
        assert_eq!(chosen.base.uri, "http://m/debian/");
        let suites: Vec<_> = chosen
            .all
            .iter()
            .flat_map(|source| &source.suites)
            .collect();
        assert_eq!(
            suites,
            [
                "bookworm",
                "bookworm",
                "bookworm-security",
                "bookworm-backports"
            ]
        );
        let backports = chosen.all.last().unwrap();
        assert_eq!(
            (backports.uri.as_str(), backports.keyring()),
            ("http://m/debian/", Some("/k.gpg"))
        );
    }

    #[test]
    fn ubuntu_needs_universe() {
        let sources = parse_list("deb http://mirror.example/ubuntu noble main restricted\n");
        let system = System {
            id: "ubuntu".into(),
            codename: "noble".into(),
        };
        let chosen = choose(&sources, &system).unwrap();
        assert_eq!(chosen.all.len(), 1);
        assert_eq!(chosen.all[0].components, ["main", "restricted", "universe"]);
    }

    #[test]
    fn a_machine_without_a_mirror_is_told() {
        let error = choose(&[], &debian()).unwrap_err().to_string();
        assert!(error.contains("No source of bookworm main"), "{error}");
    }
}
