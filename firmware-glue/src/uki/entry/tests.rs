#![expect(
    unsafe_code,
    reason = "the assembler leaves its work between two symbols"
)]

use std::arch::global_asm;
use std::fmt::Write as _;
use std::ptr;

global_asm!(
    ".pushsection .rodata.uki_entry",
    include_str!("../entry.s"),
    ".popsection"
);

unsafe extern "C" {
    safe static uki_entry_begin: u8;
    safe static uki_entry_end: u8;
}

#[test]
fn the_bytes_are_what_the_source_makes() {
    let (begin, end) = (
        ptr::from_ref(&uki_entry_begin),
        ptr::from_ref(&uki_entry_end),
    );
    // SAFETY: both symbols are in one section, which this program has as read-only data.
    let assembled = unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) };
    let mut lines = String::new();
    for line in assembled.chunks(20) {
        let bytes: Vec<String> = line.iter().map(|byte| format!("{byte:#04x}")).collect();
        writeln!(lines, "    {},", bytes.join(", ")).unwrap();
    }
    assert!(super::CODE == assembled, "CODE must be\n{lines}");
}
