//! An archive over the socket: a node of the whole system keeps its store closed to others, so that
//! whoever may fetch gets the bytes and not a path. The reader checks them against the root.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path as Named, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::Stream;
use qk_protocol::hash::Root;

use super::server::{Control, io_problem};
use super::{Problem, ProblemKind};

/// What is read and sent at once.
const PIECE_BYTES: usize = 256 << 10;

/// `GET /archive/<root>`.
pub(super) async fn send(
    State(control): State<Control>,
    Named(root): Named<String>,
) -> Result<Response, Problem> {
    let root: Root = root
        .parse()
        .map_err(|error| Problem::new(ProblemKind::Protocol, error))?;
    let opened = control.node.blocking(move |store| {
        let blob = store.open_blob(&root)?;
        Ok(blob.map(|blob| (blob.data.try_clone(), blob.size)))
    });
    let Some((file, size)) = opened.await? else {
        let message = format!("{root} is not in the node's store any more");
        return Err(Problem {
            root: Some(root),
            ..Problem::new(ProblemKind::Download, message)
        });
    };
    let file = file.map_err(|error| Problem::new(ProblemKind::Io, error))?;
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
    ];
    Ok((headers, Body::from_stream(pieces(Arc::new(file), size))).into_response())
}

fn pieces(file: Arc<File>, size: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::try_unfold(0, move |at: u64| {
        let file = file.clone();
        async move {
            let bytes = PIECE_BYTES.min(usize::try_from(size - at).unwrap_or(PIECE_BYTES));
            if bytes == 0 {
                return Ok(None);
            }
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; bytes];
                file.read_exact_at(&mut piece, at)?;
                Ok::<_, io::Error>(piece)
            });
            let piece = read.await.map_err(io::Error::other)??;
            Ok(Some((Bytes::from(piece), at + bytes as u64)))
        }
    })
}

/// An archive that comes in pieces, into a file of this user's.
#[derive(Debug)]
pub(super) struct Receiving {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    /// Bytes that are still to come.
    missing: u64,
    root: Root,
}

impl Receiving {
    pub(super) fn new(dir: &Path, root: Root, size: u64) -> Result<Self, Problem> {
        let path = dir.join(format!("{root}.tar"));
        let file = File::create(&path).map_err(|error| io_problem(&path, &error))?;
        Ok(Self {
            path,
            file,
            hasher: blake3::Hasher::new(),
            missing: size,
            root,
        })
    }

    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), Problem> {
        let left = self.missing.checked_sub(piece.len() as u64);
        self.missing = left.ok_or_else(|| self.wrong("more bytes than it has"))?;
        self.hasher.update(piece);
        let written = self.file.write_all(piece);
        written.map_err(|error| io_problem(&self.path, &error))
    }

    /// The file, if it is what its root says.
    pub(super) fn finish(self) -> Result<PathBuf, Problem> {
        if self.missing > 0 {
            return Err(self.wrong("fewer bytes than it has"));
        }
        if self.hasher.finalize().as_bytes() != self.root.as_bytes() {
            return Err(self.wrong("other bytes"));
        }
        Ok(self.path)
    }

    fn wrong(&self, what: &str) -> Problem {
        let message = format!("the running node sent {what} as {}", self.root);
        Problem {
            root: Some(self.root),
            ..Problem::new(ProblemKind::Corrupt, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_its_root_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = b"an archive";
        let root: Root = blake3::hash(bytes).to_hex().parse().unwrap();
        let receive = |pieces: &[&[u8]]| {
            let mut receiving = Receiving::new(dir.path(), root, bytes.len() as u64)?;
            for piece in pieces {
                receiving.take(piece)?;
            }
            receiving.finish()
        };
        let path = receive(&[b"an ", b"archive"]).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes);
        let wrong: [&[&[u8]]; 3] = [&[b"another!!!"], &[b"an"], &[b"an archive", b"!"]];
        for pieces in wrong {
            assert_eq!(receive(pieces).unwrap_err().kind, ProblemKind::Corrupt);
        }
    }
}
