//! Conversions between checked values and their text.

/// What serde's `try_from = "String"` and `into = "String"` need of types that are read by `FromStr` and written by
/// `Display`.
macro_rules! as_text {
    ($($kind:ty),* $(,)?) => {$(
        impl TryFrom<String> for $kind {
            type Error = <$kind as std::str::FromStr>::Err;

            fn try_from(text: String) -> Result<$kind, Self::Error> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(value: $kind) -> String {
                value.to_string()
            }
        }
    )*};
}

/// [`as_text`] for types that hold their text and are also names of files.
macro_rules! as_file_name {
    ($($kind:ty),* $(,)?) => {$(
        impl $kind {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $kind {
            type Error = <$kind as std::str::FromStr>::Err;

            fn try_from(text: &str) -> Result<$kind, Self::Error> {
                text.parse()
            }
        }

        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<std::path::Path> for $kind {
            fn as_ref(&self) -> &std::path::Path {
                std::path::Path::new(&self.0)
            }
        }

        $crate::text::as_text!($kind);
    )*};
}

pub(crate) use {as_file_name, as_text};
