//! Reading an archive: strict, one pass, nothing in memory but the small parts.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};

use sha2::Digest;

use super::header::{self, BLOCK, Place, ZERO};
use super::{ArchiveError, Contents, Identity, LOCK_PATH, Limits, check_count, check_size};
use crate::hash::{Blake3, Root, Sha256};

pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Reads an archive from a stream, once.
///
/// Call [`next_entry`](Self::next_entry) until it returns `None`, with [`copy`](Self::copy) after
/// those entries whose bytes are wanted, then [`finish`](Self::finish). Nothing that was copied is
/// valid before `finish` returned `Ok` with the root that was asked for: until then the caller
/// keeps it where nobody else looks.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    limits: Limits,
    contents: Contents,
    progress: Progress,
    pending: Option<Pending>,
    state: State,
}

/// One file of an archive besides `qk.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, `bin/hexyl`: checked, so it can be joined to a directory.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Which part of the artifact it is.
    pub kind: EntryKind,
}

/// Which part of an artifact a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// `Cargo.lock`.
    Lock,
    /// A file below `bin/`; `qk.json` describes it.
    Executable,
    /// A file below `licenses/`.
    License,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Entries,
    End,
    Refused,
}

/// What was seen so far.
#[derive(Debug)]
struct Progress {
    last: String,
    lowercase: BTreeSet<String>,
    licenses: usize,
}

/// An entry whose bytes were not read yet.
#[derive(Debug)]
struct Pending {
    path: String,
    size: u64,
    expect: Expect,
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    Anything,
    Sha256(Sha256),
    Blake3(Blake3),
}

impl<R: Read> Reader<R> {
    /// Begins to read an archive of `size` bytes, and reads `qk.json`.
    ///
    /// # Errors
    /// When `size` is over the limit, or the archive does not begin with a valid `qk.json`.
    pub fn new(read: R, size: u64, limits: Limits) -> Result<Self, ArchiveError> {
        if size > limits.archive_bytes_max {
            return Err(ArchiveError::ArchiveTooLarge {
                bytes: size,
                bytes_max: limits.archive_bytes_max,
            });
        }
        let mut input = Input::new(read, size);
        let block = input.block()?;
        if block == ZERO {
            return Err(ArchiveError::NoContents);
        }
        let (path, place, size) = header::parse(&block)?;
        if place != Place::Contents {
            return Err(ArchiveError::NoContents);
        }
        check_size(&path, size, limits.contents_bytes_max)?;
        let mut description = Vec::new();
        let entry = Pending {
            path,
            size,
            expect: Expect::Anything,
        };
        input.entry(&entry, &mut description)?;
        Ok(Self {
            input,
            limits,
            contents: Contents::parse(&description, &limits)?,
            progress: Progress {
                lowercase: BTreeSet::from([entry.path.clone()]),
                last: entry.path,
                licenses: 0,
            },
            pending: None,
            state: State::Entries,
        })
    }

    /// What `qk.json` says. That the other entries agree is known after [`finish`](Self::finish).
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The next file, or `None` at the end. What was not copied of the one before is checked and
    /// skipped.
    ///
    /// # Errors
    /// When the archive is refused; the reader is of no use then.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.guarded(|reader| {
            reader.take_pending(&mut io::sink())?;
            if reader.state == State::End {
                return Ok(None);
            }
            let block = reader.input.block()?;
            if block == ZERO {
                reader.at_end()?;
                return Ok(None);
            }
            reader.at_header(&block).map(Some)
        })
    }

    /// Writes the bytes of the entry that [`next_entry`](Self::next_entry) returned last to `out`;
    /// nothing if they were copied before. They have the stated size and digest when this returns
    /// `Ok`.
    ///
    /// # Errors
    /// When the archive is refused or `out` fails; the reader is of no use then.
    pub fn copy(&mut self, out: &mut impl Write) -> Result<(), ArchiveError> {
        self.guarded(|reader| reader.take_pending(out))
    }

    /// Reads what is left, and says what was in the archive and which one it is.
    ///
    /// # Errors
    /// When the archive is, or was, refused.
    pub fn finish(mut self) -> Result<(Contents, Identity), ArchiveError> {
        while self.next_entry()?.is_some() {}
        let identity = self.input.finish()?;
        Ok((self.contents, identity))
    }

    /// Makes sure that an error stays one.
    fn guarded<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        if self.state == State::Refused {
            return Err(ArchiveError::Refused);
        }
        let result = act(self);
        if result.is_err() {
            self.state = State::Refused;
        }
        result
    }

    fn take_pending(&mut self, out: &mut impl Write) -> Result<(), ArchiveError> {
        match self.pending.take() {
            Some(entry) => self.input.entry(&entry, out),
            None => Ok(()),
        }
    }

    fn at_header(&mut self, block: &header::Block) -> Result<Entry, ArchiveError> {
        let (path, place, size) = header::parse(block)?;
        self.progress.advance(&path)?;
        let (kind, expect) = match place {
            // A second one was found to be a duplicate.
            Place::Contents => return Err(ArchiveError::Duplicate { path }),
            Place::Lock => {
                check_size(&path, size, self.limits.lock_bytes_max)?;
                (
                    EntryKind::Lock,
                    Expect::Sha256(self.contents.key.flags.lock),
                )
            }
            Place::Executable => (EntryKind::Executable, self.listed(&path, size)?),
            Place::License => {
                self.progress.licenses += 1;
                check_count(
                    "licence files",
                    self.progress.licenses,
                    self.limits.licenses_max,
                )?;
                check_size(&path, size, self.limits.license_bytes_max)?;
                (EntryKind::License, Expect::Anything)
            }
        };
        self.input.check_room(size)?;
        self.pending = Some(Pending {
            path: path.clone(),
            size,
            expect,
        });
        Ok(Entry { path, size, kind })
    }

    fn listed(&self, path: &str, size: u64) -> Result<Expect, ArchiveError> {
        let path = path.to_owned();
        let Some(executable) = self.contents.executables.get(&path) else {
            return Err(ArchiveError::Unlisted { path });
        };
        if size != executable.size {
            return Err(ArchiveError::SizeDiffers {
                path,
                stated: executable.size,
                got: size,
            });
        }
        Ok(Expect::Blake3(executable.blake3))
    }

    /// After the first zero block.
    fn at_end(&mut self) -> Result<(), ArchiveError> {
        if self.input.block()? != ZERO {
            return Err(ArchiveError::EndMark);
        }
        // A path that differs from a listed one by case alone was refused as unlisted.
        let missing = std::iter::once(LOCK_PATH)
            .chain(self.contents.executables.keys().map(String::as_str))
            .find(|path| !self.progress.lowercase.contains(&path.to_ascii_lowercase()));
        if let Some(path) = missing {
            return Err(ArchiveError::Missing {
                path: path.to_owned(),
            });
        }
        self.state = State::End;
        Ok(())
    }
}

impl Progress {
    fn advance(&mut self, path: &str) -> Result<(), ArchiveError> {
        let path = path.to_owned();
        if !self.lowercase.insert(path.to_ascii_lowercase()) {
            return Err(ArchiveError::Duplicate { path });
        }
        // qk.json comes first although its path does not.
        if self.last != super::CONTENTS_PATH && self.last > path {
            return Err(ArchiveError::Order {
                path,
                after: self.last.clone(),
            });
        }
        self.last = path;
        Ok(())
    }
}

/// Counts and hashes what is read, and never reads beyond the stated size.
#[derive(Debug)]
struct Input<R> {
    read: R,
    stated: u64,
    position: u64,
    blake3: blake3::Hasher,
    sha256: sha2::Sha256,
    buffer: Vec<u8>,
}

impl<R: Read> Input<R> {
    fn new(read: R, stated: u64) -> Self {
        Self {
            read,
            stated,
            position: 0,
            blake3: blake3::Hasher::new(),
            sha256: sha2::Sha256::new(),
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    fn check_room(&self, size: u64) -> Result<(), ArchiveError> {
        if size > self.stated - self.position {
            return Err(ArchiveError::BeyondStated {
                stated: self.stated,
            });
        }
        Ok(())
    }

    /// Reads the next `n` bytes, at most [`BUFFER_BYTES`], into the buffer.
    fn fill(&mut self, n: usize) -> Result<&[u8], ArchiveError> {
        self.check_room(n as u64)?;
        let bytes = &mut self.buffer[..n];
        self.read
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => ArchiveError::Truncated {
                    offset: self.position,
                },
                _ => ArchiveError::Read(error),
            })?;
        self.blake3.update(bytes);
        self.sha256.update(&*bytes);
        self.position += n as u64;
        Ok(bytes)
    }

    fn block(&mut self) -> Result<header::Block, ArchiveError> {
        let mut block = ZERO;
        block.copy_from_slice(self.fill(BLOCK)?);
        Ok(block)
    }

    /// The bytes of one entry, checked against what is known of them, and the padding after them.
    fn entry(&mut self, entry: &Pending, out: &mut impl Write) -> Result<(), ArchiveError> {
        self.check_room(entry.size)?;
        let mut check = Check::new(entry.expect);
        let mut left = entry.size;
        while left > 0 {
            let n = left.min(BUFFER_BYTES as u64);
            let bytes = self.fill(n as usize)?;
            check.update(bytes);
            out.write_all(bytes).map_err(ArchiveError::Write)?;
            left -= n;
        }
        check.finish(&entry.path)?;
        let padding = self.fill(header::padding(entry.size))?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(ArchiveError::Padding {
                path: entry.path.clone(),
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Identity, ArchiveError> {
        if self.position != self.stated {
            return Err(ArchiveError::ShorterThanStated {
                stated: self.stated,
                end: self.position,
            });
        }
        match self.read.read_exact(&mut [0]) {
            Ok(()) => return Err(ArchiveError::Trailing),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(ArchiveError::Read(error)),
        }
        Ok(Identity {
            root: Root(*self.blake3.finalize().as_bytes()),
            sha256: Sha256(self.sha256.finalize().into()),
            size: self.position,
        })
    }
}

/// The digest of one entry on its way.
enum Check {
    Anything,
    Sha256(Sha256, sha2::Sha256),
    Blake3(Blake3, Box<blake3::Hasher>),
}

impl Check {
    fn new(expect: Expect) -> Self {
        match expect {
            Expect::Anything => Self::Anything,
            Expect::Sha256(stated) => Self::Sha256(stated, sha2::Sha256::new()),
            Expect::Blake3(stated) => Self::Blake3(stated, Box::new(blake3::Hasher::new())),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Anything => {}
            Self::Sha256(_, hasher) => hasher.update(bytes),
            Self::Blake3(_, hasher) => {
                hasher.update(bytes);
            }
        }
    }

    fn finish(self, path: &str) -> Result<(), ArchiveError> {
        match self {
            Self::Anything => {}
            Self::Sha256(stated, hasher) => {
                let got = Sha256(hasher.finalize().into());
                if got != stated {
                    return Err(ArchiveError::LockDiffers { stated, got });
                }
            }
            Self::Blake3(stated, hasher) => {
                let got = Blake3(*hasher.finalize().as_bytes());
                if got != stated {
                    return Err(ArchiveError::DigestDiffers {
                        path: path.to_owned(),
                        stated,
                        got,
                    });
                }
            }
        }
        Ok(())
    }
}
