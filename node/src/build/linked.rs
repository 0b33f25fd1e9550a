//! What the linker was given for the target: the record that the work digest is made of.
//!
//! The target's linker in the sandbox is a shell script that makes a hard link of every object and
//! library it is given, below `target/linked/<output>/`, and then becomes the linker that
//! cargo-zigbuild chose. The package's own objects cannot be had in another way: rustc deletes them
//! after linking, and what would keep them (`-C save-temps`) changes what is built. Nothing that
//! cargo, rustc or zig sees changes, so the bytes of an artifact do not, either.
//!
//! Crate code runs in the same sandbox and can change the record. What that gains it: its own work
//! digest can be made useless, by being different each time or easy to guess. So the record only has to
//! be read as what it is, something hostile: bounded, regular files alone, and whatever is odd about it
//! means that there is no work digest, never that there is no observation.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use qk_protocol::hash::Blake3;
use qk_protocol::work::WorkDigest;

use super::outputs::{self, TakeError};

/// Below the target directory.
pub(super) const DIRECTORY: &str = "linked";
/// Programs that were linked, at most; a package has at most 256 executables.
const LINKS_MAX: usize = 512;
/// Files that all of them were given, at most.
const INPUTS_MAX: usize = 64 * 1024;
/// Bytes of these files: some seconds of hashing.
const INPUT_BYTES_MAX: u64 = 16 << 30;

/// The script that stands in for the target's linker.
pub(super) fn linker(target: &str) -> String {
    // As the name of the variable by which cargo-zigbuild names its own linker.
    let real = format!("CC_{}", target.replace('-', "_"));
    format!(
        r#"#!/bin/sh
before= out=link
for word; do
    [ "$before" != -o ] || out=${{word##*/}}
    before=$word
done
at=/qk/target/{DIRECTORY}/$out
mkdir -p "$at"
n=0
for word; do
    case $word in
    /qk/target/*.o | /qk/target/*.rlib | /qk/target/*.a)
        n=$((n + 1))
        ln -f "$word" "$at/$n-${{word##*/}}"
        ;;
    esac
done
exec "${real}" "$@"
"#
    )
}

/// One file that the linker was given. Its digest is as secret as the work digest that it is part of.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Input {
    /// The name of what was linked.
    pub link: String,
    /// Its place in the linker's command.
    pub place: u32,
    /// Its file name.
    pub name: String,
    pub digest: Blake3,
}

/// What the linker was given in one build, by link and place.
#[derive(Clone)]
pub struct Linked {
    inputs: Vec<Input>,
    /// Where the files lie, if they were kept.
    kept: Option<PathBuf>,
}

impl std::fmt::Debug for Linked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Linked({} inputs)", self.inputs.len())
    }
}

/// Why a record is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkedError {
    #[error("{0} is not what the linker's wrapper makes")]
    Odd(String),
    #[error("it is too large")]
    TooLarge,
    #[error("the package has no object of its own in it")]
    NoObject,
    #[error(transparent)]
    Take(#[from] TakeError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Linked {
    /// Reads the record below `target`, in which nothing runs any more, and copies the files to `keep`
    /// if they are wanted.
    pub(super) fn read(target: &Path, keep: Option<PathBuf>) -> Result<Self, LinkedError> {
        let mut inputs = Vec::new();
        let mut left = INPUT_BYTES_MAX;
        for link in names(target, Path::new(DIRECTORY), LINKS_MAX)? {
            let below = Path::new(DIRECTORY).join(&link);
            let files = names(target, &below, INPUTS_MAX - inputs.len())?;
            if let Some(keep) = &keep {
                fs::create_dir_all(keep.join(&link))?;
            }
            for file in files {
                let odd = || LinkedError::Odd(file.clone());
                let (place, name) = file.split_once('-').ok_or_else(odd)?;
                let place = place.parse().map_err(|_| odd())?;
                let opened = outputs::open(target, &below.join(&file))?;
                left = left
                    .checked_sub(opened.metadata()?.len())
                    .ok_or(LinkedError::TooLarge)?;
                inputs.push(Input {
                    link: link.clone(),
                    place,
                    name: name.to_owned(),
                    digest: digest(&opened)?,
                });
                if let Some(keep) = &keep {
                    let to = keep.join(&link).join(&file);
                    outputs::take(target, &below.join(&file), &to)?;
                }
            }
        }
        if !inputs.iter().any(|input| input.name.ends_with(".o")) {
            return Err(LinkedError::NoObject);
        }
        inputs.sort_by(|a, b| (&a.link, a.place).cmp(&(&b.link, b.place)));
        Ok(Self { inputs, kept: keep })
    }

    /// The work digest.
    pub fn work_digest(&self) -> Option<WorkDigest> {
        WorkDigest::of(self.inputs.iter().map(|input| input.digest))
    }

    pub(crate) fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Where an input lies, if the inputs were kept.
    pub(crate) fn file(&self, input: &Input) -> Option<PathBuf> {
        let name = format!("{}-{}", input.place, input.name);
        Some(self.kept.as_ref()?.join(&input.link).join(name))
    }
}

/// The names in a directory, which must be one itself and not a link to one; sorted. Only such as
/// cargo, rustc and the wrapper give to files.
fn names(target: &Path, below: &Path, most: usize) -> Result<Vec<String>, LinkedError> {
    let directory = target.join(below);
    let mut checked = target.to_path_buf();
    for part in below {
        checked.push(part);
        if !fs::symlink_metadata(&checked)?.is_dir() {
            return Err(LinkedError::Odd(below.display().to_string()));
        }
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '.');
        if name.starts_with('.') || !name.chars().all(plain) {
            return Err(LinkedError::Odd(name));
        }
        if names.len() == most {
            return Err(LinkedError::TooLarge);
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

fn digest(file: &File) -> io::Result<Blake3> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(Blake3(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A record of one link, and what `change` makes of it.
    fn read(change: impl FnOnce(&Path)) -> Result<Linked, String> {
        let target = tempfile::tempdir().unwrap();
        let link = target.path().join(DIRECTORY).join("hello-12");
        fs::create_dir_all(&link).unwrap();
        fs::write(link.join("1-hello-12.hello.0-cgu.0.rcgu.o"), "object").unwrap();
        fs::write(link.join("2-libdep-34.rlib"), "library").unwrap();
        change(&link);
        Linked::read(target.path(), None).map_err(|error| error.to_string())
    }

    #[test]
    fn contents_make_the_digest_and_names_do_not() {
        let one = read(|_| {}).unwrap();
        let renamed = read(|link| {
            fs::rename(link.join("2-libdep-34.rlib"), link.join("9-libdep-56.rlib")).unwrap();
        });
        assert_eq!(one.work_digest(), renamed.unwrap().work_digest());
        let changed = read(|link| fs::write(link.join("2-libdep-34.rlib"), "other").unwrap());
        assert_ne!(one.work_digest(), changed.unwrap().work_digest());
    }

    #[test]
    fn an_odd_record_is_none() {
        let refused = |why: &str, change: fn(&Path)| {
            let said = read(change).unwrap_err();
            assert!(said.contains(why), "{said}");
        };
        // What reading it plainly would follow.
        refused("a link, not a file", |link| {
            symlink("/etc/passwd", link.join("3-x.o")).unwrap();
        });
        refused("not what the linker's wrapper makes", |link| {
            symlink("/etc", link.with_file_name("etc")).unwrap();
        });
        refused("not what the linker's wrapper makes", |link| {
            let record = link.parent().unwrap();
            fs::remove_dir_all(record).unwrap();
            symlink("/", record).unwrap();
        });
        refused("not a regular file", |link| {
            let fifo = std::process::Command::new("mkfifo")
                .arg(link.join("3-x.o"))
                .status();
            assert!(fifo.unwrap().success());
        });
        refused("not what the linker's wrapper makes", |link| {
            fs::write(link.join("no number.o"), "").unwrap();
        });
        refused("too large", |link| {
            let sparse = File::create(link.join("3-x.o")).unwrap();
            sparse.set_len(INPUT_BYTES_MAX + 1).unwrap();
        });
        refused("no object of its own", |link| {
            fs::remove_file(link.join("1-hello-12.hello.0-cgu.0.rcgu.o")).unwrap();
        });
        refused("No such file", |link| {
            fs::remove_dir_all(link.parent().unwrap()).unwrap();
        });
    }

    #[test]
    fn the_wrapper_links_what_it_is_given_and_becomes_the_linker() {
        // In another place than the sandbox's, and with a linker that says how it was called.
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("target");
        fs::create_dir_all(target.join("deps")).unwrap();
        for name in ["a.rcgu.o", "libb.rlib", "notes.txt"] {
            fs::write(target.join("deps").join(name), name).unwrap();
        }
        let at = target.to_str().unwrap();
        let script = scratch.path().join("linker");
        let text = linker("x86_64-unknown-linux-gnu").replace("/qk/target", at);
        fs::write(&script, text).unwrap();
        let ran = std::process::Command::new("sh")
            .arg(&script)
            .args([
                "-Wl,x",
                &format!("{at}/deps/a.rcgu.o"),
                &format!("{at}/deps/libb.rlib"),
            ])
            .args(["/lib/std.rlib", &format!("{at}/deps/notes.txt"), "-o"])
            .arg(format!("{at}/deps/hello-12"))
            .env("CC_x86_64_unknown_linux_gnu", "/bin/echo")
            .output()
            .unwrap();
        let said = String::from_utf8(ran.stdout).unwrap();
        assert!(
            said.starts_with("-Wl,x ") && said.trim().ends_with("/hello-12"),
            "{said}"
        );
        let linked = Linked::read(&target, None).unwrap();
        let names: Vec<_> = linked
            .inputs()
            .iter()
            .map(|one| (&*one.link, &*one.name))
            .collect();
        assert_eq!(names, [("hello-12", "a.rcgu.o"), ("hello-12", "libb.rlib")]);
    }
}
