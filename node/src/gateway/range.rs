//! Conditions and ranges of requests (RFC 9110, sections 13 and 14).

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, header};

/// What of a file is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it.
    Whole,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// Nothing that there is.
    Nothing,
}

/// Reads `Range` and `If-Range` for a file of `size` bytes. What is malformed, of another unit than
/// bytes or several ranges at once is ignored, as a server may: the answer then is the whole file.
pub(super) fn asked(headers: &HeaderMap, etag: &str, size: u64) -> Asked {
    let Some(text) = single(headers, &header::RANGE) else {
        return Asked::Whole;
    };
    // Only a strong tag matches; a date never does, as files here have none.
    let stale =
        headers.contains_key(header::IF_RANGE) && single(headers, &header::IF_RANGE) != Some(etag);
    match stale {
        true => Asked::Whole,
        false => parse(text, size).unwrap_or(Asked::Whole),
    }
}

/// Whether the client has this file already: `If-None-Match`, compared weakly.
pub(super) fn has_already(headers: &HeaderMap, etag: &str) -> bool {
    let texts = headers.get_all(header::IF_NONE_MATCH).iter();
    texts
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(first.trim())
}

/// `None` where it is to be ignored.
fn parse(text: &str, size: u64) -> Option<Asked> {
    let (unit, set) = text.split_once('=')?;
    let (first, last) = set.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let range = match (number(first)?, number(last)?) {
        (None, None) => return None,
        (None, Some(suffix)) => size.saturating_sub(suffix)..size,
        (Some(first), None) => first..size,
        (Some(first), Some(last)) if first > last => return None,
        (Some(first), Some(last)) => first..last.saturating_add(1).min(size),
    };
    Some(match range.is_empty() {
        true => Asked::Nothing,
        false => Asked::Part(range),
    })
}

/// A number, or nothing where there is none. One that is too large is as large as can be.
fn number(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((!text.is_empty()).then(|| text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn of(range: &str) -> Asked {
        asked(&headers(&[(header::RANGE, range)]), "\"tag\"", 1000)
    }

    #[test]
    fn one_range_is_understood() {
        assert_eq!(of("bytes=0-0"), Asked::Part(0..1));
        assert_eq!(of("bytes=10-19"), Asked::Part(10..20));
        assert_eq!(of("Bytes = 10 - 19 "), Asked::Part(10..20));
        assert_eq!(of("bytes=990-"), Asked::Part(990..1000));
        assert_eq!(of("bytes=990-2000"), Asked::Part(990..1000));
        assert_eq!(of("bytes=1-99999999999999999999999"), Asked::Part(1..1000));
        assert_eq!(of("bytes=-10"), Asked::Part(990..1000));
        assert_eq!(of("bytes=-5000"), Asked::Part(0..1000));
    }

    #[test]
    fn what_is_not_there_is_nothing() {
        for range in ["bytes=1000-", "bytes=5000-6000", "bytes=-0"] {
            assert_eq!(of(range), Asked::Nothing, "{range}");
        }
        let empty = headers(&[(header::RANGE, "bytes=0-")]);
        assert_eq!(asked(&empty, "\"tag\"", 0), Asked::Nothing);
    }

    #[test]
    fn what_is_not_understood_is_the_whole_file() {
        let not = [
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1-2,5-6",
            "bytes=5-1",
            "blocks=0-1",
            "bytes",
            "bytes=+1-2",
            "bytes=0x1-2",
            "",
        ];
        for range in not {
            assert_eq!(of(range), Asked::Whole, "{range}");
        }
        let twice = headers(&[(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=0-1")]);
        assert_eq!(asked(&twice, "\"tag\"", 1000), Asked::Whole);
        assert_eq!(asked(&HeaderMap::new(), "\"tag\"", 1000), Asked::Whole);
    }

    #[test]
    fn a_range_of_another_file_is_the_whole_file() {
        let with = |tag: &str| {
            let lines = [(header::RANGE, "bytes=0-1"), (header::IF_RANGE, tag)];
            asked(&headers(&lines), "\"tag\"", 1000)
        };
        assert_eq!(with("\"tag\""), Asked::Part(0..2));
        for tag in [
            "\"other\"",
            "W/\"tag\"",
            "Sat, 29 Oct 1994 19:43:31 GMT",
            "*",
        ] {
            assert_eq!(with(tag), Asked::Whole, "{tag}");
        }
    }

    #[test]
    fn who_has_it_is_told_so() {
        let with = |tags: &str| has_already(&headers(&[(header::IF_NONE_MATCH, tags)]), "\"tag\"");
        for tags in ["\"tag\"", "W/\"tag\"", "\"other\", \"tag\"", "*"] {
            assert!(with(tags), "{tags}");
        }
        for tags in ["\"other\"", "tag", ""] {
            assert!(!with(tags), "{tags}");
        }
    }
}
