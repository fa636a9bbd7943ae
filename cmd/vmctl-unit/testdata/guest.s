# A guest in a boot sector: all that the tests of vmctl-unit need of one. It
# says on the serial port (COM1) that it is up, powers off when its power
# button is pressed or it is sent "p", reboots when it is sent "r", and echoes
# everything else. The ports are those of QEMU's q35.
#
# Its bytes are in guest_test.go, made by
#   as --32 -o guest.o guest.s && objcopy -O binary guest.o guest.bin
.code16
.org 0
start:
  cli                      # else the firmware's timer writes in between
  xor %ax,%ax
  mov %ax,%ds
  cld
  mov $0x602,%dx          # PM1_EN: power button
  mov $0x100,%ax
  out %ax,%dx
  mov $0x7c00+(msg-start),%si
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
  mov $0x600,%dx          # PM1_STS
  in %dx,%ax
  test $1,%ah
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
  mov $0x604,%dx          # PM1_CNT: sleep in S5
  mov $0x2000,%ax
  out %ax,%dx
  jmp off
reboot:
  mov $0xfe,%al
  out %al,$0x64
  jmp reboot
msg: .asciz "guest is up\r\n"
