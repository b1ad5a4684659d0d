//! Guests of a few instructions, assembled here: 32-bit code, started through PVH.

mod in_flight;

use std::io::Write;

use tempfile::NamedTempFile;

/// Where the code is in guest memory.
const BASE: u32 = 0x10_0000;
/// Free memory that 16-bit code can be in.
const LOW_CODE: u32 = 0x1_0000 - 0x100;
/// File offset of the code: behind the ELF header and two program headers.
const CODE_AT: u64 = 64 + 2 * 56;
/// Descriptors of a disk's queue.
const QUEUE_SIZE: u16 = 16;

/// Code under construction. `EBX` is the PVH start info from the entry on and is left alone.
#[derive(Default)]
pub struct Code(Vec<u8>);

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn here(&self) -> u32 {
        BASE + u32::try_from(self.0.len()).unwrap()
    }

    /// mov dx, port; mov al, value; out dx, al
    fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.bytes(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// mov dx, port; mov eax, value; out dx, eax
    fn out_long(self, port: u16, value: u32) -> Self {
        let [low, high] = port.to_le_bytes();
        self.bytes(&[0x66, 0xba, low, high, 0xb8])
            .bytes(&value.to_le_bytes())
            .bytes(&[0xef])
    }

    pub fn panic(self) -> Self {
        self.out(0x505, 1)
    }

    /// Starts the watchdog with a period of one second.
    pub fn watchdog(self) -> Self {
        self.out_long(0x614, 10).out_long(0x610, 1)
    }

    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.out(0x3f8, byte))
    }

    /// jmp over the text; mov esi, text; mov ecx, length; mov dx, 0x3f8; cld; rep outsb
    pub fn print_string(self, text: &str) -> Self {
        let length = u8::try_from(text.len()).unwrap();
        let at = (self.here() + 2).to_le_bytes();
        self.bytes(&[0xeb, length])
            .bytes(text.as_bytes())
            .bytes(&[0xbe])
            .bytes(&at)
            .bytes(&[
                0xb9, length, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e,
            ])
    }

    /// The first `length` bytes of the code itself: mov esi, code; mov ecx, length; mov dx, 0x3f8; cld; rep outsb
    pub fn flood(self, length: u32) -> Self {
        self.bytes(&[0xbe])
            .bytes(&BASE.to_le_bytes())
            .bytes(&[0xb9])
            .bytes(&length.to_le_bytes())
            .bytes(&[0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e])
    }

    /// mov al, [address]; mov dx, 0x3f8; out dx, al, for each 32-bit word of `length` bytes read as words
    pub fn print_memory(self, address: u32, length: u32) -> Self {
        (address..address + length)
            .step_by(4)
            .fold(self, |code, address| {
                // mov eax, [address]; mov dx, 0x3f8; four times: out dx, al; shr eax, 8
                code.bytes(&[0xa1])
                    .bytes(&address.to_le_bytes())
                    .print_eax()
            })
    }

    fn print_eax(self) -> Self {
        let one = [0xee, 0xc1, 0xe8, 0x08];
        self.bytes(&[0x66, 0xba, 0xf8, 0x03])
            .bytes(&one)
            .bytes(&one)
            .bytes(&one)
            .bytes(&one)
    }

    /// The magic number of the start info, the first byte of the command line, the first three of the RSDP.
    pub fn print_start_info(self) -> Self {
        let byte_of_esi = [0x8a, 0x06, 0x46, 0xee]; // mov al, [esi]; inc esi; out dx, al
        self.bytes(&[0x8b, 0x03]) // mov eax, [ebx]
            .print_eax()
            .bytes(&[0x8b, 0x73, 0x18]) // mov esi, [ebx + 24]: command line
            .bytes(&byte_of_esi)
            .bytes(&[0x8b, 0x73, 0x20]) // mov esi, [ebx + 32]: RSDP
            .bytes(&byte_of_esi)
            .bytes(&byte_of_esi)
            .bytes(&byte_of_esi)
    }

    pub fn power_off(self) -> Self {
        self.out(0x600, 5 << 2 | 1 << 5).halt()
    }

    pub fn reset_by_keyboard_controller(self) -> Self {
        self.out(0x64, 0xfe).halt()
    }

    pub fn reset_by_acpi(self) -> Self {
        self.out(0x602, 1).halt()
    }

    /// Back to real mode by way of a 16-bit code segment, then to where a PC begins: what Linux does to reboot when it
    /// knows nothing better.
    pub fn jump_to_reset_vector(self) -> Self {
        let at = self.here() + 2;
        let table = at + 6;
        let [low, high] = u16::try_from(LOW_CODE).unwrap().to_le_bytes();
        // jmp over: limit and address of the table; no segment; 16-bit code from 0 on
        let code = self
            .bytes(&[0xeb, 6 + 16, 15, 0])
            .bytes(&table.to_le_bytes())
            .bytes(&[0; 8])
            .bytes(&[0xff, 0xff, 0, 0, 0, 0x9b, 0, 0]);
        // mov eax, cr0; and al, 0xfe; mov cr0, eax; jmp f000:fff0
        let real = [
            0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0xea, 0xf0, 0xff, 0x00, 0xf0,
        ];
        // mov byte [LOW_CODE + index], byte
        (0u8..)
            .zip(real)
            .fold(code, |code, (index, byte)| {
                code.bytes(&[0xc6, 0x05, low + index, high, 0, 0, byte])
            })
            // lgdt [at]; jmp 8:LOW_CODE
            .bytes(&[0x0f, 0x01, 0x15])
            .bytes(&at.to_le_bytes())
            .bytes(&[0xea, low, high, 0, 0, 8, 0])
    }

    pub fn boot_timer_port(self) -> Self {
        self.out(0x3f0, 123)
    }

    /// mov byte [0xd0000000], 123
    pub fn boot_timer_memory(self) -> Self {
        self.bytes(&[0xc6, 0x05, 0x00, 0x00, 0x00, 0xd0, 123])
    }

    /// An interrupt table without entries, then a division by zero.
    pub fn triple_fault(self) -> Self {
        // jmp over 6 zeroes; lidt [zeroes]; xor ecx, ecx; div ecx
        let at = (self.here() + 2).to_le_bytes();
        self.bytes(&[0xeb, 6, 0, 0, 0, 0, 0, 0, 0x0f, 0x01, 0x1d])
            .bytes(&at)
            .bytes(&[0x31, 0xc9, 0xf7, 0xf1])
            .halt()
    }

    /// Waits for a byte from the serial port and gives it back.
    pub fn echo(self) -> Self {
        // mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx; out dx, al
        self.bytes(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb])
            .bytes(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0xee])
    }

    /// Reads the generic event device's register until the power button's bit is set.
    pub fn wait_for_power_button(self) -> Self {
        // mov dx, 0x604; wait: in eax, dx; test al, 1; jz wait
        self.bytes(&[0x66, 0xba, 0x04, 0x06, 0xed, 0xa8, 0x01, 0x74, 0xfb])
    }

    /// Aims the data port of PCI configuration space.
    fn config(self, slot: u8, register: u8) -> Self {
        let address = 0x8000_0000 | u32::from(slot) << 11 | u32::from(register);
        self.out_long(0xcf8, address)
    }

    /// mov dword [address], value
    fn store(self, address: u32, value: u32) -> Self {
        self.bytes(&[0xc7, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&value.to_le_bytes())
    }

    /// mov dx, port; wait: in eax, dx; test eax, eax; jz wait; out dx, eax
    fn hear(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.bytes(&[0x66, 0xba, low, high, 0xed, 0x85, 0xc0, 0x74, 0xfb, 0xef])
    }

    /// mov dx, 0xcfc; in eax, dx; mov dx, 0x3f8; out dx, al
    fn print_config_byte(self) -> Self {
        self.bytes(&[0x66, 0xba, 0xfc, 0x0c, 0xed, 0x66, 0xba, 0xf8, 0x03, 0xee])
    }

    /// For ever: hears of a virtio device at `slot`, says the first byte of its identity, switches its memory, its first
    /// interrupt vector and its first doorbell on, rings that, hears that the device shall go, lets it go, and says the
    /// first byte of the identity of what is there then.
    pub fn obey_hotplug(self, slot: u8) -> Self {
        let bar = 0xd800_0000 + u32::from(slot) * 0x8000;
        let start = self.0.len();
        // The registers "up", "down" and "eject".
        let code = self.hear(0x620).config(slot, 0).print_config_byte();
        let code = code.config(slot, 4).out_long(0xcfc, 2);
        let code = code
            .store(bar + 0x3000, 0xfee0_0000)
            .store(bar + 0x3008, 0x41)
            .store(bar + 0x300c, 0);
        // MSI-X is the fifth capability of a disk, and the fifth of a network interface.
        let code = code.config(slot, 0x84).out_long(0xcfc, 0x8000_0000);
        let code = code.store(bar + 0x6000, 0);
        let code = code.hear(0x624).bytes(&[0x66, 0xba, 0x28, 0x06, 0xef]);
        let code = code.config(slot, 0).print_config_byte();
        // jmp start
        let back = u32::try_from(code.0.len() + 5 - start).unwrap();
        code.bytes(&[0xe9])
            .bytes(&back.wrapping_neg().to_le_bytes())
    }

    /// mov byte [address], value
    fn store_byte(self, address: u32, value: u8) -> Self {
        self.bytes(&[0xc6, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&[value])
    }

    /// mov word [address], value
    fn store_word(self, address: u32, value: u16) -> Self {
        self.bytes(&[0x66, 0xc7, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&value.to_le_bytes())
    }

    /// Switches on the first queue of a disk that is the only device, on PCI at device number 1 or else
    /// at the first place on MMIO. Where the queue's parts are, is in `parts`. Gives the address of its doorbell.
    fn start_disk(self, pci: bool, parts: [u32; 3]) -> (Self, u32) {
        let [table, available, used] = parts;
        if pci {
            let bar = 0xd800_8000;
            let code = self.config(1, 4).out_long(0xcfc, 6);
            // The first interrupt vector, which nobody takes: interrupts are off.
            let code = code
                .store(bar + 0x3000, 0xfee0_0000)
                .store(bar + 0x3008, 0x41)
                .store(bar + 0x300c, 0);
            let code = code.config(1, 0x84).out_long(0xcfc, 0x8000_0000);
            let code = code.store_byte(bar + 0x14, 1).store_byte(bar + 0x14, 3);
            let code = code.store(bar + 8, 1).store(bar + 12, 1);
            let code = code.store_byte(bar + 0x14, 11);
            let code = code
                .store_word(bar + 0x16, 0)
                .store_word(bar + 0x18, QUEUE_SIZE);
            let code = code
                .store_word(bar + 0x1a, 0)
                .store(bar + 0x20, table)
                .store(bar + 0x28, available)
                .store(bar + 0x30, used)
                .store_word(bar + 0x1c, 1)
                .store_byte(bar + 0x14, 15);
            (code, bar + 0x6000)
        } else {
            let base = 0xd000_1000;
            let code = self.store(base + 0x70, 1).store(base + 0x70, 3);
            let code = code.store(base + 0x24, 1).store(base + 0x20, 1);
            let code = code.store(base + 0x70, 11);
            let code = code
                .store(base + 0x30, 0)
                .store(base + 0x38, u32::from(QUEUE_SIZE));
            let code = code
                .store(base + 0x80, table)
                .store(base + 0x90, available)
                .store(base + 0xa0, used)
                .store(base + 0x44, 1)
                .store(base + 0x70, 15);
            (code, base + 0x50)
        }
    }

    /// For ever: waits for a byte from the serial port, adds one to a byte in memory and to `EDI`, writes that byte as the
    /// first of the disk's first sector, and prints the request's status as a digit, the byte, and `EDI`.
    ///
    /// The disk is the only device, on PCI at device number 1 or else at the first place on MMIO.
    pub fn count_on_disk(self, pci: bool) -> Self {
        const TABLE: u32 = 0x18_0000;
        const AVAILABLE: u32 = 0x18_1000;
        const USED: u32 = 0x18_1800;
        const HEADER: u32 = 0x18_2000;
        const DATA: u32 = 0x18_3000;
        const STATUS: u32 = 0x18_4000;
        let mut code = self.store(HEADER, 1);
        for (index, address, len, flags) in [
            (0, HEADER, 16, 1_u32 | 1 << 16),
            (1, DATA, 512, 1 | 2 << 16),
            (2, STATUS, 1, 2),
        ] {
            let at = TABLE + 16 * index;
            code = code
                .store(at, address)
                .store(at + 8, len)
                .store(at + 12, flags);
        }
        let (mut code, doorbell) = code.start_disk(pci, [TABLE, AVAILABLE, USED]);
        // xor edi, edi
        code = code.bytes(&[0x31, 0xff]);
        let start = code.0.len();
        // mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx
        code = code
            .bytes(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb])
            .bytes(&[0x66, 0xba, 0xf8, 0x03, 0xec]);
        // inc edi; inc byte [DATA]
        code = code.bytes(&[0x47, 0xfe, 0x05]).bytes(&DATA.to_le_bytes());
        // mov ax, [index]; inc ax; mov [index], ax
        let index = (AVAILABLE + 2).to_le_bytes();
        code = code.bytes(&[0x66, 0xa1]).bytes(&index);
        code = code.bytes(&[0x66, 0x40, 0x66, 0xa3]).bytes(&index);
        code = code.store(doorbell, 0);
        // wait: mov ax, [used index]; cmp ax, [index]; jne wait
        code = code.bytes(&[0x66, 0xa1]).bytes(&(USED + 2).to_le_bytes());
        code = code.bytes(&[0x66, 0x3b, 0x05]).bytes(&index);
        code = code.bytes(&[0x75, 0xf1]);
        // mov dx, 0x3f8; mov al, [STATUS]; add al, '0'; out dx, al; mov al, [DATA]; out dx, al; mov eax, edi; out dx, al
        code = code.bytes(&[0x66, 0xba, 0xf8, 0x03, 0xa0]);
        code = code.bytes(&STATUS.to_le_bytes());
        code = code
            .bytes(&[0x04, b'0', 0xee, 0xa0])
            .bytes(&DATA.to_le_bytes());
        code = code.bytes(&[0xee, 0x89, 0xf8, 0xee]);
        // jmp start
        let back = u32::try_from(code.0.len() + 5 - start).unwrap();
        code.bytes(&[0xe9])
            .bytes(&back.wrapping_neg().to_le_bytes())
    }

    /// For ever: waits for a byte from the serial port, and then prints the generation ID, the first eight bytes of the
    /// network interface's configuration (its address and its link), the socket device's address, and how many events that
    /// one has told; then it lets go of what it is asked for, and switches on what has come.
    ///
    /// On PCI; the interface is at device number 1, the socket device at 2.
    pub fn know_thyself(self) -> Self {
        const TABLE: u32 = 0x18_0000;
        const AVAILABLE: u32 = 0x18_1000;
        const USED: u32 = 0x18_1800;
        const EVENT: u32 = 0x18_2000;
        const GENERATION_ID: u32 = 0xf_f000;
        let [net, vsock] = [0xd800_8000, 0xd801_0000];
        let switch_on = |code: Self, slot| code.config(slot, 4).out_long(0xcfc, 6);
        let code = switch_on(switch_on(self, 1), 2);
        // One buffer for one event.
        let code = code
            .store(TABLE, EVENT)
            .store(TABLE + 8, 4)
            .store(TABLE + 12, 2)
            .store_word(AVAILABLE + 2, 1);
        let code = code.store_byte(vsock + 0x14, 1).store_byte(vsock + 0x14, 3);
        let code = code.store(vsock + 8, 1).store(vsock + 12, 1);
        let code = code.store_byte(vsock + 0x14, 11);
        let code = code.store_word(vsock + 0x16, 2).store_word(vsock + 0x18, 8);
        let code = code
            .store(vsock + 0x20, TABLE)
            .store(vsock + 0x28, AVAILABLE)
            .store(vsock + 0x30, USED)
            .store_word(vsock + 0x1c, 1)
            .store_byte(vsock + 0x14, 15)
            .store(vsock + 0x6008, 2);
        let start = code.0.len();
        // mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx
        let code = code
            .bytes(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb])
            .bytes(&[0x66, 0xba, 0xf8, 0x03, 0xec]);
        let code = code
            .print_memory(GENERATION_ID, 16)
            .print_memory(net + 0x2000, 8)
            .print_memory(vsock + 0x2000, 8)
            .print_memory(USED, 4);
        // The registers "down" and "eject": mov dx, 0x624; in eax, dx; out dx, eax; mov dx, 0x628; out dx, eax
        let code = code.bytes(&[0x66, 0xba, 0x24, 0x06, 0xed, 0xef]);
        let code = code.bytes(&[0x66, 0xba, 0x28, 0x06, 0xef]);
        // The register "up": mov dx, 0x620; in eax, dx; out dx, eax
        let code = code.bytes(&[0x66, 0xba, 0x20, 0x06, 0xed, 0xef]);
        let code = switch_on(code, 1);
        // jmp start
        let back = u32::try_from(code.0.len() + 5 - start).unwrap();
        code.bytes(&[0xe9])
            .bytes(&back.wrapping_neg().to_le_bytes())
    }

    /// Writes its address as the first word of each of `pages` pages from `first` on, one after the other.
    pub fn fill(self, first: u32, pages: u32) -> Self {
        // mov esi, first; mov ecx, pages; next: mov [esi], esi; add esi, 4096; dec ecx; jnz next
        self.bytes(&[0xbe])
            .bytes(&first.to_le_bytes())
            .bytes(&[0xb9])
            .bytes(&pages.to_le_bytes())
            .bytes(&[0x89, 0x36, 0x81, 0xc6, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5])
    }

    /// For ever: writes the number of the sweep as the first word of each of `pages` pages from `first` on, one after the
    /// other, and prints it if there is a byte from the serial port.
    pub fn sweep(self, first: u32, pages: u32) -> Self {
        // xor edi, edi; start: inc edi; mov esi, first; mov ecx, pages
        let code = self.bytes(&[0x31, 0xff]);
        let start = code.0.len();
        let code = code.bytes(&[0x47, 0xbe]).bytes(&first.to_le_bytes());
        let code = code.bytes(&[0xb9]).bytes(&pages.to_le_bytes());
        // next: mov [esi], edi; add esi, 4096; dec ecx; jnz next
        let code = code.bytes(&[0x89, 0x3e, 0x81, 0xc6, 0, 0x10, 0, 0, 0x49, 0x75, 0xf3]);
        // mov dx, 0x3fd; in al, dx; test al, 1; jz start
        let code = code.bytes(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x0f, 0x84]);
        let back = u32::try_from(code.0.len() + 4 - start).unwrap();
        let code = code.bytes(&back.wrapping_neg().to_le_bytes());
        // mov dx, 0x3f8; in al, dx; mov eax, edi
        let code = code.bytes(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0x89, 0xf8]);
        let code = code.print_eax();
        // jmp start
        let back = u32::try_from(code.0.len() + 5 - start).unwrap();
        code.bytes(&[0xe9])
            .bytes(&back.wrapping_neg().to_le_bytes())
    }

    /// cli; again: hlt; jmp again
    pub fn halt(self) -> Self {
        self.bytes(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    pub fn spin(self) -> Self {
        self.bytes(&[0xeb, 0xfe])
    }

    /// `EAX` as the boot loader left it, the flags of the Multiboot information, the first bytes of its command line and
    /// of the loader's name. `EAX` must be as at the entry.
    pub fn print_multiboot_info(self) -> Self {
        let byte_of_esi = [0x8a, 0x06, 0x46, 0xee]; // mov al, [esi]; inc esi; out dx, al
        self.print_eax()
            .bytes(&[0x8b, 0x03]) // mov eax, [ebx]
            .print_eax()
            .bytes(&[0x8b, 0x73, 0x10]) // mov esi, [ebx + 16]: command line
            .bytes(&byte_of_esi)
            .bytes(&[0x8b, 0x73, 0x40]) // mov esi, [ebx + 64]: loader's name
            .bytes(&byte_of_esi)
    }

    /// The code as a Multiboot kernel that is no ELF file: the header behind the code says where it goes.
    pub fn multiboot_image(&self) -> NamedTempFile {
        let mut image = self.0.clone();
        image.resize(image.len().next_multiple_of(4), 0x90);
        let at = BASE + u32::try_from(image.len()).unwrap();
        let (magic, flags) = (0x1bad_b002_u32, 1 << 16 | 3);
        let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        for word in [magic, flags, checksum, at, BASE, 0, 0, BASE] {
            image.extend(word.to_le_bytes());
        }
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        file
    }

    /// The code as an ELF kernel with a PVH note.
    pub fn image(&self) -> NamedTempFile {
        let length = self.0.len() as u64;
        let mut image = Vec::new();
        image.extend(b"\x7fELF\x02\x01\x01");
        image.resize(16, 0);
        image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for word in [u64::from(BASE), 64, 0] {
            image.extend(word.to_le_bytes());
        }
        for half in [0u16, 0, 64, 56, 2, 0, 0, 0] {
            image.extend(half.to_le_bytes());
        }
        for (kind, offset, address, size) in [
            (1u32, CODE_AT, u64::from(BASE), length),
            (4, CODE_AT + length, 0, 20),
        ] {
            image.extend(kind.to_le_bytes());
            image.extend(5u32.to_le_bytes());
            for word in [offset, address, address, size, size, 1] {
                image.extend(word.to_le_bytes());
            }
        }
        image.extend(&self.0);
        for word in [4u32, 4, 18] {
            image.extend(word.to_le_bytes());
        }
        image.extend(b"Xen\0");
        image.extend(BASE.to_le_bytes());
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        file
    }
}
