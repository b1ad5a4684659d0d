//! Branches of x86 code made easier to compress: the operand of a call or jump is a distance, which differs for each
//! caller of a function; the place that it leads to is the same for all. A program in flash is a twentieth smaller so.
//!
//! Only the executable segment of an ELF program is changed, and every change can be undone without knowing more.

use core::ops::Range;

use crate::bytes::{le16, le32, le64};

/// `call rel32` and `jmp rel32`, the branches that lead far (Intel SDM volume 2, "CALL" and "JMP").
const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;
/// Bytes of one of these.
const LENGTH: usize = 5;

/// Header of an ELF file and of one of its segments (System V ABI, "ELF header" and "Program header"); 64 bit.
const MAGIC: u32 = u32::from_le_bytes(*b"\x7fELF");
/// 64 bit, little endian.
const CLASS: u16 = u16::from_le_bytes([2, 1]);
const SEGMENTS: usize = 0x20;
const SEGMENT_BYTES: usize = 0x36;
const SEGMENT_COUNT: usize = 0x38;
const LOAD: u32 = 1;
const EXECUTABLE: u32 = 1;

/// Where the code of an ELF program is in its file; `None` if `program` is none, or has no code.
pub fn code(program: &[u8]) -> Option<Range<usize>> {
    if (le32(program, 0)?, le16(program, 4)?) != (MAGIC, CLASS) {
        return None;
    }
    let table = usize::try_from(le64(program, SEGMENTS)?).ok()?;
    let bytes = usize::from(le16(program, SEGMENT_BYTES)?);
    for index in 0..usize::from(le16(program, SEGMENT_COUNT)?) {
        let segment = program.get(table.checked_add(index.checked_mul(bytes)?)?..)?;
        let flags = le32(segment, 4)?;
        if le32(segment, 0)? != LOAD || flags & EXECUTABLE == 0 {
            continue;
        }
        let start = usize::try_from(le64(segment, 8)?).ok()?;
        let end = start.checked_add(usize::try_from(le64(segment, 32)?).ok()?)?;
        return (end <= program.len()).then_some(start..end);
    }
    None
}

/// Makes places of distances.
pub fn apply(code: &mut [u8]) {
    walk(code, |at, size, distance| {
        if (-at..size - at).contains(&distance) {
            at + distance
        } else if (size - at..size).contains(&distance) {
            // Would be taken for a place: what leads nowhere takes the room that this leaves.
            distance - size
        } else {
            distance
        }
    });
}

/// Makes distances of places again.
pub fn undo(code: &mut [u8]) {
    walk(code, |at, size, place| {
        if (0..size).contains(&place) {
            place - at
        } else if (-at..0).contains(&place) {
            place + size
        } else {
            place
        }
    });
}

/// Changes the operand of each branch, given where it is and how much code there is. Operands are no branches themselves,
/// so both ways see the same ones.
fn walk(code: &mut [u8], change: impl Fn(i64, i64, i64) -> i64) {
    let Ok(size) = i32::try_from(code.len()) else {
        return;
    };
    let mut at = 0;
    while let Some(branch) = code
        .get_mut(at..)
        .and_then(<[u8]>::first_chunk_mut::<LENGTH>)
    {
        let [opcode, operand @ ..] = branch;
        if !matches!(*opcode, CALL | JUMP) {
            at += 1;
            continue;
        }
        let old = i64::from(i32::from_le_bytes(*operand));
        // The offset is smaller than `size`.
        let new = change(i64::try_from(at).unwrap_or(0), i64::from(size), old);
        if let Ok(new) = i32::try_from(new) {
            *operand = new.to_le_bytes();
        }
        at += LENGTH;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_calls_of_one_function_become_alike() {
        let mut code = [0x90; 40];
        for at in [3_u8, 20] {
            let place = usize::from(at);
            code[place] = CALL;
            code[place + 1..place + 5].copy_from_slice(&(30 - i32::from(at)).to_le_bytes());
        }
        let before = code;
        apply(&mut code);
        assert_eq!(code[4..8], code[21..25]);
        assert_eq!(code[4..8], 30_i32.to_le_bytes());
        undo(&mut code);
        assert_eq!(code, before);
    }

    #[test]
    fn code_of_this_very_test_is_found_and_comes_back() {
        let before = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let range = code(&before).unwrap();
        let mut program = before.clone();
        apply(&mut program[range.clone()]);
        assert!(program != before);
        // The headers are as they were: the code is found by who has nothing else.
        assert_eq!(code(&program), Some(range.clone()));
        undo(&mut program[range]);
        assert!(program == before);
    }

    #[test]
    fn what_is_no_program_has_no_code() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(code(b""), None);
        assert_eq!(code(b"\x7fELF\x02\x01"), None);
        assert_eq!(code(&program[..200]), None);
    }

    proptest! {
        #[test]
        fn every_change_is_undone(
            parts in prop::collection::vec(
                prop_oneof![
                    any::<u8>().prop_map(|byte| vec![byte]),
                    (prop_oneof![Just(CALL), Just(JUMP)], -80i32..80).prop_map(|(opcode, operand)| {
                        let mut branch = vec![opcode];
                        branch.extend(operand.to_le_bytes());
                        branch
                    }),
                    any::<i32>().prop_map(|operand| {
                        let mut branch = vec![CALL];
                        branch.extend(operand.to_le_bytes());
                        branch
                    }),
                ],
                0..30,
            )
        ) {
            let before: Vec<u8> = parts.concat();
            let mut code = before.clone();
            apply(&mut code);
            undo(&mut code);
            prop_assert_eq!(code, before);
        }

        #[test]
        fn any_header_is_read_without_a_panic(mut header in prop::collection::vec(any::<u8>(), 0..200)) {
            let start = b"\x7fELF\x02\x01";
            let len = header.len().min(start.len());
            header[..len].copy_from_slice(&start[..len]);
            if let Some(range) = code(&header) {
                prop_assert!(range.end <= header.len());
            }
        }
    }
}
