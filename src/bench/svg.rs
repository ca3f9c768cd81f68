//! Plots: one panel of horizontal bars per headline quantity, bars as long as the median, a
//! whisker from the smallest to the largest sample. Pure; no fonts, scripts or colours from
//! outside, and readable on light and dark pages alike.

use std::fmt::Write;

use super::plan::{Better, Quantity};
use super::results::{Report, Table};
use super::stats::three_digits;

const WIDTH: f64 = 960.0;
const COLUMNS: usize = 2;
const PANEL_WIDTH: f64 = WIDTH / COLUMNS as f64;
const MARGIN: f64 = 24.0;
const LABEL_WIDTH: f64 = 80.0;
const FIGURE_WIDTH: f64 = 110.0;
const BAR_HEIGHT: f64 = 16.0;
const BAR_STEP: f64 = 22.0;
const TITLE_HEIGHT: f64 = 34.0;
const SECTION_HEIGHT: f64 = 44.0;

/// Colours for both schemes; the baseline is grey, the rest of the bars one hue.
const STYLE: &str = "\
svg{font:13px system-ui,sans-serif;--ink:#1f2328;--dim:#59636e;--page:#ffffff;--bar:#0969da;--base:#8c959f;--mark:#1f2328}\
@media(prefers-color-scheme:dark){svg{--ink:#f0f6fc;--dim:#9198a1;--page:#0d1117;--bar:#4493f8;--base:#656c76;--mark:#f0f6fc}}\
.page{fill:var(--page)}text{fill:var(--ink)}.dim{fill:var(--dim)}.head{font-size:16px;font-weight:600}.title{font-weight:600}\
.bar{fill:var(--bar)}.base{fill:var(--base)}.mark{stroke:var(--mark);stroke-width:1.5;fill:none}";

/// Draws all tables of a report below each other.
pub fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut top = MARGIN;
    for table in &report.tables {
        top = section(&mut body, table, top);
    }
    let facts = &report.facts;
    let place = format!(
        "{}, {} processors, kernel {}",
        facts.cpu, facts.cpus, facts.kernel
    );
    text(&mut body, MARGIN, top + 12.0, "dim", "start", &place);
    let height = top + 32.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\"><title>Tunnels compared</title><style>{STYLE}</style>\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n"
    )
}

/// Draws one table; returns where the next may start.
fn section(body: &mut String, table: &Table, top: f64) -> f64 {
    let head = format!("Underlay offloads: {} ({})", table.profile, table.meaning);
    text(body, MARGIN, top + 16.0, "head", "start", &head);
    let panels: Vec<&Quantity> = table
        .quantities()
        .into_iter()
        .filter(|quantity| quantity.headline)
        .collect();
    let panel_height = TITLE_HEIGHT + BAR_STEP * table.rows.len() as f64 + 18.0;
    for (index, quantity) in panels.iter().enumerate() {
        let left = (index % COLUMNS) as f64 * PANEL_WIDTH + MARGIN;
        let panel_top = top + SECTION_HEIGHT + (index / COLUMNS) as f64 * panel_height;
        panel(body, table, quantity, left, panel_top);
    }
    top + SECTION_HEIGHT + panels.len().div_ceil(COLUMNS) as f64 * panel_height
}

fn panel(body: &mut String, table: &Table, quantity: &Quantity, left: f64, top: f64) {
    let better = match quantity.better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    text(body, left, top + 12.0, "title", "start", &quantity.title);
    let unit = format!("{}, {better}", quantity.unit);
    text(
        body,
        left + PANEL_WIDTH - 2.0 * MARGIN,
        top + 12.0,
        "dim",
        "end",
        &unit,
    );
    let cells = || {
        table
            .rows
            .iter()
            .map(|row| (row, table.cell(row, &quantity.id)))
    };
    let largest = cells()
        .filter_map(|(_, cell)| cell)
        .map(|cell| cell.summary.max)
        .fold(0.0, f64::max);
    let room = PANEL_WIDTH - 2.0 * MARGIN - LABEL_WIDTH - FIGURE_WIDTH;
    let scale = if largest > 0.0 { room / largest } else { 0.0 };
    let start = left + LABEL_WIDTH;
    for (index, (row, cell)) in cells().enumerate() {
        let y = top + TITLE_HEIGHT - 10.0 + BAR_STEP * index as f64;
        let middle = y + BAR_HEIGHT / 2.0;
        text(body, start - 8.0, middle + 4.5, "", "end", &row.subject);
        let Some(cell) = cell else {
            text(body, start + 4.0, middle + 4.5, "dim", "start", "no result");
            continue;
        };
        let class = if index == 0 { "base" } else { "bar" };
        let figures = cell.summary;
        let _ = writeln!(
            body,
            "<rect class=\"{class}\" x=\"{start}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\"/>",
            (figures.median * scale).max(1.0)
        );
        whisker(
            body,
            start + figures.min * scale,
            start + figures.max * scale,
            middle,
        );
        let ratio = match cell.ratio {
            Some(ratio) if index > 0 => format!(" ({ratio:.2}x)"),
            _ => String::new(),
        };
        let words = format!("{}{ratio}", three_digits(figures.median));
        text(body, start + room + 8.0, middle + 4.5, "", "start", &words);
    }
}

fn whisker(body: &mut String, from: f64, to: f64, y: f64) {
    if to - from < 0.5 {
        return;
    }
    let (above, below) = (y - 4.0, y + 4.0);
    let _ = writeln!(
        body,
        "<path class=\"mark\" d=\"M{from:.1} {y:.1}H{to:.1}M{from:.1} {above:.1}V{below:.1}M{to:.1} {above:.1}V{below:.1}\"/>"
    );
}

fn text(body: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
    let words = escape(words);
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

fn escape(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::render::tests::report;

    #[test]
    fn every_headline_figure_has_a_bar_and_every_tag_is_closed() {
        let drawing = draw(&report());
        assert_eq!(drawing.matches("class=\"bar\"").count(), 2);
        assert_eq!(drawing.matches("class=\"base\"").count(), 2);
        assert_eq!(
            drawing.matches("<text").count(),
            drawing.matches("</text>").count()
        );
        assert!(drawing.contains("12.6 (1.20x)"));
        assert!(drawing.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn the_longest_sample_fits_its_panel() {
        let drawing = draw(&report());
        let right = MARGIN + LABEL_WIDTH + PANEL_WIDTH;
        for width in drawing
            .split("width=\"")
            .skip(3)
            .filter_map(|rest| rest.split('"').next())
        {
            assert!(
                width.parse::<f64>().is_ok_and(|width| width < right),
                "{width}"
            );
        }
    }

    #[test]
    fn names_cannot_break_the_markup() {
        assert_eq!(escape("a<b & c>"), "a&lt;b &amp; c&gt;");
    }
}
