//! A program that runs beside the others, and what it costs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::sample;
use crate::cargo::describe;

/// A program of ours that serves until its standard input ends, and says on its standard output,
/// a JSON document a line, when it is ready and what it is asked.
#[derive(Debug)]
pub struct Service {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Service {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started or ends instead; its standard error is ours.
    pub fn start(command: &mut Command) -> Result<Self> {
        let line = describe(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let answers = child.stdout.take().context("no standard output")?;
        let mut service = Self {
            questions: child.stdin.take(),
            child,
            answers: BufReader::new(answers),
            ready: Value::Null,
        };
        service.ready = service
            .answer()
            .with_context(|| format!("`{line}` did not get ready"))?;
        Ok(service)
    }

    /// Asks what there is to say, and waits for it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn ask(&mut self) -> Result<Value> {
        let questions = self.questions.as_mut().context("no standard input")?;
        questions.write_all(b"\n")?;
        self.answer()
    }

    /// A text of what it said when it was ready.
    ///
    /// # Errors
    /// When it did not say that.
    pub fn text(&self, name: &str) -> Result<&str> {
        let text = self.ready[name].as_str();
        text.with_context(|| format!("no {name} in {}", self.ready))
    }

    /// Processor seconds so far.
    ///
    /// # Errors
    /// When `/proc` is not there or not as Linux writes it.
    pub fn cpu(&self) -> Result<f64> {
        sample::cpu_of(self.child.id())
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it has ended");
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // What it wrote is of no more use, so that nobody waits for it to end in order.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_asked_and_ends_with_its_owner() {
        let script = "echo '{\"id\": \"a\"}'; while read -r _; do echo 7; done";
        let mut service = Service::start(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(service.text("id").unwrap(), "a");
        assert!(service.text("other").is_err());
        assert_eq!(service.ask().unwrap(), 7);
        let stat = format!("/proc/{}/stat", service.child.id());
        assert!(service.cpu().unwrap() >= 0.0 && std::fs::exists(&stat).unwrap());
        drop(service);
        assert!(!std::fs::exists(&stat).unwrap());
    }

    #[test]
    fn one_that_ends_instead_is_an_error() {
        let error = Service::start(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 3` did not get ready");
    }
}
