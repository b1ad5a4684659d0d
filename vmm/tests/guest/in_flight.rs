//! A guest that writes to its memory and to its disk all the time, several requests at once, and can tell whether the two
//! are of one instant.

use super::{Code, QUEUE_SIZE};

const TABLE: u32 = 0x18_0000;
const AVAILABLE: u32 = 0x18_1000;
const USED: u32 = 0x18_1800;
const HEADERS: u32 = 0x18_2000;
/// One byte for each request that is under way.
const STATUS: u32 = 0x18_2100;
const STATUS_OF_READ: u32 = STATUS + SLOTS;
const DATA: u32 = 0x18_3000;
const NONCE: u32 = 0x18_4000;
const COUNT: u32 = 0x18_4004;
/// Pages that are written to, one after the other.
const REGION: u32 = 0x20_0000;
const PAGES: u32 = 128;
/// What was read from the disk.
const BUFFER: u32 = 0x30_0000;
/// Writes that are under way at once.
const SLOTS: u32 = 4;
/// Sectors that are written to, one after the other.
const SECTORS: u32 = 1024;
/// Sectors that are read at once.
const READ: u32 = 128;
/// Where the code of the other processors is, and what they count.
const OTHERS: u32 = 0x1_0000;
const HANDLER: u32 = 0x80;
const FIRST_COUNT: u32 = 0x1_1000;
const SECOND_COUNT: u32 = 0x1_1004;
const ICR: u32 = 0xfee0_0300;

/// `jne`, `jb` and `jbe`, each with four bytes of a distance.
const JNE: &[u8] = &[0x0f, 0x85];
const JB: &[u8] = &[0x0f, 0x82];
const JBE: &[u8] = &[0x0f, 0x86];
const JZ: &[u8] = &[0x0f, 0x84];
const JMP: &[u8] = &[0xe9];

impl Code {
    /// For ever: counts in `EDI`, in a word of memory, in a word of one page after the other, and in one sector of the disk
    /// after the other, with up to four writes under way. The other processors wait for interrupts, and count them in two words, one
    /// before the other.
    ///
    /// First it takes four bytes from the serial port, a nonce. For every further byte it compares its pages and all its
    /// sectors with `EDI` and prints 17 bytes: `k`, the nonce, `EDI`, the second word of the other processors, the first one;
    /// or, and then it halts, what is wrong (`R` memory, `S` a request's status, `D` the disk), the nonce, `EDI`, what was
    /// expected, the status.
    ///
    /// The disk, of 512 KiB or more, is the only device; memory has four mebibytes or more.
    pub fn count_in_flight(self, pci: bool) -> Self {
        let code = self.requests();
        let (code, doorbell) = code.start_disk(pci, [TABLE, AVAILABLE, USED]);
        let code = code.start_others();
        // xor ebp, ebp; four times: a byte from the serial port; movzx eax, al; shl ebp, 8; or ebp, eax
        let code = code.bytes(&[0x31, 0xed]);
        let code = (0..4).fold(code, |code, _| {
            code.bytes(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb])
                .bytes(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0x0f, 0xb6, 0xc0])
                .bytes(&[0xc1, 0xe5, 0x08, 0x09, 0xc5])
        });
        // mov [NONCE], ebp; xor edi, edi; jmp over
        let code = code.at(&[0x89, 0x2d], NONCE);
        let mut code = code.bytes(&[0x31, 0xff]).bytes(JMP).bytes(&[0; 4]);
        let over = code.0.len();
        let fail = over;
        code = code.fail();
        let distance = u32::try_from(code.0.len() - over).unwrap();
        code.0[over - 4..over].copy_from_slice(&distance.to_le_bytes());

        let batch = code.0.len();
        // An interrupt that cannot be masked, to all others.
        code = code.store(ICR, 0xc_4400).store(STATUS, u32::MAX);
        code = (0..SLOTS).fold(code, |code, slot| code.write_next(slot, doorbell));
        code = code.wait();
        // mov bl, 'S'; cmp dword [STATUS], 0
        code = code.bytes(&[0xb3, b'S']).at(&[0x83, 0x3d], STATUS);
        code = code.bytes(&[0]).jump(JNE, fail);
        // cmp edi, SECTORS
        code = code.at(&[0x81, 0xff], SECTORS).jump(JB, batch);
        // mov dx, 0x3fd; in al, dx; test al, 1; jz batch; mov dx, 0x3f8; in al, dx
        code = code.bytes(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01]);
        code = code.jump(JZ, batch);
        code = code.bytes(&[0x66, 0xba, 0xf8, 0x03, 0xec]);
        code = code.check_pages(fail).check_sectors(fail, doorbell);
        code = code.out(0x3f8, b'k').print_memory(NONCE, 4);
        // mov eax, edi
        code = code.bytes(&[0x89, 0xf8]).print_eax();
        code.print_memory(SECOND_COUNT, 4)
            .print_memory(FIRST_COUNT, 4)
            .jump(JMP, batch)
    }

    /// The descriptors: three of each write, and three of a read.
    fn requests(self) -> Self {
        let writes = (0..SLOTS).map(|slot| (slot, 1, DATA + slot * 512, 512, STATUS + slot));
        let read = (SLOTS, 0, BUFFER, READ * 512, STATUS_OF_READ);
        writes
            .chain([read])
            .fold(self, |code, (slot, kind, data, len, status)| {
                let first = 3 * slot;
                let into = if kind == 0 { 2 } else { 0 };
                let code = code.store(HEADERS + 16 * slot, kind);
                [
                    (HEADERS + 16 * slot, 16, 1 | (first + 1) << 16),
                    (data, len, 1 | into | (first + 2) << 16),
                    (status, 1, 2),
                ]
                .into_iter()
                .zip(first..)
                .fold(code, |code, ((address, len, flags), index)| {
                    let at = TABLE + 16 * index;
                    code.store(at, address)
                        .store(at + 8, len)
                        .store(at + 12, flags)
                })
            })
    }

    /// Starts the other processors, if there are any.
    fn start_others(self) -> Self {
        let [low, high, ..] = (FIRST_COUNT - OTHERS).to_le_bytes();
        let [next, next_high, ..] = (SECOND_COUNT - OTHERS).to_le_bytes();
        let program = [
            // mov ax, OTHERS / 16; mov ds, ax; mov ss, ax
            &[0xb8, 0x00, 0x10, 0x8e, 0xd8, 0x8e, 0xd0][..],
            // A stack by the processor's number: mov eax, 1; cpuid; shr ebx, 24; shl bx, 8; add bx, 0x2000; mov sp, bx
            &[0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xc1, 0xeb, 24],
            &[0xc1, 0xe3, 8, 0x81, 0xc3, 0x00, 0x20, 0x89, 0xdc],
            // again: hlt; jmp again
            &[0xf4, 0xeb, 0xfd],
        ];
        let handler = [
            // lock inc dword [first]; lock inc dword [second]; iret
            &[0xf0, 0x66, 0xff, 0x06, low, high][..],
            &[0xf0, 0x66, 0xff, 0x06, next, next_high, 0xcf],
        ];
        let program = (OTHERS..).zip(program.into_iter().flatten());
        let handler = (OTHERS + HANDLER..).zip(handler.into_iter().flatten());
        let code = program
            .chain(handler)
            .fold(self, |code, (at, byte)| code.store_byte(at, *byte));
        // Where interrupt 2, which cannot be masked, leads to. To all but this one: INIT, and where to begin.
        code.store(8, OTHERS << 12 | HANDLER)
            .store(ICR, 0xc_4500)
            .store(ICR, 0xc_4600 | OTHERS >> 12)
    }

    /// Prints `BL`, the nonce, `EDI`, `ECX` and the statuses, and halts.
    fn fail(self) -> Self {
        // mov dx, 0x3f8; mov al, bl; out dx, al
        let code = self.bytes(&[0x66, 0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee]);
        let code = code.print_memory(NONCE, 4);
        let code = code.bytes(&[0x89, 0xf8]).print_eax();
        let code = code.bytes(&[0x89, 0xc8]).print_eax();
        code.print_memory(STATUS, 4).halt()
    }

    /// Counts, and sends the write of `slot`.
    fn write_next(self, slot: u32, doorbell: u32) -> Self {
        let data = DATA + slot * 512;
        // inc edi; mov [COUNT], edi
        let code = self.bytes(&[0x47]).at(&[0x89, 0x3d], COUNT);
        // mov eax, edi; and eax, PAGES - 1; shl eax, 12; mov [eax + REGION], edi
        let code = code.bytes(&[0x89, 0xf8]).at(&[0x25], PAGES - 1);
        let code = code.bytes(&[0xc1, 0xe0, 0x0c]).at(&[0x89, 0xb8], REGION);
        let code = code.at(&[0x89, 0x3d], data).at(&[0x89, 0x3d], data + 508);
        // mov eax, edi; and eax, SECTORS - 1; mov [sector], eax
        let code = code.bytes(&[0x89, 0xf8]).at(&[0x25], SECTORS - 1);
        code.at(&[0xa3], HEADERS + 16 * slot + 8)
            .send(3 * slot, doorbell)
    }

    /// Makes the request that begins with the descriptor `head` available, and rings.
    fn send(self, head: u32, doorbell: u32) -> Self {
        let [low, high, ..] = head.to_le_bytes();
        // movzx eax, word [index]; mov edx, eax; and edx, QUEUE_SIZE - 1
        let code = self.at(&[0x0f, 0xb7, 0x05], AVAILABLE + 2);
        let mask = u8::try_from(QUEUE_SIZE - 1).unwrap();
        let code = code.bytes(&[0x89, 0xc2, 0x83, 0xe2, mask]);
        // mov word [edx * 2 + ring], head; inc eax; mov [index], ax
        let code = code.at(&[0x66, 0xc7, 0x04, 0x55], AVAILABLE + 4);
        let code = code.bytes(&[low, high, 0x40]);
        code.at(&[0x66, 0xa3], AVAILABLE + 2).store(doorbell, 0)
    }

    /// Waits until nothing is under way.
    fn wait(self) -> Self {
        let start = self.0.len();
        // pause; mov ax, [used index]; cmp ax, [index]; jne
        let code = self.bytes(&[0xf3, 0x90]).at(&[0x66, 0xa1], USED + 2);
        code.at(&[0x66, 0x3b, 0x05], AVAILABLE + 2).jump(JNE, start)
    }

    fn check_pages(self, fail: usize) -> Self {
        // mov bl, 'R'; cmp [COUNT], edi; jne
        let code = self.bytes(&[0xb3, b'R']).at(&[0x39, 0x3d], COUNT);
        let code = code.jump(JNE, fail);
        // mov ecx, edi; sub ecx, PAGES - 1
        let code = code.bytes(&[0x89, 0xf9]).at(&[0x81, 0xe9], PAGES - 1);
        let next = code.0.len();
        // mov eax, ecx; and eax, PAGES - 1; shl eax, 12; cmp [eax + REGION], ecx; jne
        let code = code.bytes(&[0x89, 0xc8]).at(&[0x25], PAGES - 1);
        let code = code.bytes(&[0xc1, 0xe0, 0x0c]).at(&[0x39, 0x88], REGION);
        let code = code.jump(JNE, fail);
        // inc ecx; cmp ecx, edi; jbe
        code.bytes(&[0x41, 0x39, 0xf9]).jump(JBE, next)
    }

    fn check_sectors(self, fail: usize, doorbell: u32) -> Self {
        let sector = HEADERS + 16 * SLOTS + 8;
        // xor esi, esi
        let code = self.bytes(&[0x31, 0xf6]);
        let read = code.0.len();
        // mov eax, esi; mov [sector], eax
        let code = code.bytes(&[0x89, 0xf0]).at(&[0xa3], sector);
        let code = code.store_byte(STATUS_OF_READ, 0xff);
        let code = code.send(3 * SLOTS, doorbell).wait();
        // mov bl, 'S'; cmp byte [STATUS_OF_READ], 0; jne
        let code = code.bytes(&[0xb3, b'S']).at(&[0x80, 0x3d], STATUS_OF_READ);
        let code = code.bytes(&[0]).jump(JNE, fail);
        let next = code.0.len();
        // mov eax, edi; sub eax, esi; and eax, SECTORS - 1; mov ecx, edi; sub ecx, eax
        let code = code.bytes(&[0x89, 0xf8, 0x29, 0xf0]);
        let code = code.at(&[0x25], SECTORS - 1);
        let code = code.bytes(&[0x89, 0xf9, 0x29, 0xc1]);
        // mov eax, esi; and eax, READ - 1; shl eax, 9; mov bl, 'D'
        let code = code.bytes(&[0x89, 0xf0]).at(&[0x25], READ - 1);
        let code = code.bytes(&[0xc1, 0xe0, 0x09, 0xb3, b'D']);
        // cmp [eax + BUFFER], ecx; jne; and the end of the sector
        let code = code.at(&[0x39, 0x88], BUFFER).jump(JNE, fail);
        let code = code.at(&[0x39, 0x88], BUFFER + 508).jump(JNE, fail);
        // inc esi; mov eax, esi; and eax, READ - 1; jne
        let code = code.bytes(&[0x46, 0x89, 0xf0]).at(&[0x25], READ - 1);
        let code = code.jump(JNE, next);
        // cmp esi, SECTORS; jb
        code.at(&[0x81, 0xfe], SECTORS).jump(JB, read)
    }

    /// An instruction with an address or a number of 32 bits.
    fn at(self, instruction: &[u8], number: u32) -> Self {
        self.bytes(instruction).bytes(&number.to_le_bytes())
    }

    /// A jump to what is before it.
    fn jump(self, instruction: &[u8], to: usize) -> Self {
        let end = self.0.len() + instruction.len() + 4;
        let distance = u32::try_from(end - to).unwrap().wrapping_neg();
        self.at(instruction, distance)
    }
}
