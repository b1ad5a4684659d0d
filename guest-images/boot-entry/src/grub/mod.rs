//! `grub.cfg`: what GRUB would boot without a key pressed (GRUB manual 2.12).
//!
//! The script is run as far as it decides that: variables, conditions, menus, the search for a file system. Loops,
//! functions, graphics and modules are left out; nothing is written back to the environment block.

mod syntax;

use std::collections::HashMap;

use self::syntax::{Piece, Statement, Word};
use super::entry::{Entry, Place, absolute};

/// Size of the environment block, which starts with this line.
const ENVIRONMENT_MAGIC: &str = "# GRUB Environment Block";
/// Variables that are kept, and bytes of each.
const MAX_VARIABLES: usize = 1000;
const MAX_VALUE: usize = 4096;
/// Menu entries that are looked at.
const MAX_ENTRIES: usize = 1000;

/// What GRUB itself sets and generators ask for.
const FEATURES: [&str; 8] = [
    "feature_200_final",
    "feature_all_video_module",
    "feature_chainloader_bpb",
    "feature_default_font_path",
    "feature_menuentry_id",
    "feature_menuentry_options",
    "feature_platform_search_hint",
    "feature_timeout_style",
];

/// The variables in an environment block.
pub fn environment(text: &str) -> HashMap<String, String> {
    if !text.starts_with(ENVIRONMENT_MAGIC) {
        return HashMap::new();
    }
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .take(MAX_VARIABLES)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The entry that the script in `folder` boots by default. `saved` is what `load_env` finds.
pub fn parse(text: &str, folder: &str, saved: HashMap<String, String>) -> Option<Entry> {
    let script = syntax::parse(text);
    let mut shell = Shell::new(folder, saved);
    let mut menu = Vec::new();
    shell.run(&script, &mut menu);
    let default = shell.variables.get("default").cloned().unwrap_or_default();
    let entry = select(&menu, &default)?;
    shell.run(entry.block, &mut Vec::new());
    let boot = shell.boot;
    Some(Entry {
        kernel: boot.kernel?,
        initrds: boot.initrds,
        options: boot.options,
        place: boot.place,
    })
}

/// An item of the menu.
struct Item<'s> {
    title: String,
    id: Option<String>,
    block: &'s [Statement],
    /// Entries of a submenu.
    items: Option<Vec<Item<'s>>>,
}

/// The item that `default` names: by number, title or id, `>` between a submenu and its entry. The first one if there is
/// no such item, as in GRUB; the first bootable one of a submenu.
fn select<'a, 's>(menu: &'a [Item<'s>], default: &str) -> Option<&'a Item<'s>> {
    let (first, rest) = default.split_once('>').unwrap_or((default, ""));
    let numbered = || {
        first
            .trim()
            .parse::<usize>()
            .ok()
            .and_then(|index| menu.get(index))
    };
    let named = || {
        menu.iter()
            .find(|item| item.title == default || item.id.as_deref() == Some(default))
            .or_else(|| {
                menu.iter()
                    .find(|item| item.title == first || item.id.as_deref() == Some(first))
            })
    };
    let chosen = named().or_else(numbered).or_else(|| menu.first())?;
    match &chosen.items {
        Some(items) => select(items, rest),
        None => Some(chosen),
    }
}

/// What the chosen entry asked for.
struct Boot {
    kernel: Option<String>,
    options: String,
    initrds: Vec<String>,
    place: Place,
}

struct Shell {
    variables: HashMap<String, String>,
    saved: HashMap<String, String>,
    /// Where `search --set=root` found its file system last.
    root: Place,
    boot: Boot,
}

impl Shell {
    fn new(folder: &str, saved: HashMap<String, String>) -> Self {
        let mut variables: HashMap<String, String> = FEATURES
            .iter()
            .map(|name| ((*name).to_owned(), "y".to_owned()))
            .collect();
        for (name, value) in [
            ("prefix", folder),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
            ("root", ""),
        ] {
            variables.insert(name.to_owned(), value.to_owned());
        }
        Self {
            variables,
            saved,
            root: Place::Same,
            boot: Boot {
                kernel: None,
                options: String::new(),
                initrds: Vec::new(),
                place: Place::Same,
            },
        }
    }

    fn run<'s>(&mut self, block: &'s [Statement], menu: &mut Vec<Item<'s>>) {
        for statement in block {
            match statement {
                Statement::Command(words) => drop(self.command(words)),
                Statement::If(branches) => {
                    let chosen = branches
                        .iter()
                        .position(|(condition, _)| condition.is_empty() || self.holds(condition));
                    if let Some((_, body)) = chosen.and_then(|index| branches.get(index)) {
                        self.run(body, menu);
                    }
                }
                Statement::Menu {
                    is_submenu,
                    words,
                    block,
                } if menu.len() < MAX_ENTRIES => {
                    let words = self.expand_all(words);
                    let items = is_submenu.then(|| {
                        let mut items = Vec::new();
                        // A submenu's variables are its own in GRUB; generators set none that matter outside.
                        self.run(block, &mut items);
                        items
                    });
                    menu.push(Item {
                        title: words.first().cloned().unwrap_or_default(),
                        id: id(&words),
                        block,
                        items,
                    });
                }
                Statement::Menu { .. } => {}
            }
        }
    }

    /// Whether the last command of a condition succeeds.
    fn holds(&mut self, condition: &[Statement]) -> bool {
        condition
            .iter()
            .fold(false, |_, statement| match statement {
                Statement::Command(words) => self.command(words),
                _ => false,
            })
    }

    /// Runs one command; whether it succeeded.
    fn command(&mut self, words: &[Word]) -> bool {
        let words = self.expand_all(words);
        let Some((name, arguments)) = words.split_first() else {
            return false;
        };
        match name.as_str() {
            "set" => {
                let assignment = arguments.first().and_then(|word| word.split_once('='));
                if let Some((name, value)) = assignment {
                    self.set(name, value);
                }
                true
            }
            "unset" => {
                for name in arguments {
                    self.variables.remove(name);
                }
                true
            }
            "[" | "test" => self.test(arguments),
            "load_env" => {
                for (name, value) in self.saved.clone() {
                    // An entry for one boot only would have to be taken back after it.
                    if name != "next_entry" {
                        self.set(&name, &value);
                    }
                }
                true
            }
            "search" | "search.fs_uuid" | "search.fs_label" => {
                self.search(name, arguments);
                true
            }
            "linux" | "linux16" | "linuxefi" => {
                if let Some((kernel, options)) = arguments.split_first() {
                    let (place, path) = self.locate(kernel);
                    self.boot.place = place;
                    self.boot.kernel = Some(path);
                    self.boot.options = options.join(" ");
                }
                true
            }
            "initrd" | "initrd16" | "initrdefi" => {
                self.boot.initrds = arguments.iter().map(|path| self.locate(path).1).collect();
                true
            }
            "true" | "insmod" | "export" => true,
            // `name=value` without `set`.
            word => match word.split_once('=') {
                Some((name, value)) => {
                    let (name, value) = (name.to_owned(), value.to_owned());
                    self.set(&name, &value);
                    true
                }
                None => false,
            },
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        if value.len() > MAX_VALUE
            || (self.variables.len() >= MAX_VARIABLES && !self.variables.contains_key(name))
        {
            return;
        }
        if name == "root" {
            self.root = device(value);
        }
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    fn search(&mut self, name: &str, arguments: &[String]) {
        let mut by_label = name.ends_with("label");
        let mut sets_root = name.contains('.');
        let mut wanted = None;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--label" | "-l" => by_label = true,
                "--fs-uuid" | "-u" => by_label = false,
                "--file" | "-f" => return,
                "--set" | "-s" => {
                    // `--set VARIABLE` as well as `--set` alone.
                    sets_root = true;
                    if words.as_slice().first().is_some_and(|next| next == "root") {
                        words.next();
                    }
                }
                "--set=root" => sets_root = true,
                "--hint" => drop(words.next()),
                option if option.starts_with('-') => {}
                name => wanted = wanted.or(Some(name)),
            }
        }
        if let Some(wanted) = wanted.filter(|_| sets_root) {
            self.root = if by_label {
                Place::Label(wanted.to_owned())
            } else {
                Place::Uuid(wanted.to_ascii_lowercase())
            };
        }
    }

    /// A path with or without its device: `/vmlinuz`, `(hd0,gpt1)/vmlinuz`, `($root)/vmlinuz`.
    fn locate(&self, path: &str) -> (Place, String) {
        match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            // `($root)` after a search: the variable itself is not known here, what it stands for is.
            Some(("", path)) => (self.root.clone(), absolute("/", path)),
            Some((name, path)) if self.variables.get("root").map(String::as_str) != Some(name) => {
                (device(name), absolute("/", path))
            }
            Some((_, path)) => (self.root.clone(), absolute("/", path)),
            None => (self.root.clone(), absolute("/", path)),
        }
    }

    /// `[ … ]`, without its bracket at the end.
    fn test(&self, arguments: &[String]) -> bool {
        let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if words.last() == Some(&"]") {
            words.pop();
        }
        // `-a` binds closer than `-o`.
        words.split(|word| *word == "-o").any(|all| {
            all.split(|word| *word == "-a").all(|test| {
                let (wanted, test) = match test {
                    ["!", rest @ ..] => (false, rest),
                    rest => (true, rest),
                };
                self.primary(test) == wanted
            })
        })
    }

    fn primary(&self, test: &[&str]) -> bool {
        let number = |text: &str| text.parse::<i64>().unwrap_or(0);
        match test {
            [text] | ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            // The environment block is the only file that is asked for and matters.
            ["-s" | "-f" | "-e", path] => path.ends_with("/grubenv") && !self.saved.is_empty(),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-gt", b] => number(a) > number(b),
            [a, "-le", b] => number(a) <= number(b),
            [a, "-ge", b] => number(a) >= number(b),
            _ => false,
        }
    }

    fn expand_all(&self, words: &[Word]) -> Vec<String> {
        let value = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Variable(name) => self.variables.get(name).cloned().unwrap_or_default(),
        };
        let expand = |word: &Word| word.iter().map(value).collect::<String>();
        words
            .iter()
            .map(|word| (word, expand(word)))
            // A variable without a value, outside of quotes, is no argument.
            .filter(|(word, text)| {
                !text.is_empty() || word.iter().any(|piece| matches!(piece, Piece::Text(_)))
            })
            .map(|(_, text)| text)
            .collect()
    }
}

/// `--id NAME`, or `$menuentry_id_option NAME`, which generators set to it.
fn id(words: &[String]) -> Option<String> {
    words
        .iter()
        .enumerate()
        .find_map(|(index, word)| match word.as_str() {
            "--id" => words.get(index + 1).cloned(),
            word => word.strip_prefix("--id=").map(str::to_owned),
        })
}

/// `hd0,gpt2`, `hd0,msdos1`: the partition's number; the disk is ours in any case.
fn device(name: &str) -> Place {
    let partition = name.rsplit_once(',').map_or("", |(_, partition)| partition);
    let digits = partition.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    digits.parse().map_or(Place::Same, Place::Partition)
}

#[cfg(test)]
mod tests;
