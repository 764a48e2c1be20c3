//! Text tables: columns padded to a width, one space between, never a space at the end of a line.

use crate::escape;

/// A column: its title and the least width of its cells.
pub(crate) type Column = (&'static str, usize);

/// Lays rows out under their titles. A cell wider than its column pushes the rest of its row to the right, so
/// the shape of one row never depends on another. Empty cells show as `-`; control characters as escapes.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    let titles = columns.map(|(title, _)| title.to_owned());
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (cell, (_, width)) in row.iter().zip(columns) {
            let shown = if cell.is_empty() { "-".to_owned() } else { escape::one_line(cell) };
            line.push_str(&format!("{shown:<width$} "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_and_never_end_in_spaces() {
        let columns = [("NAME", 6), ("STATE", 8), ("X", 4)];
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let text = table(columns, &[row(["web", "stopped", "1"]), row(["very-long-name", "", "\x1b[1m"])]);
        assert_eq!(text, "NAME   STATE    X\nweb    stopped  1\nvery-long-name -        \\u{1b}[1m\n");
    }
}
