//! The token that every request over HTTP has to carry.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};
use subtle::ConstantTimeEq;

/// Random bytes of a token that is made here.
const RANDOM_BYTES: usize = 32;

/// Fewest characters of a token: those of 128 random bits in base64.
const LEN_MIN: usize = 22;

/// Most characters of a token, well below the longest head of a request.
const LEN_MAX: usize = 512;

/// A bearer token. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

/// Why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token has {LEN_MIN} to {LEN_MAX} characters: letters, digits and -._~+/=")]
pub struct TokenError;

impl AccessToken {
    /// A new one, of 256 random bits in hexadecimal.
    ///
    /// # Errors
    /// Fails when the kernel gives no random bytes.
    pub fn generate() -> io::Result<AccessToken> {
        let mut bytes = [0; RANDOM_BYTES];
        if getrandom(&mut bytes, GetRandomFlags::empty())? != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(AccessToken(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Its text, for who is to use it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether the value of an `Authorization` header carries it. How long that takes says nothing about the token.
    ///
    /// # Source
    /// RFC 6750, section 2.1; RFC 9110, section 11.1: the name of the scheme has no case.
    pub(super) fn is_in(&self, header: &[u8]) -> bool {
        let (scheme, token) = header.split_at_checked(SCHEME.len()).unwrap_or_default();
        scheme.eq_ignore_ascii_case(SCHEME) && token.trim_ascii().ct_eq(self.0.as_bytes()).into()
    }
}

const SCHEME: &[u8] = b"Bearer ";

impl FromStr for AccessToken {
    type Err = TokenError;

    /// # Source
    /// RFC 6750, section 2.1: `b64token`.
    fn from_str(text: &str) -> Result<AccessToken, TokenError> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
        match (LEN_MIN..=LEN_MAX).contains(&text.len()) && text.chars().all(is_good) {
            true => Ok(AccessToken(text.to_owned())),
            false => Err(TokenError),
        }
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_new_each_time_and_is_not_shown() {
        let (one, other) = (AccessToken::generate().unwrap(), AccessToken::generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.reveal().parse(), Ok(one.clone()));
        assert!(!format!("{one:?}").contains(one.reveal()));
    }

    #[test]
    fn only_the_whole_token_opens() {
        let token: AccessToken = "abcdefghijklmnopqrstuvwxyz".parse().unwrap();
        for good in ["Bearer abcdefghijklmnopqrstuvwxyz", "bearer  abcdefghijklmnopqrstuvwxyz "] {
            assert!(token.is_in(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer abcdefghijklmnopqrstuvwxy",
            "Bearer abcdefghijklmnopqrstuvwxyzz",
            "Bearer Abcdefghijklmnopqrstuvwxyz",
            "Basic abcdefghijklmnopqrstuvwxyz",
            "abcdefghijklmnopqrstuvwxyz",
        ] {
            assert!(!token.is_in(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_token_has_a_form() {
        for bad in [
            "",
            "short",
            &"x".repeat(LEN_MAX + 1),
            "with a blank in the middle of it",
            "ümlaut-ümlaut-ümlaut",
        ] {
            assert_eq!(bad.parse::<AccessToken>(), Err(TokenError), "{bad}");
        }
    }
}
