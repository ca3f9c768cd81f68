//! A report as text for a terminal, as Markdown and as JSON. Pure: everything returns strings.

use comfy_table::{LineStyle, TableStyle};

use super::plan::{Better, Quantity};
use super::results::{Cell, Report, Table};
use super::stats::three_digits;

/// One quantity per line, one subject per column.
struct Grid {
    head: Vec<String>,
    lines: Vec<Vec<String>>,
}

fn grid(table: &Table) -> Grid {
    let mut head = vec![String::new()];
    head.extend(table.rows.iter().map(|row| row.subject.clone()));
    // That nothing was lost is worth no line.
    let shown = |quantity: &&Quantity| {
        if !quantity.id.ends_with("/lost") {
            return true;
        }
        let cells = table
            .rows
            .iter()
            .filter_map(|row| table.cell(row, &quantity.id));
        cells.into_iter().any(|cell| cell.summary.max != 0.0)
    };
    let lines = table
        .quantities()
        .into_iter()
        .filter(shown)
        .map(|quantity| {
            let mut line = vec![format!(
                "{}, {}{}",
                quantity.title,
                quantity.unit,
                arrow(quantity.better)
            )];
            for (index, row) in table.rows.iter().enumerate() {
                line.push(match table.cell(row, &quantity.id) {
                    Some(cell) => words(cell, index == 0),
                    None => "-".to_owned(),
                });
            }
            line
        });
    let lines = lines.collect();
    Grid { head, lines }
}

fn arrow(better: Better) -> &'static str {
    match better {
        Better::Higher => "",
        Better::Lower => " (less is better)",
    }
}

/// `median (ratio) [min-max]`; the baseline has no ratio.
fn words(cell: Cell, baseline: bool) -> String {
    let figures = cell.summary;
    let ratio = match cell.ratio {
        Some(ratio) if !baseline => format!(" ({ratio:.2}x)"),
        _ => String::new(),
    };
    let range = if figures.min < figures.max {
        format!(
            " [{}-{}]",
            three_digits(figures.min),
            three_digits(figures.max)
        )
    } else {
        String::new()
    };
    format!("{}{ratio}{range}", three_digits(figures.median))
}

/// For a terminal. The verdict about the machine comes first, then the tables.
pub fn text(report: &Report) -> String {
    let mut out = verdict(report);
    for line in report.facts.lines().iter().chain(&report.settings) {
        out.push_str(&format!("  {line}\n"));
    }
    for table in &report.tables {
        out.push_str(&format!(
            "\nUnderlay offloads: {} ({})\n",
            table.profile, table.meaning
        ));
        let grid = grid(table);
        let mut drawn = comfy_table::Table::new();
        drawn.load_style(lines_around_head());
        drawn.set_header(&grid.head);
        for line in &grid.lines {
            drawn.add_row(line);
        }
        out.push_str(&format!("{drawn}\n"));
    }
    out.push_str(&remarks(report, ""));
    out
}

/// A rule above, below the head and at the end; none between the many lines.
fn lines_around_head() -> TableStyle {
    let rule = LineStyle::none().fill('─').junction('─');
    TableStyle::new()
        .top_border(rule)
        .header_separator(rule)
        .bottom_border(rule)
}

fn verdict(report: &Report) -> String {
    let measured = if report.complete() {
        "complete"
    } else {
        "INCOMPLETE: see failures below"
    };
    let trust = if report.doubts.is_empty() {
        "quiet machine".to_owned()
    } else {
        format!("{} reason(s) to doubt the figures", report.doubts.len())
    };
    format!("{measured}; {trust}\n")
}

fn remarks(report: &Report, bullet: &str) -> String {
    let failures = report.tables.iter().flat_map(|table| {
        table.rows.iter().flat_map(|row| {
            row.failures
                .iter()
                .map(|failure| format!("FAILED {} under {}: {failure}", row.subject, table.profile))
        })
    });
    let skipped = report
        .skipped
        .iter()
        .map(|reason| format!("SKIP: {reason}"));
    let doubts = report.doubts.iter().map(|doubt| format!("doubt: {doubt}"));
    failures
        .chain(skipped)
        .chain(doubts)
        .map(|line| format!("{bullet}{line}\n"))
        .collect()
}

/// For a document.
pub fn markdown(report: &Report) -> String {
    let mut out = format!("{}\n    {}\n\n", verdict(report), report.command);
    for line in report.facts.lines().iter().chain(&report.settings) {
        out.push_str(&format!("- {line}\n"));
    }
    for table in &report.tables {
        out.push_str(&format!(
            "\n**Underlay: {}** ({})\n\n",
            table.profile, table.meaning
        ));
        let grid = grid(table);
        out.push_str(&markdown_line(&grid.head));
        out.push_str(&markdown_line(&vec!["---".to_owned(); grid.head.len()]));
        for line in &grid.lines {
            out.push_str(&markdown_line(line));
        }
        if !table.offloads.is_empty() {
            out.push_str(&format!("\nOffloads: {}\n", table.offloads.join(", ")));
        }
    }
    let remarks = remarks(report, "- ");
    if !remarks.is_empty() {
        out.push_str(&format!("\n{remarks}"));
    }
    out
}

fn markdown_line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// Everything, samples included.
///
/// # Errors
/// When a figure is not a number, which serde refuses.
pub fn json(report: &Report) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(report)?;
    for (table, shown) in report.tables.iter().zip(array(&mut value["tables"])) {
        for (row, shown) in table.rows.iter().zip(array(&mut shown["rows"])) {
            for (series, shown) in row.series.iter().zip(array(&mut shown["series"])) {
                let Some(cell) = table.cell(row, &series.quantity.id) else {
                    continue;
                };
                shown["median"] = cell.summary.median.into();
                shown["min"] = cell.summary.min.into();
                shown["max"] = cell.summary.max.into();
                shown["ratio"] = cell.ratio.into();
            }
        }
    }
    serde_json::to_string_pretty(&value).map(|text| text + "\n")
}

fn array(value: &mut serde_json::Value) -> impl Iterator<Item = &mut serde_json::Value> {
    value.as_array_mut().into_iter().flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::machine::Facts;
    use crate::bench::plan::Sample;
    use crate::bench::results::tests::example;

    pub fn report() -> Report {
        Report {
            facts: Facts::read(),
            command: "weft bench --quick".into(),
            settings: vec!["rounds: 3".into()],
            skipped: vec!["ovs: not installed".into()],
            tables: vec![example()],
            doubts: Vec::new(),
        }
    }

    #[test]
    fn cells_show_median_ratio_and_range() {
        let table = example();
        let cell = |row: usize| table.cell(&table.rows[row], "tcp1").unwrap();
        assert_eq!(words(cell(0), true), "10.5 [10.0-11.0]");
        assert_eq!(words(cell(1), false), "12.6 (1.20x) [12.0-13.0]");
    }

    #[test]
    fn markdown_has_a_line_per_quantity_and_names_what_was_skipped() {
        let text = markdown(&report());
        assert!(
            text.contains(
                "| TCP, 1 stream, Gbit/s | 10.5 [10.0-11.0] | 12.6 (1.20x) [12.0-13.0] |"
            )
        );
        assert!(text.contains("round trip: p50, us (less is better)"));
        assert!(text.contains("- SKIP: ovs: not installed"));
    }

    #[test]
    fn nothing_lost_is_no_line_and_nothing_used_is_one() {
        let mut report = report();
        for id in ["rr/lost", "idle"] {
            let quantity = Quantity::cost(id.into(), id.to_uppercase(), "units");
            report.tables[0].rows[1].add(Sample::new(quantity, 0.0));
        }
        let text = text(&report);
        assert!(text.contains("IDLE") && !text.contains("RR/LOST"), "{text}");
    }

    #[test]
    fn failures_are_in_the_verdict_and_in_the_remarks() {
        let mut report = report();
        report.tables[0].rows[1]
            .failures
            .push("round 1, integrity: CORRUPT".into());
        let text = text(&report);
        assert!(text.starts_with("INCOMPLETE"), "{text}");
        assert!(text.contains("FAILED weft under ideal: round 1, integrity: CORRUPT"));
    }

    #[test]
    fn json_holds_samples_medians_and_ratios() {
        let value: serde_json::Value = serde_json::from_str(&json(&report()).unwrap()).unwrap();
        let series = &value["tables"][0]["rows"][1]["series"][0];
        assert_eq!(series["id"], "tcp1");
        assert_eq!(series["ratio"], 1.2);
        assert_eq!(series["samples"], serde_json::json!([12.0, 12.6, 13.0]));
    }
}
