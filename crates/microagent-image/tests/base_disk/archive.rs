//! Small archives for tests.

/// Fields of a header that tests set; everything else is plain.
pub(crate) struct Header<'a> {
    pub(crate) kind: u8,
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    /// What the header says; the data may be another.
    pub(crate) size: u64,
}

/// An archive being put together.
#[derive(Default, Clone)]
pub(crate) struct Tar {
    pub(crate) bytes: Vec<u8>,
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    pub(crate) fn header(mut self, header: &Header<'_>) -> Tar {
        let mut unit = [0; 512];
        unit[..header.name.len()].copy_from_slice(header.name);
        unit[100..108].copy_from_slice(if header.kind == b'5' { b"0000755\0" } else { b"0000644\0" });
        unit[108..116].copy_from_slice(b"0000000\0");
        unit[116..124].copy_from_slice(b"0000000\0");
        unit[124..135].copy_from_slice(format!("{:011o}", header.size).as_bytes());
        unit[136..147].copy_from_slice(b"14524747000");
        unit[148..156].copy_from_slice(b"        ");
        unit[156] = header.kind;
        unit[157..157 + header.link.len()].copy_from_slice(header.link);
        unit[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = unit.iter().map(|&b| u32::from(b)).sum();
        unit[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.bytes.extend_from_slice(&unit);
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Tar {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Tar {
        let size = data.len() as u64;
        self.header(&Header { kind: b'0', name: name.as_bytes(), link: b"", size }).data(data)
    }

    /// A directory, or with a target a hard link (`1`), a symlink (`2`) or something unknown.
    pub(crate) fn entry(self, kind: u8, name: &str, link: &str) -> Tar {
        self.header(&Header { kind, name: name.as_bytes(), link: link.as_bytes(), size: 0 })
    }

    /// Extended headers of one record each, without their lengths.
    pub(crate) fn pax(self, record: &str) -> Tar {
        let mut length = record.len() + 3;
        while length != format!("{length} {record}\n").len() {
            length += 1;
        }
        let data = format!("{length} {record}\n");
        self.header(&Header { kind: b'x', name: b"pax", link: b"", size: data.len() as u64 })
            .data(data.as_bytes())
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
