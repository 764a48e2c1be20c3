//! Whatever a policy file of `serve mcp` says: options that there are, with places in the file, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/microagent-cli/src/commands/serve/policy_words.rs"]
mod policy_words;

use policy_words::{Refused, Takes, words};

const OPTIONS: [(&str, Takes); 4] = [
    ("keep", Takes::Nothing),
    ("memory", Takes::One),
    ("network", Takes::One),
    ("allow-image", Takes::Many),
];

fn takes(name: &str) -> Option<Takes> {
    OPTIONS.iter().find(|(known, _)| *known == name).map(|(_, takes)| *takes)
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match words(text, takes) {
        Ok(words) => {
            for word in words {
                assert!(text.is_char_boundary(word.offset));
                let option = word.text.strip_prefix("--").expect("an option");
                let name = option.split('=').next().expect("a name");
                let has_value = option.len() > name.len();
                assert_eq!(takes(name).expect("a known option") != Takes::Nothing, has_value);
            }
        }
        Err(Refused::Syntax(error)) => assert!(!error.message().is_empty()),
        Err(Refused::Key { name, offset }) => {
            assert!(takes(&name).is_none() && text.is_char_boundary(offset));
        }
        Err(Refused::Value { what, offset }) => {
            assert!(what.len() < 100 && text.is_char_boundary(offset));
        }
    }
});
