//! From a request to what the kernel is given: where the program may be, its arguments, its environment.
//! Pure: looks at no file.

use std::ffi::CString;

use microagent_proto::Chunk;

/// Docker's, for images that set none.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A name or value that cannot be passed to a program.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ProgramError {
    #[error("the command is empty")]
    Empty,
    #[error("the {0} contains a NUL byte")]
    Nul(&'static str),
    #[error("an environment variable has no name or a `=` in it")]
    Name,
}

/// The environment in the form `NAME=value`: later entries win, `HOME` and `PATH` are there, and `TERM` for
/// a command on a terminal.
pub(crate) fn environment(
    given: &[(Chunk, Chunk)],
    home: &str,
    term: &str,
) -> Result<Vec<CString>, ProgramError> {
    let mut all: Vec<(&[u8], &[u8])> = Vec::with_capacity(given.len() + 3);
    let defaults: [(&[u8], &[u8]); 3] =
        [(b"PATH", DEFAULT_PATH), (b"HOME", home.as_bytes()), (b"TERM", term.as_bytes())];
    let defaults = defaults.into_iter().filter(|(name, value)| *name != b"TERM" || !value.is_empty());
    for (name, value) in defaults.chain(given.iter().map(|(n, v)| (n.as_slice(), v.as_slice()))) {
        if name.is_empty() || name.contains(&b'=') {
            return Err(ProgramError::Name);
        }
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => all.push((name, value)),
        }
    }
    let join = |(name, value): &(&[u8], &[u8])| c_string([*name, b"=", *value].concat(), "environment");
    all.iter().map(join).collect()
}

/// The paths at which a program may lie, in order. A name with a slash is a path already.
pub(crate) fn candidates(program: &[u8], environment: &[CString]) -> Result<Vec<CString>, ProgramError> {
    if program.is_empty() {
        return Err(ProgramError::Empty);
    }
    if program.contains(&b'/') {
        return Ok(vec![c_string(program.to_vec(), "command")?]);
    }
    let path = environment.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let directories = path.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':');
    directories
        // An empty entry means the working directory (POSIX, environment variables).
        .map(|dir| if dir.is_empty() { program.to_vec() } else { [dir, b"/", program].concat() })
        .map(|path| c_string(path, "command"))
        .collect()
}

/// The working directory as an absolute path; a relative one starts at `/`.
pub(crate) fn working_dir(path: &[u8]) -> Result<CString, ProgramError> {
    let absolute = if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() };
    c_string(absolute, "working directory")
}

/// Every directory on the way to `path` and itself, shortest first; a relative path starts at `/`.
pub(crate) fn ancestors(path: &[u8]) -> Result<Vec<CString>, ProgramError> {
    let mut all = Vec::new();
    let mut grown = Vec::new();
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        grown.push(b'/');
        grown.extend_from_slice(part);
        all.push(c_string(grown.clone(), "working directory")?);
    }
    if all.is_empty() {
        all.push(c"/".to_owned());
    }
    Ok(all)
}

/// Arguments as the kernel takes them.
pub(crate) fn arguments(given: &[&[u8]]) -> Result<Vec<CString>, ProgramError> {
    given.iter().map(|argument| c_string(argument.to_vec(), "command")).collect()
}

fn c_string(bytes: Vec<u8>, place: &'static str) -> Result<CString, ProgramError> {
    CString::new(bytes).map_err(|_| ProgramError::Nul(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<CString> {
        let given: Vec<_> =
            pairs.iter().map(|(n, v)| (n.as_bytes().to_vec().into(), v.as_bytes().to_vec().into())).collect();
        environment(&given, "/root", "").unwrap()
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|s| s.to_str().unwrap()).collect()
    }

    #[test]
    fn later_variables_win_and_defaults_fill_in() {
        assert_eq!(
            texts(&env(&[])),
            ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        );
        let all = env(&[("A", "1"), ("HOME", "/h"), ("A", "2=3"), ("PATH", "")]);
        assert_eq!(texts(&all), ["PATH=", "HOME=/h", "A=2=3"]);
        let own = [(b"TERM".to_vec().into(), b"dumb".to_vec().into())];
        for (given, wanted) in [(&[][..], "TERM=xterm"), (&own, "TERM=dumb")] {
            assert_eq!(texts(&environment(given, "/root", "xterm").unwrap())[2], wanted);
        }
    }

    #[test]
    fn what_no_program_could_be_given_is_refused() {
        let name = |name: &[u8]| environment(&[(name.to_vec().into(), Chunk::default())], "/", "");
        assert_eq!(name(b""), Err(ProgramError::Name));
        assert_eq!(name(b"A=B"), Err(ProgramError::Name));
        assert_eq!(name(b"A\0"), Err(ProgramError::Nul("environment")));
        assert_eq!(candidates(b"", &[]), Err(ProgramError::Empty));
        assert_eq!(candidates(b"a\0b", &env(&[])), Err(ProgramError::Nul("command")));
        assert_eq!(ancestors(b"/a\0"), Err(ProgramError::Nul("working directory")));
    }

    #[test]
    fn programs_are_looked_for_along_the_path() {
        let env = env(&[("PATH", "/a::/b/")]);
        assert_eq!(texts(&candidates(b"x", &env).unwrap()), ["/a/x", "x", "/b//x"]);
        assert_eq!(texts(&candidates(b"./x", &env).unwrap()), ["./x"]);
        assert_eq!(texts(&candidates(b"/bin/x", &env).unwrap()), ["/bin/x"]);
    }

    #[test]
    fn a_working_directory_is_made_from_the_top() {
        assert_eq!(texts(&ancestors(b"/a//b/c/").unwrap()), ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(texts(&ancestors(b"a").unwrap()), ["/a"]);
        assert_eq!(texts(&ancestors(b"").unwrap()), ["/"]);
    }
}
