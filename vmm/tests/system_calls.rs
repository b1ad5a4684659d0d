//! No filter permits a system call that no run makes: what the other tests' VMMs did, as a tracer saw it, against the
//! tables. `cargo xtask test` runs those tests under the tracer and then this one.
#[expect(dead_code, reason = "who starts a VMM needs the rest")]
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::slice;

use vmm::jail::seccomp::{Rule, ThreadKind, common_rules};

/// A call as the kernel got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    number: u64,
    arguments: [u64; 6],
}

/// One line of a trace: whose, and what.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    thread: u32,
    name: &'a str,
    call: Call,
}

/// Reads `27715<vcpu0> [  16] ioctl(0xe, 0xae80, 0) = 0`. Ends of calls that began before, and signals, are nothing.
fn line(text: &str) -> Option<Line<'_>> {
    let (thread, rest) = text.split_once('<')?;
    let (name, rest) = rest.split_once("> [")?;
    let (number, rest) = rest.split_once("] ")?;
    if rest.starts_with("<...") {
        return None;
    }
    let (_, rest) = rest.split_once('(')?;
    let end = rest.find([')', '<']).unwrap_or(rest.len());
    let mut arguments = [0; 6];
    for (place, word) in arguments.iter_mut().zip(rest[..end].split(',')) {
        let word = word.trim();
        *place = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok()?,
            None if word.is_empty() => 0,
            None => word.parse().ok()?,
        };
    }
    let number = number.trim().parse().ok()?;
    Some(Line {
        thread: thread.trim().parse().ok()?,
        name,
        call: Call { number, arguments },
    })
}

/// What kind of thread calls itself so, once it has a filter of its own.
fn kind_of(name: &str) -> Option<ThreadKind> {
    let kinds = [
        ("vcpu", ThreadKind::Vcpu),
        ("api", ThreadKind::Api),
        ("device", ThreadKind::Device),
        ("vhost", ThreadKind::Device),
        ("output", ThreadKind::Device),
        ("hotplug", ThreadKind::Hotplug),
        ("opener", ThreadKind::Hotplug),
    ];
    let found = kinds.iter().find(|(start, _)| name.starts_with(start))?;
    // The VMM itself is called daruma-vmm.
    Some(found.1)
}

/// Which kinds made which calls in one trace.
fn calls(trace: &str) -> BTreeSet<(ThreadKind, Call)> {
    let is_filter = |call: &Call| call.number == libc::SYS_seccomp.cast_unsigned();
    let mut filters = BTreeMap::<u32, u32>::new();
    for line in trace.lines().filter_map(line) {
        *filters.entry(line.thread).or_default() += u32::from(is_filter(&line.call));
    }
    // A run without filters shows nothing of what they are for.
    let filtered = filters.values().any(|count| *count >= 2);
    // A new thread has its parent's filter, and a trace does not say who that is.
    let plugs = trace
        .lines()
        .filter_map(line)
        .any(|line| kind_of(line.name) == Some(ThreadKind::Hotplug));
    let parents: &[ThreadKind] = if plugs {
        &[ThreadKind::Process, ThreadKind::Hotplug]
    } else {
        &[ThreadKind::Process]
    };
    let mut entered = BTreeMap::<u32, u32>::new();
    let mut made = BTreeSet::new();
    for line in trace.lines().filter_map(line).filter(|_| filtered) {
        let count = entered.entry(line.thread).or_default();
        let own = kind_of(line.name);
        let kinds = match (own.as_ref(), *count) {
            (Some(own), 1..) => slice::from_ref(own),
            (Some(_), 0) => parents,
            // The main thread enters two filters at once, and a third when the guest runs. The keeper has one.
            (None, 0) => &[],
            (None, 1) if filters[&line.thread] == 1 => &[ThreadKind::Keeper],
            (None, 1 | 2) => &[ThreadKind::Process],
            (None, _) => &[ThreadKind::Event],
        };
        made.extend(kinds.iter().map(|kind| (*kind, line.call)));
        *count += u32::from(is_filter(&line.call));
    }
    made
}

#[test]
#[ignore = "needs traces of the other tests: `cargo xtask test` makes them"]
fn every_rule_is_needed_by_some_run() {
    let folder = PathBuf::from(std::env::var_os(trace::FOLDER).expect(trace::FOLDER));
    let mut made = BTreeSet::new();
    let mut traces = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let text = fs::read(entry.unwrap().path()).unwrap();
        made.append(&mut calls(&String::from_utf8_lossy(&text)));
        traces += 1;
    }
    let permits = |rule: &Rule, call: &Call| rule.permits(call.number, call.arguments);
    let by_kind = |kind: ThreadKind| {
        let made = &made;
        move |rule: &Rule| {
            made.iter()
                .any(|(who, call)| *who == kind && permits(rule, call))
        }
    };
    let by_any = |rule: &Rule| made.iter().any(|(_, call)| permits(rule, call));
    let mut wrong = Vec::new();
    let mut rules = 0;
    let mut check = |whose: &str, table: &[Rule], is_made: &dyn Fn(&Rule) -> bool| {
        for rule in table {
            rules += 1;
            if !is_made(rule) && rule.rare.is_none() {
                wrong.push(format!("{whose}: nobody made {rule}"));
            }
        }
    };
    check("all", common_rules(), &by_any);
    for kind in ThreadKind::ALL {
        check(kind.name(), kind.own_rules(), &by_kind(kind));
    }
    println!(
        "counted: {traces} runs of the VMM traced, {rules} rules of its filters held against them"
    );
    assert!(wrong.is_empty(), "{traces} traces:\n{}", wrong.join("\n"));
}

#[test]
fn a_line_is_a_threads_call() {
    let found = line("27715<vcpu0> [  16] ioctl(0xe, 0xae80, 0) = 0").unwrap();
    let call = Call {
        number: 16,
        arguments: [14, 0xae80, 0, 0, 0, 0],
    };
    assert_eq!(
        found,
        Line {
            thread: 27715,
            name: "vcpu0",
            call
        }
    );
    assert_eq!(line("1<a> [ 317] <... seccomp resumed>) = 0"), None);
    let cut = line("1<a> [ 202] futex(0x7f, 0x80 <unfinished ...>").unwrap();
    assert_eq!(cut.call.arguments[..2], [0x7f, 0x80]);
    assert_eq!(
        line("1<a> [ 231] exit_group(0)  = ?").unwrap().call.number,
        231
    );
}

#[test]
fn a_thread_is_of_its_kind_from_its_filter_on() {
    let trace = "\
        5<daruma-vmm> [ 1] write(0x1, 0, 0) = 0\n\
        6<daruma-vmm> [ 317] seccomp(0x1, 0, 0) = 0\n\
        6<daruma-vmm> [ 317] seccomp(0x1, 0, 0) = 0\n\
        6<daruma-vmm> [ 2] open(0) = 3\n\
        7<vcpu0> [ 273] set_robust_list(0) = 0\n\
        7<vcpu0> [ 317] seccomp(0x1, 0, 0) = 0\n\
        7<vcpu0> [ 16] ioctl(0) = 0\n\
        6<daruma-vmm> [ 317] seccomp(0x1, 0, 0) = 0\n\
        6<daruma-vmm> [ 232] epoll_wait(0) = 0\n\
        5<daruma-vmm> [ 317] seccomp(0x1, 0, 0) = 0\n\
        5<daruma-vmm> [ 61] wait4(0) = 6\n";
    let made: Vec<_> = calls(trace)
        .into_iter()
        .map(|(kind, call)| (kind, call.number))
        .collect();
    for expected in [
        (ThreadKind::Process, 2),
        (ThreadKind::Process, 273),
        (ThreadKind::Vcpu, 16),
        (ThreadKind::Event, 232),
        (ThreadKind::Keeper, 61),
    ] {
        assert!(made.contains(&expected), "{expected:?} in {made:?}");
    }
    assert!(!made.iter().any(|(_, number)| *number == 1), "{made:?}");
}
