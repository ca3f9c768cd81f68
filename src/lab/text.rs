//! Tables of text, in the two shapes the lab prints: plain columns, and a box.

use comfy_table::{ContentArrangement, Row, Table, TableStyle, presets};

/// A table without lines.
pub fn columns<T: Into<Row>>(header: T) -> Table {
    table(header, presets::NOTHING)
}

/// A table in a box: of line-drawing characters where the locale has them, else of ASCII.
pub fn boxed<T: Into<Row>>(header: T) -> Table {
    let variables = ["LC_ALL", "LC_CTYPE", "LANG"];
    let locale = variables.iter().find_map(|name| std::env::var(name).ok());
    let unicode = locale.is_some_and(|locale| speaks_utf8(&locale));
    table(
        header,
        if unicode {
            presets::UTF8_FULL_CONDENSED
        } else {
            presets::ASCII_FULL_CONDENSED
        },
    )
}

/// The lines of a table without blanks at either end.
pub fn lines(table: &Table) -> String {
    let lines: Vec<String> = table.lines().collect();
    let margin = lines.iter().all(|line| line.starts_with(' '));
    let from = usize::from(margin);
    let trimmed = lines.iter().map(|line| line[from..].trim_end());
    trimmed.collect::<Vec<_>>().join("\n")
}

fn table<T: Into<Row>>(header: T, style: TableStyle) -> Table {
    let mut table = Table::new();
    table
        .load_style(style)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

fn speaks_utf8(locale: &str) -> bool {
    locale
        .to_ascii_lowercase()
        .replace('-', "")
        .contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_no_blanks_around() {
        let mut table = columns(["A", "LONG"]);
        table.add_row(["x", "y"]);
        assert_eq!(lines(&table), "A  LONG\nx  y");
    }

    #[test]
    fn line_drawing_needs_the_right_locale() {
        assert!(speaks_utf8("de_DE.UTF-8"));
        assert!(speaks_utf8("C.utf8"));
        assert!(!speaks_utf8("C"));
    }
}
