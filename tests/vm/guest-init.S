# The only program of the Linux guests that tests boot: says that it runs, then burns CPU for ever, as that of the
# published experiment's guests did.
	.globl _start
_start:
	mov $1, %eax		# write
	mov $1, %edi
	lea line(%rip), %rsi
	mov $line_end - line, %edx
	syscall
0:	jmp 0b
	.section .rodata
line:	.ascii "init burns CPU\n"
line_end:
