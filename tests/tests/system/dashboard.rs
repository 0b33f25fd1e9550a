//! The dashboard at the gateway: what it shows and to whom, that nothing hostile gets into its pages, and how a
//! real browser takes them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qk_protocol::manifest::{KeyState, Manifest};
use qk_tests::artifact::{Options, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, Lab, PATIENCE, free_port};
use qk_tests::web::{Between, between};

/// What a page must not contain as it is.
const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>";
/// What the browser may take to show a page; it is killed then.
const BROWSER_SECONDS: &str = "90";

fn gateway(lab: &Lab, name: &str, more: &str) -> String {
    let address = format!("127.0.0.1:{}", free_port());
    lab.configure(name, &format!("[gateway]\nlisten = \"{address}\"\n{more}"));
    address
}

/// A lab whose alice has a proven artifact, a dispute about another choice of features, and a gateway.
fn lab() -> (Lab, String) {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE, "");
    lab.start_alice();
    let network = lab.joined(ALICE).network;
    let good = artifact(&network);
    lab.publish(ALICE, &good);
    lab.state(BOB, &good);
    lab.state(CAROL, &good);
    let odd = |mark: &str| {
        artifact_with(
            &network,
            &Options {
                mark: mark.to_owned(),
                features: ["odd".to_owned()].into(),
                ..Options::default()
            },
        )
    };
    lab.publish(ALICE, &odd(""));
    lab.state(BOB, &odd(""));
    lab.state(CAROL, &odd(" other"));
    (lab, address)
}

struct Page {
    status: u16,
    head: String,
    body: String,
}

fn ask(address: &str, path: &str, host: &str) -> Page {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    Page {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn pages_show_what_is_stated_and_escape_what_others_wrote() {
    let (lab, address) = lab();
    let get = |path: &str| {
        let page = ask(&address, path, &address);
        let policy = "content-security-policy: default-src 'none';";
        assert!(page.head.contains(policy), "{path}: {}", page.head);
        assert!(!page.head.contains("unsafe"), "{}", page.head);
        assert!(page.head.contains("nosniff"));
        // No script and no style in a page, and none from elsewhere.
        for word in [
            "<script>",
            "style=",
            "<img src=x",
            "javascript:",
            "http://",
            "//cdn",
        ] {
            assert!(!page.body.contains(word), "{path} has {word}");
        }
        page
    };
    let front = get("/-/");
    assert_eq!(front.status, 200);
    for word in [
        "Networks",
        "lab",
        "Held here",
        "hexyl 0.17.0",
        "Rebuilds",
        "Peers",
        "Transfers",
    ] {
        assert!(front.body.contains(word), "{word} in {}", front.body);
    }
    let release = get("/-/crates/hexyl/0.17.0");
    for word in [
        "alice",
        "bob",
        "carol",
        "proven",
        "disputed",
        "3 principals",
        "2 different",
        "<svg",
        ".tgz",
    ] {
        assert!(release.body.contains(word), "{word} in {}", release.body);
    }
    assert!(get("/-/crates/hexyl").body.contains("0.17.0"));
    assert!(
        get("/-/search?q=hex")
            .body
            .contains("/-/crates/hexyl/0.17.0")
    );
    assert!(
        get("/-/search?q=nothing-like-it")
            .body
            .contains("Nothing is stated")
    );

    // What is typed, what a build printed, what a verifier kept.
    let search = get(&format!("/-/search?q={}", encoded(HOSTILE)));
    assert!(search.body.contains("&lt;script&gt;"), "{}", search.body);
    let log = lab.home(ALICE).logs().keep(HOSTILE.as_bytes()).unwrap();
    let log = get(&format!("/-/logs/{log}"));
    assert!(
        log.status == 200 && log.body.contains("&lt;script&gt;alert(1)"),
        "{}",
        log.body
    );
    let network = lab.joined(ALICE).network;
    let options = Options {
        features: ["odd".to_owned()].into(),
        ..Options::default()
    };
    let key = artifact_with(&network, &options).key.id();
    let disputes = lab.home(ALICE).disputes();
    fs::create_dir_all(&disputes).unwrap();
    let kept = serde_json::json!({ "class": HOSTILE, "files": [
        { "path": HOSTILE, "sizes": [1, null], "causes": [HOSTILE], "sections": [{ "name": ".rodata", "sizes": [5, 6] }] },
    ] });
    fs::write(disputes.join(format!("{key}.json")), kept.to_string()).unwrap();
    let release = get("/-/crates/hexyl/0.17.0");
    assert!(release.body.contains("Where they differ") && release.body.contains(".rodata"));
    assert!(release.body.contains("&lt;script&gt;"));

    for path in [
        "/-/crates/..%2f..%2fkeys",
        "/-/crates/hexyl/nonsense",
        "/-/logs/00",
        "/-/badges/a.png",
    ] {
        assert_eq!(get(path).status, 404, "{path}");
    }
    assert_eq!(get(&format!("/-/crates/{}", encoded(HOSTILE))).status, 404);
}

fn principal(lab: &Lab, name: &str) -> String {
    let network = lab.joined(ALICE).network;
    let mut all = network.manifest().principals.iter();
    let one = all.find(|one| one.name == name).expect("a principal");
    format!("/-/principals/{}", one.id)
}

#[test]
fn a_principals_page_says_who_it_is_and_what_it_stated() {
    let (mut lab, address) = lab();
    let shows = |path: &str, words: &[&str]| {
        let page = ask(&address, path, &address);
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        for word in words {
            assert!(page.body.contains(word), "{word} in {}", page.body);
        }
    };
    let carol = principal(&lab, CAROL);
    let link = format!("<a href=\"{carol}\">carol</a>");
    shows("/-/crates/hexyl/0.17.0", &[&link, "in dispute"]);
    shows("/-/", &[&link]);
    let key = qk_protocol::dsse::public_key(&lab.home(CAROL).key("observer").unwrap());
    shows(
        &carol,
        &[
            "carol <span class=\"state proven\">principal<",
            "verifier of network lab since version 3; this node knows version 3.",
            &format!("active</span> <code class=\"wrap\">{key}<"),
            "id=\"agreements\">1<",
            "id=\"dissents\">0<",
            "id=\"disputes\">1<",
            "/-/crates/hexyl/0.17.0",
            "+odd",
        ],
    );
    for path in [
        "/-/principals/nonsense",
        &format!("/-/principals/{}", "7".repeat(64)),
    ] {
        assert_eq!(ask(&address, path, &address).status, 404, "{path}");
    }

    // What its name is, and what became of it.
    let mut becomes = |change: &dyn Fn(&mut Manifest)| {
        lab.stop(ALICE, "TERM");
        let next = lab.next_version(change);
        lab.know(ALICE, next);
        lab.start_alice();
    };
    becomes(&|next| {
        let carol = next.principals.iter_mut().find(|one| one.name == CAROL);
        let carol = carol.unwrap();
        carol.name = HOSTILE.to_owned();
        carol.keys[0].state = KeyState::Compromised;
    });
    shows(
        &carol,
        &[
            "&lt;script&gt;alert(1)",
            ">revoked<",
            ">compromised<",
            "key compromised",
        ],
    );
    becomes(&|next| next.principals.retain(|one| one.name != HOSTILE));
    shows(
        &carol,
        &["no principal any more", "since version 3, until version 5"],
    );
    shows("/-/crates/hexyl/0.17.0", &["a stranger"]);
}

#[test]
fn it_is_for_those_who_may_look() {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE, "");
    lab.start_alice();
    for host in [&address, "localhost:80", "[::1]:80", "10.0.0.5"] {
        assert_eq!(ask(&address, "/-/", host).status, 200, "{host}");
    }
    // A page elsewhere whose name was made to lead here would have a browser read all this to it.
    for path in [
        "/-/",
        "/-/live.json",
        "/-/search?q=",
        "/-/crates/hexyl",
        "/-/crates/hexyl/0.17.0",
        &principal(&lab, ALICE),
    ] {
        assert_eq!(ask(&address, path, "rebound.example").status, 403, "{path}");
    }
    // A badge is for everybody.
    assert_eq!(
        ask(&address, "/-/badges/hexyl.svg", "rebound.example").status,
        200
    );

    lab.stop(ALICE, "TERM");
    fs::write(
        lab.home(ALICE).dir().join("token"),
        "a-token-of-thirty-characters-!",
    )
    .unwrap();
    let address = gateway(&lab, ALICE, "token_file = \"token\"\n");
    lab.start_alice();
    for path in ["/-/", "/-/live.json", "/-/badges/hexyl.svg", "/-/style.css"] {
        assert_eq!(ask(&address, path, &address).status, 401, "{path}");
    }
}

#[test]
fn a_badge_says_how_a_crate_stands() {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE, "");
    lab.start_alice();
    let badge = || {
        let page = ask(&address, "/-/badges/hexyl.svg", &address);
        assert!(page.head.contains("image/svg+xml"), "{}", page.head);
        page.body
    };
    assert!(badge().contains("unknown"));
    let good = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &good);
    // One's own build is one principal's word.
    assert!(badge().contains("0.17.0 unproven"), "{}", badge());
    lab.state(BOB, &good);
    assert!(badge().contains("0.17.0 proven by 2"), "{}", badge());
    let options = Options {
        mark: " other".to_owned(),
        ..Options::default()
    };
    lab.state(CAROL, &artifact_with(&lab.joined(ALICE).network, &options));
    assert!(badge().contains("0.17.0 disputed"), "{}", badge());
}

/// A real browser, with a profile of its own for each page.
struct Browser {
    program: PathBuf,
}

impl Browser {
    fn new() -> Option<Self> {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let found = names.iter().find(|name| {
            let version = Command::new(name)
                .arg("--version")
                .stderr(Stdio::null())
                .output();
            version.is_ok_and(|ran| ran.status.success())
        });
        if found.is_none() {
            eprintln!(
                "SKIPPED: there is no Chromium here, so the dashboard was not shown by a browser: `cargo xtask setup` installs it"
            );
        }
        found.map(|name| Self {
            program: name.into(),
        })
    }

    /// What a page is after `args`; the browser's own words are returned, too.
    fn show(&self, url: &str, args: &[&str]) -> (String, String) {
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Command::new("timeout");
        browser
            .args(["--kill-after=5", BROWSER_SECONDS])
            .arg(&self.program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .args([
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--enable-logging=stderr",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--proxy-server=direct://", "--virtual-time-budget=6000"])
            .args(args)
            .arg(url);
        let ran = browser.output().expect("timeout starts");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        (String::from_utf8_lossy(&ran.stdout).into_owned(), said)
    }

    /// The page as it is once its script has run. Nothing may have been refused or have gone wrong in it.
    fn page(&self, url: &str, args: &[&str]) -> String {
        let (page, said) = self.show(url, &[args, &["--dump-dom"]].concat());
        assert!(page.contains("</html>"), "{url}: no page; {said}");
        let console: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("CONSOLE"))
            .collect();
        assert!(console.is_empty(), "{url}: {console:?}");
        page
    }

    fn picture(&self, url: &str, size: &str, args: &[&str], file: &Path) {
        let shot = format!("--screenshot={}", file.display());
        let size = format!("--window-size={size}");
        let (_, said) = self.show(url, &[args, &[&shot, &size]].concat());
        let bytes = fs::read(file).unwrap_or_else(|error| panic!("{url}: {error}: {said}"));
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 5000, "{url}");
    }
}

/// Where pictures of the pages are left, if somebody wants to look at them.
fn pictures() -> (Option<tempfile::TempDir>, PathBuf) {
    match std::env::var_os("QK_TEST_PICTURES") {
        Some(dir) => (None, dir.into()),
        None => {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_owned();
            (Some(dir), path)
        }
    }
}

#[test]
fn a_browser_shows_the_pages_and_complains_of_nothing() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let (lab, address) = lab();
    let log = lab.home(ALICE).logs().keep(HOSTILE.as_bytes()).unwrap();
    let at = |path: &str| format!("http://{address}{path}");
    let front = browser.page(&at("/-/"), &[]);
    assert!(front.contains("hexyl 0.17.0"));
    let release = browser.page(&at("/-/crates/hexyl/0.17.0"), &[]);
    assert!(release.contains("<circle") && release.contains("carol"));
    browser.page(&at("/-/search?q=hex"), &[]);
    let carol = principal(&lab, CAROL);
    assert!(browser.page(&at(&carol), &[]).contains("in dispute"));
    // A script in a log would have spoken on the console, or changed the page.
    let log = browser.page(&at(&format!("/-/logs/{log}")), &[]);
    assert!(log.contains("&lt;script&gt;alert(1)"));
    // What there is to read is there without a script.
    let without = ask(&address, "/-/", &address).body;
    let sections = |page: &str| page.matches("<section").count();
    assert_eq!(sections(&without), sections(&front));

    let (_kept, dir) = pictures();
    for (name, size, args) in [
        ("light", "1280,1500", &[][..]),
        (
            "dark",
            "1280,1500",
            &[
                "--force-dark-mode",
                "--blink-settings=preferredColorScheme=0",
            ][..],
        ),
        ("phone", "420,1500", &[][..]),
    ] {
        for (page, path) in [
            ("front", "/-/"),
            ("release", "/-/crates/hexyl/0.17.0"),
            ("search", "/-/search?q="),
            ("principal", &carol),
        ] {
            browser.picture(
                &at(path),
                size,
                args,
                &dir.join(format!("{page}-{name}.png")),
            );
        }
    }
}

#[test]
fn the_script_shows_what_goes_on_and_takes_it_for_text() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let (_lab, address) = lab();
    let live = serde_json::json!({
        "peers": 42, "readers": 7, "sent": "1.5 MiB", "received": "3 B",
        "downloads": [{ "name": HOSTILE, "here": "1 B", "size": "2 B", "part": 50 }],
    });
    let meanwhile = between(&address, move |path, body| match path {
        "/-/live.json" => Between::Body(live.to_string().into_bytes()),
        _ => Between::Body(body),
    });
    let page = browser.page(&format!("{}-/", meanwhile.url()), &[]);
    for word in [
        "id=\"peers\">42<",
        "id=\"sent\">1.5 MiB<",
        "<progress max=\"100\" value=\"50\"",
        "&lt;script&gt;alert(1)",
    ] {
        assert!(page.contains(word), "{word} in {page}");
    }
    assert!(!page.contains("<img src=\"x\""), "{page}");
}
