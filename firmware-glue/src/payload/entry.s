# What coreboot enters: tells Linux what coreboot has left, and enters Linux. 32-bit protected mode, flat segments; Intel syntax.
#
# Linked to 0x40000. The zero page is at 0x90000 and complete but for the memory map, the ACPI root and the screen, which
# are found in coreboot's table: a header ("LBIO", bytes of header, checksum, bytes of table, checksum, entries), then
# entries that begin with a tag and their length. It is searched where coreboot puts it or a pointer to it: below 64 KiB
# and from 0xF0000. entry.rs has the bytes that this makes.
        .code32
        .balign 16
        .set    BASE, 0x40000
        .set    ZERO_PAGE, 0x90000
entry_begin:
        cli
        cld
        xor     esi, esi
search:
        cmp     dword ptr [esi], 0x4f49424c     # "LBIO"
        jne     next
        cmp     dword ptr [esi + 4], 24
        je      table
next:
        add     esi, 16
        cmp     esi, 0x10000
        jne     1f
        mov     esi, 0xf0000
1:      cmp     esi, 0x100000
        jb      search
        jmp     lost

# esi: the header of a table. Then ebx: an entry, ecx: entries left.
table:
        mov     ecx, [esi + 20]
        lea     ebx, [esi + 24]
walk:
        test    ecx, ecx
        jz      enter
        dec     ecx
        mov     eax, [ebx]
        cmp     eax, 0x11
        je      forward
        cmp     eax, 0x01
        je      memory
        cmp     eax, 0x43
        je      acpi
        cmp     eax, 0x12
        je      screen
walk_on:
        mov     eax, [ebx + 4]
        cmp     eax, 8                          # shorter than its own header: the table is damaged
        jb      enter
        add     ebx, eax
        jmp     walk

# The table is elsewhere, below 4 GiB.
forward:
        mov     esi, [ebx + 8]
        cmp     dword ptr [esi], 0x4f49424c
        je      table
        jmp     lost

# Ranges of 20 bytes, start, length and type, as Linux has them; types that it does not know become reserved.
memory:
        mov     eax, [ebx + 4]
        sub     eax, 8
        jb      walk_on
        lea     esi, [ebx + 8]
        mov     edi, ZERO_PAGE + 0x2d0
        xor     edx, edx
2:      sub     eax, 20
        jb      4f
        cmp     edx, 128
        je      4f
        mov     ebp, ecx
        mov     ecx, 4
        rep movsd
        mov     ecx, ebp
        mov     ebp, [esi]
        add     esi, 4
        cmp     ebp, 5
        jbe     3f
        mov     ebp, 2
3:      mov     [edi], ebp
        add     edi, 4
        inc     edx
        jmp     2b
4:      mov     [ZERO_PAGE + 0x1e8], dl
        jmp     walk_on

acpi:
        mov     eax, [ebx + 8]
        mov     [ZERO_PAGE + 0x70], eax
        mov     eax, [ebx + 12]
        mov     [ZERO_PAGE + 0x74], eax
        jmp     walk_on

# A linear frame buffer: Linux takes it by screen_info alone as type 0x70.
screen:
        mov     byte ptr [ZERO_PAGE + 0x0f], 0x70
        mov     byte ptr [ZERO_PAGE + 0x07], 80
        mov     byte ptr [ZERO_PAGE + 0x0e], 25
        mov     eax, [ebx + 8]
        mov     [ZERO_PAGE + 0x18], eax
        mov     eax, [ebx + 12]
        mov     [ZERO_PAGE + 0x3a], eax
        test    eax, eax
        jz      5f
        mov     byte ptr [ZERO_PAGE + 0x36], 2  # the base has 64 bits
5:      mov     eax, [ebx + 16]
        mov     [ZERO_PAGE + 0x12], ax
        mov     eax, [ebx + 24]
        mov     [ZERO_PAGE + 0x24], ax
        mov     edx, [ebx + 20]
        mov     [ZERO_PAGE + 0x14], dx
        mul     edx
        mov     [ZERO_PAGE + 0x1c], eax
        movzx   eax, byte ptr [ebx + 28]
        mov     [ZERO_PAGE + 0x16], ax
        # Red, green, blue, reserved: coreboot says position and size, Linux size and position.
        lea     esi, [ebx + 29]
        mov     edi, ZERO_PAGE + 0x26
        mov     edx, 4
6:      mov     ax, [esi]
        xchg    al, ah
        mov     [edi], ax
        add     esi, 2
        add     edi, 2
        dec     edx
        jnz     6b
        jmp     walk_on

# Linux, 32-bit boot protocol: code at 0x10, data at 0x18, esi the zero page, the others 0.
enter:
        lgdt    [GDT_POINTER]
        mov     eax, 0x18
        mov     ds, eax
        mov     es, eax
        mov     fs, eax
        mov     gs, eax
        mov     ss, eax
        mov     esp, ZERO_PAGE
        mov     esi, ZERO_PAGE
        xor     ebx, ebx
        xor     ebp, ebp
        xor     edi, edi
        push    0x10
        push    dword ptr [ZERO_PAGE + 0x214]   # code32_start
        retf

# Nothing to tell Linux where memory is. Say so on the first serial port.
lost:
        lea     esi, [MESSAGE]
        lea     ecx, [MESSAGE_LEN]
7:      mov     dx, 0x3fd
        mov     edi, 100000                     # as long as a port that is none may keep us
8:      in      al, dx
        dec     edi
        jz      9f
        test    al, 0x20
        jz      8b
9:      mov     dx, 0x3f8
        lodsb
        out     dx, al
        loop    7b
halt:
        hlt
        jmp     halt

message:
        .ascii  "Daruma: coreboot left no table, so Linux cannot know where memory is\r\n"
message_end:
        .balign 8, 0
gdt:
        .quad   0
        .quad   0
        .quad   0x00cf9b000000ffff              # 0x10: code, all of 4 GiB
        .quad   0x00cf93000000ffff              # 0x18: data
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   BASE + gdt - entry_begin
entry_end:
        .set    GDT_POINTER, BASE + (gdt_pointer - entry_begin)
        .set    MESSAGE, BASE + (message - entry_begin)
        .set    MESSAGE_LEN, message_end - message
        .code64
