# The entry by Linux's 64-bit boot protocol: RSI is the zero page, the first GiB is mapped, interrupts are off.

.set VECTORS, 32

.section .text.entry, "ax", @progbits
.global start
start:
    cli
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
    movq %rsi, %rdi
    call program
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

# Where somebody waits for a fault, he goes on at the place he has named: no IRET, which an emulator may not have.
.balign 16
exception:
    cmpq $0, fault_target(%rip)
    je 1f
    popq fault_vector(%rip)
    movq 32(%rsp), %rsp
    jmp *fault_target(%rip)
1:  popq %rdi
    popq %rsi
    movq (%rsp), %rdx
    movq %cr2, %rcx
    leaq stack_end(%rip), %rsp
    call unexpected_fault
    ud2

.data
.balign 8
idt_pointer:
    .word VECTORS * 16 - 1
    .quad idt

.bss
.balign 4096
idt:
    .skip VECTORS * 16
.balign 4096
    .skip 65536
stack_end:
