//! What `--json` prints against what `cli/schema.json` says that it prints. Stricter than who reads it has
//! to be: a member that the schema says nothing of is an error, as if `unevaluatedProperties` were false
//! everywhere, and so is a keyword that is not known here.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Map, Value};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/schema.json");
    let text = std::fs::read_to_string(path).expect("cli/schema.json");
    serde_json::from_str(&text).expect("a schema")
});

/// Names of members that a schema speaks of.
type Known = BTreeSet<String>;

/// Whether what a command of qk printed is what it may print, where it was asked for JSON.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn check_printed(ran: &Command, printed: &str) {
    let words: Vec<&OsStr> = [ran.get_program()]
        .into_iter()
        .chain(ran.get_args())
        .collect();
    // In another network namespace a program before it starts it.
    let qk = words
        .iter()
        .position(|word| Path::new(word).ends_with("qk"));
    let args = qk.map_or(&[][..], |at| &words[at + 1..]);
    let Some(command) = command(args).filter(|_| args.contains(&OsStr::new("--json"))) else {
        return;
    };
    // A manifest as TOML is no document, and neither is a bill of materials, which has many lines.
    for line in printed.lines().filter(|line| line.starts_with('{')) {
        if let Ok(document) = serde_json::from_str(line) {
            check(&command, &document).unwrap_or_else(|why| panic!("{why}: {document}"));
        }
    }
}

/// The name in the schema of the command that begins with these words.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Option<String> {
    let mut words = args.iter().map(|word| word.as_ref().to_string_lossy());
    let first = words.next()?;
    let both = words.next().map(|second| format!("{first}-{second}"));
    let names = [both, Some(first.into_owned())].into_iter().flatten();
    names
        .into_iter()
        .find(|name| SCHEMA["$defs"][name].is_object())
}

/// Whether a command may print this document.
///
/// # Errors
/// What differs, and where.
pub fn check(command: &str, document: &Value) -> Result<(), String> {
    closed(&SCHEMA["$defs"][command], document).map_err(|why| format!("qk {command}: {why}"))
}

/// A value of which the schema has to know every member.
fn closed(schema: &Value, value: &Value) -> Result<(), String> {
    let known = open(schema, value)?;
    let members = value.as_object().into_iter().flatten();
    match members.into_iter().find(|(name, _)| !known.contains(*name)) {
        None => Ok(()),
        Some((name, _)) => Err(format!("{name} is not in the schema")),
    }
}

/// A value of which other schemas may know more.
fn open(schema: &Value, value: &Value) -> Result<Known, String> {
    let nothing = Map::new();
    let schema = match schema {
        Value::Bool(true) => return Ok(members(value).keys().cloned().collect()),
        Value::Object(schema) => schema,
        _ => &nothing,
    };
    if schema.is_empty() {
        return Err("there is no schema of it".to_owned());
    }
    let mut known = Known::new();
    for (keyword, says) in schema {
        known.extend(keyword_says(schema, keyword, says, value)?);
    }
    Ok(known)
}

fn keyword_says(
    schema: &Map<String, Value>,
    keyword: &str,
    says: &Value,
    value: &Value,
) -> Result<Known, String> {
    let nothing = Ok(Known::new());
    let require = |holds: bool| match holds {
        true => Ok(Known::new()),
        false => Err(format!("{value} where {keyword} is {says}")),
    };
    let texts = || says.as_array().into_iter().flatten().chain([says]);
    match keyword {
        "description" | "title" | "default" | "format" | "writeOnly" | "readOnly" => nothing,
        "$ref" => {
            let name = says.as_str().and_then(|name| name.strip_prefix("#/$defs/"));
            open(&SCHEMA["$defs"][name.unwrap_or_default()], value)
        }
        "const" => require(says == value),
        "enum" => require(texts().any(|one| one == value)),
        "type" => require(texts().any(|one| is_a(one, value))),
        "minimum" => require(value.as_f64() >= says.as_f64()),
        "maximum" => require(value.as_f64() <= says.as_f64()),
        "minItems" => require(length(value) >= says.as_u64()),
        "maxItems" => require(length(value) <= says.as_u64()),
        "uniqueItems" => nothing,
        "pattern" => require(says == "^[0-9a-f]{64}$" && is_hash(value)),
        "required" => {
            let mut names = texts().filter_map(Value::as_str);
            match names.find(|name| !members(value).contains_key(*name)) {
                None => nothing,
                Some(name) => Err(format!("{name} is missing")),
            }
        }
        "properties" => {
            for (name, schema) in members(says) {
                if let Some(one) = members(value).get(name) {
                    closed(schema, one).map_err(|why| format!("{name}: {why}"))?;
                }
            }
            Ok(members(says).keys().cloned().collect())
        }
        "patternProperties" => {
            let schema = &says["^[0-9a-f]{64}$"];
            others(schema, value, |name| is_hash(&name.into()))
        }
        // Beside `patternProperties` it says that there is nothing else.
        "additionalProperties" if *says == false => nothing,
        "additionalProperties" => {
            let named = schema.get("properties").map(members);
            others(says, value, |name| {
                named.is_none_or(|named| !named.contains_key(name))
            })
        }
        "items" => {
            let first = schema.get("prefixItems").and_then(length).unwrap_or(0);
            let mut rest = value.as_array().into_iter().flatten().skip(first as usize);
            rest.try_for_each(|one| closed(says, one))?;
            nothing
        }
        "prefixItems" => {
            let all = value.as_array().into_iter().flatten();
            let mut each = texts().zip(all);
            each.try_for_each(|(schema, one)| closed(schema, one))?;
            nothing
        }
        "allOf" => {
            let all = says.as_array().into_iter().flatten();
            let known: Vec<_> = all.map(|one| open(one, value)).collect::<Result<_, _>>()?;
            Ok(known.into_iter().flatten().collect())
        }
        "anyOf" | "oneOf" => {
            let all = says.as_array().into_iter().flatten();
            let (fits, not): (Vec<_>, Vec<_>) =
                all.map(|one| open(one, value)).partition(Result::is_ok);
            let fit = match keyword {
                "anyOf" => !fits.is_empty(),
                _ => fits.len() == 1,
            };
            match fit {
                true => Ok(fits.into_iter().flatten().flatten().collect()),
                false => {
                    let not: Vec<_> = not.into_iter().filter_map(Result::err).collect();
                    Err(format!(
                        "{} of {keyword} fit: {}",
                        fits.len(),
                        not.join("; ")
                    ))
                }
            }
        }
        _ => Err(format!("keyword {keyword} is not known here")),
    }
}

/// Members of these names, and that each is as it should be.
fn others(schema: &Value, value: &Value, is_one: impl Fn(&str) -> bool) -> Result<Known, String> {
    let those = members(value).iter().filter(|(name, _)| is_one(name));
    let each = those.map(|(name, one)| match closed(schema, one) {
        Ok(()) => Ok(name.clone()),
        Err(why) => Err(format!("{name}: {why}")),
    });
    each.collect()
}

fn members(value: &Value) -> &Map<String, Value> {
    static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.as_object().unwrap_or(&NONE)
}

fn length(value: &Value) -> Option<u64> {
    value.as_array().map(|all| all.len() as u64)
}

fn is_hash(value: &Value) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    value
        .as_str()
        .is_some_and(|text| text.len() == 64 && text.bytes().all(digit))
}

fn is_a(kind: &Value, value: &Value) -> bool {
    match kind.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_as_the_schema_says_is_named() {
        let why =
            |command: &str, document: Value| check(command, &document).err().unwrap_or_default();
        let good = json!({"schema": 1, "root": "0".repeat(64), "pinned": true, "changed": false});
        let with = |name: &str, value: Value| {
            let mut bad = good.clone();
            bad[name] = value;
            why("store-pin", bad)
        };
        assert_eq!(why("store-pin", good.clone()), "");
        for (name, value, says) in [
            ("schema", json!(2), "2 where const is 1"),
            ("root", json!("abc"), "pattern"),
            ("pinned", json!(1), "1 where type is \"boolean\""),
            ("more", json!(1), "more is not in the schema"),
        ] {
            let said = with(name, value);
            assert!(said.contains(says), "{said}");
        }
        let failure = json!({"schema": 1, "kind": "usage", "exit_code": 2, "error": "no"});
        assert_eq!(why("list", failure), "");
        let said = why("list", json!({"schema": 1}));
        assert!(said.contains("packages is missing"), "{said}");
        assert_eq!(
            command(&["network", "show", "--toml"]).as_deref(),
            Some("network-show")
        );
        assert_eq!(command(&["store"]), None);
    }
}
