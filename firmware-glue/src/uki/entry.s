# What firmware enters in a UEFI program that is a Linux kernel with its command line and initramfs: tells the kernel of
# both, as a boot loader would, and enters it. 64-bit, the UEFI calling convention (UEFI Specification, "x64 Platforms");
# Intel syntax.
#
# The command line becomes the load options of the program. The initramfs is what a LoadFile2 protocol gives that is found
# by a device path of Linux's own (Documentation/admin-guide/efi-stub.rst; drivers/firmware/efi/libstub looks there first).
# Nothing here is written to, and no address is absolute. entry.rs has the bytes that this makes; what it fills in is at
# the end.
        .code64
        .balign 16
uki_entry_begin:
        push    rbx
        push    rsi
        push    rdi
        # 32 bytes for whom we call; then: an interface, the LoadFile2 protocol, its handle. The stack is aligned to 16.
        sub     rsp, 64
        mov     rbx, rcx                        # our image's handle
        mov     rsi, rdx                        # system table
        mov     rdi, [rdx + 0x60]               # boot services

        mov     rcx, rbx
        lea     rdx, [rip + loaded_image]
        lea     r8, [rsp + 32]
        call    [rdi + 0x98]                    # HandleProtocol
        test    rax, rax
        jnz     leave
        mov     rax, [rsp + 32]
        lea     rcx, [rip + uki_entry_end]
        mov     [rax + 0x38], rcx               # LoadOptions
        mov     ecx, [rip + cmdline_size]
        mov     [rax + 0x30], ecx               # LoadOptionsSize

        lea     rax, [rip + load_file]
        mov     [rsp + 40], rax
        mov     qword ptr [rsp + 48], 0
        lea     rcx, [rsp + 48]
        lea     rdx, [rip + device_path]
        xor     r8d, r8d
        lea     r9, [rip + initrd_path]
        call    [rdi + 0x80]                    # InstallProtocolInterface
        test    rax, rax
        jnz     leave
        lea     rcx, [rsp + 48]
        lea     rdx, [rip + load_file2]
        xor     r8d, r8d
        lea     r9, [rsp + 40]
        call    [rdi + 0x80]
        test    rax, rax
        jnz     remove_path

        mov     rcx, rbx
        mov     rdx, rsi
        lea     rax, [rip + uki_entry_begin]
        movsxd  r8, [rip + to_kernel]
        add     rax, r8
        call    rax
        # It only comes back if it cannot boot; then all is as before, and firmware tries something else.
        mov     rbx, rax
        mov     rcx, [rsp + 48]
        lea     rdx, [rip + load_file2]
        lea     r8, [rsp + 40]
        call    [rdi + 0x90]                    # UninstallProtocolInterface
        mov     rax, rbx
remove_path:
        mov     rbx, rax
        mov     rcx, [rsp + 48]
        lea     rdx, [rip + device_path]
        lea     r8, [rip + initrd_path]
        call    [rdi + 0x90]
        mov     rax, rbx
leave:
        add     rsp, 64
        pop     rdi
        pop     rsi
        pop     rbx
        ret

# LoadFile2: rcx: the protocol, rdx: the rest of the path, r8b: whether it is to boot, r9: how much room there is,
# [rsp + 40]: where.
load_file:
        mov     rax, 0x8000000000000003         # EFI_UNSUPPORTED
        test    r8b, r8b
        jnz     3f
        mov     rax, 0x8000000000000002         # EFI_INVALID_PARAMETER
        test    r9, r9
        jz      3f
        mov     rdx, [rsp + 40]
        mov     r10d, [rip + initrd_size]
        mov     rcx, [r9]
        mov     [r9], r10
        mov     rax, 0x8000000000000005         # EFI_BUFFER_TOO_SMALL
        test    rdx, rdx
        jz      3f
        cmp     rcx, r10
        jb      3f
        push    rsi
        push    rdi
        lea     rsi, [rip + uki_entry_begin]
        movsxd  rax, [rip + to_initrd]
        add     rsi, rax
        mov     rdi, rdx
        mov     rcx, r10
        cld
        rep movsb
        pop     rdi
        pop     rsi
        xor     eax, eax
3:      ret

# GUIDs: a long, two shorts, eight bytes.
        .balign 8
loaded_image:
        .long   0x5b1b31a1
        .short  0x9562, 0x11d2
        .byte   0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b
device_path:
        .long   0x09576e91
        .short  0x6d3f, 0x11d2
        .byte   0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b
load_file2:
        .long   0x4006c0c1
        .short  0xfcb3, 0x403e
        .byte   0x99, 0x6d, 0x4a, 0x6c, 0x87, 0x24, 0xe0, 0x6d
# A medium of a vendor's, 20 bytes, Linux's GUID; the end.
initrd_path:
        .byte   4, 3, 20, 0
        .long   0x5568e427
        .short  0x68fc, 0x4f3d
        .byte   0xac, 0x74, 0xca, 0x55, 0x52, 0x31, 0xcc, 0x68
        .byte   0x7f, 0xff, 4, 0

# Filled in: distances from the first byte here, and sizes in bytes. The command line follows, in UTF-16 with a NUL.
        .balign 8
to_kernel:
        .long   0
to_initrd:
        .long   0
initrd_size:
        .long   0
cmdline_size:
        .long   0
uki_entry_end:
