//! The C library's allocator, which must not make system calls that no filter permits.
#![expect(unsafe_code, reason = "one call of the C library's")]

/// Keeps the allocator to its one main arena. For each of the others, which it makes for threads, it opens files: below
/// `/sys`, to see how many there may be, and below `/proc`, before it first gives memory back, on whatever thread that
/// happens. Before there is another thread.
pub(super) fn keep_to_one_arena() {
    // SAFETY: it sets a number of the allocator's, under the allocator's own lock; there is no other thread yet.
    let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    debug_assert_eq!(done, 1, "a parameter of every version of the library");
}
