//! Fetching where nothing but HTTP gets out: a gateway in place of the network, and nothing believed because
//! it said so.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use qk_protocol::manifest::Blocked;
use qk_protocol::message::{Answer, Reply};
use qk_protocol::statement::{Role, Statement};
use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with, forged};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, free_port, observe, run};
use qk_tests::lan::Namespace;
use qk_tests::registry::{Crates, GOOD};
use qk_tests::web::{Between, Server, between, certificate, proxy};

const TOKEN: &str = "a-token-of-thirty-characters-!";

fn gateway(lab: &Lab, name: &str, host: &str, more: &str) -> String {
    let address = format!("{host}:{}", free_port());
    lab.configure(name, &format!("[gateway]\nlisten = \"{address}\"\n{more}"));
    address
}

/// A lab in which alice has an artifact that bob observed, too, and a gateway.
fn proven() -> (Lab, Artifact, String) {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE, "127.0.0.1", "");
    lab.start_alice();
    let artifact = marked(&lab, "");
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    (lab, artifact, address)
}

fn marked(lab: &Lab, mark: &str) -> Artifact {
    let options = Options {
        padding_bytes: 700_000,
        mark: mark.to_owned(),
        ..Options::default()
    };
    artifact_with(&lab.joined(ALICE).network, &options)
}

fn fetch(lab: &Lab, urls: &[&str]) -> Ran {
    let mut command = lab.fetch_command(CLIENT, &[SPEC]);
    urls.iter().for_each(|url| {
        command.args(["--gateway", url]);
    });
    run(&mut command)
}

/// What the client learned so far is gone.
fn forget(lab: &Lab) {
    fs::remove_dir_all(lab.home(CLIENT).store()).expect("a store");
}

fn says(lab: &Lab) -> String {
    run(&mut Command::new(lab.root().join("bin/hexyl"))).stdout
}

/// A gateway that says of the index what this makes of the truth.
fn liar(
    upstream: &str,
    lie: impl Fn(Vec<Arc<Statement>>) -> Vec<Arc<Statement>> + Send + Sync + 'static,
) -> Server {
    between(upstream, move |path, body| {
        let decoded = path
            .contains("/index?")
            .then(|| Reply::decode(&body).ok())
            .flatten();
        let Some(mut reply) = decoded.map(|decoded| decoded.message) else {
            return Between::Body(body);
        };
        if let Answer::Statements { statements, .. } = &mut reply.answer {
            *statements = lie(std::mem::take(statements));
        }
        Between::Body(reply.encode())
    })
}

#[test]
fn only_the_gateways_port_is_reachable_and_nothing_else_is_tried() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let number = std::process::id() % 200;
    let (host, guest) = (format!("10.98.{number}.1"), format!("10.98.{number}.2"));
    let end = format!("qk{}", std::process::id());
    let ip = |args: &str| {
        let done = run(Command::new("ip").args(args.split(' ')));
        assert_eq!(done.code(), 0, "ip {args}: {}", done.stderr);
    };
    ip(&format!(
        "link add {end} type veth peer name guest netns {}",
        namespace.name()
    ));
    ip(&format!("addr add {host}/30 dev {end}"));
    ip(&format!("link set {end} up"));
    ip(&format!(
        "-n {} addr add {guest}/30 dev guest",
        namespace.name()
    ));
    ip(&format!("-n {} link set guest up", namespace.name()));

    let mut lab = Lab::new();
    let crates = Crates::new();
    let (variable, value) = crates.variable();
    lab.set(variable, value);
    crates.add("qk-tiny", "1.0.0", GOOD, None);
    let address = gateway(&lab, ALICE, &host, "");
    lab.start_alice();
    let key = crates.key(&lab.joined(ALICE).network, "qk-tiny", "1.0.0");
    let lock = "version = 4\n\n[[package]]\nname = \"qk-tiny\"\nversion = \"1.0.0\"\n";
    let artifact = forged(key, lock.as_bytes(), "");
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);

    let port = address.rsplit(':').next().unwrap();
    let rules = format!(
        "table inet only {{ counter other {{ }}
           chain output {{ type filter hook output priority 0;
             oif lo accept; meta l4proto ipv6-icmp accept; ip daddr {host} tcp dport {port} accept;
             counter name other drop; }} }}"
    );
    let mut nft = namespace.command("nft");
    if run(nft.arg(&rules)).code() != 0 {
        eprintln!("SKIPPED: nft does not work here, so what else is tried was not counted");
        return;
    }
    lab.place(CLIENT, namespace.name());
    let others = || {
        let mut list = namespace.command("nft");
        let listed = run(list.args(["-j", "list", "counter", "inet", "only", "other"])).json();
        listed["nftables"][1]["counter"]["packets"]
            .as_u64()
            .unwrap()
    };
    let url = format!("http://{address}/");
    let mut command = lab.fetch_command(CLIENT, &["qk-tiny@1.0.0", "--gateway", &url]);
    let done = run(&mut command).done();
    assert_eq!(done["crates"][0]["how"], "network");
    assert_eq!(done["crates"][0]["providers"][0]["node"], url);
    let program = lab.root().join("bin/qk-tiny");
    assert_eq!(run(&mut Command::new(program)).stdout, "qk-tiny 1.0.0\n");
    // Neither is it by what else wants something of the network.
    let qk = |args: &[&str]| run(lab.command(CLIENT, args).args(["--gateway", &url]));
    forget(&lab);
    let mut ran = lab.command(CLIENT, &["run", "qk-tiny@1.0.0", "--fallback", "none"]);
    assert_eq!(run(ran.args(["--gateway", &url])).stdout, "qk-tiny 1.0.0\n");
    lab.home(ALICE).logs().keep(b"nothing was built").unwrap();
    let log = qk(&["log", "qk-tiny@1.0.0", "--by", ALICE]);
    assert_eq!(
        (log.code(), &*log.stdout),
        (0, "nothing was built"),
        "{log:?}"
    );
    let project = lab.dir().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("qk.toml"), "[tools]\nqk-tiny = \"1\"\n").unwrap();
    let mut fetch = lab.command(CLIENT, &["fetch", "--gateway", &url]);
    run(fetch.current_dir(&project)).done();
    assert!(project.join(".qk/bin/qk-tiny").exists());
    assert_eq!(others(), 0, "something else was tried");
    // Where the network itself is asked, something else is.
    forget(&lab);
    let mut command = lab.fetch_command(CLIENT, &["qk-tiny@1.0.0", "--force"]);
    assert_ne!(run(&mut command).code(), 0);
    assert!(others() > 0);
}

#[test]
fn over_tls_with_a_token_and_by_a_proxy() {
    let mut lab = Lab::new();
    let dir = lab.home(ALICE).dir().to_owned();
    if certificate(&dir).is_none() {
        eprintln!("SKIPPED: openssl is not installed, so HTTPS was not tested");
        return;
    }
    fs::write(dir.join("token"), TOKEN).unwrap();
    let files = "token_file = \"token\"\ntls_certificate = \"own.pem\"\ntls_key = \"key.pem\"\n";
    let address = gateway(&lab, ALICE, "127.0.0.1", files);
    lab.start_alice();
    let artifact = marked(&lab, "");
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let proxy = proxy();
    let fetch = |variables: &[(&str, &str)]| {
        let mut command = lab.fetch_command(CLIENT, &[SPEC, "--force", "--refresh"]);
        command
            .env("SSL_CERT_FILE", dir.join("trusted.pem"))
            .env("QK_GATEWAY", format!("https://{address}/"))
            .env("QK_GATEWAY_ONLY", "1")
            .env("HTTPS_PROXY", format!("http://{}", proxy.address))
            .env_remove("no_proxy")
            .env_remove("NO_PROXY")
            .envs(variables.iter().copied());
        run(&mut command)
    };
    fetch(&[("NO_PROXY", "127.0.0.1")]).failed(14, &["none of the 1"]);
    assert_eq!(proxy.asked(), 0);
    let file = dir.join("token").display().to_string();
    fetch(&[("QK_GATEWAY_TOKEN_FILE", &file)]).done();
    assert!(proxy.asked() > 0);
    assert_eq!(says(&lab), "hexyl 0.17.0\n");
    let before = proxy.asked();
    let tokens = format!("[gateway.tokens]\n\"{address}\" = {file:?}\n");
    lab.configure(CLIENT, &tokens);
    fetch(&[("NO_PROXY", "127.0.0.1")]).done();
    assert_eq!(proxy.asked(), before);
    // A token goes nowhere where others can read it.
    fetch(&[
        ("QK_GATEWAY", "http://192.0.2.1/"),
        ("QK_GATEWAY_TOKEN_FILE", &file),
    ])
    .failed(2, &["over https only"]);
}

#[test]
fn whoever_joined_by_a_gateway_knows_the_same_network() {
    let (lab, _, address) = proven();
    let id = lab.joined(ALICE).network.id().to_string();
    let path = format!("/-/networks/{id}");
    let (status, file) = qk_tests::web::get(&address, &path).unwrap();
    assert_eq!(status, 200);
    let path = lab.dir().join("by-gateway.qknet");
    fs::write(&path, file).unwrap();
    let joined = lab.qk(CLIENT, &["join", path.to_str().unwrap()]).done();
    assert!(joined.to_string().contains(&id), "{joined}");
    let (_, all) = qk_tests::web::get(&address, "/-/networks").unwrap();
    assert!(String::from_utf8(all).unwrap().contains(&id));
    for path in [
        format!("/-/networks/{id}/index"),
        format!("/-/networks/{id}/index?AAAA"),
        format!("/-/networks/{id}/index?{}", "A".repeat(5000)),
        format!("/-/networks/{}/index?AAAA", "0".repeat(64)),
        "/-/networks/..%2f..%2fkeys".to_owned(),
    ] {
        let (status, _) = qk_tests::web::get(&address, &path).unwrap();
        assert!((400..500).contains(&status), "{path}: {status}");
    }
}

#[test]
fn a_private_network_is_not_shown_to_whoever_asks() {
    let mut lab = Lab::empty();
    let address = gateway(&lab, ALICE, "127.0.0.1", "");
    let file = lab.network_file();
    let new = [
        "network",
        "new",
        "lab",
        "--private",
        "--output",
        file.to_str().unwrap(),
    ];
    lab.qk(ALICE, &new).done();
    lab.start_any(ALICE);
    let id = lab.joined(ALICE).network.id();
    let get = |path: &str| qk_tests::web::get(&address, path).unwrap();
    assert_eq!(get("/-/networks"), (200, b"[]".to_vec()));
    assert_eq!(get(&format!("/-/networks/{id}")).0, 404);
    assert_eq!(get(&format!("/-/networks/{id}/index?AAAA")).0, 404);
}

#[test]
fn forged_statements_prove_nothing() {
    let (lab, honest, address) = proven();
    let trojan = Arc::new(marked(&lab, " trojan"));
    let network = lab.joined(ALICE).network.id();
    let url = |server: &Server| server.url();
    // By strangers, of another network, and with a bit of a true one flipped.
    let stranger = SigningKey::from_bytes(&[9; 32]);
    let of = |network, key: &SigningKey| {
        let statement = observe(network, Role::Verifier, &trojan.key, trojan.subject, key);
        Arc::new(statement)
    };
    let other_network = qk_protocol::hash::NetworkId([7; 32]);
    let keys = [ALICE, BOB].map(|name| lab.home(name).key("observer").unwrap());
    let strangers: Vec<_> = vec![
        of(network, &stranger),
        of(network, &SigningKey::from_bytes(&[8; 32])),
    ];
    let elsewhere: Vec<_> = keys.iter().map(|key| of(other_network, key)).collect();
    for lies in [strangers, elsewhere] {
        let liar = liar(&address, move |_| lies.clone());
        fetch(&lab, &[&url(&liar)]).failed(11, &["unproven"]);
    }
    let flipped = between(&address, |path, mut body| {
        if path.contains("/index?") {
            // In each envelope, the last byte but some.
            let at = body.len() / 3;
            body[at] ^= 1;
        }
        Between::Body(body)
    });
    assert_ne!(fetch(&lab, &[&flipped.url()]).code(), 0);
    assert!(lab.installed().is_empty());
    forget(&lab);
    // Were they believed without the manifest's keys, the trojan would be taken: by these it is.
    let league: Vec<_> = keys.iter().map(|key| of(network, key)).collect();
    lab.put(
        ALICE,
        Some(trojan.path()),
        lab.observe(ALICE, &trojan.key, trojan.subject),
    )
    .unwrap();
    let liar = liar(&address, move |_| league.clone());
    fetch(&lab, &[&url(&liar)]).done();
    assert_eq!(says(&lab), "hexyl 0.17.0 trojan\n");
    assert_ne!(honest.subject.root, trojan.subject.root);
}

#[test]
fn withholding_leads_to_refusal_or_is_found_out_by_another_gateway() {
    let (lab, _, address) = proven();
    let nothing = liar(&address, |_| Vec::new());
    fetch(&lab, &[&nothing.url()]).failed(11, &["unproven"]);
    let one = liar(&address, |all| all.into_iter().take(1).collect());
    fetch(&lab, &[&one.url()]).failed(11, &["unproven"]);
    // A dissent that is held back is a veto delayed, as everywhere; who asks two sees it.
    let other = marked(&lab, " other");
    let dissent = lab.observe(CAROL, &other.key, other.subject);
    lab.put(ALICE, None, dissent).unwrap();
    let carol = qk_protocol::dsse::public_key(&lab.home(CAROL).key("observer").unwrap());
    let without = liar(&address, move |all| {
        all.into_iter()
            .filter(|one| one.observer() != carol)
            .collect()
    });
    let honest = format!("http://{address}/");
    fetch(&lab, &[&without.url()]).done();
    forget(&lab);
    fetch(&lab, &[&without.url(), &honest]).failed(12, &["disputed"]);
}

#[test]
fn wrong_bytes_endless_answers_and_old_manifests_are_refused() {
    let (lab, artifact, address) = proven();
    let wrong = between(&address, |path, mut body| {
        if path.starts_with("/artifacts/") && !path.ends_with(".obao4") && !body.is_empty() {
            body[0] ^= 1;
        }
        Between::Body(body)
    });
    fetch(&lab, &[&wrong.url()]).failed(14, &["could not be had"]);
    assert!(lab.installed().is_empty());
    let endless = between(&address, |path, body| match path.contains("/index?") {
        true => Between::Endless,
        false => Between::Body(body),
    });
    let begun = std::time::Instant::now();
    forget(&lab);
    fetch(&lab, &[&endless.url()]).failed(14, &["none of the 1"]);
    assert!(begun.elapsed().as_secs() < 30);

    // The client knows that the network blocks it; the gateway goes on with the version before.
    let old = lab.joined(CLIENT).network;
    let root = artifact.subject.root;
    let next = lab.next_version(|next| {
        next.blocked.push(Blocked {
            key: None,
            root: Some(root),
            reason: "a back door".to_owned(),
        });
    });
    lab.know(CLIENT, next);
    let file = old.file().clone();
    let replayed = between(&address, move |path, body| {
        let decoded = path
            .contains("/index?")
            .then(|| Reply::decode(&body).ok())
            .flatten();
        match decoded.map(|decoded| decoded.message) {
            Some(mut reply) if matches!(reply.answer, Answer::Network(_)) => {
                reply.answer = Answer::Network(Some(file.clone()));
                Between::Body(reply.encode())
            }
            _ => Between::Body(body),
        }
    });
    fetch(&lab, &[&replayed.url()]).failed(12, &["back door"]);
    assert_eq!(
        lab.joined(CLIENT).network.manifest().version,
        old.manifest().version + 1
    );
    // Who does not know better takes it.
    lab.know(CLIENT, old);
    fetch(&lab, &[&replayed.url()]).done();
}

#[test]
fn a_log_is_what_was_observed_and_no_other() {
    let (lab, _, address) = proven();
    lab.home(ALICE).logs().keep(b"nothing was built").unwrap();
    let log = |url: &str| lab.qk(CLIENT, &["log", SPEC, "--by", ALICE, "--gateway", url]);
    let liar = between(&address, |path, body| {
        let decoded = path.contains("/index?").then(|| Reply::decode(&body).ok());
        match decoded.flatten().map(|decoded| decoded.message) {
            Some(mut reply) if matches!(reply.answer, Answer::Log(_)) => {
                if let Answer::Log(piece) = &mut reply.answer {
                    piece.bytes[0] ^= 1;
                }
                Between::Body(reply.encode())
            }
            _ => Between::Body(body),
        }
    });
    let said = format!("{}: it sent something else than the log", liar.url());
    log(&liar.url()).failed(10, &["nobody who was asked has the log", &said]);
    let url = format!("http://{address}/");
    // Who does not give blocks gives no logs either.
    lab.qk(ALICE, &["node", "pause"]).done();
    log(&url).failed(10, &["nobody who was asked has the log"]);
    lab.qk(ALICE, &["node", "resume"]).done();
    assert_eq!(log(&url).done()["log"], "nothing was built");
    let mut proofs = lab.command(CAROL, &["proofs", SPEC, "--json"]);
    proofs.env("QK_GATEWAY", &url).env("QK_GATEWAY_ONLY", "1");
    let proofs = run(&mut proofs);
    proofs.done();
    assert!(proofs.stdout.contains("\"answered\":1"), "{proofs:?}");
}

#[test]
fn what_contradicts_itself_is_said() {
    let (mut lab, _, address) = proven();
    let url = format!("http://{address}/");
    let mut command = lab.fetch_command(CLIENT, &[SPEC, "--gateway", &url, "--offline"]);
    assert_eq!(run(&mut command).code(), 2);
    let mut command = lab.fetch_command(CLIENT, &[SPEC, "--gateway", "ftp://host/"]);
    run(&mut command).failed(2, &["https"]);
    let mut command = lab.fetch_command(CLIENT, &[SPEC]);
    run(command.env("QK_GATEWAY_ONLY", "1")).failed(2, &["none is named", "QK_GATEWAY"]);
    let mut command = lab.fetch_command(CLIENT, &[SPEC]);
    run(command.env("QK_GATEWAY_ONLY", "maybe")).failed(2, &["maybe"]);
    for args in [["run", SPEC], ["log", SPEC]] {
        let with = |more: &[&str]| {
            run(lab
                .command(CLIENT, &args)
                .args(["--gateway", &url])
                .args(more))
        };
        assert_eq!(with(&["--offline"]).code(), 2, "{args:?}");
    }
    lab.start_any(CLIENT);
    fetch(&lab, &[&url]).failed(2, &["a node runs here", "--gateway"]);
    for args in [["run", SPEC], ["log", SPEC]] {
        let ran = run(lab.command(CLIENT, &args).args(["--gateway", &url]));
        ran.failed(2, &["a node runs here", "--gateway"]);
    }
}
