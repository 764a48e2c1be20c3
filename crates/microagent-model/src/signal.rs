//! Signals by name, as images and people write them. Pure.

/// Lowest and highest real-time signal that programs can use (the C library keeps 32 and 33).
const REAL_TIME: (u8, u8) = (34, 64);

/// Names without `SIG`, by number from 1, as Linux has them on all of our machines (`signal(7)`).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `SIGTERM`, which everything is asked with that says nothing else.
pub const SIGTERM: u8 = 15;

/// The number of a signal: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
pub fn signal_number(text: &str) -> Option<u8> {
    let (lowest, highest) = REAL_TIME;
    if let Ok(number) = text.parse::<u8>() {
        return (1..=highest).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(offset) => offset.parse::<u8>().ok(),
        None => rest.is_empty().then_some(0),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, '+')?.checked_add(lowest).filter(|number| *number <= highest);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return highest.checked_sub(offset(rest, '-')?).filter(|number| *number >= lowest);
    }
    let index = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(index + 1).ok()
}

/// The name of a signal, 1 to 64: `SIGTERM`, `SIGRTMIN+3`; nothing for a number without one.
pub fn signal_name(number: u8) -> Option<String> {
    let (lowest, highest) = REAL_TIME;
    match number.checked_sub(lowest) {
        Some(0) => return Some("SIGRTMIN".to_owned()),
        Some(offset) if number <= highest => return Some(format!("SIGRTMIN+{offset}")),
        _ => {}
    }
    let index = usize::from(number).checked_sub(1)?;
    NAMES.get(index).map(|name| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_its_number() {
        for number in 0..=255 {
            match signal_name(number) {
                Some(name) => assert_eq!(signal_number(&name), Some(number), "{name}"),
                None => assert!(!(1..=31).contains(&number) && !(34..=64).contains(&number), "{number}"),
            }
        }
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGQUIT", 3),
            ("winch", 28),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIG", "SIGNOPE", "RTMIN+31", "RTMIN-1", "RTMAX-31", "RTMIN+x"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
