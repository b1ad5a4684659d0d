//! Reads what `cargo test` prints.

/// What one or more test programs reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
    /// Names of the tests that passed.
    pub names: Vec<String>,
    /// Names of the tests that failed.
    pub failures: Vec<String>,
    /// What exhaustive tests say they have gone through.
    pub counted: Vec<String>,
}

impl Tally {
    /// Tests that had failed were run again.
    pub fn again(&mut self, again: Self) {
        self.failures.retain(|name| !again.names.contains(name));
        self.failed -= again.passed;
        self.passed += again.passed;
        self.names.extend(again.names);
        self.counted.extend(again.counted);
    }

    /// Takes a line of libtest's output; other lines change nothing.
    pub fn line(&mut self, line: &str) {
        // It comes while other tests run: what libtest has begun to print may stand before it.
        if let Some((_, what)) = line.split_once("counted: ") {
            self.counted.push(what.to_owned());
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let (_, counts) = rest.split_once(". ").unwrap_or_default();
            for count in counts.split("; ") {
                let Some((number, what)) = count.split_once(' ') else {
                    continue;
                };
                let Ok(number) = number.parse::<usize>() else {
                    continue;
                };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        } else if let Some(rest) = line.strip_prefix("test ") {
            match rest.rsplit_once(" ... ") {
                Some((name, "ok")) => self.names.push(name.to_owned()),
                Some((name, "FAILED")) => self.failures.push(name.to_owned()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut tally = Tally::default();
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/x)",
            "running 3 tests",
            "test a::b ... ok",
            "test c - should panic ... ok",
            "test d ... FAILED",
            "test e ... ignored, needs a screen",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test x ... counted: 12 accesses on PCI",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 3.20s",
        ] {
            tally.line(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.ignored), (7, 1, 1));
        assert_eq!(tally.names, ["a::b", "c - should panic"]);
        assert_eq!(tally.failures, ["d"]);
        assert_eq!(tally.counted, ["12 accesses on PCI"]);
    }

    #[test]
    fn what_passes_when_it_is_run_again_has_passed() {
        let run = |lines: &[&str]| {
            let mut tally = Tally::default();
            lines.iter().for_each(|line| tally.line(line));
            tally
        };
        let mut tally = run(&[
            "test a ... ok",
            "test b ... FAILED",
            "test c ... FAILED",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured",
        ]);
        tally.again(run(&[
            "test b ... FAILED",
            "test c ... ok",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured",
        ]));
        assert_eq!((tally.passed, tally.failed), (2, 1));
        assert_eq!(tally.names, ["a", "c"]);
        assert_eq!(tally.failures, ["b"]);
    }

    #[test]
    fn a_line_that_only_looks_like_a_result_counts_nothing() {
        let mut tally = Tally::default();
        for line in [
            "test result: nonsense",
            "test result: ok. x passed; 1",
            "test",
            " test a ... ok",
        ] {
            tally.line(line);
        }
        assert_eq!(tally, Tally::default());
    }
}
