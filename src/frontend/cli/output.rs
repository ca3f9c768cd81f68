//! Tables as Docker prints them, JSON, sizes and times for people.

use std::io::{self, Write};

use serde::Serialize;

use crate::agent::api::{ApiError, ErrorCode, ident};

/// Writes text to standard output. A closed pipe, as with `| head`, ends quietly.
pub fn print(text: &str) -> Result<(), ApiError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(ApiError::new(
            ErrorCode::Internal,
            format!("cannot write the output: {e}"),
            "check where it goes: a full disk, perhaps",
        )),
        _ => Ok(()),
    }
}

/// Writes indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), ApiError> {
    let text = serde_json::to_string_pretty(value);
    print(&format!(
        "{}\n",
        text.map_err(|e| ApiError::internal(e.to_string()))?
    ))
}

/// Rows under headers: cells left-aligned, at least ten wide, three spaces between, as Docker's tables
/// (its tabwriter has a minimal cell width of 10 and a padding of 3).
pub fn table<const N: usize>(headers: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths: [usize; N] = headers.map(|header| header.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&headers.map(str::to_owned), &widths);
    rows.iter()
        .for_each(|row| text.push_str(&line(row, &widths)));
    text
}

/// Lines with tabs between their cells, as [`table`].
pub fn columns(lines: &[String]) -> String {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect();
    let mut widths = vec![0; rows.iter().map(Vec::len).max().unwrap_or(0)];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter().map(|row| line(row, &widths)).collect()
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        let padded = (*width + 3).max(10);
        line.push_str(&format!("{cell:<padded$}"));
    }
    format!("{}\n", line.trim_end())
}

/// The first 12 characters of an id, or all of it.
pub fn id(id: &str, no_trunc: bool) -> String {
    if no_trunc {
        id.to_owned()
    } else {
        ident::short(id).to_owned()
    }
}

/// `1234`, `12.3k`, `4.56M`.
pub fn count(value: u64) -> String {
    scaled(value, "", 10_000)
}

/// `123 B`, `1.5 kB`, `2.00 GB`.
pub fn bytes(value: u64) -> String {
    scaled(value, "B", 1000)
}

fn scaled(value: u64, unit: &str, plain_below: u64) -> String {
    let space = if unit.is_empty() { "" } else { " " };
    if value < plain_below {
        return format!("{value}{space}{unit}");
    }
    let mut scaled = value as f64;
    let mut prefix = ' ';
    for next in ['k', 'M', 'G', 'T', 'P', 'E'] {
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
        prefix = next;
    }
    let digits = if scaled < 10.0 {
        2
    } else if scaled < 100.0 {
        1
    } else {
        0
    };
    format!("{scaled:.digits$}{space}{prefix}{unit}")
}

/// `5s`, `3m 20s`, `2h 5m`, `4d 3h`.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Items with a word between, or a dash for none.
pub fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        "-".into()
    } else {
        items.join(",")
    }
}

/// The text, or a dash for nothing.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_look_like_dockers() {
        let rows = [[
            "0f3b7c2d9e1a".into(),
            "ingress".into(),
            "overlay".into(),
            "swarm".into(),
        ]];
        assert_eq!(
            table(["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows),
            "NETWORK ID     NAME      DRIVER    SCOPE\n\
             0f3b7c2d9e1a   ingress   overlay   swarm\n"
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(count(9999), "9999");
        assert_eq!(count(12_345), "12.3k");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000_000), "1.50 GB");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(200), "3m 20s");
        assert_eq!(duration(90_061), "1d 1h");
    }
}
