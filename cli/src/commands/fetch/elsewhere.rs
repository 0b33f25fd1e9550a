//! Crates whose executable has another name, for who typed that one.

use crate::failure::{Failure, Kind};

/// An executable and its crate, by `[[bin]]` of the manifests that were published as fd-find 10.5.0, ripgrep
/// 15.2.0, du-dust 1.2.7, dua-cli 2.32.2, tealdeer 1.9.1, tre-command 0.4.0, typos-cli 1.52.0 and watchexec-cli
/// 1.20.5. Most of these names are also those of other crates, so that they are only pointed out.
const ELSEWHERE: [(&str, &str); 8] = [
    ("fd", "fd-find"),
    ("rg", "ripgrep"),
    ("dust", "du-dust"),
    ("dua", "dua-cli"),
    ("tldr", "tealdeer"),
    ("tre", "tre-command"),
    ("typos", "typos-cli"),
    ("watchexec", "watchexec-cli"),
];

/// The failure to get a crate, and which one may have been meant.
pub(super) fn suggest(name: &str, failure: Failure) -> Failure {
    let meant = ELSEWHERE.iter().find(|(executable, _)| *executable == name);
    match (meant, failure.kind) {
        (Some((_, krate)), Kind::NotFound | Kind::Unproven | Kind::BuildFailed) => {
            let meant = format!("an executable called {name} is of the crate {krate}");
            let hint = match &failure.hint {
                Some(hint) => format!("{meant}; {hint}"),
                None => meant,
            };
            failure.hint(hint)
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_types_an_executable_learns_its_crate() {
        let failed = |name, kind| {
            let failure = Failure::new(kind, "no").hint("join a network");
            suggest(name, failure).hint.unwrap()
        };
        assert_eq!(
            failed("fd", Kind::Unproven),
            "an executable called fd is of the crate fd-find; join a network"
        );
        assert_eq!(failed("fd", Kind::Disputed), "join a network");
        assert_eq!(failed("fd-find", Kind::Unproven), "join a network");
    }
}
