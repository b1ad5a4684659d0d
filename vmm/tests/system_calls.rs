//! No filter permits a system call that no run makes: what the other tests' VMMs did, as a tracer saw it, against the
//! tables. `cargo xtask test` runs those tests under the tracer and then this one.
#[expect(dead_code, reason = "who starts a VMM needs the rest")]
mod trace;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::slice;

use vmm::jail::seccomp::{Rule, ThreadKind, common_rules};

/// A call as the kernel got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        ("live", ThreadKind::Live),
        ("memory", ThreadKind::Memory),
    ];
    let found = kinds.iter().find(|(start, _)| name.starts_with(start))?;
    // The VMM itself is called daruma-vmm.
    Some(found.1)
}

/// Whether a line is about a filter that a thread enters.
fn is_filter(call: &Call) -> bool {
    call.number == libc::SYS_seccomp.cast_unsigned()
}

/// Says of each call in `trace` which kinds of threads may have made it.
fn calls(trace: &str, mut made: impl FnMut(ThreadKind, Call)) {
    let mut filters = BTreeMap::<u32, u32>::new();
    let mut plugs = false;
    for line in trace
        .lines()
        .filter(|line| line.contains("seccomp("))
        .filter_map(line)
    {
        *filters.entry(line.thread).or_default() += u32::from(is_filter(&line.call));
        plugs |= kind_of(line.name) == Some(ThreadKind::Hotplug);
    }
    // A run without filters shows nothing of what they are for.
    if !filters.values().any(|count| *count >= 2) {
        return;
    }
    // A new thread has its parent's filter, and a trace does not say who that is.
    let parents: &[ThreadKind] = if plugs {
        &[ThreadKind::Process, ThreadKind::Hotplug]
    } else {
        &[ThreadKind::Process]
    };
    let mut entered = BTreeMap::<u32, u32>::new();
    for line in trace.lines().filter_map(line) {
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
        for kind in kinds {
            made(*kind, line.call);
        }
        *count += u32::from(is_filter(&line.call));
    }
}

/// A rule that waits for a call, of threads of this kind or of any.
type Waiting = (Option<ThreadKind>, &'static Rule);

#[test]
#[ignore = "needs traces of the other tests: `cargo xtask test` makes them"]
fn every_rule_is_needed_by_some_run() {
    let folder = PathBuf::from(std::env::var_os(trace::FOLDER).expect(trace::FOLDER));
    let common = common_rules().iter().map(|rule| (None, rule));
    let own = |kind: ThreadKind| kind.own_rules().iter().map(move |rule| (Some(kind), rule));
    let own = ThreadKind::ALL.into_iter().flat_map(own);
    let mut waiting: Vec<Waiting> = common.chain(own).collect();
    let (rules, mut traces) = (waiting.len(), 0);
    for entry in fs::read_dir(&folder).unwrap() {
        let text = fs::read(entry.unwrap().path()).unwrap();
        calls(&String::from_utf8_lossy(&text), |kind, call| {
            waiting.retain(|(whose, rule)| {
                whose.is_some_and(|whose| whose != kind)
                    || !rule.permits(call.number, call.arguments)
            });
        });
        traces += 1;
    }
    println!("counted: {rules} rules of filters against {traces} runs of the VMM");
    waiting.retain(|(_, rule)| rule.rare.is_none());
    let wrong: Vec<_> = waiting
        .iter()
        .map(|(whose, rule)| format!("{}: {rule}", whose.map_or("all", ThreadKind::name)))
        .collect();
    assert!(
        wrong.is_empty(),
        "Nobody made, in {traces} traces:\n{}",
        wrong.join("\n")
    );
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
    let mut made = Vec::new();
    calls(trace, |kind, call| made.push((kind, call.number)));
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
