//! What a link can do to frames, as data: loss, delay, duplication and the other ills, per direction.
//!
//! Pure: parsing, checking and describing. [`super::lane`] applies it, [`super::relay`] moves the bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The ills of one direction of a link. All zero is a clean link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Impairment {
    /// Share of frames that vanish, percent.
    pub loss_percent: f64,
    /// Time every frame is held, microseconds.
    pub delay_us: u64,
    /// The delay varies evenly by this much to either side, microseconds; frames may overtake.
    pub jitter_us: u64,
    /// Share of frames that arrive twice, percent.
    pub duplicate_percent: f64,
    /// Share of frames held back by [`REORDER_HOLD_US`] more, so that others overtake, percent.
    pub reorder_percent: f64,
    /// Share of frames with one bit flipped behind the Ethernet header, percent.
    pub corrupt_percent: f64,
    /// Bits per second of frame bytes; 0 is unlimited. At most [`RATE_BACKLOG_US`] waits, the rest is dropped.
    pub rate_bps: u64,
    /// Frames with more than this many bytes behind the Ethernet header vanish without a word; 0 is no limit.
    pub mtu: u32,
    /// Nothing passes.
    pub blackhole: bool,
    /// The link works for the first figure, then is dead for the second, over and over, milliseconds; (0, 0) is off.
    pub flap_ms: (u64, u64),
}

impl Impairment {
    /// Whether frames pass untouched.
    pub fn is_clean(&self) -> bool {
        *self == Impairment::default()
    }

    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// A sentence naming the value and its range.
    pub fn check(&self) -> Result<(), String> {
        let shares = [
            ("loss", self.loss_percent),
            ("duplicate", self.duplicate_percent),
            ("reorder", self.reorder_percent),
            ("corrupt", self.corrupt_percent),
        ];
        for (what, share) in shares {
            if !(0.0..=100.0).contains(&share) {
                return Err(format!("{what} is {share} %, not within 0 to 100"));
            }
        }
        if self.jitter_us > self.delay_us {
            return Err(format!(
                "a jitter of {} us needs a delay of at least as much, not {} us",
                self.jitter_us, self.delay_us
            ));
        }
        if self.delay_us > DELAY_MAX_US {
            return Err(format!("a delay of {} us is over a minute", self.delay_us));
        }
        if (self.flap_ms.0 == 0) != (self.flap_ms.1 == 0) {
            return Err("a flapping link needs a time up and a time down, both above 0".into());
        }
        Ok(())
    }
}

impl fmt::Display for Impairment {
    /// As the flags of `weft lab impair` would say it; `clean` when nothing is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut share = |name: &str, value: f64| {
            if value > 0.0 {
                parts.push(format!("{name} {value}%"));
            }
        };
        share("loss", self.loss_percent);
        share("duplicate", self.duplicate_percent);
        share("reorder", self.reorder_percent);
        share("corrupt", self.corrupt_percent);
        if self.delay_us > 0 {
            parts.push(format!("delay {}ms", self.delay_us as f64 / 1000.0));
        }
        if self.jitter_us > 0 {
            parts.push(format!("jitter {}ms", self.jitter_us as f64 / 1000.0));
        }
        if self.rate_bps > 0 {
            parts.push(format!("rate {}", rate_text(self.rate_bps)));
        }
        if self.mtu > 0 {
            parts.push(format!("mtu {}", self.mtu));
        }
        if self.blackhole {
            parts.push("blackhole".into());
        }
        if self.flap_ms != (0, 0) {
            parts.push(format!("flap {}ms/{}ms", self.flap_ms.0, self.flap_ms.1));
        }
        if parts.is_empty() {
            return f.write_str("clean");
        }
        f.write_str(&parts.join(" "))
    }
}

/// Both directions of a node's link, and what makes the dice roll the same way again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkImpairment {
    /// From the node to the underlay.
    pub out: Impairment,
    /// From the underlay to the node.
    #[serde(rename = "in")]
    pub into: Impairment,
    /// Seed of the dice: the same seed and the same frames meet the same fate.
    pub seed: u64,
}

impl LinkImpairment {
    /// Whether both directions are clean.
    pub fn is_clean(&self) -> bool {
        self.out.is_clean() && self.into.is_clean()
    }
}

/// Which way an impairment works, seen from the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// Both ways.
    #[default]
    Both,
    /// What the node sends.
    Out,
    /// What the node receives.
    In,
}

/// Ready-made links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Nothing wrong.
    Clean,
    /// 0.1 ms each way.
    Lan,
    /// 15 ms each way with a little jitter, 0.5 % loss.
    Wan,
    /// 30 % loss.
    Lossy,
    /// Half of the frames twice.
    Duplicate,
    /// A quarter of the frames late.
    Reorder,
    /// Silence above 1400 bytes: a path whose MTU nobody announces.
    Blackhole1400,
    /// One second up, half a second down.
    Flapping,
}

impl Profile {
    /// The impairment of one direction.
    pub fn impairment(self) -> Impairment {
        let clean = Impairment::default();
        match self {
            Profile::Clean => clean,
            Profile::Lan => Impairment {
                delay_us: 100,
                ..clean
            },
            Profile::Wan => Impairment {
                delay_us: 15_000,
                jitter_us: 1_000,
                loss_percent: 0.5,
                ..clean
            },
            Profile::Lossy => Impairment {
                loss_percent: 30.0,
                ..clean
            },
            Profile::Duplicate => Impairment {
                duplicate_percent: 50.0,
                ..clean
            },
            Profile::Reorder => Impairment {
                reorder_percent: 25.0,
                ..clean
            },
            Profile::Blackhole1400 => Impairment { mtu: 1400, ..clean },
            Profile::Flapping => Impairment {
                flap_ms: (1000, 500),
                ..clean
            },
        }
    }
}

/// Reads `5`, `5%`, `0.5%`.
///
/// # Errors
/// A sentence for the user.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err(format!("\"{text}\" is not a share such as 5% or 0.5%")),
    }
}

/// Reads `10ms`, `1.5s`, `200us`; a bare number is milliseconds. The result is microseconds.
///
/// # Errors
/// A sentence for the user.
pub fn parse_duration_us(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "us" => 1.0,
        "ms" | "" => 1e3,
        "s" => 1e6,
        _ => return Err(format!("\"{text}\": the unit is us, ms or s")),
    };
    match number.trim().parse::<f64>() {
        Ok(value) if (0.0..=1e9).contains(&value) => Ok((value * scale).round() as u64),
        _ => Err(format!("\"{text}\" is not a time such as 10ms or 1.5s")),
    }
}

/// Reads `100mbit`, `1.5gbit`, `64kbit`, `9600bit`.
///
/// # Errors
/// A sentence for the user.
pub fn parse_rate_bps(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let split = lower
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let scale = match unit {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(format!("\"{text}\": the unit is bit, kbit, mbit or gbit")),
    };
    match number.parse::<f64>() {
        Ok(value) if value > 0.0 && value * scale < 1e12 => Ok((value * scale) as u64),
        _ => Err(format!("\"{text}\" is not a rate such as 100mbit")),
    }
}

/// Reads `500ms/200ms`: time up, time down. The result is milliseconds.
///
/// # Errors
/// A sentence for the user.
pub fn parse_flap_ms(text: &str) -> Result<(u64, u64), String> {
    let hint = || format!("\"{text}\" is not a pair of times such as 1s/500ms");
    let (up, down) = text.split_once('/').ok_or_else(hint)?;
    let up = parse_duration_us(up)? / 1000;
    let down = parse_duration_us(down)? / 1000;
    if up == 0 || down == 0 {
        Err(hint())
    } else {
        Ok((up, down))
    }
}

fn rate_text(bps: u64) -> String {
    match bps {
        0..1_000 => format!("{bps}bit"),
        1_000..1_000_000 => format!("{}kbit", bps as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{}mbit", bps as f64 / 1e6),
        _ => format!("{}gbit", bps as f64 / 1e9),
    }
}

/// How much longer a reordered frame is held, microseconds.
pub const REORDER_HOLD_US: u64 = 2_000;
/// How much waits in front of a rate limit before frames are dropped, microseconds of sending time.
pub const RATE_BACKLOG_US: u64 = 100_000;
const DELAY_MAX_US: u64 = 60_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_times_rates_and_flaps_read_as_written() {
        assert_eq!(parse_percent("5%"), Ok(5.0));
        assert_eq!(parse_percent("0.5"), Ok(0.5));
        assert_eq!(parse_duration_us("10ms"), Ok(10_000));
        assert_eq!(parse_duration_us("10"), Ok(10_000));
        assert_eq!(parse_duration_us("1.5s"), Ok(1_500_000));
        assert_eq!(parse_duration_us("200us"), Ok(200));
        assert_eq!(parse_rate_bps("100mbit"), Ok(100_000_000));
        assert_eq!(parse_rate_bps("1.5Gbit"), Ok(1_500_000_000));
        assert_eq!(parse_flap_ms("1s/500ms"), Ok((1000, 500)));
    }

    #[test]
    fn nonsense_is_refused_with_the_text_in_the_sentence() {
        for text in ["", "x", "101%", "-1", "nan"] {
            assert!(parse_percent(text).unwrap_err().contains(text), "{text}");
        }
        for text in ["", "ms", "10m", "-5ms"] {
            assert!(parse_duration_us(text).is_err(), "{text}");
        }
        for text in ["", "100", "0mbit", "5tbit"] {
            assert!(parse_rate_bps(text).is_err(), "{text}");
        }
        for text in ["1s", "0ms/1s", "a/b"] {
            assert!(parse_flap_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn checks_name_the_value() {
        let wrong = Impairment {
            jitter_us: 5,
            ..Impairment::default()
        };
        assert!(wrong.check().unwrap_err().contains("5 us"));
        let wrong = Impairment {
            flap_ms: (0, 3),
            ..Impairment::default()
        };
        assert!(wrong.check().is_err());
        assert!(Profile::Wan.impairment().check().is_ok());
    }

    #[test]
    fn an_impairment_says_what_it_does() {
        assert_eq!(Profile::Clean.impairment().to_string(), "clean");
        assert_eq!(
            Profile::Wan.impairment().to_string(),
            "loss 0.5% delay 15ms jitter 1ms"
        );
        let rate = Impairment {
            rate_bps: 1_500_000,
            ..Impairment::default()
        };
        assert_eq!(rate.to_string(), "rate 1.5mbit");
    }

    #[test]
    fn json_round_trips_and_refuses_unknown_keys() {
        let link = LinkImpairment {
            out: Profile::Wan.impairment(),
            seed: 7,
            ..LinkImpairment::default()
        };
        let text = serde_json::to_string(&link).unwrap();
        assert_eq!(serde_json::from_str::<LinkImpairment>(&text).unwrap(), link);
        assert!(serde_json::from_str::<LinkImpairment>(r#"{"los":1}"#).is_err());
    }
}
