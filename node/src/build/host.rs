//! What a build sees of the host: a named list of tools and the libraries that these need to run.
//!
//! No headers, no static libraries, no `pkg-config`, no compiler. The host's C compiler is absent
//! on purpose: build scripts and proc macros are linked by the pinned zig as well (measured: it
//! works for all crates tried, proc macros included), so that nothing of the host's C world can
//! enter an artifact and none has to be masked.
//!
//! `cmake` and `perl` are not in the list of recipe 1. Few executables need them (vendored
//! OpenSSL needs a full perl, which minimal installations lack; cmake probes the host by design),
//! and a tool that only some hosts have makes some verifiers fail where others succeed. Adding
//! one is a new recipe.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, elf};

use super::sandbox::Bind;

/// The tools that a build finds in its `PATH`, besides cargo, rustc and what zig stands in for.
/// Part of recipe 1: a host that lacks one builds nothing.
pub const TOOLS: &[&str] = &[
    // dash or bash, make, and a binary's names.
    "sh",
    "bash",
    "make",
    "nm",
    "prlimit",
    // sed, grep, awk, findutils, diffutils.
    "sed",
    "grep",
    "egrep",
    "fgrep",
    "awk",
    "find",
    "xargs",
    "cmp",
    "diff",
    // coreutils.
    "[",
    "basename",
    "cat",
    "chmod",
    "comm",
    "cp",
    "csplit",
    "cut",
    "date",
    "dirname",
    "echo",
    "env",
    "expand",
    "expr",
    "false",
    "fold",
    "head",
    "id",
    "install",
    "join",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mktemp",
    "mv",
    "nl",
    "nproc",
    "od",
    "paste",
    "printf",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "split",
    "stat",
    "tail",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "truncate",
    "tsort",
    "uname",
    "unexpand",
    "uniq",
    "wc",
];

/// Libraries of the C runtime that programs made during the build may be linked with.
const RUNTIME: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libutil.so.1",
    "libresolv.so.2",
    "libgcc_s.so.1",
];
/// Needed for name look-ups by an older glibc only.
const RUNTIME_OPTIONAL: &[&str] = &["libnss_files.so.2", "libnss_dns.so.2"];

/// Where libraries are looked for, below the host's root.
const LIBRARY_DIRECTORIES: &[&str] = &[
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
];
const INTERPRETER: &str = "ld-linux-x86-64.so.2";
/// Where they are seen inside: every common dynamic linker looks into one of these.
const INSIDE: &[&str] = &["/usr/lib/x86_64-linux-gnu", "/usr/lib64"];
/// Programs larger than this are not tools.
const TOOL_BYTES_MAX: u64 = 512 << 20;

/// What a host lacks.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Tools that every build of the recipe needs.
    #[error("the host lacks {tools}")]
    Tools {
        /// Their names, separated by spaces.
        tools: String,
    },
    /// A library that a tool needs.
    #[error("the host lacks {library}, which {needed_by} needs")]
    Library {
        /// Its file name.
        library: String,
        /// The program or library that names it.
        needed_by: String,
    },
    /// A file that cannot be read as a program.
    #[error("{path}: {why}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The host's part of a build's root file system.
#[derive(Debug, Clone)]
pub struct Host {
    /// The tools and libraries, read only.
    pub binds: Vec<Bind>,
    /// `/bin`, `/lib` and their like.
    pub links: Vec<(String, String)>,
    /// The tools by name, where they were found.
    pub tools: BTreeMap<String, PathBuf>,
}

/// Finds a program in the usual directories of the running system, not in the user's `PATH`.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

impl Host {
    /// Looks at the system below `root` (`/`, or a directory that holds another one). `programs`
    /// are the toolchain's own, whose libraries are needed too.
    ///
    /// # Errors
    /// Names the tools or the library that are missing.
    pub fn find(root: &Path, programs: &[PathBuf]) -> Result<Self, HostError> {
        let tools = find_tools(root)?;
        let mut closure = Closure {
            root,
            found: BTreeMap::new(),
        };
        let mut own: BTreeSet<String> = BTreeSet::new();
        for program in programs {
            own.extend(
                program
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned()),
            );
        }
        for path in programs.iter().chain(tools.values()) {
            closure.add(path, &own)?;
        }
        for library in RUNTIME {
            closure.library(library, Path::new("the C runtime"), &own)?;
        }
        for library in RUNTIME_OPTIONAL {
            // Part of libc since glibc 2.34.
            let _ = closure.library(library, Path::new("the C runtime"), &own);
        }
        Ok(Self {
            binds: binds(&tools, &closure.found),
            links: links(),
            tools,
        })
    }
}

fn binds(tools: &BTreeMap<String, PathBuf>, libraries: &BTreeMap<String, PathBuf>) -> Vec<Bind> {
    let mut binds: Vec<Bind> = tools
        .iter()
        .map(|(name, path)| Bind::read(path, Path::new("/qk/bin").join(name)))
        .collect();
    for (name, path) in libraries {
        let inside = if name == INTERPRETER {
            INSIDE[1]
        } else {
            INSIDE[0]
        };
        binds.push(Bind::read(path, Path::new(inside).join(name)));
    }
    binds
}

fn links() -> Vec<(String, String)> {
    [
        ("/qk/bin", "/usr/bin"),
        ("/qk/bin", "/bin"),
        ("/qk/bin", "/sbin"),
        // In memory where the sandbox mounts it there, else a directory of the build.
        ("/tmp", "/qk/tmp"),
        ("usr/lib", "/lib"),
        ("usr/lib64", "/lib64"),
    ]
    .map(|(to, at)| (to.to_owned(), at.to_owned()))
    .into()
}

fn find_tools(root: &Path) -> Result<BTreeMap<String, PathBuf>, HostError> {
    let mut tools = BTreeMap::new();
    let mut missing = Vec::new();
    for &name in TOOLS {
        let found = ["usr/bin", "bin"]
            .iter()
            .find_map(|directory| resolve(root, &root.join(directory).join(name)));
        match found {
            Some(path) => {
                tools.insert(name.to_owned(), path);
            }
            None => missing.push(name),
        }
    }
    if missing.is_empty() {
        Ok(tools)
    } else {
        let tools = missing.join(" ");
        Err(HostError::Tools { tools })
    }
}

/// Follows links as a system rooted at `root` would: `/etc/alternatives/awk` of another root lies
/// below that root.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    const LINKS_MAX: usize = 40;
    let mut rest: Vec<PathBuf> = vec![path.strip_prefix(root).ok()?.to_path_buf()];
    let mut at = root.to_path_buf();
    for _ in 0..LINKS_MAX {
        let Some(next) = rest.pop() else {
            return at.is_file().then_some(at);
        };
        let mut parts = next.components();
        let Some(first) = parts.next() else {
            continue;
        };
        let left = parts.as_path().to_path_buf();
        if !left.as_os_str().is_empty() {
            rest.push(left);
        }
        match first {
            std::path::Component::RootDir => at = root.to_path_buf(),
            std::path::Component::ParentDir => {
                if at != root {
                    at.pop();
                }
            }
            std::path::Component::Normal(name) => {
                let candidate = at.join(name);
                match fs::read_link(&candidate) {
                    Ok(to) => rest.push(to),
                    Err(_) => at = candidate,
                }
            }
            std::path::Component::CurDir | std::path::Component::Prefix(_) => {}
        }
    }
    None
}

/// The libraries that programs need, and the libraries that those need.
struct Closure<'a> {
    root: &'a Path,
    found: BTreeMap<String, PathBuf>,
}

impl Closure<'_> {
    fn add(&mut self, program: &Path, own: &BTreeSet<String>) -> Result<(), HostError> {
        for library in needed(program)? {
            self.library(&library, program, own)?;
        }
        Ok(())
    }

    fn library(
        &mut self,
        name: &str,
        needed_by: &Path,
        own: &BTreeSet<String>,
    ) -> Result<(), HostError> {
        if own.contains(name) || self.found.contains_key(name) {
            return Ok(());
        }
        let path = LIBRARY_DIRECTORIES
            .iter()
            .find_map(|directory| resolve(self.root, &self.root.join(directory).join(name)))
            .ok_or_else(|| HostError::Library {
                library: name.to_owned(),
                needed_by: needed_by.display().to_string(),
            })?;
        self.found.insert(name.to_owned(), path.clone());
        self.add(&path, own)
    }
}

/// What an ELF file asks the dynamic linker for, its interpreter included; nothing for a script.
fn needed(program: &Path) -> Result<Vec<String>, HostError> {
    let unreadable = |why: String| HostError::Unreadable {
        path: program.to_path_buf(),
        why,
    };
    let metadata = fs::metadata(program).map_err(|error| unreadable(error.to_string()))?;
    if metadata.len() > TOOL_BYTES_MAX {
        return Err(unreadable("too large for a program".into()));
    }
    let file = fs::File::open(program).map_err(|error| unreadable(error.to_string()))?;
    // Read in pieces: the compiler's own libraries are hundreds of megabytes.
    let data = ReadCache::new(file);
    match data_starts_with(&data, b"\x7fELF") {
        true => dynamic(&data).map_err(|error| unreadable(error.to_string())),
        false => Ok(Vec::new()),
    }
}

fn data_starts_with<'a>(data: impl ReadRef<'a>, magic: &[u8]) -> bool {
    let start = data.read_bytes_at(0, magic.len() as u64);
    start.is_ok_and(|bytes| bytes == magic)
}

fn dynamic<'a, R: ReadRef<'a>>(data: R) -> Result<Vec<String>, object::Error> {
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let mut names = Vec::new();
    let sections = header.sections(endian, data)?;
    if let Some((entries, strings)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, strings)?;
        for entry in entries {
            if entry.tag(endian) == elf::DT_NEEDED {
                let name = entry.string(endian, strings)?;
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    for segment in header.program_headers(endian, data)? {
        if segment.interpreter(endian, data)?.is_some() {
            names.push(INTERPRETER.to_owned());
        }
    }
    Ok(names)
}
