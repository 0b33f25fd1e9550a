//! Completions and manual pages, read by the programs that they are for.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use qk_tests::lab::{CLIENT, Lab, run};

#[test]
fn every_command_has_a_page_without_a_warning() {
    let lab = Lab::empty();
    let directory = lab.dir().join("share/man1");
    let words = ["man".as_ref(), directory.as_os_str()];
    let pages = lab.qk(CLIENT, &words).done()["pages"].clone();
    for command in ["", "-fetch", "-network-add", "-store-gc", "-man"] {
        let page = directory.join(format!("qk{command}.1"));
        assert!(pages.as_array().unwrap().contains(&page.to_str().into()));
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.contains(&format!(".TH qk{command} 1")), "{text}");
    }
    let fetch = fs::read_to_string(directory.join("qk-fetch.1")).unwrap();
    assert!(fetch.contains("Examples") && fetch.contains("Exit codes"));
    assert!(!directory.join("qk-help.1").exists());
    for page in pages.as_array().unwrap() {
        let said = said_by(
            "groff",
            &["-Kutf8", "-Tutf8", "-man", "-wall"],
            page.as_str().unwrap(),
        );
        assert_eq!(said.unwrap_or_default(), "", "{page}");
    }
}

#[test]
fn pages_that_cannot_be_written_are_named() {
    let lab = Lab::empty();
    let file = lab.dir().join("file");
    fs::write(&file, "").unwrap();
    lab.qk(CLIENT, &["man".as_ref(), file.as_os_str()])
        .failed(1, &[file.to_str().unwrap(), "you may write to"]);
}

#[test]
fn shells_understand_their_completions() {
    let lab = Lab::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lab.dir().join(shell);
        let ran = run(&mut lab.command(CLIENT, &["completions", shell]));
        assert_eq!(ran.code(), 0);
        let text = &ran.stdout;
        assert!(text.contains("no-default-features"), "{shell}: {text}");
        fs::write(&script, text.as_bytes()).unwrap();
        if matches!(shell, "bash" | "zsh" | "fish") {
            let said = said_by(shell, &["-n"], script.to_str().unwrap());
            assert_eq!(said.unwrap_or_default(), "", "{shell}");
        }
    }
}

/// What a program says about a file to its standard error; nothing where it is not installed.
fn said_by(program: &str, arguments: &[&str], file: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).arg(Path::new(file));
    let ran = command.stdout(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&ran.stderr).into_owned())
}
