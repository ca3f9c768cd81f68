//! JSON text inside a compact format, for `#[serde(with = "json")]`: what has optional fields keeps its one form
//! on disk and on the wire, and can grow.

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes the value as one text.
///
/// # Errors
/// When the value has no form in JSON.
pub fn serialize<T: Serialize, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    let text = serde_json::to_string(value).map_err(S::Error::custom)?;
    s.serialize_str(&text)
}

/// Reads the value back.
///
/// # Errors
/// When the text is not what [`serialize`] writes.
pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    let text = String::deserialize(d)?;
    serde_json::from_str(&text).map_err(D::Error::custom)
}
