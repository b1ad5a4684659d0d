# The stage's entry in 64-bit mode, its exceptions, and its ways into the kernel. Runs in RAM.

.set VECTORS, 32

.section .stage.entry, "ax", @progbits
.code64
.global stage_entry
stage_entry:
    # The table of segments in flash was for the first steps only: this one stays until the kernel has its own.
    lgdt kernel_gdt_pointer(%rip)
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    leaq stack_end(%rip), %rsp

    # Interrupt gates to the stubs below, which are 16 bytes apart.
    leaq idt(%rip), %rdi
    leaq exception_stubs(%rip), %rax
    movl $VECTORS, %ecx
1:  movw %ax, (%rdi)
    movw $0x10, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    movq %rax, %rdx
    shrq $16, %rdx
    movw %dx, 6(%rdi)
    shrq $16, %rdx
    movl %edx, 8(%rdi)
    addq $16, %rdi
    addq $16, %rax
    decl %ecx
    jnz 1b
    lidt idt_pointer(%rip)

    xorl %ebp, %ebp
    call stage_main
    ud2

# One stub for each vector; those without an error code push 0 in its place.
.balign 16
exception_stubs:
.set vector, 0
.rept VECTORS
    .balign 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    pushq $0
    .endif
    pushq $vector
    jmp exception
    .set vector, vector + 1
.endr

.balign 16
exception:
    popq %rdi
    popq %rsi
    movq (%rsp), %rdx
    movq %cr2, %rcx
    # A stack of its own kind: the old one may be what is broken.
    leaq stack_end(%rip), %rsp
    xorl %ebp, %ebp
    call stage_exception
    ud2

# enter_kernel_64(kernel, zero_page): boot.rst, "64-bit boot protocol": RSI is the zero page, paging as it is, CS 0x10, data 0x18.
.global enter_kernel_64
enter_kernel_64:
    movl %edi, %eax
    addq $0x200, %rax
    movl %esi, %esi
    xorl %ebx, %ebx
    xorl %edi, %edi
    xorl %ebp, %ebp
    jmp *%rax

# enter_kernel_32(kernel, zero_page): boot.rst, "32-bit boot protocol": ESI is the zero page, EBP, EDI and EBX are 0, paging off,
# CS 0x10, data 0x18, both flat.
.global enter_kernel_32
enter_kernel_32:
    movl %edi, %ebx
    lgdt kernel32_gdt_pointer(%rip)
    leaq kernel32_target(%rip), %rax
    leaq leave_long_mode(%rip), %rdx
    movl %edx, (%rax)
    ljmpl *(%rax)
.code32
leave_long_mode:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $0xfffffeff, %eax
    wrmsr
    xorl %eax, %eax
    movl %eax, %cr4
    movl %ebx, %eax
    xorl %ebx, %ebx
    xorl %edi, %edi
    xorl %ebp, %ebp
    jmp *%eax
.code64

.section .data.stage_tables, "aw", @progbits
.balign 8
kernel_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 0x08: 32-bit code
    .quad 0x00af9b000000ffff    # 0x10: 64-bit code
    .quad 0x00cf93000000ffff    # 0x18: data
kernel_gdt_end:
kernel32_gdt:
    .quad 0
    .quad 0
    .quad 0x00cf9b000000ffff    # 0x10: 32-bit code
    .quad 0x00cf93000000ffff    # 0x18: data
kernel32_gdt_end:
kernel_gdt_pointer:
    .word kernel_gdt_end - kernel_gdt - 1
    .quad kernel_gdt
kernel32_gdt_pointer:
    .word kernel32_gdt_end - kernel32_gdt - 1
    .quad kernel32_gdt
idt_pointer:
    .word VECTORS * 16 - 1
    .quad idt
.balign 8
kernel32_target:
    .long 0
    .word 0x10

.section .bss.page_tables, "aw", @nobits
.balign 4096
.global page_root, page_pointers, page_directories
page_root:
    .skip 4096
page_pointers:
    .skip 4096
page_directories:
    .skip 4 * 4096

.section .bss.stage, "aw", @nobits
.balign 16
idt:
    .skip VECTORS * 16
# Twice what is used: the list of PCI functions alone is 56 KiB, and it depends on the compiler who else is there with it.
stack:
    .skip 128 * 1024
stack_end:
