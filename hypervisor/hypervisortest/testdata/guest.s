# A guest that is an ELF image with a PVH entry: all that the tests of a
# hypervisor need of one, on a KVM that runs no ordinary kernels. It says on the
# serial port (COM1) that it is up, powers off when it is sent "p" or, from "b" on,
# its power button is pressed, reboots when it is sent "r", keeps the byte that
# follows "k", says it when it is sent "w", panics (by the pvpanic on the PCI bus)
# when it is sent "n", and echoes everything else. The ports are those of QEMU's q35
# and of cloud-hypervisor.
#
# Its bytes are in guest.go, made by
#   as --32 -o guest.o guest.s && objcopy -O binary guest.o guest.bin
.code32
.set kept,    0x180000    # the byte
start:                    # at 1 MiB, protected mode without paging, interrupts off
  cld
  mov $0x180000,%esp
  movl $'?',kept
  xor %ebp,%ebp           # what says that the button is pressed: 0x600 is a port, others an address
  call here
here:
  pop %esi
  add $(msg-here),%esi
1: lodsb
  test %al,%al
  jz loop
  call putc
  jmp 1b
putc:
  mov %al,%ah
  mov $0x3fd,%dx          # COM1: line status
2: in %dx,%al
  test $0x20,%al
  jz 2b
  mov $0x3f8,%dx
  mov %ah,%al
  out %al,%dx
  ret
loop:
  test %ebp,%ebp
  jz 3f
  cmp $0x600,%ebp
  jne 2f
  mov %ebp,%edx           # QEMU: PM1_STS, which is read as a word alone
  in %dx,%ax
  test $1,%ah
  jnz off
  jmp 3f
2: testb $1,(%ebp)
  jnz off
3: mov $0x3fd,%dx         # COM1: line status
  in %dx,%al
  test $1,%al
  jz loop
  call getc
  cmp $'p',%al
  je off
  cmp $'r',%al
  je reboot
  cmp $'n',%al
  je panic
  cmp $'b',%al
  je heed
  cmp $'k',%al
  je keep
  cmp $'w',%al
  jne 4f
  mov kept,%al
4: call putc
  jmp loop
keep:
5: mov $0x3fd,%dx
  in %dx,%al
  test $1,%al
  jz 5b
  call getc
  mov %al,kept
  jmp 4b
getc:
  mov $0x3f8,%dx
  in %dx,%al
  ret
off:
  mov $0x600,%dx          # cloud-hypervisor: sleep in S5
  mov $0x34,%al
  out %al,%dx
  mov $0x604,%dx          # QEMU: PM1_CNT
  mov $0x2000,%ax
  out %ax,%dx
  jmp off
reboot:
  mov $0xfe,%al
  out %al,$0x64           # keyboard controller
  jmp reboot
panic:                    # the first PCI device 1b36:0011 has its register at BAR 0
  mov $0x80000000,%ebx
6: mov %ebx,%eax
  call config
  cmp $0x00111b36,%eax
  je 7f
  add $0x800,%ebx
  cmp $0x80010000,%ebx
  jne 6b
8: hlt
  jmp 8b
7: lea 0x10(%ebx),%eax
  call config
  and $0xfffffff0,%eax
  movb $1,(%eax)
  jmp 8b
config:                   # of PCI, at %eax
  mov $0xcf8,%dx
  out %eax,%dx
  mov $0xcfc,%dx
  in %dx,%eax
  ret
heed:
  mov $0x80000000,%eax    # the first PCI device
  call config
  cmp $0x29c08086,%eax    # the host bridge of QEMU's q35
  jne 8f
  mov $0x602,%dx          # PM1_EN: the power button
  mov $0x100,%ax
  out %ax,%dx
  mov $0x600,%ebp
  mov $'b',%al
  jmp 4b
8: # cloud-hypervisor: the interrupt of what happens to the machine
  movl $0x1ff,0xfee000f0  # local APIC on
  mov $0x10,%ebx          # each pin of the I/O APIC: vector 0x40, to the first CPU
9: mov %ebx,0xfec00000
  movl $0x40,0xfec00010
  inc %ebx
  mov %ebx,0xfec00000
  movl $0,0xfec00010
  inc %ebx
  cmp $0x40,%ebx
  jne 9b
  mov $0xfee00220,%ebp    # requests for the vectors from 0x40 on
  mov $'b',%al
  jmp 4b
msg: .asciz "guest is up\r\n"
