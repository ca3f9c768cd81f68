//! Ids and points in time as text. Pure: chance and the clock are the caller's.

/// Length of an id in characters.
pub const ID_LEN: usize = 25;
/// How many characters of an id are shown in tables and used in kernel names.
pub const SHORT_ID_LEN: usize = 12;

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// `bits` in base 36, padded to 25 characters (36^25 is larger than 2^128).
pub fn id_from_bits(mut bits: u128) -> String {
    let mut text = [b'0'; ID_LEN];
    for place in text.iter_mut().rev() {
        *place = ALPHABET[(bits % 36) as usize];
        bits /= 36;
    }
    text.iter().map(|&b| b as char).collect()
}

/// 64 hexadecimal characters, as Docker writes the ids of local networks.
pub fn local_id_from_bits(high: u128, low: u128) -> String {
    format!("{high:032x}{low:032x}")
}

/// The number that [`id_from_bits`] wrote as `text`; `None` for other texts.
pub fn bits_from_id(text: &str) -> Option<u128> {
    if !is_id(text) {
        return None;
    }
    text.bytes().try_fold(0_u128, |bits, byte| {
        let digit = ALPHABET.iter().position(|b| *b == byte)?;
        bits.checked_mul(36)?.checked_add(digit as u128)
    })
}

/// Whether `text` is 25 lower-case base-36 characters.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| ALPHABET.contains(&b))
}

/// The first 12 characters, or all of a shorter text.
pub fn short(id: &str) -> &str {
    id.get(..SHORT_ID_LEN).unwrap_or(id)
}

/// RFC 3339 in UTC with nanoseconds, such as `2026-02-03T04:05:06.000000007Z` (RFC 3339 §5.6).
pub fn rfc3339(unix_nanos: u64) -> String {
    let (year, month, day, second_of_day) = civil(unix_nanos);
    let (hour, minute, second) = clock(second_of_day);
    let nanos = unix_nanos % 1_000_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Docker's form in `network ls --format json`: `2026-02-03 04:05:06.000000007 +0000 UTC`.
pub fn docker_time(rfc3339: &str) -> String {
    let text = rfc3339.strip_suffix('Z').unwrap_or(rfc3339);
    let (date, rest) = text.split_once('T').unwrap_or((text, ""));
    let rest = rest.trim_end_matches('0').trim_end_matches('.');
    format!("{date} {rest} +0000 UTC")
}

fn clock(second_of_day: u64) -> (u64, u64, u64) {
    (
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
    )
}

/// Days to civil date in the proleptic Gregorian calendar, counting years from 1 March so that the leap
/// day is the last of its year (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(unix_nanos: u64) -> (u64, u64, u64, u64) {
    let seconds = unix_nanos / 1_000_000_000;
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day, seconds % 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_25_base_36_characters() {
        assert_eq!(id_from_bits(0), "0".repeat(25));
        assert_eq!(id_from_bits(35), format!("{}z", "0".repeat(24)));
        assert!(is_id(&id_from_bits(u128::MAX)));
        for bits in [0, 1, 35, 36, u128::MAX] {
            assert_eq!(bits_from_id(&id_from_bits(bits)), Some(bits));
        }
        assert_eq!(bits_from_id(&"z".repeat(25)), None);
        assert!(!is_id("short"));
        assert!(!is_id("ABCDEFGHIJKLMNOPQRSTUVWXY"));
        assert_eq!(local_id_from_bits(1, 2).len(), 64);
    }

    #[test]
    fn times_are_rfc_3339_with_nanoseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            rfc3339(951_782_400_000_000_001),
            "2000-02-29T00:00:00.000000001Z"
        );
        assert_eq!(
            rfc3339(1_767_225_599_999_999_999),
            "2025-12-31T23:59:59.999999999Z"
        );
        assert_eq!(
            rfc3339(1_767_225_600_000_000_000),
            "2026-01-01T00:00:00.000000000Z"
        );
        assert_eq!(
            docker_time("2026-02-03T04:05:06.700000000Z"),
            "2026-02-03 04:05:06.7 +0000 UTC"
        );
    }
}
