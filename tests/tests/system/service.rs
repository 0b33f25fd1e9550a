//! The node under a service manager: what it tells it, how it ends, what is written for it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use qk_tests::artifact::{SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, PATIENCE, Ran, run, send, until, wait};

/// The service manager's end of what a node tells.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(lab: &Lab) -> Self {
        let path = lab.dir().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// Reads until something was told that has this line; returns the whole of it.
    fn hears(&self, line: &str) -> String {
        let mut message = [0; 4096];
        loop {
            let length = self.socket.recv(&mut message);
            let length = length.unwrap_or_else(|error| panic!("never heard {line:?}: {error}"));
            let text = String::from_utf8(message[..length].to_vec()).unwrap();
            if text.lines().any(|one| one.starts_with(line)) {
                return text;
            }
        }
    }

    /// Leaves no room for anything to be told.
    fn fill(&self) {
        loop {
            // Each sender has room of its own, beside the receiver's.
            let sender = UnixDatagram::unbound().unwrap();
            sender.set_nonblocking(true).unwrap();
            if sender.send_to(b"full", &self.path).is_err() {
                return;
            }
            while sender.send_to(b"full", &self.path).is_ok() {}
        }
    }

    /// A node of alice's that tells this manager.
    fn start(&self, lab: &Lab, watchdog_micros: &str) -> Child {
        let args = [
            "node",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--log-format",
            "json",
        ];
        let mut command = lab.command(ALICE, &args);
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", watchdog_micros)
            .stdout(Stdio::null())
            .stderr(fs::File::create(lab.dir().join("service.log")).unwrap());
        command.spawn().unwrap()
    }
}

/// What the node of [`Manager::start`] logged, one JSON object a line.
fn logged(lab: &Lab) -> Vec<serde_json::Value> {
    let log = fs::read_to_string(lab.dir().join("service.log")).unwrap();
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    log.lines().map(read).collect()
}

#[test]
fn a_service_manager_hears_what_a_node_does() {
    let lab = Lab::new();
    let manager = Manager::new(&lab);
    let mut node = manager.start(&lab, "3000000");
    let told = manager.hears("READY=1");
    assert!(told.contains("STATUS=1 network, 0 peers"), "{told}");
    // Ready means: it answers and listens.
    let status = lab.qk(ALICE, &["status"]).done();
    assert_eq!(status["running"], true);
    assert_eq!(status["process"], node.id());
    assert_eq!(
        status["networks"][0]["listening"].as_array().unwrap().len(),
        1
    );
    for _ in 0..2 {
        manager.hears("WATCHDOG=1");
    }

    // What can be read again is, and what cannot is named.
    lab.configure(ALICE, "quota_bytes = 123456789\n[policy]\nthreshold = 3\n");
    send(node.id(), "HUP");
    assert!(manager.hears("RELOADING=1").contains("MONOTONIC_USEC="));
    manager.hears("READY=1");
    let log = logged(&lab);
    let says = |message: &str| log.iter().find(|line| line["message"] == message);
    assert_eq!(says("read again").unwrap()["settings"], r#"["policy"]"#);
    let later = says("changed, and count after a restart of the node").unwrap();
    assert_eq!(later["settings"], r#"["quota_bytes"]"#);
    lab.qk(ALICE, &["status"]).done();

    // A bad file does not end it.
    fs::write(lab.home(ALICE).dir().join("config.toml"), "nonsense = 1\n").unwrap();
    send(node.id(), "HUP");
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    let log = logged(&lab);
    let error = log.iter().find(|line| line["level"] == "ERROR").unwrap();
    assert!(
        error["error"].as_str().unwrap().contains("config.toml"),
        "{error}"
    );

    send(node.id(), "TERM");
    manager.hears("STOPPING=1");
    assert_eq!(wait(&mut node).code(), Some(0));
    assert!(!lab.home(ALICE).socket().exists());
}

#[test]
fn nothing_secret_is_logged() {
    let lab = Lab::new();
    let manager = Manager::new(&lab);
    let mut command = lab.command(ALICE, &["node", "--listen", "/ip4/127.0.0.1/tcp/0"]);
    let log = lab.dir().join("trace.log");
    command
        .env("NOTIFY_SOCKET", &manager.path)
        .env("QK_LOG", "trace")
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap());
    let mut node = command.spawn().unwrap();
    manager.hears("READY=1");
    lab.qk(ALICE, &["status"]).done();
    send(node.id(), "HUP");
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    send(node.id(), "TERM");
    wait(&mut node);
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("TRACE"), "all of it was logged");
    let mut keys = 0;
    for key in fs::read_dir(lab.home(ALICE).dir().join("keys")).unwrap() {
        let secret = fs::read_to_string(key.unwrap().path()).unwrap();
        assert!(!log.contains(secret.trim()));
        keys += 1;
    }
    assert!(keys >= 4, "node, observer, root, timestamp");
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let lab = Lab::new();
    let manager = Manager::new(&lab);
    // Nobody reads: soon the node waits for its manager, and a clean end with it.
    let mut node = manager.start(&lab, "60000000");
    manager.hears("READY=1");
    manager.fill();
    // Asked once, it waits, for seconds. (Two that come at the same moment count once.)
    let mut status = None;
    until("it ends", || {
        send(node.id(), "INT");
        std::thread::sleep(std::time::Duration::from_millis(100));
        status = node.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(130), "{:?}", logged(&lab));
    // What was left behind is no obstacle.
    let again = ["node", "--listen", "/ip4/127.0.0.1/tcp/0", "--json"];
    let mut again = lab
        .command(ALICE, &again)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = again.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert!(line.contains("listening"), "{line}");
    send(again.id(), "TERM");
    assert_eq!(wait(&mut again).code(), Some(0));
}

/// A command of the client's that finds no service manager, and writes units below the lab.
fn without_manager(lab: &Lab, args: &[&str]) -> Ran {
    let nobody = lab.dir().join("runtime");
    fs::create_dir_all(&nobody).unwrap();
    let mut command = lab.command(CLIENT, args);
    command
        .arg("--json")
        .env("XDG_CONFIG_HOME", lab.dir().join("config"))
        .env("XDG_RUNTIME_DIR", &nobody)
        .env_remove("DBUS_SESSION_BUS_ADDRESS");
    run(&mut command)
}

fn unit(lab: &Lab) -> PathBuf {
    lab.dir().join("config/systemd/user/qk.service")
}

/// Whether systemd finds fault with a unit; says so loudly where that cannot be asked.
fn verify(unit: &Path, runtime: &Path) {
    let verified = Command::new("systemd-analyze")
        .args(["--user", "verify"])
        .arg(unit)
        .env("XDG_RUNTIME_DIR", runtime)
        .output();
    match verified {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let ours: Vec<_> = said
                .lines()
                .filter(|line| line.contains("qk.service"))
                .collect();
            assert!(output.status.success() && ours.is_empty(), "{said}");
        }
        Err(error) => eprintln!("skipped: systemd-analyze does not start: {error}"),
    }
}

#[test]
fn a_service_without_a_manager_is_written_and_the_rest_is_said() {
    let lab = Lab::new();
    let listen = ["node", "install", "--listen", "/ip4/127.0.0.1/tcp/0"];
    let ran = without_manager(&lab, &listen);
    assert_eq!(ran.code(), 1);
    let installed = ran.json();
    assert_eq!(installed["changed"], true, "{ran:?}");
    assert_eq!(installed["enabled"], false);
    assert_eq!(installed["running"], false);
    let undone = installed["undone"].to_string();
    assert!(undone.contains("neither enabled nor started"), "{undone}");
    assert!(
        undone.contains("systemctl --user enable --now qk.service"),
        "{undone}"
    );
    let text = fs::read_to_string(unit(&lab)).unwrap();
    assert!(
        text.contains(r#"node "--listen" "/ip4/127.0.0.1/tcp/0" "--share""#),
        "{text}"
    );
    assert_eq!(installed["shares_fetched"], true);
    verify(&unit(&lab), &lab.dir().join("runtime"));
    // The check sees what is wrong.
    let broken = lab.dir().join("broken.service");
    fs::write(&broken, text.replace("Type=notify", "Type=nothing")).unwrap();
    if let Ok(output) = Command::new("systemd-analyze")
        .args(["--user", "verify"])
        .arg(&broken)
        .env("XDG_RUNTIME_DIR", lab.dir().join("runtime"))
        .output()
    {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("nothing"), "{said}");
    }

    // Again, and with other arguments.
    assert_eq!(without_manager(&lab, &listen).json()["changed"], false);
    let other = without_manager(&lab, &["node", "install"]).json();
    assert_eq!(other["changed"], true);
    // What was fetched is not shared by who does not want that, whichever way they say so.
    for args in [["--no-share"], ["--leech"]] {
        let all = [&["node", "install"], &args[..]].concat();
        let installed = without_manager(&lab, &all).json();
        assert_eq!(installed["shares_fetched"], false, "{installed}");
        assert_eq!(installed["gives"], args == ["--no-share"]);
        let text = fs::read_to_string(unit(&lab)).unwrap();
        assert!(!text.contains("--share"), "{text}");
    }
    lab.configure(CLIENT, "[share]\nfetched = false\n");
    let installed = without_manager(&lab, &["node", "install"]).json();
    assert_eq!(installed["shares_fetched"], false, "{installed}");
    without_manager(&lab, &["node", "install", "--share", "--no-share"])
        .failed(2, &["cannot be used with"]);

    let removed = without_manager(&lab, &["node", "uninstall"]).done();
    assert_eq!(removed["files"][0], unit(&lab).to_str().unwrap());
    assert!(!unit(&lab).exists());
    let removed = without_manager(&lab, &["node", "uninstall"]).done();
    assert_eq!(removed["files"].as_array().unwrap().len(), 0);
    assert!(lab.home(CLIENT).dir().join("keys").exists());
}

#[test]
fn a_purge_names_the_keys_and_spares_a_running_node() {
    let mut lab = Lab::new();
    lab.start_any(CLIENT);
    let process = format!("process {}", lab.process(CLIENT));
    let running = ["is not the service runs on", &process, "stop it first"];
    let purge = ["node", "uninstall", "--purge", "--yes"];
    without_manager(&lab, &purge).failed(1, &running);
    without_manager(&lab, &["node", "install"]).failed(1, &running);
    lab.qk(CLIENT, &["status"]).done();
    lab.stop(CLIENT, "TERM");
    // Nobody is there to be asked.
    let asked = without_manager(&lab, &["node", "uninstall", "--purge"]);
    asked.failed(
        2,
        &["asks first", "cannot be made again", "observer", "--yes"],
    );
    let home = lab.home(CLIENT).dir().to_owned();
    assert!(home.join("keys/observer").exists());
    let removed = without_manager(&lab, &purge).done();
    assert_eq!(removed["purged"], home.to_str().unwrap());
    assert!(!home.exists());
    without_manager(&lab, &purge).done();
    // Not anything that happens to be named as home.
    fs::create_dir(&home).unwrap();
    fs::write(home.join("thesis"), "years of work").unwrap();
    without_manager(&lab, &purge).failed(1, &["nothing in it is qk's"]);
    assert!(home.join("thesis").exists());
}

#[test]
fn a_live_view_shows_what_a_node_counts() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.start_any(CLIENT);
    let counters = |name: &str| lab.qk(name, &["status"]).done()["counters"].clone();
    assert_eq!(counters(ALICE)["sent_bytes"], 0);

    let watch = ["status", "--watch", "--json"];
    let mut watching = lab
        .command(ALICE, &watch)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["counters"]["sent_bytes"], 0);

    let root = lab.fetch(&[SPEC]).done()["crates"][0]["root"].clone();
    let peers = lab.qk(CLIENT, &["peers"]).done();
    assert_eq!(
        peers["peers"][0]["network"], "lab",
        "it has just been asked"
    );
    // What one received is no more than what the other sent: the hash tree comes beside it.
    let (sent, received) = (counters(ALICE), counters(CLIENT));
    assert_eq!(received["received_bytes"], artifact.subject.size, "{root}");
    let whole = sent["sent_bytes"].as_u64().unwrap();
    assert!(whole >= artifact.subject.size, "{sent}");
    assert!(sent["blocks_answered"].as_u64().unwrap() > 0);
    assert!(sent["requests_answered"].as_u64().unwrap() > 0);
    assert_eq!(received["sent_bytes"], 0);

    let mut line = next();
    while line["counters"]["sent_bytes"] != whole {
        line = next();
    }
    assert!(line["sent_bytes_per_second"].is_u64(), "{line}");
    // A node that ends is waited for.
    lab.stop(ALICE, "TERM");
    while line["running"] != false {
        line = next();
    }
    lab.start_alice();
    while line["running"] != true {
        line = next();
    }
    assert_eq!(line["process"], lab.process(ALICE));
    send(watching.id(), "INT");
    assert_eq!(wait(&mut watching).code(), Some(0));

    // As plain lines, until nobody reads it any more.
    let mut plain = lab
        .command(ALICE, &["status", "--watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(plain.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert!(
        line.starts_with("running for") && !line.contains('\x1b'),
        "{line:?}"
    );
    drop(stdout);
    assert_eq!(wait(&mut plain).code(), Some(0));
}

/// Runs a script under a systemd user manager of its own; `None`, and said loudly, where none can be
/// started. The home is the client's.
fn under_manager(lab: &Lab, script: &Path) -> Option<Ran> {
    let home = lab.dir().join("user");
    fs::create_dir(&home).unwrap();
    let manager = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/user-manager.sh");
    let never_run = lab.command(CLIENT, &["status"]);
    let environment = never_run.get_envs();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh"])
        .args([manager.as_path(), &home, script])
        .envs(environment.filter_map(|(name, value)| Some((name, value?))))
        .env("QK", qk_tests::qk())
        .env("UNIT", home.join(".config/systemd/user/qk.service"))
        .env_remove("QK_LOG")
        .stdin(Stdio::null());
    let ran = run(&mut command);
    if ran.code() == 77 || ran.stderr.contains("unshare failed") {
        eprintln!(
            "skipped: no systemd user manager can be started here: {}",
            ran.stderr
        );
        return None;
    }
    assert_eq!(ran.code(), 0, "{}\n{}", ran.stdout, ran.stderr);
    Some(ran)
}

#[test]
fn the_service_of_a_system() {
    let lab = Lab::new();
    let script = lab.dir().join("script");
    // Nothing of it reaches the machine: what is written lies in file systems of this namespace.
    fs::write(
        &script,
        r#"
        mkdir /run/upper /run/work
        mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work /etc || exit 77
        mount -t tmpfs tmpfs /usr/local/bin || exit 77
        mount -t tmpfs -o mode=755 tmpfs /var/lib || exit 77
        cp "$QK" /usr/local/bin/qk
        cp "$QK" /var/lib/qk-elsewhere
        chmod 700 /var/lib/qk-elsewhere
        setpriv --reuid=61001 --regid=61001 --clear-groups             /usr/local/bin/qk node install --system --json || echo "code $?"
        /var/lib/qk-elsewhere node install --system --json || echo "code $?"
        /usr/local/bin/qk node install --system --listen /ip4/127.0.0.1/tcp/0 --json || echo "code $?"
        getent passwd qk
        systemd-analyze verify qk.service
        echo "verified"
        # What the manager of a system has, and one of a user that is root looks for.
        cp -a "$XDG_RUNTIME_DIR/systemd/inaccessible" /run/systemd/
        # As it is, but for what only the manager of a system can set: users and directories. This
        # manager's own socket lies in /run/user, which ProtectHome would hide.
        mkdir -p "$XDG_CONFIG_HOME/systemd/user" /run/qk "$QK_HOME"
        grep -vE '^(User|Group|StateDirectory|RuntimeDirectory|ProtectHome|TimeoutStart)|network-online'             /etc/systemd/system/qk.service |
            sed "s|QK_HOME=[^\"]*|QK_HOME=/var/lib/qk|; s|--socket-group qk|--socket-group 0|
                s|^NoNewPrivileges=.*|&\nReadWritePaths=/var/lib/qk /run/qk\nStandardError=truncate:/run/qk.log|" > "$UNIT"
        cp -r "$QK_HOME" /var/lib/qk
        systemctl --user daemon-reload
        systemctl --user start qk.service || {
            systemctl --user --no-pager status qk.service || cat /run/qk.log
            exit 1
        }
        QK_SOCKET=/run/qk/qk.sock /usr/local/bin/qk status --json
        stat -c 'socket %a' /run/qk/qk.sock
        systemctl --user stop qk.service
        /usr/local/bin/qk node uninstall --system --purge --yes --json
        getent passwd qk || echo "no user"
        ls -d /var/lib/qk || echo "no home"
        find /run/upper -type f
        "#,
    )
    .unwrap();
    let Some(ran) = under_manager(&lab, &script) else {
        return;
    };
    let said = &ran.stdout;
    let documents: Vec<serde_json::Value> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let [not_root, closed, installed, status, removed] = &documents[..] else {
        panic!("{said}\n{}", ran.stderr);
    };
    let error = |document: &serde_json::Value| document["error"].as_str().unwrap().to_owned();
    assert!(error(not_root).contains("run it again as root"));
    assert!(
        error(closed).contains("is closed to other users"),
        "{closed}"
    );
    assert_eq!(installed["unit"], "/etc/systemd/system/qk.service");
    assert!(
        installed["undone"]["why"]
            .as_str()
            .unwrap()
            .contains("systemd does not run")
    );
    assert_eq!(status["running"], true);
    assert_eq!(status["networks"][0]["online"], true);
    let lines: Vec<_> = said.lines().collect();
    for line in ["verified", "socket 660", "no user", "no home"] {
        assert!(lines.contains(&line), "{line:?} in {said}\n{}", ran.stderr);
    }
    assert!(said.contains("qk:x:"), "the user was made: {said}");
    assert!(!ran.stderr.contains("qk.service:"), "{}", ran.stderr);
    assert_eq!(removed["purged"], "/var/lib/qk");
    assert!(
        !lines
            .iter()
            .any(|line| line.starts_with("/run/upper") && line.contains("qk"))
    );
}

#[test]
fn a_service_under_a_real_service_manager() {
    let lab = Lab::new();
    let script = lab.dir().join("script");
    // What it prints is looked at below; what fails ends it.
    fs::write(
        &script,
        r#"
        main() { systemctl --user show --property=MainPID --value qk.service; }
        "$QK" node install --listen /ip4/127.0.0.1/tcp/0 --json
        echo "main $(main)"
        "$QK" status --json
        # Again changes nothing: the same process.
        "$QK" node install --listen /ip4/127.0.0.1/tcp/0 --json
        echo "main $(main)"
        systemctl --user reload qk.service
        systemctl --user show --property=StatusText,ActiveState,Type,WatchdogUSec qk.service
        # Killed, it comes again: with another process.
        old=$(main)
        kill -9 "$old"
        until [ "$(systemctl --user is-active qk.service)" = active ] && [ "$(main)" != "$old" ]; do
            sleep 0.2
        done
        echo "restarted"
        # What hardens the service lets the sandbox of a build work.
        properties=$(sed -n '/^NoNewPrivileges=/,/^UMask=/s/^/--property=/p' "$UNIT" | tr ' ' ';' )
        [ "$(echo "$properties" | wc -l)" -ge 5 ]
        properties=$(echo "$properties" | grep -v RestrictAddressFamilies)
        families=$(sed -n 's/^RestrictAddressFamilies=//p' "$UNIT")
        systemd-run --user --quiet --pipe --wait $properties \
            --property="RestrictAddressFamilies=$families" \
            --setenv=QK_HOME="$QK_HOME" --setenv=PATH="$PATH" "$QK" doctor --json || true
        # With what the system's node has, bubblewrap does not: so the difference is seen.
        systemd-run --user --quiet --pipe --wait $properties --property=RestrictNamespaces=yes \
            --setenv=QK_HOME="$QK_HOME" --setenv=PATH="$PATH" "$QK" doctor --json || true
        "$QK" node uninstall --purge --yes --json
        systemctl --user show --property=LoadState qk.service
        find "$HOME" -type f -o -type l
        echo "end"
        "#,
    )
    .unwrap();
    let Some(ran) = under_manager(&lab, &script) else {
        return;
    };
    let said = ran.stdout.replace("\": ", "\":");
    let documents: Vec<serde_json::Value> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let mains: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("main "))
        .collect();
    let [installed, status, again, doctor, shut_in, removed] = &documents[..] else {
        panic!("{said}\n{}", ran.stderr);
    };
    assert_eq!(installed["running"], true);
    assert_eq!(installed["enabled"], true);
    assert_eq!(status["running"], true);
    assert_eq!(mains[0], format!("main {}", status["process"]));
    assert_eq!(
        (again["changed"].clone(), mains[1]),
        (false.into(), mains[0])
    );
    for line in [
        "StatusText=1 network, 0 peers",
        "ActiveState=active",
        "WatchdogUSec=3min",
        "restarted",
        "LoadState=not-found",
    ] {
        assert!(said.lines().any(|one| one == line), "{line:?} in {said}");
    }
    let bubblewrap_works = |doctor: &serde_json::Value| {
        let mut checks = doctor["checks"].as_array().unwrap().iter();
        let says = |check: &&serde_json::Value| check["what"].to_string().contains("sandbox");
        let check = checks.find(says).unwrap();
        check["ok"] == true && check["what"].to_string().contains("bubblewrap")
    };
    assert!(bubblewrap_works(doctor), "{doctor}");
    // Landlock may do there, if the kernel has it.
    assert!(!bubblewrap_works(shut_in), "{shut_in}");
    assert_eq!(removed["purged"], lab.home(CLIENT).dir().to_str().unwrap());
    assert!(!lab.home(CLIENT).dir().exists());
    let rest: Vec<_> = said
        .lines()
        .skip_while(|line| *line != "LoadState=not-found")
        .collect();
    assert_eq!(rest, ["LoadState=not-found", "end"], "nothing is left");
}
