//! Guest kernels that do nothing of what a kernel should: real machine code in a real ELF file.
//!
//! # Source
//! System V ABI for the file; Xen's `docs/misc/pvh.pandoc` for the note that names the entry point, which is
//! where QEMU starts it in 32-bit protected mode.

/// Disables interrupts and sleeps for ever: `cli; hlt; jmp hlt`.
pub const SILENT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];

/// Loads an empty interrupt table and faults, three times over: `lidt [0x200000]; ud2`. The table's limit lies
/// in memory that is zero.
pub const CRASHING: &[u8] = &[0x0f, 0x01, 0x1d, 0x00, 0x00, 0x20, 0x00, 0x0f, 0x0b];

/// Where the code is loaded and entered.
const ADDRESS: u64 = 0x10_0000;

/// Sizes of the ELF header and of one program header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// Where the note lies in the file, and how long it is.
const NOTE: u64 = HEADER + 2 * PROGRAM_HEADER;
const NOTE_LEN: u64 = 24;

/// An uncompressed kernel of this code alone.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const LOADABLE: u32 = 1;
    const IS_NOTE: u32 = 4;
    /// `XEN_ELFNOTE_PHYS32_ENTRY`.
    const PVH_ENTRY: u32 = 18;

    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([ADDRESS, HEADER, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 2, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let len = code.len() as u64;
    for (kind, offset, address, len) in
        [(LOADABLE, NOTE + NOTE_LEN, ADDRESS, len), (IS_NOTE, NOTE, 0, NOTE_LEN)]
    {
        let readable_and_executable = 5_u32;
        file.extend([kind, readable_and_executable].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([offset, address, address, len, len, 4].iter().flat_map(|word| word.to_le_bytes()));
    }
    file.extend([4_u32, 8, PVH_ENTRY].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(b"Xen\0");
    file.extend(ADDRESS.to_le_bytes());
    assert_eq!(file.len() as u64, NOTE + NOTE_LEN, "headers and note are as long as they say");
    file.extend(code);
    file
}

/// A program for Linux of this code alone.
pub fn executable(code: &[u8]) -> Vec<u8> {
    const LOADABLE: u32 = 1;
    const READABLE_AND_EXECUTABLE: u32 = 5;
    const BASE: u64 = 0x40_0000;
    let entry = HEADER + PROGRAM_HEADER;
    let len = entry + code.len() as u64;

    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([BASE + entry, HEADER, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    file.extend([LOADABLE, READABLE_AND_EXECUTABLE].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0, BASE, BASE, len, len, 4096].iter().flat_map(|word| word.to_le_bytes()));
    assert_eq!(file.len() as u64, entry, "the headers are as long as they say");
    file.extend(code);
    file
}
