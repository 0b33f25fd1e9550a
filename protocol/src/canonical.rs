//! Canonical JSON (RFC 8785): one byte string for each value.
//!
//! qk's values hold no floats and no nulls, integers below 2^53, and leave absent members out.
//! Reading is strict by construction: what was read is written again and must give the same bytes,
//! so white space, other orders, duplicate members and other spellings of a number are all refused.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Above this, integers of different JSON implementations stop agreeing.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// How deep values may nest.
const DEPTH_MAX: usize = 16;

/// Why bytes are not the canonical form of the value asked for.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// Longer than the limit for this kind of document.
    #[error("{bytes} bytes are more than the {bytes_max} allowed")]
    TooLarge {
        /// Length of what was given.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not JSON, or not of the expected shape.
    #[error("not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A float, a null, an integer beyond 2^53 or too deep a nesting.
    #[error("{0} may not occur in a canonical document")]
    Value(&'static str),
    /// JSON, but written in another way than RFC 8785's.
    #[error("not in canonical form (RFC 8785)")]
    NotCanonical,
}

/// The canonical bytes of `value`.
///
/// # Errors
/// When `value` holds what canonical documents may not hold.
pub fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>, CanonicalError> {
    let value = serde_json::to_value(value)?;
    check(&value, 0)?;
    Ok(serde_json_canonicalizer::to_vec(&value)?)
}

/// Reads a `T` from exactly its canonical bytes, of which there may be `bytes_max`.
///
/// # Errors
/// For any other bytes: what `T` does not write again in the same way is refused, unknown members,
/// unsorted sets and spelled-out defaults included.
pub fn from_bytes<T: DeserializeOwned + Serialize>(
    bytes: &[u8],
    bytes_max: usize,
) -> Result<T, CanonicalError> {
    if bytes.len() > bytes_max {
        return Err(CanonicalError::TooLarge {
            bytes: bytes.len(),
            bytes_max,
        });
    }
    let value: T = serde_json::from_slice(bytes)?;
    if to_bytes(&value)? != bytes {
        return Err(CanonicalError::NotCanonical);
    }
    Ok(value)
}

fn check(value: &Value, depth: usize) -> Result<(), CanonicalError> {
    if depth > DEPTH_MAX {
        return Err(CanonicalError::Value("nesting beyond 16 levels"));
    }
    match value {
        Value::Null => Err(CanonicalError::Value("null")),
        Value::Bool(_) | Value::String(_) => Ok(()),
        Value::Number(number) => match number.as_u64() {
            Some(integer) if integer <= INTEGER_MAX => Ok(()),
            _ => Err(CanonicalError::Value(
                "a number that is no integer from 0 to 2^53 - 1",
            )),
        },
        Value::Array(items) => items.iter().try_for_each(|item| check(item, depth + 1)),
        Value::Object(members) => members
            .values()
            .try_for_each(|member| check(member, depth + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, CanonicalError> {
        from_bytes(text.as_bytes(), 1000)
    }

    #[test]
    fn only_one_spelling_is_read() {
        assert!(read(r#"{"a":1,"b":["x",true]}"#).is_ok());
        for other in [
            r#"{"b":["x",true],"a":1}"#,
            r#"{"a": 1,"b":["x",true]}"#,
            r#"{"a":1,"a":1,"b":["x",true]}"#,
            r#"{"a":1,"b":["\u0078",true]}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1e0}"#,
            r#"{"a":-0}"#,
            r#"{"a":null}"#,
            r#"{"a":9007199254740992}"#,
            r#"{"a":1} "#,
        ] {
            assert!(read(other).is_err(), "{other}");
        }
    }

    #[test]
    fn length_and_depth_are_bounded() {
        let deep = "[".repeat(40) + &"]".repeat(40);
        assert!(matches!(read(&deep), Err(CanonicalError::Value(_))));
        let long = format!("\"{}\"", "x".repeat(1000));
        assert!(matches!(read(&long), Err(CanonicalError::TooLarge { .. })));
    }
}
