//! What a gateway serves to tools that know nothing of qk: only what its policy trusts, in forms that hold
//! still, signed, to those who may have it.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use minisign::{PublicKey, SignatureBox};
use qk_tests::artifact::{Artifact, Options, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, Lab, free_port, listing, run, until};
use qk_tests::web::{certificate, get};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const ANYWHERE: &str = "/ip4/127.0.0.1/tcp/0";
const TOKEN: &str = "a-token-of-thirty-characters-!";
const FORMS: [(&str, &str); 6] = [
    ("tar", "application/x-tar"),
    ("tgz", "application/gzip"),
    ("tar.zst", "application/zstd"),
    ("qk.tar", "application/x-tar"),
    ("qk.tar.gz", "application/gzip"),
    ("qk.tar.zst", "application/zstd"),
];

fn gateway(lab: &Lab, name: &str, more: &str) -> String {
    let address = format!("127.0.0.1:{}", free_port());
    let text = format!("[gateway]\nlisten = \"{address}\"\n{more}");
    lab.configure(name, &text);
    address
}

/// A lab in which alice has an artifact that bob observed, too, and a gateway.
fn proven(padding_bytes: usize) -> (Lab, Artifact, String) {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE, "");
    lab.start_alice();
    let options = Options {
        padding_bytes,
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    (lab, artifact, address)
}

/// What curl got: status, headers in lower case, body.
struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value.trim())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn curl(url: &str, args: &[&str]) -> Got {
    let dir = tempfile::tempdir().unwrap();
    let head = dir.path().join("head");
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--noproxy",
        "*",
        "--path-as-is",
        "--dump-header",
    ])
    .arg(&head)
    .args(args)
    .arg(url);
    let done = curl.output().expect("curl starts");
    let head = fs::read_to_string(head).unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
    Got {
        status: status.unwrap_or_default(),
        head,
        body: done.stdout,
    }
}

/// Unpacks with the system's tar, by itself or after zstd.
fn untar(dir: &Path, form: &str, bytes: &[u8]) {
    let file = dir.join(format!("file.{form}"));
    fs::write(&file, bytes).unwrap();
    let done = Command::new("tar")
        .arg("-xf")
        .arg(&file)
        .arg("-C")
        .arg(dir)
        .status();
    assert!(done.expect("tar starts").success(), "{form}");
    fs::remove_file(&file).unwrap();
}

fn program(dir: &Path) -> String {
    run(&mut Command::new(dir.join("hexyl"))).stdout
}

#[test]
fn every_form_is_the_artifact_and_holds_still() {
    let (mut lab, artifact, address) = proven(900_000);
    let url = |form: &str| format!("http://{address}/hexyl/0.17.0/{TARGET}.{form}");
    let mut tags = Vec::new();
    for (form, kind) in FORMS {
        let whole = curl(&url(form), &[]);
        assert_eq!(whole.status, 200, "{form}: {}", whole.text());
        assert_eq!(whole.header("content-type"), kind);
        let head = curl(&url(form), &["--head"]);
        assert_eq!(head.header("content-length"), whole.body.len().to_string());
        assert_eq!(head.header("etag"), whole.header("etag"));
        // A download that broke off goes on.
        let tag = whole.header("etag").to_owned();
        let same = format!("If-Range: {tag}");
        let rest = curl(&url(form), &["--range", "100000-", "--header", &same]);
        assert_eq!((rest.status, &rest.body[..]), (206, &whole.body[100_000..]));
        let known = format!("If-None-Match: {tag}");
        assert_eq!(curl(&url(form), &["--header", &known]).status, 304);

        let dir = tempfile::tempdir().unwrap();
        untar(dir.path(), form, &whole.body);
        match form.starts_with("qk.") {
            true => {
                assert_eq!(program(&dir.path().join("bin")), "hexyl 0.17.0\n");
                assert!(dir.path().join("qk.json").exists());
            }
            false => {
                assert_eq!(program(dir.path()), "hexyl 0.17.0\n");
                assert_eq!(listing(dir.path()).len(), 1);
            }
        }
        tags.push(tag);
    }
    let plain = curl(&url("qk.tar"), &[]);
    assert!(plain.body == fs::read(artifact.path()).unwrap());

    // Made anew, and at another node: the same bytes.
    fs::remove_dir_all(lab.home(ALICE).packed()).unwrap();
    let other = gateway(&lab, BOB, "[cache]\nenabled = true\n");
    lab.start_with(BOB, ANYWHERE, &[], &[]);
    for (at, (form, _)) in FORMS.iter().enumerate() {
        let again = curl(&url(form), &["--head"]);
        assert_eq!(again.header("etag"), tags[at], "{form}");
        let elsewhere = curl(
            &format!("http://{other}/hexyl/0.17.0/{TARGET}.{form}"),
            &["--head"],
        );
        assert_eq!(elsewhere.header("etag"), tags[at], "{form}");
    }

    // A packed file that rots is not sent, and made again.
    let packed = lab
        .home(ALICE)
        .packed()
        .join(format!("{}.tar.gz/data", artifact.subject.root));
    let mut rotten = fs::read(&packed).unwrap();
    rotten[5000] ^= 1;
    fs::write(&packed, rotten).unwrap();
    assert_eq!(curl(&url("tgz"), &[]).status, 404);
    assert_eq!(curl(&url("tgz"), &[]).header("etag"), tags[1]);
}

#[test]
fn a_pipe_into_tar_installs() {
    let (_lab, _artifact, address) = proven(0);
    let dir = tempfile::tempdir().unwrap();
    let pipe = format!(
        "curl -fsS --noproxy '*' http://{address}/hexyl/0.17.0/{TARGET}.tgz | tar xz -C {}",
        dir.path().display()
    );
    let done = Command::new("sh").args(["-c", &pipe]).status().unwrap();
    assert!(done.success());
    assert_eq!(program(dir.path()), "hexyl 0.17.0\n");
}

#[test]
fn what_is_packed_is_signed_as_minisign_does() {
    let (lab, artifact, address) = proven(1000);
    let key = lab.qk(ALICE, &["node", "gateway-key"]).done();
    let key = key["key"].as_str().unwrap().to_owned();
    let shown = get(&address, "/minisign.pub").unwrap().1;
    assert!(String::from_utf8(shown).unwrap().contains(&key));
    let public = PublicKey::from_base64(&key).unwrap();
    let quick = format!("hexyl-0.17.0/hexyl-0.17.0-{TARGET}.tar.gz");
    for path in [quick, format!("hexyl/0.17.0/{TARGET}.qk.tar.zst")] {
        let file = curl(&format!("http://{address}/{path}"), &[]);
        let signature = curl(&format!("http://{address}/{path}.sig"), &[]);
        assert_eq!((file.status, signature.status), (200, 200), "{path}");
        let signature = SignatureBox::from_string(&signature.text()).unwrap();
        let comment = signature.trusted_comment().unwrap();
        assert!(
            comment.contains(&artifact.subject.root.to_string()),
            "{comment}"
        );
        assert!(
            comment.contains("principals:alice,bob") || comment.contains("principals:bob,alice")
        );
        let verifies = |bytes: Vec<u8>| {
            minisign::verify(&public, &signature, Cursor::new(bytes), true, false, false).is_ok()
        };
        let mut other = file.body.clone();
        other[20] ^= 1;
        assert!(verifies(file.body) && !verifies(other), "{path}");
    }
}

#[test]
fn only_what_the_policy_trusts_is_served_and_why_not_is_said() {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE, "");
    lab.start_alice();
    let built = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &built);
    let url = format!("http://{address}/hexyl/0.17.0/{TARGET}.tgz");
    let refused = |status: u16, kind: &str, words: &[&str]| {
        for path in [
            url.clone(),
            format!("{url}.sig"),
            url.replace(".tgz", ".json"),
        ] {
            let got = curl(&path, &[]);
            assert_eq!(got.status, status, "{path}: {}", got.text());
            assert!(got.text().starts_with(kind), "{}", got.text());
            let json = curl(&path, &["--header", "Accept: application/json"]);
            assert_eq!(json.status, status);
            let json: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
            assert_eq!(json["kind"], kind);
            for word in words {
                assert!(json.to_string().contains(word), "{word} in {json}");
            }
        }
    };
    // Alice's own build suffices for alice herself and for nobody else.
    refused(404, "unproven", &["1 of 2"]);
    // Who asks by root gets it, as peers do, and decides alone: the bytes are here.
    let by_root = get(&address, &format!("/artifacts/{}", built.subject.root));
    assert_eq!(by_root.unwrap().0, 200);

    let other = artifact_with(
        &lab.joined(ALICE).network,
        &Options {
            mark: " trojan".to_owned(),
            ..Options::default()
        },
    );
    lab.state(BOB, &built);
    assert_eq!(curl(&url, &[]).status, 200);
    lab.state(CAROL, &other);
    refused(403, "disputed", &["2 different artifacts"]);

    let root = built.subject.root.to_string();
    let block = [
        "network",
        "block",
        "--root",
        &root,
        "--reason",
        "a back door",
    ];
    lab.qk(ALICE, &block).done();
    refused(403, "blocked", &["a back door"]);
}

#[test]
fn a_cache_fetches_what_is_asked_for_and_nobody_else_does() {
    let (mut lab, artifact, _) = proven(600_000);
    let cache = gateway(&lab, BOB, "[cache]\nallow = [\"hexyl\"]\n");
    lab.start_with(BOB, ANYWHERE, &["--cache"], &[]);
    let plain = gateway(&lab, CAROL, "");
    lab.start_with(CAROL, ANYWHERE, &["--share"], &[]);
    let ask = |address: &str| {
        curl(
            &format!("http://{address}/hexyl/0.17.0/{TARGET}.tar.gz"),
            &[],
        )
    };
    let absent = ask(&plain);
    assert_eq!(absent.status, 404, "{}", absent.text());
    assert!(!lab.blob(BOB, artifact.subject.root).exists());
    assert_eq!(ask(&cache).status, 200);
    assert!(lab.blob(BOB, artifact.subject.root).exists());
    // And what is fetched on nobody's list is not.
    lab.stop(BOB, "TERM");
    fs::remove_dir_all(lab.home(BOB).store()).unwrap();
    let cache = gateway(&lab, BOB, "[cache]\nallow = [\"ripgrep\"]\n");
    lab.start_with(BOB, ANYWHERE, &["--cache"], &[]);
    assert_eq!(ask(&cache).status, 404);
}

#[test]
fn a_token_and_tls_keep_others_out_and_are_read_again() {
    let mut lab = Lab::new();
    let dir = lab.home(ALICE).dir().to_owned();
    if certificate(&dir).is_none() {
        eprintln!("SKIPPED: openssl is not installed, so the gateway's TLS was not tested");
        return;
    }
    let files = "token_file = \"token\"\ntls_certificate = \"own.pem\"\ntls_key = \"key.pem\"\n";
    let address = gateway(&lab, ALICE, files);
    fs::write(dir.join("token"), format!("{TOKEN}\n")).unwrap();
    lab.start_alice();
    let built = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &built);
    lab.state(BOB, &built);
    let url = format!("https://{address}/hexyl/0.17.0/{TARGET}.tgz");
    let ask = |url: &str, token: &str| {
        let trusted = dir.join("own.pem");
        let bearer = format!("Authorization: Bearer {token}");
        curl(
            url,
            &["--cacert", trusted.to_str().unwrap(), "--header", &bearer],
        )
    };
    assert_eq!(ask(&url, TOKEN).status, 200);
    // As tools do that take a URL with a password.
    let with_password = url.replace("https://", &format!("https://qk:{TOKEN}@"));
    let trusted = dir.join("own.pem");
    let cacert = ["--cacert", trusted.to_str().unwrap()];
    assert_eq!(curl(&with_password, &cacert).status, 200);
    for (path, status) in [("/healthz", 200), ("/metrics", 401), ("/minisign.pub", 401)] {
        assert_eq!(
            curl(&format!("https://{address}{path}"), &cacert).status,
            status,
            "{path}"
        );
    }
    let root = format!("https://{address}/artifacts/{}", built.subject.root);
    assert_eq!(ask(&root, "another-token-altogether").status, 401);
    let cached = ask(&root, TOKEN).header("cache-control").to_owned();
    assert!(cached.starts_with("private"), "{cached}");
    // Without TLS nobody is answered, and a certificate that nobody vouches for is not believed.
    assert_eq!(curl(&url.replace("https", "http"), &[]).status, 0);
    assert_eq!(curl(&url, &[]).status, 0);

    // New ones count after a signal; bad ones leave the old ones.
    let another = "another-token-altogether";
    fs::write(dir.join("token"), another).unwrap();
    certificate(&dir).unwrap();
    lab.signal(ALICE, "HUP");
    until("the new token and certificate count", || {
        ask(&url, another).status == 200
    });
    assert_eq!(ask(&url, TOKEN).status, 401);
    fs::write(dir.join("token"), "short").unwrap();
    lab.signal(ALICE, "HUP");
    until("the bad file is noticed", || {
        lab.log(ALICE).contains("goes on with what it read before")
    });
    assert_eq!(ask(&url, another).status, 200);
    let log = lab.log(ALICE);
    assert!(!log.contains(TOKEN) && !log.contains(another), "{log}");
}

#[test]
fn bad_files_are_named_at_the_start() {
    let lab = Lab::new();
    let node = |more: &str| {
        gateway(&lab, ALICE, more);
        lab.qk(ALICE, &["node", "--listen", ANYWHERE])
    };
    node("token_file = \"nothing\"\n").failed(2, &["nothing", "No such file"]);
    node("tls_certificate = \"own.pem\"\n").failed(2, &["belong together"]);
    fs::write(lab.home(ALICE).dir().join("bad.pem"), "nonsense").unwrap();
    let both = "tls_certificate = \"bad.pem\"\ntls_key = \"bad.pem\"\n";
    node(both).failed(2, &["bad.pem", "no certificate"]);
}

#[test]
fn hostile_paths_find_nothing() {
    let (lab, artifact, address) = proven(0);
    let root = artifact.subject.root;
    let observer = fs::read_to_string(lab.home(ALICE).dir().join("keys/observer")).unwrap();
    for path in [
        "/../../keys/observer".to_owned(),
        "/hexyl/0.17.0/../../../keys/observer".to_owned(),
        "/hexyl/0.17.0/..%2f..%2fkeys%2fobserver".to_owned(),
        "/hexyl/..%2f..%2fkeys/observer.tgz".to_owned(),
        format!("/hexyl%2f0.17.0%2f{TARGET}.tgz"),
        format!("//hexyl/0.17.0/{TARGET}.tgz"),
        format!("/hexyl/0.17.0/{TARGET}.tgz/"),
        format!("/hexyl/0.17.0/%00{TARGET}.tgz"),
        format!("/hexyl/0.17.0/{TARGET}%0d%0aX:%20a.tgz"),
        format!("/hexyl/0.17.0/{root}.tgz"),
        format!("/HEXYL/0.17.0/{TARGET}.tgz"),
        format!("/hexyl/9.9.9/{TARGET}.tgz"),
        "/hexyl/0.17.0/\u{202e}.tgz".to_owned(),
        "/%ff%fe/0.17.0/x.tgz".to_owned(),
        format!("/{}/0.17.0/{TARGET}.tgz", "a".repeat(5000)),
        format!("/packed/{root}.tar.gz/data"),
    ] {
        let got = curl(&format!("http://{address}{path}"), &[]);
        assert!((400..500).contains(&got.status), "{path}: {}", got.status);
        assert!(!got.text().contains(observer.trim()), "{path}");
    }
    // Beside them the honest one.
    assert_eq!(
        get(&address, &format!("/hexyl/0.17.0/{TARGET}.tgz"))
            .unwrap()
            .0,
        200
    );
}
