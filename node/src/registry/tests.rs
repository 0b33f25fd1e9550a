use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::*;

fn open(home: &Path, offline: bool) -> Registry {
    Registry::open(&RegistryOptions {
        cargo_home: Some(home.to_owned()),
        offline,
        ..RegistryOptions::default()
    })
    .unwrap()
}

fn ask(text: &str) -> Ask {
    Ask::parse(Some(text)).unwrap()
}

fn exact(version: &str) -> Ask {
    Ask::Exact(version.parse().unwrap())
}

/// What cargo itself makes of a requirement: version and checksum in the `Cargo.lock` of a
/// manifest with this one dependency, or its message.
fn cargo_says(
    home: &Path,
    name: &str,
    req: &str,
    arguments: &[&str],
) -> Result<(String, String), String> {
    cargo_says_of(home, None, name, req, arguments)
}

fn cargo_says_of(
    home: &Path,
    index: Option<&str>,
    name: &str,
    req: &str,
    arguments: &[&str],
) -> Result<(String, String), String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("src/lib.rs"), "").unwrap();
    let registry = index.map_or("", |_| ", registry = 'own'");
    let manifest = format!(
        "[package]\nname='synthetic'\nversion='0.0.0'\nedition='2021'\n[dependencies]\n{name} = {{ version = '{req}'{registry} }}"
    );
    std::fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    let output = Command::new("cargo")
        .args(["generate-lockfile", "--quiet"])
        .args(arguments)
        .env("CARGO_HOME", home)
        .env("CARGO_REGISTRIES_OWN_INDEX", index.unwrap_or_default())
        .current_dir(dir.path())
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let lock = std::fs::read_to_string(dir.path().join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let package = packages
        .iter()
        .find(|package| package["name"].as_str() == Some(name))
        .unwrap();
    let text = |member: &str| package[member].as_str().unwrap().to_owned();
    assert_eq!(
        text("source"),
        index.map_or_else(crates_io_id, str::to_owned)
    );
    Ok((text("version"), text("checksum")))
}

/// Both have to give the same release, or both none, as expected.
fn compare(
    ours: Result<Resolved, RegistryError>,
    cargos: Result<(String, String), String>,
    expected: bool,
    what: &str,
) {
    let ours = ours.map(|found| (found.release.version, found.checksum.to_string()));
    match (&ours, &cargos) {
        (Ok(ours), Ok(cargos)) if expected => assert_eq!(ours, cargos, "{what}"),
        (Err(RegistryError::Network { .. }), _) => panic!("{what}: {ours:?}"),
        (Err(_), Err(_)) if !expected => {}
        _ => panic!("{what}: {ours:?}, and cargo: {cargos:?}"),
    }
    println!("{what}: {:?}", ours.map_err(|error| error.to_string()));
}

#[test]
fn agrees_with_cargo() {
    let home = tempfile::tempdir().unwrap();
    let registry = open(home.path(), false);
    let cases = [
        ("hexyl", Ask::Newest, "*"),
        ("ripgrep", ask("~14.0"), "~14.0"),
        ("ripgrep", exact("13.0.0"), "=13.0.0"),
        ("serde", ask(">=1.0.100, <1.0.105"), ">=1.0.100, <1.0.105"),
        // Newest by number, not by date of publication.
        ("rand", ask("^0.7"), "^0.7"),
        // 0.7.5, the last one of its line, was withdrawn.
        ("pin-project-lite", ask("<0.2.14"), "<0.2.14"),
        ("tar", ask("=0.4.36"), "=0.4.36"),
        // Has nothing but pre-releases.
        ("sled", ask("^1.0.0-alpha"), "^1.0.0-alpha"),
    ];
    for (name, ask, req) in cases {
        let cargos = cargo_says(home.path(), name, req, &[]);
        compare(
            registry.resolve(name, &ask),
            cargos,
            true,
            &format!("{name} {req}"),
        );
    }
}

#[test]
fn agrees_with_cargo_on_odd_indexes() {
    let server = Server::start();
    server.answer(
        "/index/config.json",
        200,
        "",
        "{\"dl\":\"http://127.0.0.1/\"}",
    );
    let versions = |name: &str, versions: &[(&str, bool)]| -> String {
        let sum = |version: &str| Sha256::of(version.as_bytes());
        let line = |(version, yanked): &(&str, bool)| line(name, version, &sum(version), *yanked);
        versions.iter().map(line).collect()
    };
    let pre = versions(
        "only-pre",
        &[("1.0.0-alpha.9", false), ("1.0.0-alpha.10", false)],
    );
    server.answer("/index/on/ly/only-pre", 200, "", pre);
    let gone = versions("all-gone", &[("1.0.0", true), ("1.2.0", true)]);
    server.answer("/index/al/l-/all-gone", 200, "", gone);
    let some = versions(
        "some-gone",
        &[
            ("1.0.0", false),
            ("2.0.0", true),
            ("1.10.0", false),
            ("1.9.0", false),
            ("1.11.0-rc.1", false),
        ],
    );
    let unknown =
        line("some-gone", "1.12.0", &Sha256::of(b""), false).replace("\"v\":2", "\"v\":3");
    server.answer(
        "/index/so/me/some-gone",
        200,
        "",
        some + &unknown + "{\"bad\":1}\n",
    );
    let meta = versions("meta", &[("1.0.0+one", false), ("1.0.1+two", false)]);
    server.answer("/index/me/ta/meta", 200, "", meta);
    let home = tempfile::tempdir().unwrap();
    let error = server
        .open(home.path())
        .resolve("some-gone", &exact("1.9.9"));
    insta::assert_snapshot!(error.unwrap_err(), @"some-gone has no version 1.9.9; there is 1.10.0, 1.9.0, 1.0.0, 1.11.0-rc.1");
    let cases = [
        ("only-pre", Ask::Newest, "*", false),
        ("only-pre", ask("^1.0.0-alpha"), "^1.0.0-alpha", true),
        ("only-pre", exact("1.0.0-alpha.9"), "=1.0.0-alpha.9", true),
        ("all-gone", Ask::Newest, "*", false),
        ("all-gone", exact("1.2.0"), "=1.2.0", false),
        ("some-gone", Ask::Newest, "*", true),
        ("some-gone", ask("^2"), "^2", false),
        ("some-gone", ask("<1.10"), "<1.10", true),
        ("some-gone", exact("2.0.0"), "=2.0.0", false),
        ("some-gone", exact("1.12.0"), "=1.12.0", false),
        ("meta", exact("1.0.0"), "=1.0.0", true),
        ("meta", Ask::Newest, "*", true),
        ("missing", Ask::Newest, "*", false),
    ];
    for (name, ask, req, expected) in cases {
        // Caches of their own: each has to ask.
        let (ours, cargos) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = server.open(ours.path()).resolve(name, &ask);
        let cargos = cargo_says_of(cargos.path(), Some(&server.index()), name, req, &[]);
        compare(ours, cargos, expected, &format!("{name} {req}"));
    }
}

#[test]
fn shares_caches_with_cargo() {
    let home = tempfile::tempdir().unwrap();
    let version = "0.1.10";
    // What qk cached, cargo uses: its own request here is for another crate.
    let registry = open(home.path(), false);
    let found = registry.resolve("cfg-if", &exact(version)).unwrap();
    assert!(!found.from_cache);
    let dest = tempfile::tempdir().unwrap();
    let file = registry
        .download(&found.release, &found.checksum, dest.path())
        .unwrap();
    assert_eq!(Sha256::of(&std::fs::read(&file).unwrap()), found.checksum);
    assert!(cargo_says(home.path(), "itoa", "=1.0.9", &[]).is_ok());
    let (same, checksum) = cargo_says(home.path(), "cfg-if", "^0.1", &["--offline"]).unwrap();
    assert_eq!(
        (same.as_str(), checksum),
        (version, found.checksum.to_string())
    );
    assert!(cargo_says(home.path(), "hexyl", "*", &["--offline"]).is_err());

    // What cargo cached, qk uses without a network.
    let offline = open(home.path(), true);
    let started = std::time::Instant::now();
    let found = offline.resolve("itoa", &exact("1.0.9")).unwrap();
    println!("a cached line: {:?}", started.elapsed());
    assert!(found.from_cache);
    assert!(offline.resolve("itoa", &Ask::Newest).unwrap().from_cache);
    // The online registry does not ask for a line that it has either.
    assert!(
        registry
            .resolve("itoa", &exact("1.0.9"))
            .unwrap()
            .from_cache
    );
    let error = offline.resolve("hexyl", &Ask::Newest).unwrap_err();
    assert!(matches!(error, RegistryError::Offline { .. }), "{error}");
}

#[test]
fn names_what_is_wrong_with_a_request() {
    let home = tempfile::tempdir().unwrap();
    let registry = open(home.path(), false);
    let error = |name: &str, ask: &Ask| registry.resolve(name, ask).unwrap_err().to_string();
    insta::assert_snapshot!(
        error("cargo_watch", &Ask::Newest),
        @"there is no crate cargo_watch in crates.io; there is cargo-watch"
    );
    insta::assert_snapshot!(
        error("HexyL", &Ask::Newest),
        @"there is no crate HexyL in crates.io; there is hexyl"
    );
    let bad = registry.resolve("../etc", &Ask::Newest).unwrap_err();
    assert!(matches!(bad, RegistryError::Name(_)), "{bad}");
    insta::assert_snapshot!(
        Ask::parse(Some("0.17")).unwrap_err(),
        @r#""0.17" is not a version: give all three numbers, or ask for a range with ^0.17"#
    );
}

#[test]
fn what_was_asked_a_moment_ago_is_not_asked_again_where_that_is_wanted() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let of = |version: &str| Sha256::of(version.as_bytes());
    let lines: String = [
        ("1.2.0", false),
        ("1.10.0", false),
        ("2.0.0-a", false),
        ("1.11.0", true),
    ]
    .map(|(version, yanked)| line("tool", version, &of(version), yanked))
    .concat();
    server.answer("/index/to/ol/tool", 200, "ETag: \"1\"\r\n", lines);
    let open = |seconds| Registry {
        fresh: Duration::from_secs(seconds),
        ..server.open(home.path())
    };
    let newest = |registry: &Registry| registry.resolve("tool", &Ask::Newest).unwrap();
    assert!(!newest(&open(600)).from_cache, "nothing is there yet");
    assert_eq!(server.asked().len(), 1);

    let found = newest(&open(600));
    assert!(found.from_cache);
    assert_eq!(
        found.release.version, "1.10.0",
        "neither yanked nor a pre-release"
    );
    let older = Ask::parse(Some("~1.2")).unwrap();
    let found = open(600).resolve("tool", &older).unwrap();
    assert_eq!(found.release.version, "1.2.0");
    assert!(server.asked().is_empty());

    // Without it each time, as cargo does; and that nothing changed counts as an answer.
    server.answer("/index/to/ol/tool", 304, "", "");
    let cached = home.path().join("registry/index");
    let file = files_in(&cached)
        .into_iter()
        .find(|file| file.ends_with("tool"));
    let file = std::fs::File::options()
        .append(true)
        .open(file.unwrap())
        .unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    file.set_modified(long_ago).unwrap();
    assert_eq!(newest(&open(600)).release.version, "1.10.0");
    assert_eq!(server.asked().len(), 1);
    newest(&open(600));
    assert!(server.asked().is_empty());
    newest(&open(0));
    assert_eq!(server.asked().len(), 1);
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let entries = entries.map(|entry| entry.path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => files_in(&path),
            false => vec![path],
        })
        .collect()
}

type Answers = BTreeMap<String, (u16, String, Vec<u8>)>;

/// An HTTP server with fixed answers that writes down what it is asked.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<Answers>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            asked: Arc::default(),
            answers: Arc::default(),
        };
        let (asked, answers) = (server.asked.clone(), server.answers.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &asked, &answers);
            }
        });
        server
    }

    fn answer(&self, path: &str, status: u16, headers: &str, body: impl Into<Vec<u8>>) {
        let answer = (status, headers.to_owned(), body.into());
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn index(&self) -> String {
        format!("sparse+http://127.0.0.1:{}/index/", self.port)
    }

    fn open(&self, home: &Path) -> Registry {
        let options = RegistryOptions {
            cargo_home: Some(home.to_owned()),
            index: Some(self.index()),
            ..RegistryOptions::default()
        };
        let config = CargoConfig::load_with(home.to_owned(), |name| match name {
            "CARGO_NET_RETRY" => Some("0".into()),
            _ => None,
        });
        Registry::with_config(config.unwrap(), &options).unwrap()
    }
}

fn serve(
    mut stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    answers: &Mutex<Answers>,
) -> std::io::Result<()> {
    let mut request = String::new();
    let mut lines = BufReader::new(stream.try_clone()?);
    while lines.read_line(&mut request)? > 2 {}
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let none = || (404, String::new(), Vec::new());
    let answer = answers.lock().unwrap().get(&path).cloned();
    let (status, headers, body) = answer.unwrap_or_else(none);
    asked.lock().unwrap().push(request);
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

fn line(name: &str, version: &str, checksum: &Sha256, yanked: bool) -> String {
    format!(
        "{{\"name\":\"{name}\",\"vers\":\"{version}\",\"deps\":[{{\"name\":\"c\",\"req\":\"^1\",\"features\":[],\"optional\":true,\"default_features\":true,\"target\":null,\"kind\":\"normal\"}}],\"cksum\":\"{checksum}\",\"features\":{{\"a\":[\"b\"]}},\"features2\":{{\"b\":[\"dep:c\"]}},\"yanked\":{yanked},\"v\":2}}\n"
    )
}

#[test]
fn asks_once_and_then_with_the_revision() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let registry = server.open(home.path());
    assert_eq!(registry.source_id(), server.index());
    let sum = Sha256::of(b"crate");
    let lines = line("tool", "1.0.0", &sum, false) + &line("tool", "1.1.0", &sum, true);
    server.answer("/index/to/ol/tool", 200, "ETag: \"one\"\r\n", lines);

    let found = registry.resolve("tool", &Ask::Newest).unwrap();
    assert_eq!(found.release.version, "1.0.0");
    assert_eq!(found.checksum, sum);
    assert_eq!(found.features.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(!server.asked()[0].to_lowercase().contains("if-none-match"));

    server.answer("/index/to/ol/tool", 304, "", "");
    let again = registry.resolve("tool", &Ask::Newest).unwrap();
    assert_eq!(again, found);
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert!(
        asked[0].to_lowercase().contains("if-none-match: \"one\""),
        "{asked:?}"
    );

    assert!(
        registry
            .resolve("tool", &exact("1.0.0"))
            .unwrap()
            .from_cache
    );
    assert!(server.asked().is_empty());
    // A yanked one is asked for again, and refused; a rebuild may have it.
    let error = registry.resolve("tool", &exact("1.1.0")).unwrap_err();
    insta::assert_snapshot!(error, @"tool 1.1.0 was yanked from its registry; there is 1.0.0");
    let yanked = registry.release("tool", &Version::new(1, 1, 0)).unwrap();
    assert!(yanked.yanked);
}

#[test]
fn a_cache_that_is_torn_is_asked_for_anew() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let registry = server.open(home.path());
    let sum = Sha256::of(b"crate");
    server.answer(
        "/index/to/ol/tool",
        200,
        "ETag: \"one\"\r\n",
        line("tool", "1.0.0", &sum, false),
    );
    registry.resolve("tool", &Ask::Newest).unwrap();
    let Place::Sparse(index) = &registry.place else {
        panic!("a sparse index");
    };
    let file = index.cache().cache_path(krate_name("tool").unwrap());
    let whole = std::fs::read(&file).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&file, &whole[..length]).unwrap();
        if let Some(entry) = Entry::from_cache(file.as_std_path())
            && let Ok(lines) = entry.lines()
        {
            assert!(lines.is_empty() || lines[0].cksum == sum, "{length}");
        }
    }
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let found = registry.resolve("tool", &exact("1.0.0")).unwrap();
    assert!(!found.from_cache);
    assert_eq!(std::fs::read(&file).unwrap(), whole);
}

#[test]
fn bad_answers_have_their_own_errors() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let registry = server.open(home.path());
    let error = |body: &str| {
        server.answer("/index/to/ol/tool", 200, "", body);
        registry.resolve("tool", &Ask::Newest).unwrap_err()
    };
    assert!(matches!(error("<html>"), RegistryError::BadIndex { .. }));
    assert!(matches!(error(""), RegistryError::BadIndex { .. }));
    assert!(matches!(error("{}\n{}"), RegistryError::BadIndex { .. }));
    let sum = Sha256::of(b"");
    // An answer for another crate is not taken for this one.
    let other = error(&line("other", "1.0.0", &sum, false));
    assert!(
        matches!(other, RegistryError::UnknownCrate { .. }),
        "{other}"
    );
    let newer = line("tool", "2.0.0", &sum, false).replace("\"v\":2", "\"v\":3");
    server.answer(
        "/index/to/ol/tool",
        200,
        "",
        newer + &line("tool", "1.0.0", &sum, false),
    );
    let found = registry.resolve("tool", &Ask::Newest).unwrap();
    assert_eq!(found.release.version, "1.0.0");

    server.answer("/index/to/ol/tool", 500, "", "");
    let broken = registry.resolve("tool", &Ask::Newest).unwrap_err();
    assert!(matches!(broken, RegistryError::Network { .. }), "{broken}");
    server.answer("/index/to/ol/tool", 401, "", "");
    let token = registry.resolve("tool", &Ask::Newest).unwrap_err();
    assert!(matches!(token, RegistryError::Token(_)), "{token}");
}

#[test]
fn an_unreachable_registry_leaves_the_cache() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let sum = Sha256::of(b"crate");
    server.answer(
        "/index/to/ol/tool",
        200,
        "",
        line("tool", "1.0.0", &sum, false),
    );
    let mut registry = server.open(home.path());
    registry.resolve("tool", &Ask::Newest).unwrap();
    // The same cache, and a server that is not there.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let Place::Sparse(index) = &registry.place else {
        panic!("a sparse index");
    };
    let cache = index.cache().cache_path(krate_name("tool").unwrap());
    let cache = cache.ancestors().nth(4).unwrap().to_owned();
    let mut location = IndexLocation::new(IndexUrl::NonCratesIo(
        format!("sparse+http://{gone}/index/").into(),
    ));
    location.root = tame_index::IndexPath::Exact(cache);
    registry.place = Place::Sparse(SparseIndex::new(location).unwrap());
    let found = registry.resolve("tool", &Ask::Newest).unwrap();
    assert!(found.from_cache);
    let error = registry.resolve("other", &Ask::Newest).unwrap_err();
    assert!(matches!(error, RegistryError::Network { .. }), "{error}");
}

#[test]
fn a_download_is_what_the_index_says_or_nothing() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let registry = server.open(home.path());
    let dest = tempfile::tempdir().unwrap();
    let release = Release {
        registry: server.index(),
        name: "tool".into(),
        version: "1.0.0".into(),
    };
    let sum = Sha256::of(b"the crate");
    let dl = format!(
        "{{\"dl\":\"http://127.0.0.1:{}/{{prefix}}/{{crate}}-{{version}}-{{sha256-checksum}}\"}}",
        server.port
    );
    server.answer("/index/config.json", 200, "", dl);
    let path = format!("/to/ol/tool-1.0.0-{sum}");

    server.answer(&path, 200, "", "another crate");
    let error = registry.download(&release, &sum, dest.path()).unwrap_err();
    let checksum = matches!(error, RegistryError::Package(PackageError::Checksum { .. }));
    assert!(checksum, "{error}");
    server.answer(&path, 200, "", vec![0; CRATE_BYTES_MAX as usize + 1]);
    let error = registry.download(&release, &sum, dest.path()).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
    assert_eq!(std::fs::read_dir(dest.path()).unwrap().count(), 0);

    server.answer(&path, 200, "", "the crate");
    let file = registry.download(&release, &sum, dest.path()).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"the crate");
    server.asked();
    // It is not asked for twice; a file that was changed since is.
    assert_eq!(
        registry.download(&release, &sum, dest.path()).unwrap(),
        file
    );
    assert!(server.asked().is_empty());
    std::fs::write(&file, "changed").unwrap();
    registry.download(&release, &sum, dest.path()).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"the crate");

    // Cargo's cache is used as it is, if it is right.
    let cache = home.path().join("registry/cache/registry.example-0");
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(cache.join("tool-1.0.0.crate"), "the crate").unwrap();
    std::fs::remove_file(&file).unwrap();
    server.asked();
    registry.download(&release, &sum, dest.path()).unwrap();
    assert!(server.asked().is_empty());
}

#[test]
fn a_local_registry_replaces_crates_io_under_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join(".cargo");
    let mirror = dir.path().join("mirror");
    std::fs::create_dir_all(mirror.join("index/to/ol")).unwrap();
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(
        home.join("config.toml"),
        "[source.crates-io]\nreplace-with='m'\n[source.m]\nlocal-registry='mirror'",
    )
    .unwrap();
    let sum = Sha256::of(b"the crate");
    let lines = line("tool", "1.0.0", &sum, false);
    std::fs::write(mirror.join("index/to/ol/tool"), lines).unwrap();
    std::fs::write(mirror.join("tool-1.0.0.crate"), "the crate").unwrap();
    let registry = open(&home, true);
    let found = registry.resolve("tool", &Ask::Newest).unwrap();
    assert_eq!(found.release.registry, crates_io_id());
    let dest = dir.path().join("dest");
    assert!(registry.download(&found.release, &sum, &dest).is_ok());
    assert!(registry.resolve("other", &Ask::Newest).is_err());
}

/// A `.crate` file with these entries: name, kind, content.
fn package(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn the_lock_is_found_or_refused() {
    use tar::EntryType::{Regular, Symlink};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.crate");
    let release = Release {
        registry: crates_io_id(),
        name: "a".into(),
        version: "1.0.0".into(),
    };
    let lock = |entries: &[(&str, tar::EntryType, &[u8])]| {
        std::fs::write(&file, package(entries)).unwrap();
        lock_digest(&file, &release)
    };
    let good = lock(&[
        ("a-1.0.0/src/Cargo.lock", Regular, b"no"),
        ("a-1.0.0/Cargo.lock", Regular, b"yes"),
    ]);
    assert_eq!(good.unwrap(), Some((Sha256::of(b"yes"), b"yes".to_vec())));
    assert_eq!(lock(&[("a-1.0.0/Cargo.toml", Regular, b"")]).unwrap(), None);
    assert_eq!(lock(&[("b-1.0.0/Cargo.lock", Regular, b"")]).unwrap(), None);
    // Where a name comes twice, unpacking takes the last one: the first must not be the digest.
    for twice in [
        "a-1.0.0/Cargo.lock",
        "a-1.0.0/./Cargo.lock",
        "a-1.0.0//Cargo.lock",
        "./a-1.0.0/Cargo.lock",
    ] {
        let entries = [
            ("a-1.0.0/Cargo.lock", Regular, &b"1"[..]),
            (twice, Regular, b"2"),
        ];
        let unpacked = dir.path().join("unpacked");
        tar::Archive::new(flate2::read::GzDecoder::new(&*package(&entries)))
            .unpack(&unpacked)
            .unwrap();
        assert_eq!(
            std::fs::read(unpacked.join("a-1.0.0/Cargo.lock")).unwrap(),
            b"2"
        );
        assert!(lock(&entries).is_err(), "{twice}");
    }
    assert!(lock(&[("a-1.0.0/Cargo.lock", Symlink, b"")]).is_err());
    let long = vec![b' '; LOCK_BYTES_MAX as usize + 1];
    assert!(lock(&[("a-1.0.0/Cargo.lock", Regular, &long)]).is_err());
    // A bomb: small, and large when unpacked.
    let zeros = vec![0; 2_000_000];
    let bomb = package(&[
        ("a-1.0.0/zeros", Regular, &zeros),
        ("a-1.0.0/Cargo.lock", Regular, b"1"),
    ]);
    assert!(bomb.len() < 50_000);
    assert!(package::lock_in(&*bomb, &release, 3_000_000).is_ok());
    assert!(package::lock_in(&*bomb, &release, 1_000_000).is_err());
    std::fs::write(&file, "no gzip").unwrap();
    assert!(lock_digest(&file, &release).is_err());
}

#[test]
fn a_real_package_has_the_lock_that_tar_finds() {
    let home = tempfile::tempdir().unwrap();
    let registry = open(home.path(), false);
    let found = registry.resolve("hexyl", &exact("0.17.0")).unwrap();
    let file = registry
        .download(&found.release, &found.checksum, home.path())
        .unwrap();
    let (digest, lock) = lock_digest(&file, &found.release).unwrap().unwrap();
    let tar = Command::new("tar")
        .arg("-xzOf")
        .args([file.as_os_str(), "hexyl-0.17.0/Cargo.lock".as_ref()])
        .output()
        .unwrap();
    assert!(tar.status.success());
    assert!(tar.stdout == lock);
    assert_eq!(digest, Sha256::of(&tar.stdout));
    // A library, published without one.
    let found = registry.resolve("cfg-if", &exact("0.1.10")).unwrap();
    let file = registry
        .download(&found.release, &found.checksum, home.path())
        .unwrap();
    assert_eq!(lock_digest(&file, &found.release).unwrap(), None);
}

#[test]
fn cargos_proxy_and_certificates_are_used() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let open = |text: &str, index: &str, env: fn(&str) -> Option<std::ffi::OsString>| {
        std::fs::write(home.path().join("config.toml"), text).unwrap();
        let config = CargoConfig::load_with(home.path().to_owned(), env).unwrap();
        let options = RegistryOptions {
            index: Some(index.to_owned()),
            ..RegistryOptions::default()
        };
        Registry::with_config(config, &options).unwrap()
    };
    let proxy = format!(
        "[net]\nretry = 0\n[http]\nproxy = '127.0.0.1:{}'",
        server.port
    );
    let index = "sparse+http://registry.example/index/";
    open(&proxy, index, |_| None)
        .resolve("tool", &Ask::Newest)
        .unwrap_err();
    let asked = server.asked();
    assert!(asked[0].contains("registry.example"), "{asked:?}");
    // The same with an exception does not come by.
    let except = |name: &str| (name == "NO_PROXY").then(|| "registry.example,x.example".into());
    let error = open(&proxy, index, except).resolve("tool", &Ask::Newest);
    assert!(error.unwrap_err().is_transport());
    assert!(server.asked().is_empty());

    // Certificates that do not belong to the server are as good as none.
    let file = home.path().join("ca.pem");
    std::fs::write(&file, "").unwrap();
    let cainfo = format!("[net]\nretry = 0\n[http]\ncainfo = '{}'", file.display());
    let registry = open(&cainfo, &server.index(), |_| None);
    let error = registry.resolve("tool", &Ask::Newest).unwrap_err();
    assert!(
        error.to_string().contains("no certificate in it"),
        "{error}"
    );
}
