//! One message: its length as four little-endian bytes, then its postcard form.

use std::io;

use postcard::ser_flavors::Size;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// Why a message could not be exchanged. The stream is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream broke.
    #[error("the control channel broke")]
    Transport(#[source] io::Error),
    /// The other side announced more than this kind of message may have.
    #[error("a message of {len} bytes was announced, {limit} are allowed")]
    TooLong {
        /// Announced length in bytes.
        len: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// The bytes are not a message of the expected kind.
    #[error("a message could not be decoded")]
    Decode(#[source] postcard::Error),
    /// The message has no encoding.
    #[error("a message could not be encoded")]
    Encode(#[source] postcard::Error),
}

/// Reads one message of at most `limit` bytes; `None` when the stream ended before its first byte. Loses
/// what it has read when it is dropped before its end: where it has to stand in a `select!`, use a
/// [`MessageReader`].
///
/// # Errors
/// Fails when the stream breaks in the middle, the announced length is over the limit (nothing is
/// allocated then), or the bytes do not decode.
pub async fn read_message<T, R>(stream: &mut R, limit: usize) -> Result<Option<T>, FrameError>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    MessageReader::new(stream, limit).next().await
}

/// Reads messages one after another, and never a byte beyond the current one.
#[derive(Debug)]
pub struct MessageReader<R> {
    stream: R,
    limit: usize,
    prefix: [u8; 4],
    /// What there is room for: nothing before the length is known and found good.
    body: Option<Vec<u8>>,
    /// Bytes of prefix or body that have been read.
    filled: usize,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads messages of at most `limit` bytes.
    pub fn new(stream: R, limit: usize) -> MessageReader<R> {
        MessageReader { stream, limit, prefix: [0; 4], body: None, filled: 0 }
    }

    /// The next message; `None` when the stream ended before its first byte. Dropped before its end, it
    /// continues where it was at the next call.
    ///
    /// # Errors
    /// As [`read_message`].
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            let target = match &mut self.body {
                None if self.filled == self.prefix.len() => {
                    let len = u32::from_le_bytes(self.prefix) as usize;
                    if len > self.limit {
                        return Err(FrameError::TooLong { len, limit: self.limit });
                    }
                    self.filled = 0;
                    self.body = Some(vec![0; len]);
                    continue;
                }
                None => &mut self.prefix[self.filled..],
                Some(body) if self.filled == body.len() => {
                    let message = postcard::from_bytes(body).map(Some).map_err(FrameError::Decode);
                    self.body = None;
                    self.filled = 0;
                    return message;
                }
                Some(body) => &mut body[self.filled..],
            };
            // Reading into a slice is the one step that waits, and it can be dropped without a loss.
            match self.stream.read(target).await.map_err(FrameError::Transport)? {
                0 if self.filled == 0 && self.body.is_none() => return Ok(None),
                0 => return Err(FrameError::Transport(io::ErrorKind::UnexpectedEof.into())),
                count => self.filled += count,
            }
        }
    }
}

/// Writes one message of at most `limit` bytes and flushes it.
///
/// # Errors
/// Fails when the message is longer than that (nothing is sent then) or the stream breaks.
pub async fn write_message<T, W>(stream: &mut W, message: &T, limit: usize) -> Result<(), FrameError>
where
    T: Serialize,
    W: AsyncWrite + Unpin,
{
    // One buffer and one write, so that a message is never torn over two small frames.
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(FrameError::Encode)?;
    let len = bytes.len() - 4;
    let Some(prefix) = u32::try_from(len).ok().filter(|_| len <= limit) else {
        return Err(FrameError::TooLong { len, limit });
    };
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    stream.write_all(&bytes).await.map_err(FrameError::Transport)?;
    stream.flush().await.map_err(FrameError::Transport)
}

/// Reads one message that holds secrets, as [`read_message`] does; the bytes that it came in are overwritten.
///
/// # Errors
/// As [`read_message`].
pub async fn read_secret_message<T, R>(stream: &mut R, limit: usize) -> Result<Option<T>, FrameError>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut prefix = [0; 4];
    let begun = stream.read(&mut prefix).await.map_err(FrameError::Transport)?;
    if begun == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[begun..]).await.map_err(FrameError::Transport)?;
    let len = u32::from_le_bytes(prefix) as usize;
    if len > limit {
        return Err(FrameError::TooLong { len, limit });
    }
    let mut body = Zeroizing::new(vec![0; len]);
    stream.read_exact(&mut body).await.map_err(FrameError::Transport)?;
    postcard::from_bytes(&body).map(Some).map_err(FrameError::Decode)
}

/// Writes one message that holds secrets, as [`write_message`] does; the bytes that it went in are overwritten.
///
/// # Errors
/// As [`write_message`].
pub async fn write_secret_message<T, W>(stream: &mut W, message: &T, limit: usize) -> Result<(), FrameError>
where
    T: Serialize,
    W: AsyncWrite + Unpin,
{
    // Measured first: a buffer that grows leaves copies of what was in it behind.
    let len = postcard::serialize_with_flavor(message, Size::default()).map_err(FrameError::Encode)?;
    let Some(prefix) = u32::try_from(len).ok().filter(|_| len <= limit) else {
        return Err(FrameError::TooLong { len, limit });
    };
    let mut bytes = Zeroizing::new(vec![0; 4 + len]);
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    postcard::to_slice(message, &mut bytes[4..]).map_err(FrameError::Encode)?;
    stream.write_all(&bytes).await.map_err(FrameError::Transport)?;
    stream.flush().await.map_err(FrameError::Transport)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ExecEvent, ExecInput, INPUT_LIMIT, REPLY_LIMIT, Request};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_body_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        let got = runtime().block_on(read_message::<ExecEvent, _>(&mut &bytes[..], REPLY_LIMIT));
        assert!(matches!(got, Err(FrameError::TooLong { limit: REPLY_LIMIT, .. })));
    }

    #[test]
    fn an_end_between_messages_is_an_end_and_inside_one_an_error() {
        runtime().block_on(async {
            assert!(read_message::<Request, _>(&mut &[][..], 10).await.unwrap().is_none());
            for torn in [&[1u8, 0][..], &[2, 0, 0, 0, 7]] {
                let got = read_message::<Request, _>(&mut &torn[..], 10).await;
                assert!(matches!(got, Err(FrameError::Transport(_))), "{got:?}");
            }
        });
    }

    #[test]
    fn what_is_too_long_to_be_read_is_not_sent() {
        let mut sent = Vec::new();
        let message = ExecEvent::Stdout(vec![0; REPLY_LIMIT].into());
        let got = runtime().block_on(write_message(&mut sent, &message, REPLY_LIMIT));
        assert!(matches!(got, Err(FrameError::TooLong { .. })));
        assert!(sent.is_empty());
    }

    #[test]
    fn secret_messages_are_the_same_on_the_wire_and_have_the_same_bounds() {
        let message = ExecInput::Stdin(vec![7; 300].into());
        runtime().block_on(async {
            let (mut plain, mut secret) = (Vec::new(), Vec::new());
            write_message(&mut plain, &message, INPUT_LIMIT).await.unwrap();
            write_secret_message(&mut secret, &message, INPUT_LIMIT).await.unwrap();
            assert_eq!(plain, secret);
            let back = read_secret_message(&mut &secret[..], INPUT_LIMIT).await.unwrap();
            assert_eq!(back, Some(message.clone()));
            let none = read_secret_message::<ExecInput, _>(&mut &[][..], INPUT_LIMIT).await.unwrap();
            assert_eq!(none, None);
            for limit in [0, secret.len() - 5] {
                let read = read_secret_message::<ExecInput, _>(&mut &secret[..], limit).await;
                assert!(matches!(read, Err(FrameError::TooLong { .. })), "{read:?}");
                let mut sent = Vec::new();
                let wrote = write_secret_message(&mut sent, &message, limit).await;
                assert!(matches!(wrote, Err(FrameError::TooLong { .. })) && sent.is_empty(), "{wrote:?}");
            }
            let torn = read_secret_message::<ExecInput, _>(&mut &secret[..9], INPUT_LIMIT).await;
            assert!(matches!(torn, Err(FrameError::Transport(_))), "{torn:?}");
        });
    }

    #[test]
    fn a_reader_that_is_dropped_in_the_middle_goes_on_there() {
        let messages = [ExecInput::Stdin(vec![7; 300].into()), ExecInput::Resize { rows: 24, cols: 80 }];
        runtime().block_on(async {
            let (mut near, far) = tokio::io::duplex(1024);
            let mut reader = MessageReader::new(far, INPUT_LIMIT);
            let mut bytes = Vec::new();
            for message in &messages {
                write_message(&mut bytes, message, INPUT_LIMIT).await.unwrap();
            }
            let mut got = Vec::new();
            for byte in bytes {
                near.write_all(&[byte]).await.unwrap();
                tokio::select! {
                    biased;
                    message = reader.next::<ExecInput>() => got.extend(message.unwrap()),
                    () = std::future::ready(()) => {}
                }
            }
            assert_eq!(got, messages);
            drop(near);
            assert_eq!(reader.next::<ExecInput>().await.unwrap(), None);
        });
    }

    proptest! {
        #[test]
        fn no_bytes_of_the_guest_make_the_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
            bytes.extend(body);
            let _ = runtime().block_on(read_message::<ExecEvent, _>(&mut &bytes[..], REPLY_LIMIT));
            let _ = runtime().block_on(read_message::<Request, _>(&mut &bytes[..], REPLY_LIMIT));
        }

        #[test]
        fn output_comes_back_as_it_went(body in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let message = ExecEvent::Stderr(body.into());
            let mut bytes = Vec::new();
            runtime().block_on(write_message(&mut bytes, &message, REPLY_LIMIT)).unwrap();
            let back = runtime().block_on(read_message::<ExecEvent, _>(&mut &bytes[..], REPLY_LIMIT)).unwrap();
            prop_assert_eq!(back, Some(message));
        }
    }
}
