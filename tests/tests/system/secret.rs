//! Private networks: without the secret nobody joins, and whoever joins by force cannot talk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use qk_node::home::Joined;
use qk_node::secret::Secret;
use qk_tests::artifact::{SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab};

/// A network of alice's that only those with its secret take part in; nobody else joined it yet.
struct Private {
    lab: Lab,
    file: String,
    secret: PathBuf,
    address: String,
}

impl Private {
    fn new() -> Self {
        let lab = Lab::empty();
        let file = lab.dir().join("club.qknet").display().to_string();
        let address = format!("/ip4/127.0.0.1/tcp/{}", qk_tests::lab::free_port());
        let new = ["network", "new", "club", "--private", "--threshold", "1"];
        let to = ["--bootstrap", address.as_str(), "--output", file.as_str()];
        let shown = lab.qk(ALICE, &[&new[..], &to[..]].concat()).done();
        let secret = PathBuf::from(shown["secret_file"].as_str().expect("a file"));
        assert_eq!(secret, lab.dir().join("club.secret"));
        Self {
            lab,
            file,
            secret,
            address,
        }
    }

    /// With alice's node at work, which has an artifact.
    fn with_artifact() -> Self {
        let mut private = Self::new();
        let address = private.address.clone();
        private.lab.start_with(ALICE, &address, &[], &[]);
        let artifact = artifact(&private.lab.joined(ALICE).network);
        private.lab.publish(ALICE, &artifact);
        private
    }

    fn hex(&self) -> String {
        fs::read_to_string(&self.secret).unwrap().trim().to_owned()
    }

    /// Lets somebody take part with any secret, past what `qk join` checks.
    fn force(&self, name: &str, secret: Option<Secret>) {
        let alices = self.lab.joined(ALICE);
        let joined = Joined { secret, ..alices };
        self.lab.home(name).keep_network(&joined).unwrap();
    }
}

#[test]
fn the_secret_is_a_file_of_its_own_and_nowhere_else() {
    let mut private = Private::with_artifact();
    let hex = private.hex();
    assert_eq!(hex.len(), 64);
    let mode = fs::metadata(&private.secret).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let lab = &private.lab;
    let secret = private.secret.to_str().unwrap();
    let joined = lab.qk(CLIENT, &["join", &private.file, "--secret", secret]);
    joined.done();
    let mut texts = vec![
        fs::read_to_string(&private.file).unwrap(),
        format!("{joined:?}"),
        format!("{:?}", lab.joined(ALICE)),
    ];
    for args in [&["status"][..], &["network", "show"], &["network", "order"]] {
        for name in [ALICE, CLIENT] {
            texts.push(format!("{:?}", lab.qk(name, args)));
        }
    }
    lab.fetch(&[SPEC]).done();
    let bundle = lab.dir().join("bundle");
    let export = ["proofs", SPEC, "--export", bundle.to_str().unwrap()];
    texts.push(format!("{:?}", lab.qk(CLIENT, &export).done()));
    texts.push(fs::read_to_string(&bundle).unwrap());
    private.lab.stop(ALICE, "TERM");
    texts.push(private.lab.log(ALICE));
    for text in &texts {
        assert!(!text.contains(&hex), "{text}");
    }
    // Where it is kept for the node, only its owner reads it.
    let id = private.lab.joined(CLIENT).network.id();
    let kept = private
        .lab
        .home(CLIENT)
        .dir()
        .join(format!("networks/{id}.json"));
    assert!(fs::read_to_string(&kept).unwrap().contains(&hex));
    assert_eq!(
        fs::metadata(&kept).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn joining_asks_for_the_right_secret() {
    let private = Private::new();
    let lab = &private.lab;
    let file = private.file.as_str();
    let secret = private.secret.to_str().unwrap();
    lab.qk(CLIENT, &["join", file]).failed(
        2,
        &["network club is private", "--secret FILE", "QK_SECRET_FILE"],
    );
    let other = lab.dir().join("other.secret");
    Secret::random().write_new(&other).unwrap();
    let other = other.to_str().unwrap();
    lab.qk(CLIENT, &["join", file, "--secret", other])
        .failed(2, &["this is not the secret of network club"]);
    lab.qk(CLIENT, &["join", file, "--secret", file])
        .failed(2, &["expected 64 hex digits"]);
    lab.qk(CLIENT, &["join", file, "--secret", "/nowhere"])
        .failed(2, &["/nowhere"]);
    assert!(lab.home(CLIENT).networks().unwrap().is_empty());
    let mut join = lab.command(CLIENT, &["join", file, "--json"]);
    qk_tests::lab::run(join.env("QK_SECRET_FILE", secret)).done();
    // A newer file of a network that is joined needs it no more.
    lab.qk(CLIENT, &["join", file]).done();
    assert!(lab.joined(CLIENT).secret.is_some());
    // A second network of this name does not overwrite the first one's secret.
    let before = private.hex();
    let again = ["network", "new", "club", "--private", "--output", file];
    lab.qk(BOB, &again).failed(2, &["club.secret"]);
    assert_eq!(private.hex(), before);
    assert!(lab.home(BOB).networks().unwrap().is_empty());
}

#[test]
fn a_secret_for_a_public_network_is_refused() {
    let lab = Lab::new();
    let secret = lab.dir().join("some.secret");
    Secret::random().write_new(&secret).unwrap();
    let file = lab.network_file();
    let args = [
        "join",
        file.to_str().unwrap(),
        "--secret",
        secret.to_str().unwrap(),
    ];
    lab.qk(CLIENT, &args).failed(2, &["is not private"]);
}

#[test]
fn whoever_has_another_secret_or_none_cannot_talk() {
    let private = Private::with_artifact();
    let lab = &private.lab;
    // The manifest is public, and whoever has it can make a program believe anything.
    private.force(BOB, Some(Secret::random()));
    let refused = qk_tests::lab::run(&mut lab.fetch_command(BOB, &[SPEC]));
    refused.failed(14, &["none of the 1 known nodes of network club answered"]);
    let seen = lab.qk(ALICE, &["status"]).done();
    assert_eq!(seen["networks"][0]["peers"], 0, "{seen}");
    // Without one it is not even tried.
    private.force(CLIENT, None);
    lab.fetch(&[SPEC]).failed(2, &["network club is private"]);
    // The same home with the right one.
    private.force(BOB, Some(Secret::read(&private.secret).unwrap()));
    let done = qk_tests::lab::run(&mut lab.fetch_command(BOB, &[SPEC])).done();
    assert_eq!(done["crates"][0]["network"], "club");
}
