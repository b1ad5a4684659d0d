//! One line of a filter's table: a system call, what its arguments may be, and why a thread makes it.

use std::collections::BTreeMap;
use std::fmt;

use libc::c_long;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule as CompiledRule};

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name with `SYS_` in front.
    name: &'static str,
    /// Its number on x86-64.
    pub number: c_long,
    /// What its arguments must be, all of them. None: anything.
    pub when: &'static [Argument],
    /// What it is needed for.
    pub why: &'static str,
    /// Why no test makes this call, if none does.
    pub rare: Option<&'static str>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:x?} ({})", self.name(), self.when, self.why)
    }
}

impl Rule {
    /// Its name, as in its manual page.
    pub fn name(&self) -> &'static str {
        self.name.trim_start_matches("SYS_")
    }

    /// The call `name` with any arguments.
    pub const fn new(name: &'static str, number: c_long, why: &'static str) -> Self {
        Self {
            name,
            number,
            when: &[],
            why,
            rare: None,
        }
    }

    /// Only if all of these hold.
    pub const fn when(self, when: &'static [Argument]) -> Self {
        Self { when, ..self }
    }

    /// No test makes it, because of `reason`.
    pub const fn rare(self, reason: &'static str) -> Self {
        Self {
            rare: Some(reason),
            ..self
        }
    }

    /// Whether a call with these arguments is permitted by this rule.
    pub fn permits(&self, number: u64, arguments: [u64; 6]) -> bool {
        c_long::try_from(number) == Ok(self.number)
            && self
                .when
                .iter()
                .all(|argument| argument.holds(arguments[usize::from(argument.index)]))
    }
}

/// A rule for a system call by the name of its number: `call!(SYS_read, "why")`.
macro_rules! call {
    ($number:ident, $why:literal) => {
        $crate::jail::seccomp::rule::Rule::new(stringify!($number), libc::$number, $why)
    };
}
pub(super) use call;

/// What one argument must be. The lower 32 bits count: all that are looked at are an `int` of the kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    index: u8,
    test: Test,
}

#[derive(Clone, Copy, Debug)]
enum Test {
    /// These bits have this value.
    Bits {
        mask: u32,
        value: u32,
    },
    OwnPid,
}

/// Argument `index` is `value`.
pub const fn is(index: u8, value: u32) -> Argument {
    bits(index, u32::MAX, value)
}

/// Argument `index` has none of `mask`.
pub const fn without(index: u8, mask: u32) -> Argument {
    bits(index, mask, 0)
}

/// Argument `index` has all of `mask`.
pub const fn with(index: u8, mask: u32) -> Argument {
    bits(index, mask, mask)
}

/// Of argument `index`, the bits `mask` are `value`.
pub const fn bits(index: u8, mask: u32, value: u32) -> Argument {
    Argument {
        index,
        test: Test::Bits { mask, value },
    }
}

/// Argument `index` is the number of this process.
pub const fn own_pid(index: u8) -> Argument {
    Argument {
        index,
        test: Test::OwnPid,
    }
}

impl Argument {
    fn holds(&self, value: u64) -> bool {
        let value = u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
        match self.test {
            Test::Bits {
                mask,
                value: wanted,
            } => value & mask == wanted,
            // Who checks from outside sees other numbers than the process itself.
            Test::OwnPid => true,
        }
    }

    fn compile(&self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let (operator, value) = match self.test {
            Test::Bits {
                mask: u32::MAX,
                value,
            } => (SeccompCmpOp::Eq, value),
            Test::Bits { mask, value } => (SeccompCmpOp::MaskedEq(mask.into()), value),
            Test::OwnPid => (SeccompCmpOp::Eq, std::process::id()),
        };
        SeccompCondition::new(self.index, SeccompCmpArgLen::Dword, operator, value.into())
    }
}

/// All of `rules` as the compiler takes them.
pub fn compile(
    rules: impl IntoIterator<Item = Rule>,
) -> Result<BTreeMap<i64, Vec<CompiledRule>>, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, Option<Vec<CompiledRule>>> = BTreeMap::new();
    for rule in rules {
        let chains = calls.entry(rule.number).or_insert_with(|| Some(Vec::new()));
        if rule.when.is_empty() {
            // Whatever the other lines say: any arguments.
            *chains = None;
        } else if let Some(chains) = chains {
            let conditions = rule.when.iter().map(Argument::compile);
            let chain = CompiledRule::new(conditions.collect::<Result<_, _>>()?)?;
            // Several kinds of threads have it; the kernel goes through a filter for each call there is when it installs it.
            if !chains.contains(&chain) {
                chains.push(chain);
            }
        }
    }
    Ok(calls
        .into_iter()
        .map(|(number, chains)| (number, chains.unwrap_or_default()))
        .collect())
}
