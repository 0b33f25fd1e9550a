//! Installations that are interrupted at any moment: whole or not there, and the next call works.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qk_tests::lab::{CLIENT, listing, run, send, wait};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::install::Tools;

const NAMES: [&str; 4] = ["kill-a", "kill-b", "kill-c", "kill-d"];
const ROUNDS: usize = 24;

#[test]
fn whatever_interrupts_an_installation_nothing_is_half_there() {
    let tools = Tools::new();
    for version in ["1.0.0", "2.0.0"] {
        NAMES.iter().for_each(|name| tools.publish(name, version));
    }
    // Both versions are in the store; what is left to interrupt is the installation.
    let call = |version: &str| -> Vec<String> {
        let specs = NAMES.iter().map(|name| format!("{name}@{version}"));
        ["fetch", "--fallback", "none", "--force"]
            .map(str::to_owned)
            .into_iter()
            .chain(specs)
            .collect()
    };
    let began = Instant::now();
    for version in ["2.0.0", "1.0.0"] {
        let args = call(version);
        tools
            .qk(&args.iter().map(String::as_str).collect::<Vec<_>>())
            .done();
    }
    let whole = began.elapsed() / 2;
    let mut rng = StdRng::seed_from_u64(7);
    let mut ended = BTreeMap::<String, usize>::new();
    for round in 0..ROUNDS {
        let version = ["2.0.0", "1.0.0"][round % 2];
        let mut command = tools.lab.command(CLIENT, &call(version));
        command.arg("--root").arg(tools.lab.root());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let micros = u64::try_from(whole.as_micros()).unwrap();
        std::thread::sleep(Duration::from_micros(rng.random_range(0..micros)));
        let signal = ["INT", "TERM", "KILL"][round % 3];
        if child.try_wait().unwrap().is_none() {
            send(child.id(), signal);
        }
        let status = wait(&mut child);
        *ended.entry(format!("{signal}: {status}")).or_default() += 1;
        // Every program that is there is one of the two, as a whole.
        for name in NAMES {
            let said = run(&mut Command::new(tools.program(name))).stdout;
            let versions = ["1.0.0", "2.0.0"].map(|version| format!("{name} {version}\n"));
            assert!(versions.contains(&said), "round {round}: {said:?}");
        }
    }
    println!("{ended:?}");
    assert!(ended.len() > 2, "nothing was interrupted: {ended:?}");
    // The next call works, and afterwards list and files agree and nothing else is left.
    let args = call("2.0.0");
    tools
        .qk(&args.iter().map(String::as_str).collect::<Vec<_>>())
        .done();
    let list = tools.cargo(&["install", "--list"]);
    let expected: String = NAMES
        .iter()
        .map(|name| format!("{name} v2.0.0:\n    {name}\n"))
        .collect();
    assert_eq!(list, expected);
    let mut files: Vec<_> = fs::read_dir(tools.lab.root().join("bin"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, NAMES);
    let hidden = fs::read_dir(tools.lab.root()).unwrap();
    let hidden = hidden.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(hidden.filter(|name| name.starts_with(".qk")).count(), 0);
}

#[test]
fn an_interrupted_fetch_leaves_no_work_behind() {
    let tools = Tools::new();
    NAMES.iter().for_each(|name| tools.publish(name, "1.0.0"));
    let specs = NAMES.map(str::to_owned);
    for signal in ["INT", "TERM"] {
        let mut args = vec![
            "fetch".to_owned(),
            "--fallback".to_owned(),
            "none".to_owned(),
        ];
        args.extend(specs.clone());
        let mut command = tools.lab.command(CLIENT, &args);
        command.arg("--root").arg(tools.lab.root());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150));
        if child.try_wait().unwrap().is_none() {
            send(child.id(), signal);
        }
        wait(&mut child);
        let work = listing(&tools.lab.home(CLIENT).work());
        assert!(work.is_empty(), "{signal}: {work:?}");
    }
    let mut all = vec!["fetch"];
    all.extend(NAMES);
    tools.qk(&all).done();
}
