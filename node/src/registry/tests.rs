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
    offline: bool,
) -> Result<(String, String), String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("src/lib.rs"), "").unwrap();
    let manifest = format!(
        "[package]\nname='synthetic'\nversion='0.0.0'\nedition='2021'\n[dependencies]\n{name}='{req}'"
    );
    std::fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    let mut cargo = Command::new("cargo");
    cargo
        .args(["generate-lockfile", "--quiet"])
        .env("CARGO_HOME", home)
        .current_dir(dir.path());
    if offline {
        cargo.arg("--offline");
    }
    let output = cargo.output().unwrap();
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
    assert_eq!(text("source"), crates_io_id());
    Ok((text("version"), text("checksum")))
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
        let ours = registry
            .resolve(name, &ask)
            .map(|found| (found.release.version, found.checksum.to_string()));
        let cargos = cargo_says(home.path(), name, req, false);
        match (&ours, &cargos) {
            (Ok(ours), Ok(cargos)) => assert_eq!(ours, cargos, "{name} {req}"),
            (Err(_), Err(_)) => {}
            _ => panic!("{name} {req}: {ours:?}, but cargo: {cargos:?}"),
        }
        println!(
            "{name} {req}: {:?}",
            ours.map_err(|error| error.to_string())
        );
    }
}

#[test]
fn shares_caches_with_cargo() {
    let home = tempfile::tempdir().unwrap();
    let version = "0.1.10";
    // What qk cached, cargo uses.
    let registry = open(home.path(), false);
    let found = registry.resolve("cfg-if", &exact(version)).unwrap();
    assert!(!found.from_cache);
    let dest = tempfile::tempdir().unwrap();
    let file = registry
        .download(&found.release, &found.checksum, dest.path())
        .unwrap();
    assert_eq!(Sha256::of(&std::fs::read(&file).unwrap()), found.checksum);
    let (same, checksum) = cargo_says(home.path(), "cfg-if", "^0.1", false).unwrap();
    assert_eq!(
        (same.as_str(), checksum),
        (version, found.checksum.to_string())
    );
    assert!(cargo_says(home.path(), "cfg-if", "^0.1", true).is_ok());

    // What cargo cached, qk uses without a network.
    assert!(cargo_says(home.path(), "itoa", "=1.0.9", false).is_ok());
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
    insta::assert_snapshot!(
        error("b3sum", &exact("0.0.77")),
        @""
    );
    let yanked = registry.resolve("futures-util", &exact("0.3.30-rc"));
    assert!(yanked.is_err());
    let bad = registry.resolve("../etc", &Ask::Newest).unwrap_err();
    assert!(matches!(bad, RegistryError::Name(_)), "{bad}");
    insta::assert_snapshot!(
        Ask::parse(Some("0.17")).unwrap_err(),
        @r#""0.17" is not a version: give all three numbers, or ask for a range with ^0.17"#
    );
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
        "{{\"name\":\"{name}\",\"vers\":\"{version}\",\"deps\":[],\"cksum\":\"{checksum}\",\"features\":{{\"a\":[\"b\"]}},\"features2\":{{\"b\":[\"dep:c\"]}},\"yanked\":{yanked},\"v\":2}}\n"
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
    insta::assert_snapshot!(error, @"tool 1.1.0 yanked from the registry; there is 1.0.0");
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
    std::fs::write(&file, "no gzip").unwrap();
    assert!(lock_digest(&file, &release).is_err());
}
