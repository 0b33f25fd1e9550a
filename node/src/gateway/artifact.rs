//! Blobs and outboards over HTTP, every byte compared with the root before it is sent.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use qk_protocol::blocks::{self, Blob, EncodeError, OutboardWalk, unit_at};
use qk_protocol::hash::Root;

use super::range::{Asked, asked, has_already};
use super::server::Shared;
use crate::blocks::serve::{Blobs, Held};
use crate::manners::Uploads;

/// What a root stands for never changes.
const CACHE_CONTROL: &str = "public, max-age=31536000, immutable";
/// Behind a root, the outboard's name.
const OUTBOARD_SUFFIX: &str = ".obao4";
/// Bytes of an outboard that are read, compared and sent at once.
const OUTBOARD_PIECE_BYTES: usize = 64 << 10;

/// What this node gives over HTTP: the same as to peers, under the same rates, budgets and pauses.
pub(super) fn given(shared: &Shared) -> Option<(Arc<dyn Blobs>, Uploads)> {
    Some((shared.given.clone()?, shared.node.manners().uploads()))
}

/// Which of the two files of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    Archive,
    Outboard,
}

/// `GET` and `HEAD` of `/artifacts/<root>` and `/artifacts/<root>.obao4`.
pub(super) async fn artifact(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Some((root, file)) = parse(&name) else {
        return not_found("expected /artifacts/ROOT, 64 lower-case hex digits");
    };
    let Some((blobs, uploads)) = given(&shared) else {
        return not_found("not served here");
    };
    if !shared.node.manners().gives() {
        return not_found("nothing is given now");
    }
    let opened = tokio::task::spawn_blocking(move || open(blobs, root, file)).await;
    let opened = match opened {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return not_found("not here"),
        Ok(Err(error)) => return unreadable(root, &error),
        Err(error) => return unreadable(root, &error),
    };
    let about = About {
        etag: format!("\"{name}\""),
        kind: match file {
            File::Archive => "application/x-tar",
            File::Outboard => "application/octet-stream",
        },
        cache_control: CACHE_CONTROL,
    };
    answer(opened, &about, &method, &headers, uploads).await
}

/// What the headers say of a file.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) etag: String,
    pub(super) kind: &'static str,
    pub(super) cache_control: &'static str,
}

/// The file, as the request's method and conditions ask for it.
pub(super) async fn answer(
    opened: Opened,
    about: &About,
    method: &Method,
    headers: &HeaderMap,
    uploads: Uploads,
) -> Response {
    if has_already(headers, &about.etag) {
        return described(StatusCode::NOT_MODIFIED, about, None);
    }
    let size = opened.size;
    if method == Method::HEAD {
        // A range is a matter of GET alone.
        return described(StatusCode::OK, about, Some(size));
    }
    match asked(headers, &about.etag, size) {
        Asked::Nothing => {
            let mut answer = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            put(
                &mut answer,
                header::CONTENT_RANGE,
                &format!("bytes */{size}"),
            );
            answer
        }
        Asked::Whole => {
            let answer = described(StatusCode::OK, about, Some(size));
            filled(answer, opened.part(0..size, uploads)).await
        }
        Asked::Part(range) => {
            let bytes = range.end - range.start;
            let mut answer = described(StatusCode::PARTIAL_CONTENT, about, Some(bytes));
            let content = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            put(&mut answer, header::CONTENT_RANGE, &content);
            filled(answer, opened.part(range, uploads)).await
        }
    }
}

fn parse(name: &str) -> Option<(Root, File)> {
    match name.strip_suffix(OUTBOARD_SUFFIX) {
        Some(root) => Some((root.parse().ok()?, File::Outboard)),
        None => Some((name.parse().ok()?, File::Archive)),
    }
}

pub(super) fn not_found(why: &'static str) -> Response {
    let mut answer = (StatusCode::NOT_FOUND, format!("{why}\n")).into_response();
    put(&mut answer, header::CACHE_CONTROL, "no-store");
    answer
}

fn busy() -> Response {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "nothing more is given now\n",
    )
        .into_response()
}

pub(super) fn unreadable(root: Root, error: &dyn std::fmt::Display) -> Response {
    tracing::warn!(%root, %error, "cannot serve over HTTP");
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        "it cannot be read here\n",
    )
        .into_response()
}

/// An answer without its body.
fn described(status: StatusCode, about: &About, length: Option<u64>) -> Response {
    let mut answer = status.into_response();
    put(&mut answer, header::ETAG, &about.etag);
    put(&mut answer, header::CACHE_CONTROL, about.cache_control);
    put(&mut answer, header::ACCEPT_RANGES, "bytes");
    if let Some(length) = length {
        put(&mut answer, header::CONTENT_TYPE, about.kind);
        put(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        put(&mut answer, header::CONTENT_LENGTH, &length.to_string());
    }
    answer
}

pub(super) fn put(answer: &mut Response, name: header::HeaderName, value: &str) {
    // All of them are ASCII of this file.
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// The answer with its body. The first piece is compared before anything is sent, so that most of
/// what is damaged is "not here" and not an answer that breaks off.
async fn filled(answer: Response, reading: Reading) -> Response {
    let root = reading.blob.root();
    let (first, reading) = match next_piece(reading).await {
        Ok(first) => first,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return not_found("not here"),
        Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => return busy(),
        Err(error) => return unreadable(root, &error),
    };
    let rest = pieces(first, reading);
    answer.map(|_| Body::from_stream(rest))
}

/// Pieces until the end, or until one that is not what the root says: then the answer breaks off.
fn pieces(first: Bytes, reading: Reading) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::try_unfold((Some(first), reading), |(first, reading)| async {
        let (piece, reading) = match first {
            Some(first) => (first, reading),
            None => next_piece(reading).await?,
        };
        Ok((!piece.is_empty()).then_some((piece, (None, reading))))
    })
}

async fn next_piece(mut reading: Reading) -> io::Result<(Bytes, Reading)> {
    let bytes = reading.next_bytes_max();
    // Also a month's budget that ends amid an answer ends it.
    let admitted = reading.uploads.admit(bytes).await;
    let mut grant = admitted.map_err(|_| io::Error::from(io::ErrorKind::QuotaExceeded))?;
    let read = tokio::task::spawn_blocking(move || {
        let piece = reading.next_piece();
        (piece, reading)
    });
    let (piece, reading) = read.await.map_err(io::Error::other)?;
    let piece = piece?;
    grant.take(piece.len()).await;
    Ok((piece.into(), reading))
}

/// A file of a blob, open.
pub(super) struct Opened {
    blobs: Arc<dyn Blobs>,
    held: Held,
    blob: Blob,
    file: File,
    size: u64,
}

impl Opened {
    fn part(self, range: Range<u64>, uploads: Uploads) -> Reading {
        Reading {
            walk: OutboardWalk::new(&self.blob, range.clone()),
            blobs: self.blobs,
            uploads,
            held: self.held,
            blob: self.blob,
            file: self.file,
            rest: range,
        }
    }
}

pub(super) fn open(blobs: Arc<dyn Blobs>, root: Root, file: File) -> io::Result<Option<Opened>> {
    let Some(held) = blobs.open(root)? else {
        return Ok(None);
    };
    let blob = Blob::new(root, held.size).map_err(io::Error::other)?;
    let size = match file {
        File::Archive => blob.size(),
        File::Outboard => blob.outboard_bytes(),
    };
    Ok(Some(Opened {
        blobs,
        held,
        blob,
        file,
        size,
    }))
}

/// A part of a file on its way.
struct Reading {
    blobs: Arc<dyn Blobs>,
    uploads: Uploads,
    held: Held,
    blob: Blob,
    file: File,
    walk: OutboardWalk,
    rest: Range<u64>,
}

impl Reading {
    /// The most that comes next.
    fn next_bytes_max(&self) -> u32 {
        let piece = match self.file {
            File::Archive => u64::from(blocks::UNIT_BLOCKS_MIN) * blocks::BLOCK_BYTES,
            File::Outboard => OUTBOARD_PIECE_BYTES as u64,
        };
        let left = self.rest.end - self.rest.start;
        // A piece is no more than 256 KiB.
        u32::try_from(left.min(piece)).unwrap_or(u32::MAX)
    }

    /// The next bytes; none at the end. It blocks.
    fn next_piece(&mut self) -> io::Result<Vec<u8>> {
        let piece = match self.file {
            File::Archive => self.next_of_archive(),
            File::Outboard => self.next_of_outboard(),
        };
        piece.map_err(|error| {
            let root = self.blob.root();
            if matches!(
                error,
                EncodeError::Corrupt { .. } | EncodeError::Short { .. }
            ) {
                self.blobs.is_corrupt(root, &error);
                return io::Error::new(io::ErrorKind::InvalidData, error);
            }
            io::Error::other(error)
        })
    }

    fn next_of_outboard(&mut self) -> Result<Vec<u8>, EncodeError> {
        let bytes = self
            .walk
            .next_bytes(&self.held.outboard, OUTBOARD_PIECE_BYTES)?;
        self.rest.start = (self.rest.start + bytes.len() as u64).min(self.rest.end);
        Ok(bytes)
    }

    fn next_of_archive(&mut self) -> Result<Vec<u8>, EncodeError> {
        if self.rest.is_empty() {
            return Ok(Vec::new());
        }
        // Whole blocks are compared, also where only a part of them was asked for.
        let unit = unit_at(&self.blob, self.rest.start)?;
        let span = self.blob.bytes_of(unit);
        let mut bytes = blocks::read(&self.blob, unit, &self.held.data, &self.held.outboard)?;
        bytes.truncate((self.rest.end.min(span.end) - span.start) as usize);
        bytes.drain(..(self.rest.start - span.start) as usize);
        self.rest.start = self.rest.end.min(span.end);
        Ok(bytes)
    }
}
