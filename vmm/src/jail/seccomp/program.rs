//! A filter's program: the compiler's own for each system call, behind a binary search for the call's number.
//!
//! The compiler's program for all calls compares one number after the other. The kernel goes through a filter for each
//! number there is when it installs it, and each of the VMM's threads installs one: that took 3 ms of a start.

use std::collections::BTreeMap;

use libc::{BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_RET};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Instructions with which the compiler's program begins: they check the architecture and load the call's number.
const PROLOGUE: usize = 4;

/// A program that answers calls in `rules` with `found` if a rule holds (or there is none for the call), and all others
/// with `missing`.
pub(super) fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    found: &SeccompAction,
    missing: &SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut program = BpfProgram::new();
    let mut calls = Vec::with_capacity(rules.len());
    for (number, chain) in rules {
        let is_plain = chain.is_empty();
        let one = SeccompFilter::new(
            BTreeMap::from([(number, chain)]),
            missing.clone(),
            found.clone(),
            TargetArch::x86_64,
        )?;
        let one = BpfProgram::try_from(one)?;
        if program.is_empty() {
            program.extend_from_slice(&one[..PROLOGUE]);
        }
        let answer = if is_plain {
            vec![ret(found)]
        } else {
            one[PROLOGUE..].to_vec()
        };
        calls.push((u32::try_from(number).unwrap_or(u32::MAX), answer));
    }
    program.extend(search(&calls, missing));
    Ok(program)
}

/// Finds the accumulator's number in `calls`, which are in order, and goes on with what belongs to it.
fn search(calls: &[(u32, BpfProgram)], missing: &SeccompAction) -> BpfProgram {
    match calls {
        [] => vec![ret(missing)],
        [(number, answer)] => {
            let mut program = vec![jump(BPF_JEQ, *number, 1), ret(missing)];
            program.extend_from_slice(answer);
            program
        }
        _ => {
            let (lower, upper) = calls.split_at(calls.len() / 2);
            let (first, _) = upper[0];
            let (lower, upper) = (search(lower, missing), search(upper, missing));
            // A conditional jump goes 255 instructions far, this one any way.
            let over = u32::try_from(lower.len()).unwrap_or(u32::MAX);
            let mut program = vec![jump(BPF_JGE, first, 0), instruction(BPF_JMP | BPF_JA, over)];
            program[0].jf = 1;
            program.extend(lower);
            program.extend(upper);
            program
        }
    }
}

/// If the comparison holds, skips `skip` instructions.
fn jump(comparison: u32, number: u32, skip: u8) -> sock_filter {
    sock_filter {
        jt: skip,
        ..instruction(BPF_JMP | comparison | BPF_K, number)
    }
}

fn ret(action: &SeccompAction) -> sock_filter {
    instruction(BPF_RET | BPF_K, action.clone().into())
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_LD, BPF_W};
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};

    use super::*;

    const ARCH_X86_64: u32 = 0xc000_003e;

    /// What the kernel would answer, and after how many instructions: those of classic BPF that the compiler uses.
    fn answer(program: &[sock_filter], data: &[u32; 16]) -> (u32, usize) {
        let (mut at, mut value) = (0, 0);
        for steps in 1..=program.len() {
            let sock_filter { code, jt, jf, k } = program[at];
            let code = u32::from(code);
            at += 1;
            let branch = |holds: bool| usize::from(if holds { jt } else { jf });
            match code {
                _ if code == BPF_LD | BPF_W | BPF_ABS => value = data[k as usize / 4],
                _ if code == BPF_ALU | BPF_AND | BPF_K => value &= k,
                _ if code == BPF_JMP | BPF_JA => at += k as usize,
                _ if code == BPF_JMP | BPF_JEQ | BPF_K => at += branch(value == k),
                _ if code == BPF_JMP | BPF_JGE | BPF_K => at += branch(value >= k),
                _ if code == BPF_RET | BPF_K => return (k, steps),
                _ => panic!("instruction {code:#x}"),
            }
        }
        panic!("no end");
    }

    fn rules() -> BTreeMap<i64, Vec<SeccompRule>> {
        let is = |index, value| {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap()
        };
        let masked = SeccompCmpOp::MaskedEq(0xff00);
        let masked = SeccompCondition::new(2, SeccompCmpArgLen::Dword, masked, 0xae00).unwrap();
        let rule = |conditions| SeccompRule::new(conditions).unwrap();
        let mut rules: BTreeMap<_, _> = (0..90).map(|number| (3 * number, Vec::new())).collect();
        rules.insert(16, vec![rule(vec![is(1, 5)]), rule(vec![masked])]);
        rules.insert(300, vec![rule(vec![is(0, 1), is(1, 2)])]);
        rules
    }

    #[test]
    fn the_answer_is_the_compilers_for_every_call_in_fewer_steps() {
        let (found, missing) = (SeccompAction::Allow, SeccompAction::Trap);
        let fast = compile(rules(), &found, &missing).unwrap();
        let whole = SeccompFilter::new(rules(), missing, found, TargetArch::x86_64).unwrap();
        let plain = BpfProgram::try_from(whole).unwrap();
        let mut longest = 0;
        for number in (0..500).chain([0x4000_0010, u32::MAX]) {
            for arguments in [
                [0, 0, 0],
                [1, 2, 0],
                [7, 5, 0],
                [0, 0, 0xae80],
                [1, 3, 0xad80],
            ] {
                let mut data = [0; 16];
                data[0] = number;
                data[1] = ARCH_X86_64;
                for (index, argument) in arguments.into_iter().enumerate() {
                    data[4 + 2 * index] = argument;
                }
                let (result, steps) = answer(&fast, &data);
                assert_eq!(result, answer(&plain, &data).0, "{number} {arguments:?}");
                longest = steps.max(longest);
            }
        }
        assert!(longest < 40, "{longest} steps");
    }

    #[test]
    fn another_architecture_is_none_of_it() {
        let program = compile(rules(), &SeccompAction::Allow, &SeccompAction::Trap).unwrap();
        let mut data = [0; 16];
        data[1] = 0x4000_0003;
        assert_eq!(answer(&program, &data).0, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
