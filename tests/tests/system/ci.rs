//! The steps that `ci/` gives to CI services, run as those services run them: with an empty home, without
//! cargo or Rust in PATH, over HTTP.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_protocol::hash::Sha256;
use qk_tests::artifact::{SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, Ran, run};
use qk_tests::web;
use serde::Deserialize;
use tempfile::TempDir;

/// A composite action, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Action {
    inputs: BTreeMap<String, Input>,
    runs: Runs,
}

#[derive(Debug, Deserialize)]
struct Input {
    default: String,
}

#[derive(Debug, Deserialize)]
struct Runs {
    using: String,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    id: Option<String>,
    uses: Option<String>,
    #[serde(default)]
    with: BTreeMap<String, String>,
    shell: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    run: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Gitlab {
    #[serde(rename = ".qk")]
    job: Job,
}

#[derive(Debug, Deserialize)]
struct Job {
    variables: BTreeMap<String, String>,
    cache: Cache,
    before_script: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Cache {
    paths: Vec<String>,
}

/// A machine of a CI service that has nothing yet.
struct Runner {
    dir: TempDir,
    /// What `$GITHUB_ENV`, `$GITHUB_PATH` and a step's outputs became.
    expressions: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
    path: String,
}

impl Runner {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cargo = dir.path().join("cargo");
        fs::create_dir(&cargo).unwrap();
        // How this machine reaches the registry; nothing of its cache, and no cargo.
        let machine = tame_index::utils::cargo_home().unwrap();
        let configured = machine.as_std_path().join("config.toml");
        if configured.exists() {
            fs::copy(configured, cargo.join("config.toml")).unwrap();
        }
        let mut runner = Self {
            dir,
            expressions: BTreeMap::new(),
            env: BTreeMap::new(),
            path: "/usr/bin:/bin".to_owned(),
        };
        let temp = runner.at("temp");
        runner.know("runner.temp", &temp.to_string_lossy());
        runner.know("github.action_path", &ci("").to_string_lossy());
        runner
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn know(&mut self, expression: &str, value: &str) {
        self.expressions
            .insert(expression.to_owned(), value.to_owned());
    }

    /// A text with its `${{ expressions }}` replaced.
    fn text(&self, text: &str) -> String {
        let mut parts = text.split("${{");
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (expression, rest) = part.split_once("}}").unwrap();
            let value = self.expressions.get(expression.trim());
            whole += value.unwrap_or_else(|| panic!("who knows {expression}?"));
            whole += rest;
        }
        whole
    }

    /// A command in this machine's environment, in its working directory.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        let work = self.at("work");
        fs::create_dir_all(&work).unwrap();
        command
            .args(&words[1..])
            .current_dir(work)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("CARGO_HOME", self.at("cargo"))
            .env("PATH", &self.path)
            .envs(&self.env);
        command
    }

    /// Runs the action with these inputs: the last step's end, which is the first that failed.
    fn act(&mut self, action: &Action, inputs: &[(&str, &str)]) -> Ran {
        assert_eq!(action.runs.using, "composite");
        for (name, input) in &action.inputs {
            self.know(&format!("inputs.{name}"), &input.default);
        }
        for (name, value) in inputs {
            assert!(action.inputs.contains_key(*name), "{name}");
            self.know(&format!("inputs.{name}"), value);
        }
        let mut last = None;
        for step in &action.runs.steps {
            let Some(script) = &step.run else {
                continue;
            };
            // What somebody put into an input must not become part of a program.
            assert!(!script.contains("${{"), "{script}");
            assert_eq!(step.shell.as_deref(), Some("bash"));
            let ran = self.step(step, script);
            let failed = ran.code() != 0;
            last = Some(ran);
            if failed {
                break;
            }
        }
        last.unwrap()
    }

    fn step(&mut self, step: &Step, script: &str) -> Ran {
        let files =
            ["GITHUB_ENV", "GITHUB_PATH", "GITHUB_OUTPUT"].map(|name| (name, self.at(name)));
        for (_, file) in &files {
            fs::write(file, "").unwrap();
        }
        let env = step.env.iter();
        let env = env.map(|(name, value)| (name, self.text(value)));
        let mut command = self.command(&[
            "bash",
            "--noprofile",
            "--norc",
            "-eo",
            "pipefail",
            "-c",
            script,
        ]);
        command
            .envs(env)
            .envs(files.iter().map(|(name, file)| (name, file)));
        let ran = run(&mut command);
        let [set, path, output] = files.map(|(_, file)| fs::read_to_string(file).unwrap());
        let pairs = |text: &str| -> Vec<(String, String)> {
            let pair = |line: &str| {
                line.split_once('=')
                    .map(|(a, b)| (a.to_owned(), b.to_owned()))
            };
            text.lines().filter_map(pair).collect()
        };
        self.env.extend(pairs(&set));
        for line in path.lines() {
            self.path = format!("{line}:{}", self.path);
        }
        for (name, value) in pairs(&output) {
            let id = step.id.as_deref().unwrap();
            self.know(&format!("steps.{id}.outputs.{name}"), &value);
        }
        ran
    }
}

/// A file of `ci/`.
fn ci(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../ci")
        .join(name)
}

fn action() -> Action {
    serde_saphyr::from_str(&fs::read_to_string(ci("action.yml")).unwrap()).unwrap()
}

/// A release of the executable under test, below `dir`; the SHA-256 of its archive.
fn release(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    let qk = dir.join("qk");
    run(Command::new("strip").arg("-o").arg(&qk).arg(qk_tests::qk())).done();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let name = format!("qk-{}-{target}.tar.gz", env!("CARGO_PKG_VERSION"));
    let mut tar = Command::new("tar");
    tar.args(["--use-compress-program", "gzip -1", "-cf", &name, "qk"]);
    run(tar.current_dir(dir)).done();
    fs::remove_file(qk).unwrap();
    let sha256 = Sha256::of(&fs::read(dir.join(&name)).unwrap()).to_string();
    fs::write(dir.join("SHA256SUMS"), format!("{sha256}  {name}\n")).unwrap();
    sha256
}

/// A network with a proven artifact, and a release of qk that is served over HTTP.
fn world() -> (Lab, TempDir, String, String) {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    let site = tempfile::tempdir().unwrap();
    let sha256 = release(site.path());
    let url = web::files(site.path()).url();
    (lab, site, url.trim_end_matches('/').to_owned(), sha256)
}

#[test]
fn the_action_installs_qk_and_tools_on_a_machine_without_cargo() {
    let (lab, _site, url, sha256) = world();
    let file = lab.network_file().to_string_lossy().into_owned();
    let fingerprint = lab.joined(ALICE).network.id().to_string();
    let inputs = [
        ("from", url.as_str()),
        ("sha256", &sha256),
        ("network", &file),
        ("fingerprint", &fingerprint),
        ("tools", SPEC),
    ];
    let action = action();
    let mut first = Runner::new();
    assert_ne!(
        run(&mut first.command(&["bash", "-c", "command -v cargo rustc"])).code(),
        0
    );
    let ran = first.act(&action, &inputs);
    assert_eq!(ran.code(), 0, "{}{}", ran.stdout, ran.stderr);
    let said = run(&mut first.command(&["hexyl"])).stdout;
    assert_eq!(said, "hexyl 0.17.0\n");

    // The next run has the store from the cache, and no key.
    let step = action
        .runs
        .steps
        .iter()
        .find(|step| step.uses.is_some())
        .unwrap();
    assert_eq!(step.uses.as_deref(), Some("actions/cache@v4"));
    let store = PathBuf::from(first.text(&step.with["path"]));
    assert!(store.join("blobs").is_dir() && store.parent().unwrap().join("keys").is_dir());
    let mut second = Runner::new();
    let home = second.at("temp/qk/home");
    fs::create_dir_all(&home).unwrap();
    run(Command::new("cp").arg("-a").arg(&store).arg(&home)).done();
    let sent = lab.sent_bytes(ALICE);
    assert_eq!(second.act(&action, &inputs).code(), 0);
    assert_eq!(run(&mut second.command(&["hexyl"])).stdout, said);
    assert_eq!(lab.sent_bytes(ALICE), sent, "nothing was downloaded again");
}

#[test]
fn the_action_installs_what_a_lock_pins() {
    let (lab, _site, url, sha256) = world();
    let file = lab.network_file();
    let fingerprint = lab.joined(ALICE).network.id().to_string();
    let project = format!(
        "[tools]\nhexyl = \"=0.17.0\"\n\n[network]\nfrom = {file:?}\nfingerprint = {fingerprint:?}\n"
    );
    let checkout = |runner: &Runner| {
        fs::create_dir_all(runner.at("work")).unwrap();
        fs::write(runner.at("work/qk.toml"), &project).unwrap();
    };
    let mut runner = Runner::new();
    checkout(&runner);
    let mut lock = lab.command(CLIENT, &["fetch", "--fallback", "none", "--json"]);
    run(lock.current_dir(runner.at("work"))).done();
    let lock = fs::read(runner.at("work/qk.lock")).unwrap();
    let inputs = [
        ("from", url.as_str()),
        ("sha256", &sha256),
        ("fingerprint", &fingerprint),
    ];
    let ran = runner.act(&action(), &inputs);
    assert_eq!(ran.code(), 0, "{}{}", ran.stdout, ran.stderr);
    let said = run(&mut runner.command(&["hexyl"])).stdout;
    assert_eq!(said, "hexyl 0.17.0\n");
    assert_eq!(fs::read(runner.at("work/qk.lock")).unwrap(), lock);

    // Nothing in a project joins a network by itself.
    let mut other = Runner::new();
    checkout(&other);
    fs::write(other.at("work/qk.lock"), &lock).unwrap();
    let ran = other.act(&action(), &inputs[..2]);
    assert_ne!(ran.code(), 0);
    assert!(ran.stderr.contains("--accept-network"), "{}", ran.stderr);
    assert!(!other.at("temp/qk/tools/bin/hexyl").exists());
}

#[test]
fn the_action_ends_with_the_reason_and_installs_nothing() {
    let (lab, _site, url, sha256) = world();
    let file = lab.network_file().to_string_lossy().into_owned();
    let action = action();
    let wrong = "0".repeat(64);
    let cases = [
        (("sha256", wrong.as_str()), 15, "nothing was installed"),
        (("version", "99.0.0"), 14, "cannot be downloaded"),
        (("fingerprint", wrong.as_str()), 15, wrong.as_str()),
        (("tools", "hexyl@0.16.0"), 11, "unproven"),
        (("tools", "$(touch${IFS}pwned)"), 2, "name"),
    ];
    for (changed, code, word) in cases {
        let mut runner = Runner::new();
        let usual = [
            ("from", url.as_str()),
            ("sha256", &sha256),
            ("network", &file),
            ("tools", SPEC),
        ];
        let ran = runner.act(&action, &[&usual[..], &[changed]].concat());
        assert_eq!(
            ran.code(),
            code,
            "{changed:?}: {}{}",
            ran.stdout,
            ran.stderr
        );
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
        assert!(!runner.at("temp/qk/tools/bin/hexyl").exists());
        assert!(!runner.at("work/pwned").exists());
    }
}

#[test]
fn the_job_of_gitlab_does_the_same() {
    let (lab, _site, url, sha256) = world();
    let text = fs::read_to_string(ci("gitlab.yml")).unwrap();
    let Gitlab { job } = serde_saphyr::from_str(&text).unwrap();
    let mut runner = Runner::new();
    let work = runner.at("work").to_string_lossy().into_owned();
    for (name, value) in &job.variables {
        let value = value.replace("$CI_PROJECT_DIR", &work);
        runner.env.insert(name.clone(), value);
    }
    let file = lab.network_file().to_string_lossy().into_owned();
    for (name, value) in [("FROM", &url), ("SHA256", &sha256), ("NETWORK", &file)] {
        runner.env.insert(format!("QK_{name}"), value.clone());
    }
    runner.env.insert("QK_TOOLS".into(), SPEC.into());
    fs::create_dir_all(&work).unwrap();
    run(Command::new("cp")
        .arg("-r")
        .arg(ci(""))
        .arg(format!("{work}/ci")))
    .done();
    let script = [&job.before_script[..], &["hexyl".to_owned()]]
        .concat()
        .join("\n");
    let ran = run(&mut runner.command(&["bash", "-ec", &script]));
    assert_eq!(ran.code(), 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.ends_with("hexyl 0.17.0\n"), "{}", ran.stdout);
    assert!(
        Path::new(&work)
            .join(&job.cache.paths[0])
            .join("blobs")
            .is_dir()
    );
}

#[test]
fn the_install_script_names_this_version_and_what_it_lacks() {
    let text = fs::read_to_string(ci("install.sh")).unwrap();
    assert!(text.contains(&format!("VERSION={}\n", env!("CARGO_PKG_VERSION"))));
    let runner = Runner::new();
    let script = ci("install.sh").to_string_lossy().into_owned();
    let install = |more: &[&str]| run(&mut runner.command(&[&["sh", &script], more].concat()));
    install(&[]).failed(2, &["--from is missing"]);
    install(&["--from"]).failed(2, &["--from needs a value"]);
    install(&["--form", "x"]).failed(2, &["unknown argument --form"]);
    install(&["--from", "http://127.0.0.1:9"]).failed(14, &["cannot be downloaded"]);
    install(&["--help"]).done();
}
