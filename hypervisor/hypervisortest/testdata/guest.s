# A guest that is an ELF image with a PVH entry: all that the tests of a
# hypervisor need of one, on a KVM that runs no ordinary kernels. It says on the
# serial port (COM1) that it is up, powers off when its power button is pressed
# (QEMU's; that of cloud-hypervisor comes by an interrupt, and is not heard) or it
# is sent "p", reboots when it is sent "r", and echoes everything else. The ports
# are those of QEMU's q35 and of cloud-hypervisor.
#
# Its bytes are in guest.go, made by
#   as --32 -o guest.o guest.s && objcopy -O binary guest.o guest.bin
.code32
start:                    # at 1 MiB, protected mode without paging, interrupts off
  cld
  mov $0x180000,%esp
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
  mov $0x601,%dx          # high byte of QEMU's PM1_STS; 0 in cloud-hypervisor
  in %dx,%al
  test $1,%al
  jnz off
  mov $0x3fd,%dx          # COM1: line status
  in %dx,%al
  test $1,%al
  jz loop
  mov $0x3f8,%dx
  in %dx,%al
  cmp $'p',%al
  je off
  cmp $'r',%al
  je reboot
  call putc
  jmp loop
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
msg: .asciz "guest is up\r\n"
