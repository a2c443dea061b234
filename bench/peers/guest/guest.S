/*
 * How the guest comes up, and the little that only ring 0 may do. All work is in ring 3 (guest.c): a KVM without hardware page tables
 * lets ring 3 run on the processor, but steps through ring 0 instruction by instruction. Such a KVM knows neither I/O privilege nor INT n,
 * so ring 3 calls with an instruction that faults, UD2: al is a byte to say, or 0 to wait for the next tick.
 *
 * Order: PVH entry in 32-bit mode without paging, ebx = start info -> long mode -> prepare() in ring 0 -> work() in ring 3.
 */
        .set    MAPPED_GIB, 16          /* guest.c uses no memory beyond it */
        .set    CODE0, 0x08
        .set    DATA0, 0x10
        .set    CODE3, 0x1b
        .set    DATA3, 0x23
        .set    TASK, 0x28
        .set    DEBUG_PORT, 0xe9

        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 8, 18                /* length of the name, length of the value, XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz  "Xen"
        .quad   enter

        .text
        .code32
        .globl  enter
enter:  movl    $level4, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $1 << 5, %eax           /* PAE */
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx       /* EFER */
        rdmsr
        orl     $1 << 8, %eax           /* LME */
        wrmsr
        movl    %cr0, %eax
        orl     $1 << 31 | 1, %eax      /* PG, PE */
        movl    %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $CODE0, $long_mode

        .code64
long_mode:
        movl    $DATA0, %eax
        movl    %eax, %ss
        movl    $DATA3, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    $ring0_stack_end, %esp
        movl    %ebx, %r12d             /* prepare() keeps it */
        call    prepare
        lidt    idt_pointer
        movl    $TASK, %eax
        ltr     %ax
        movb    $0xff, %al              /* the two old interrupt controllers stay silent */
        outb    %al, $0x21
        outb    %al, $0xa1
        movl    %r12d, %edi
        pushq   $DATA3
        pushq   $ring3_stack_end
        pushq   $1 << 9 | 2             /* interrupts on */
        pushq   $CODE3
        pushq   $work
        iretq

/* Vector 32, each millisecond: the byte says that the guest lives, and how far its work is. */
        .globl  on_tick
on_tick:
        pushq   %rax
        movb    tick_byte, %al
        outb    %al, $DEBUG_PORT
        movl    $0xfee00000, %eax
        movl    $0, 0xb0(%rax)          /* end of interrupt */
        popq    %rax
        iretq

/* Vector 6. A tick may come just before HLT; then the wait lasts one tick more, and the work is caught up. */
        .globl  on_call
on_call:
        addq    $2, (%rsp)              /* beyond UD2 */
        testb   %al, %al
        jz      1f
        outb    %al, $DEBUG_PORT
        iretq
1:      sti
        hlt
        iretq

/* Any other exception: says "!" and a letter, A for vector 0, and stops. */
        .globl  traps
        .balign 8
traps:  .set    vector, 0
        .rept   32
        .balign 8
        pushq   $vector
        jmp     stop
        .set    vector, vector + 1
        .endr
stop:   popq    %rbx
        movb    $'!', %al
        outb    %al, $DEBUG_PORT
        leal    'A'(%rbx), %eax
        outb    %al, $DEBUG_PORT
2:      cli
        hlt
        jmp     2b

        .data
        .balign 8
        .globl  gdt, idt, task_state
gdt:    .quad   0
        .quad   0x00af9a000000ffff      /* CODE0 */
        .quad   0x00cf92000000ffff      /* DATA0 */
        .quad   0x00affa000000ffff      /* CODE3 */
        .quad   0x00cff2000000ffff      /* DATA3 */
        .quad   0, 0                    /* TASK, written by prepare() */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .quad   gdt
idt_pointer:
        .word   256 * 16 - 1
        .quad   idt
task_state:
        .long   0
        .quad   ring0_stack_end         /* where interrupts and calls of ring 3 land */
        .fill   90, 1, 0
        .word   104                     /* no I/O map */

/* Addresses are themselves: pages of 2 MiB, open to ring 3. */
        .balign 4096
level4: .quad   level3 + 7
        .fill   511, 8, 0
level3: .set    at, 0
        .rept   MAPPED_GIB
        .quad   level2 + at * 4096 + 7
        .set    at, at + 1
        .endr
        .fill   512 - MAPPED_GIB, 8, 0
level2: .set    at, 0
        .rept   MAPPED_GIB * 512
        .quad   (at << 21) + 0x87
        .set    at, at + 1
        .endr

        .bss
        .balign 4096
idt:    .skip   4096
        .skip   8192
ring0_stack_end:
        .skip   8192
ring3_stack_end:

        .section .note.GNU-stack, "", @progbits
