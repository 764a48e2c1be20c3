//! What a policy file says, as the words of a command line that say the same. A fuzz target reads this module as its own,
//! so it uses nothing else of the command.

use toml::de::{DeTable, DeValue};

/// What an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// It is there or not.
    Nothing,
    /// One value.
    One,
    /// A value each time that it is given.
    Many,
}

/// A word of a command line.
#[derive(Debug)]
pub(crate) struct Word {
    /// The word.
    pub(crate) text: String,
    /// Where its value begins in the file.
    pub(crate) offset: usize,
}

/// Why a file has no words.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is not TOML.
    Syntax(toml::de::Error),
    /// It has a key that is no option.
    Key { name: String, offset: usize },
    /// A value has another form than its option takes.
    Value { what: String, offset: usize },
}

/// Reads the text of a file. `takes` knows the options by their names.
pub(crate) fn words(text: &str, takes: impl Fn(&str) -> Option<Takes>) -> Result<Vec<Word>, Refused> {
    let table = DeTable::parse(text).map_err(Refused::Syntax)?;
    let mut words = Vec::new();
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        let unknown = || Refused::Key { name: name.to_owned(), offset: key.span().start };
        let takes = takes(name).ok_or_else(unknown)?;
        let offset = value.span().start;
        let said = of_option(takes, name, value.get_ref(), offset);
        words.extend(said.map_err(|what| Refused::Value { what, offset })?);
    }
    Ok(words)
}

fn of_option(takes: Takes, name: &str, value: &DeValue<'_>, offset: usize) -> Result<Vec<Word>, String> {
    let with = |text: String, offset: usize| Word { text: format!("--{name}={text}"), offset };
    match (takes, value) {
        (Takes::Nothing, DeValue::Boolean(true)) => Ok(vec![Word { text: format!("--{name}"), offset }]),
        (Takes::Nothing, DeValue::Boolean(false)) => Ok(Vec::new()),
        (Takes::Nothing, _) => Err(format!("`{name}` is true or false")),
        (Takes::Many, DeValue::Array(entries)) => {
            let words = entries
                .iter()
                .map(|entry| scalar(entry.get_ref()).map(|text| with(text, entry.span().start)));
            words.collect::<Option<_>>().ok_or_else(|| format!("`{name}` is a list of texts"))
        }
        (Takes::Many, _) => Err(format!("`{name}` is a list, such as {name} = [\"…\"]")),
        (Takes::One, value) => match scalar(value) {
            Some(text) => Ok(vec![with(text, offset)]),
            None => Err(format!("`{name}` is a text or a number")),
        },
    }
}

/// A text, or a number in decimal.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        _ => None,
    }
}
