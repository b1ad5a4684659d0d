//! The first process of the host. The host's program lies in the initramfs with its code by [`branches`], which makes it
//! compress better; this undoes that, in place, and becomes the program: process 1, as the kernel started it.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "system calls, the entry, and the compiler's memory functions: there is no library below this program"
)]

use core::arch::{asm, global_asm};
use core::ffi::CStr;
use core::panic::PanicInfo;
use core::slice;

use firmware_glue::branches;

const PROGRAM: &CStr = c"/daruma";

/// Numbers of system calls, and arguments (Linux, x86-64).
const WRITE: usize = 1;
const OPEN: usize = 2;
const CLOSE: usize = 3;
const LSEEK: usize = 8;
const MMAP: usize = 9;
const MUNMAP: usize = 11;
const EXECVE: usize = 59;
const EXIT: usize = 60;
const READ_WRITE: usize = 2;
const TO_END: usize = 2;
const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;

// The kernel's stack: argc, argv, 0, envp, 0.
global_asm!(
    ".globl _start",
    "_start:",
    "mov rdi, rsp",
    "and rsp, -16",
    "call start",
    "ud2",
);

#[unsafe(no_mangle)]
extern "C" fn start(stack: *const usize) -> ! {
    restore();
    // SAFETY: the kernel has put argc there, argv with a zero behind it, and then envp.
    let (arguments, environment) = unsafe {
        let arguments = stack.add(1);
        (arguments, arguments.add(*stack + 1))
    };
    // SAFETY: a C string and two arrays of C strings, each with a zero at its end.
    unsafe {
        call(
            EXECVE,
            [
                PROGRAM.as_ptr().addr(),
                arguments.addr(),
                environment.addr(),
                0,
                0,
                0,
            ],
        );
    }
    fail(b"starter: /daruma cannot be executed\n")
}

/// Undoes [`branches`] in the program's file.
fn restore() {
    // SAFETY: a C string and numbers.
    let file = unsafe { call(OPEN, [PROGRAM.as_ptr().addr(), READ_WRITE, 0, 0, 0, 0]) };
    // SAFETY: numbers.
    let len = unsafe { call(LSEEK, [file, 0, TO_END, 0, 0, 0]) };
    // SAFETY: new memory, wherever there is room.
    let memory = unsafe { call(MMAP, [0, len, PROT_READ_WRITE, MAP_SHARED, file, 0]) };
    // The last page of the address space is what the kernel's errors look like.
    if len == 0 || len > isize::MAX.unsigned_abs() || memory > usize::MAX - 4096 {
        fail(b"starter: /daruma cannot be read\n");
    }
    let memory = core::ptr::with_exposed_provenance_mut::<u8>(memory);
    // SAFETY: `len` bytes of the mapping, which nobody else has.
    let program = unsafe { slice::from_raw_parts_mut(memory, len) };
    if let Some(code) = branches::code(program).and_then(|code| program.get_mut(code)) {
        branches::undo(code);
    }
    // A file that somebody may write to is not executed.
    // SAFETY: numbers; `program` is not used any more.
    unsafe {
        call(MUNMAP, [memory.addr(), len, 0, 0, 0, 0]);
        call(CLOSE, [file, 0, 0, 0, 0, 0]);
    }
}

/// Ends process 1, with the reason: the kernel says the rest.
fn fail(reason: &[u8]) -> ! {
    // SAFETY: the bytes are there.
    unsafe { call(WRITE, [2, reason.as_ptr().addr(), reason.len(), 0, 0, 0]) };
    loop {
        // SAFETY: a number.
        unsafe { call(EXIT, [1, 0, 0, 0, 0, 0]) };
    }
}

/// # Safety
/// As the system call says.
unsafe fn call(number: usize, arguments: [usize; 6]) -> usize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the caller's promise; the kernel changes rax, rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    fail(b"starter: this program is wrong\n")
}
