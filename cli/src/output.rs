//! What a command prints: text and progress for a person, or one JSON document.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::documents::{self, Document};
use crate::failure::{Failure, Outcome};
use crate::session::failed;

/// More than any answer to a question.
const ANSWER_BYTES_MAX: u64 = 64;

/// Asks whoever sits at the terminal; none where nobody does. Only a plain yes is one.
pub(crate) async fn ask(question: &str) -> Outcome<Option<bool>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let asked = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        let mut input = std::io::stdin().lock().take(ANSWER_BYTES_MAX);
        input.read_line(&mut answer).map(|_| answer)
    });
    let answer = asked.await.map_err(failed)?.map_err(failed)?;
    Ok(Some(matches!(answer.trim(), "y" | "Y" | "yes")))
}

/// What is being done, a line each, below what was printed.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Fewer columns than this hold no bar.
const COLUMNS_MIN: u16 = 60;

/// How this command talks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub json: bool,
    pub quiet: bool,
}

impl Output {
    /// A line of a timeline or of a listing; not printed with `--json` or `--quiet`.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            print(text.as_ref());
        }
    }

    /// A part of the result, printed as soon as it is known; the document with `--json` has it too.
    pub(crate) fn outcome(&self, text: impl AsRef<str>) {
        if !self.json {
            print(text.as_ref());
        }
    }

    /// A remark that is not part of the result, on standard error.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            print_error(text.as_ref());
        }
    }

    /// The result: the document with `--json`, what `text` makes of it otherwise.
    pub(crate) fn result<T: Document>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        if self.json {
            self.document(value);
        } else {
            print(&text(value));
        }
    }

    /// What all of a call came to, where each part was shown as it happened.
    pub(crate) fn summary(&self, value: &impl Document, failure: Option<Failure>) -> Outcome {
        if self.json {
            self.document(value);
        }
        match failure {
            None => Ok(()),
            Some(failure) => {
                let printed = failure.printed || self.json;
                Err(failure.printed(printed))
            }
        }
    }

    /// Bytes that are the result as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) {
        let _ = std::io::stdout().lock().write_all(bytes);
    }

    /// One JSON document on one line, whatever the mode: for the events of `qk node`.
    pub(crate) fn document(&self, value: &impl Document) {
        match documents::document(value) {
            Ok(text) => print(&text),
            Err(error) => print_error(&format!(
                "error: the result cannot be written as JSON: {error}"
            )),
        }
    }

    /// A failure: JSON on standard output where JSON is asked for, text on standard error otherwise.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            self.document(failure);
        } else {
            print_error(&failure.to_string());
        }
    }

    /// A bar over bytes; invisible unless a person looks.
    pub(crate) fn bytes_bar(&self, size: u64, name: &str) -> ProgressBar {
        let bar = self.bar(ProgressBar::new(size));
        bar.set_style(style(match is_narrow() {
            true => "{prefix} {percent}%",
            false => "{prefix:>12} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        }));
        bar.set_prefix(name.to_owned());
        bar
    }

    /// A line that shows what is being done; plain lines where nobody looks at a terminal.
    pub(crate) fn spinner(&self, name: &str) -> ProgressBar {
        let bar = self.bar(ProgressBar::new_spinner());
        bar.set_style(style(match is_narrow() {
            true => "{spinner} {prefix}",
            false => "{spinner} {prefix} {wide_msg} ({elapsed})",
        }));
        bar.set_prefix(name.to_owned());
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        bar
    }

    fn bar(&self, bar: ProgressBar) -> ProgressBar {
        if self.json || self.quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
            return bar;
        }
        BARS.add(bar)
    }
}

/// Prints a line; that nobody reads it any more (`| head`) is no reason to fail.
fn print(text: &str) {
    BARS.suspend(|| {
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    });
}

/// The same on standard error, where `eprintln!` would panic.
fn print_error(text: &str) {
    BARS.suspend(|| {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    });
}

fn is_narrow() -> bool {
    console::Term::stderr().size().1 < COLUMNS_MIN
}

fn style(template: &str) -> ProgressStyle {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("█▉▊▋▌▍▎▏ ")
}

/// Bytes for a person.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// So many of something, for a person.
pub(crate) fn count(number: usize, one: &str) -> String {
    match (number, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {one}s"),
    }
}

/// How long ago something was, for a person.
pub(crate) fn ago(seconds: u64) -> String {
    match seconds {
        0..90 => format!("{seconds} s ago"),
        90..5_400 => format!("{} min ago", seconds / 60),
        5_400..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// How long something is, for a person.
pub(crate) fn lasting(seconds: u64) -> String {
    match seconds {
        0..90 => format!("{seconds} s"),
        90..5_400 => format!("{} min", seconds / 60),
        5_400..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn one_is_not_many() {
        let counted = [0, 1, 2].map(|number| {
            let [nodes, advisories] = ["node", "advisory"].map(|one| count(number, one));
            format!("{nodes}, {advisories}")
        });
        insta::assert_snapshot!(counted.join("; "), @"0 nodes, 0 advisories; 1 node, 1 advisory; 2 nodes, 2 advisories");
    }
}
