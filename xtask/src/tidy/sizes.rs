//! Functions and files that have grown too long to be read at once.

use super::Finding;
use super::source::Source;

/// Longest function, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;

/// Longest file, tests of its own not counted.
const FILE_LINES: usize = 600;

/// What is too long.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = source.is_test.iter().filter(|is_test| !**is_test).count();
    if lines > FILE_LINES {
        let detail = format!("{lines} lines, {FILE_LINES} are allowed");
        findings.push(Finding { rule: "file", place: source.path.clone(), amount: lines, detail });
    }
    for function in source.functions().into_iter().filter(|function| function.lines > FUNCTION_LINES) {
        let place = format!("{}::{}", source.path, function.name);
        let detail =
            format!("{} lines from line {}, {FUNCTION_LINES} are allowed", function.lines, function.line);
        findings.push(Finding { rule: "function", place, amount: function.lines, detail });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_functions_and_files_are_found() {
        let body = "    x();\n".repeat(FUNCTION_LINES);
        let text = format!("fn short() {{\n}}\nfn long() {{\n{body}}}\n");
        let found = check(&Source::new("a.rs".to_owned(), &text));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].place.as_str(), found[0].amount), ("a.rs::long", FUNCTION_LINES + 2));
        let found = check(&Source::new("a.rs".to_owned(), &"// x\n".repeat(FILE_LINES + 1)));
        assert_eq!((found[0].rule, found[0].amount), ("file", FILE_LINES + 1));
    }
}
