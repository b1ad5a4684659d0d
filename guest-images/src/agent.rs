//! The agent: a static program that tells the host from inside how a guest is, for guests of any kind.
//!
//! The program is the crate in `guest-images/agent`; the recipes put it into their images.

/// Its name, as a file.
pub const NAME: &str = "daruma-agent";
/// Name of the file that systemd starts it by.
pub const UNIT_NAME: &str = "daruma-agent.service";
/// What is in that file.
pub const UNIT: &str = include_str!("../agent/daruma-agent.service");
/// Where it is in an image, with merged folders of programs.
pub(crate) const PLACE: &str = "usr/sbin/daruma-agent";

/// What decides the program, besides the compiler: its bytes differ from one folder that it is built in to the next.
pub const SOURCES: [&str; 9] = [
    include_str!("../agent/Cargo.toml"),
    include_str!("../agent/src/main.rs"),
    include_str!("../agent/src/check.rs"),
    include_str!("../agent/src/host.rs"),
    include_str!("../agent/src/stolen.rs"),
    include_str!("../agent/src/system.rs"),
    include_str!("../agent/src/witness.rs"),
    include_str!("../agent/src/words.rs"),
    UNIT,
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_source_of_the_program_is_among_those_that_decide_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/src");
        for entry in fs::read_dir(folder).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(SOURCES.contains(&text.as_str()));
        }
    }

    #[test]
    fn the_unit_starts_the_program_where_it_is() {
        assert!(UNIT.contains(&format!("ExecStart=/{PLACE}\n")));
        assert!(PLACE.ends_with(NAME));
    }
}
