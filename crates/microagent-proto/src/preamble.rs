//! The fixed 32 bytes before a session: magic, kind, generation, nonce.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::GENERATION;

/// Length of a preamble in bytes.
pub const PREAMBLE_LEN: usize = 32;

/// Starts every preamble; no UTF-8 text and no kernel message contains it.
const MAGIC: [u8; 12] = *b"\xf5microagent\xf5";

/// Bytes that are read in search of an answer before the guest is given up: a confused guest may have a
/// full port buffer of old bytes, not megabytes of them.
const SEARCH_LIMIT: usize = 1 << 20;

/// What the sender of a preamble wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreambleKind {
    /// An answer, nothing more.
    Ping,
    /// The fresh image disk mounted, grown and made the root; the answer comes when that is done. A guest
    /// that cannot do it answers [`PreambleKind::Failed`].
    Mount,
    /// A yamux session right after the answer.
    Session,
    /// Only in answers: what was asked for could not be done. The machine is of no use any more.
    Failed,
    /// A new session in place of one that the guest still has, for a copy of a machine that was captured: the nonce is
    /// the token of the [`crate::Hold`] at which it was captured. A yamux session follows right after the answer.
    Renew,
}

impl PreambleKind {
    /// All kinds with their bytes on the wire.
    const WIRE: [(PreambleKind, u8); 5] = [
        (PreambleKind::Ping, 1),
        (PreambleKind::Session, 2),
        (PreambleKind::Mount, 3),
        (PreambleKind::Failed, 4),
        (PreambleKind::Renew, 5),
    ];

    fn to_byte(self) -> u8 {
        let (_, byte) = Self::WIRE.iter().find(|(kind, _)| *kind == self).expect("all kinds are listed");
        *byte
    }

    fn from_byte(byte: u8) -> Option<PreambleKind> {
        Self::WIRE.iter().find(|(_, wire)| *wire == byte).map(|(kind, _)| *kind)
    }
}

/// What opens the control channel in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// What the host wants; the guest repeats it when it is done.
    pub kind: PreambleKind,
    /// [`GENERATION`] of the sender.
    pub generation: u16,
    /// Chosen by the host, repeated by the guest, so that an old answer is not taken for a new one.
    pub nonce: [u8; 16],
}

impl Preamble {
    /// The wire form: magic (12), kind (1), zero (1), generation (2, little endian), nonce (16).
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        bytes[..12].copy_from_slice(&MAGIC);
        bytes[12] = self.kind.to_byte();
        bytes[14..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Reads the wire form; `None` when it is not one.
    pub fn decode(bytes: &[u8; PREAMBLE_LEN]) -> Option<Preamble> {
        if !bytes.starts_with(&MAGIC) || bytes[13] != 0 {
            return None;
        }
        let kind = PreambleKind::from_byte(bytes[12])?;
        let generation = u16::from_le_bytes([bytes[14], bytes[15]]);
        let nonce = bytes[16..].try_into().ok()?;
        Some(Preamble { kind, generation, nonce })
    }
}

/// Finds the next preamble in a stream of bytes that may begin with rubbish.
#[derive(Debug, Default)]
pub struct PreambleScanner {
    window: Vec<u8>,
}

impl PreambleScanner {
    /// Takes one byte; gives the preamble that it completes, if any.
    pub fn push(&mut self, byte: u8) -> Option<Preamble> {
        if self.window.len() == PREAMBLE_LEN {
            self.window.remove(0);
        }
        self.window.push(byte);
        let found = self.window.as_slice().try_into().ok().and_then(Preamble::decode);
        if found.is_some() {
            self.window.clear();
        }
        found
    }
}

/// Host side: sends a preamble and waits for the guest's answer to it. The deadline is the caller's.
///
/// # Errors
/// Fails when the channel breaks, the guest could not do what was asked, it sends a megabyte of something
/// else, or its generation is another (`InvalidData`).
pub async fn greet<S>(channel: &mut S, kind: PreambleKind, nonce: [u8; 16]) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let sent = Preamble { kind, generation: GENERATION, nonce };
    channel.write_all(&sent.encode()).await?;
    channel.flush().await?;
    let mut scanner = PreambleScanner::default();
    for _ in 0..SEARCH_LIMIT {
        // Byte by byte: what follows the answer belongs to the session and must stay in the channel.
        match scanner.push(channel.read_u8().await?) {
            Some(got) if got == sent => return Ok(()),
            Some(got) if got == (Preamble { kind: PreambleKind::Failed, ..sent }) => {
                return Err(io::Error::other("the guest could not do it; its console says why"));
            }
            Some(got) if got.nonce == nonce => {
                let text = format!("the guest speaks generation {}, this build {GENERATION}", got.generation);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            _ => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the guest sends something that is not an answer"))
}

/// Guest side: waits for a preamble, answers it, and says what was asked for.
///
/// # Errors
/// Fails when the channel breaks.
pub async fn answer<S>(channel: &mut S) -> io::Result<Preamble>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut scanner = PreambleScanner::default();
    loop {
        if let Some(asked) = scanner.push(channel.read_u8().await?) {
            let reply = Preamble { generation: GENERATION, ..asked };
            channel.write_all(&reply.encode()).await?;
            channel.flush().await?;
            return Ok(asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn found_after_any_rubbish(rubbish in proptest::collection::vec(any::<u8>(), 0..100), nonce: [u8; 16]) {
            let sent = Preamble { kind: PreambleKind::Session, generation: 7, nonce };
            let mut scanner = PreambleScanner::default();
            for byte in rubbish {
                scanner.push(byte);
            }
            let found: Vec<_> = sent.encode().into_iter().filter_map(|byte| scanner.push(byte)).collect();
            prop_assert_eq!(found, vec![sent]);
        }
    }

    #[tokio::test]
    async fn an_old_answer_is_not_taken_for_the_new_one() {
        let (mut host, mut guest) = tokio::io::duplex(1024);
        let old = Preamble { kind: PreambleKind::Ping, generation: GENERATION, nonce: [1; 16] };
        guest.write_all(&old.encode()).await.unwrap();
        let (greeted, answered) =
            tokio::join!(greet(&mut host, PreambleKind::Session, [2; 16]), answer(&mut guest));
        greeted.unwrap();
        assert_eq!(answered.unwrap().kind, PreambleKind::Session);
    }

    #[tokio::test]
    async fn another_generation_is_refused() {
        let (mut host, mut guest) = tokio::io::duplex(1024);
        let reply = Preamble { kind: PreambleKind::Session, generation: GENERATION + 1, nonce: [3; 16] };
        guest.write_all(&reply.encode()).await.unwrap();
        let refused = greet(&mut host, PreambleKind::Session, [3; 16]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_guest_may_say_that_it_failed() {
        let (mut host, mut guest) = tokio::io::duplex(1024);
        let reply = Preamble { kind: PreambleKind::Failed, generation: GENERATION, nonce: [3; 16] };
        guest.write_all(&reply.encode()).await.unwrap();
        let failed = greet(&mut host, PreambleKind::Mount, [3; 16]).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::Other);
    }

    #[tokio::test]
    async fn endless_rubbish_is_given_up() {
        let (mut host, mut guest) = tokio::io::duplex(1 << 16);
        let flood = tokio::spawn(async move { while guest.write_all(&[0x55; 4096]).await.is_ok() {} });
        assert!(greet(&mut host, PreambleKind::Session, [3; 16]).await.is_err());
        drop(host);
        flood.await.unwrap();
    }
}
