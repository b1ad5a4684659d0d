# From the reset vector to 64-bit mode. Runs in flash, in the last RESET_SIZE (see stage.ld) bytes below 4 GiB.
#
# State at reset (AMD64 manual vol. 2, 14.1.3): 16-bit real mode, CS base 0xFFFF0000, IP 0xFFF0, caches off.

.set RESET_SIZE, 0x400
# Offset of this section in the 64 KiB that CS covers at reset.
.set CS_OFFSET, 0x10000 - RESET_SIZE

.set SEL_CODE32, 0x08
.set SEL_CODE64, 0x10
.set SEL_DATA, 0x18

.section .reset, "ax", @progbits
reset_start:

.code16
reset16:
    cli
    cld
    # Without a table every exception ends in a shutdown instead of wherever low memory points.
    lidtl %cs:(CS_OFFSET + no_idt - reset_start)
    lgdtl %cs:(CS_OFFSET + gdt_pointer - reset_start)
    movl %cr0, %eax
    # Caches on (clear CD and NW), protected mode on.
    andl $0x9fffffff, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $SEL_CODE32, $reset32

.code32
reset32:
    movw $SEL_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs

    # 64-bit mode: CPUID 0x80000001, EDX bit 29.
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb no_long_mode
    movl $0x80000001, %eax
    cpuid
    btl $29, %edx
    jnc no_long_mode

    # The stage to RAM; its zeroed part, which holds page tables and stack.
    movl $stage_source, %esi
    movl $stage_start, %edi
    movl $stage_words, %ecx
    rep movsl
    movl $bss_start, %edi
    movl $bss_words, %ecx
    xorl %eax, %eax
    rep stosl

    # 4 GiB at their own addresses, in pages of 2 MiB (present, writable, large = 0x83).
    movl $page_directories, %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $page_pointers, %edi
    movl $page_directories + 3, %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 2b
    movl $page_pointers + 3, page_root

    # PAE; SSE, which all Rust code uses (OSFXSR, OSXMMEXCPT).
    movl $0x620, %eax
    movl %eax, %cr4
    movl $page_root, %eax
    movl %eax, %cr3
    # EFER.LME
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    # Paging on; no emulation of the x87 unit (EM clear, MP and NE set).
    movl %cr0, %eax
    andl $0xfffffffb, %eax
    orl $0x80000022, %eax
    movl %eax, %cr0
    ljmpl $SEL_CODE64, $stage_entry

no_long_mode:
    movl $no_long_mode_text, %esi
3:  movw $0x3fd, %dx
    movl $100000, %ecx
4:  inb %dx, %al
    testb $0x20, %al
    loopz 4b
    lodsb
    testb %al, %al
    jz 5f
    movw $0x3f8, %dx
    outb %al, %dx
    jmp 3b
5:  hlt
    jmp 5b

no_long_mode_text:
    .asciz "bootblock: error: This processor has no 64-bit mode; start QEMU with a 64-bit -cpu\r\n"

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 0x08: 32-bit code
    .quad 0x00af9b000000ffff    # 0x10: 64-bit code
    .quad 0x00cf93000000ffff    # 0x18: data
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
no_idt:
    .word 0
    .long 0

.org RESET_SIZE - 16, 0xff
.code16
.global reset_vector
reset_vector:
    jmp reset16
.org RESET_SIZE, 0xff
.code64
