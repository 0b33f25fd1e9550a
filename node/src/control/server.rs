//! The running node's side of the control socket.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use qk_protocol::hash::NetworkId;
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Statement;
use qk_protocol::watch::patrol::Survey;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::peer::{self, Peer, admit};
use super::report::{FindWire, HeldWire};
use super::{
    Artifact, ChangedWire, Cleaned, FetchLine, FetchReport, FindSpec, LOCKED_BYTES_MAX, LookWire,
    PeerReport, Problem, ProblemKind, PublishWire, REQUEST_BYTES_MAX, Reloaded, RootWire, Status,
    SurveyWire, archive,
};
use crate::home::{Home, create_private_dir};
use crate::manners::{PauseReason, PauseRequest};
use crate::node::{FetchEvent, FetchSpec, LockedSpec, Node, Published, SearchReport, SearchSpec};
use crate::store::FsckReport;

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// Of these, connections of members of the group: the administrator always gets through.
const MEMBERS_MAX: usize = 48;
/// Connections that wait to be accepted.
const BACKLOG_MAX: u32 = 64;
/// Events of a fetch that wait for its client; then they are merged.
const EVENTS_PENDING_MAX: usize = 256;
/// How long clients may take to read their last bytes when the node ends.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// The bound control socket of a home. Whoever has it is the one running node of that home: bind
/// it before the node starts, so that a second one ends here and commands wait instead of finding
/// the store locked. Dropping it removes the socket.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    bound: Bound,
    slots: Slots,
}

/// Binds the control socket of a node's home and answers on it until `shutdown`.
///
/// # Errors
/// As [`Listener::bind`].
pub async fn serve(
    node: Arc<Node>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Problem> {
    let listener = Listener::bind(node.home())?;
    listener.serve(node, shutdown).await;
    Ok(())
}

impl Listener {
    /// Binds the control socket of this home, and removes one that a dead node left. Has to be
    /// called within a runtime.
    ///
    /// # Errors
    /// [`ProblemKind::Running`] when another node has it; otherwise what the system says.
    pub fn bind(home: &Home) -> Result<Self, Problem> {
        Self::bind_for(home, None)
    }

    /// As [`bind`](Self::bind); the members of this group, by name or number, may fetch and query.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), and when there is no such group or the node may not give it away.
    pub fn bind_for(home: &Home, group: Option<&str>) -> Result<Self, Problem> {
        create_private_dir(home.dir()).map_err(|error| io_problem(home.dir(), &error))?;
        let lock = lock(home)?;
        let path = home.socket();
        remove_stale(&path)?;
        let listen = || {
            let socket = UnixSocket::new_stream()?;
            socket.bind(&path)?;
            // Before it listens nobody can connect, so there is no moment with another mode.
            let mode = match group {
                Some(name) => {
                    chown(&path, None, Some(peer::group(name)?))?;
                    0o660
                }
                None => 0o600,
            };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            socket.listen(BACKLOG_MAX)
        };
        let listener = listen().map_err(|error| io_problem(&path, &error))?;
        Ok(Self {
            listener,
            bound: Bound { path, _lock: lock },
            slots: Slots {
                all: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                members: group.map(|_| Arc::new(Semaphore::new(MEMBERS_MAX))),
            },
        })
    }

    /// Answers until `shutdown`; then nothing is accepted any more, fetches end, and the socket is
    /// removed.
    pub async fn serve(self, node: Arc<Node>, shutdown: impl Future<Output = ()> + Send + 'static) {
        let Self {
            listener,
            bound,
            slots,
        } = self;
        let ending = CancellationToken::new();
        let app = router(Control {
            node,
            ending: ending.clone(),
        });
        let told = ending.clone();
        let asked = async move {
            shutdown.await;
            told.cancel();
        };
        let app = app.into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(Guarded { listener, slots }, app).with_graceful_shutdown(asked);
        let farewell = async {
            ending.cancelled().await;
            tokio::time::sleep(FAREWELL_MAX).await;
        };
        tokio::select! {
            served = serving.into_future() => {
                if let Err(error) = served {
                    tracing::error!(%error, "the control socket ended");
                }
            }
            () = farewell => tracing::debug!("a client of the control socket did not read its answer"),
        }
        drop(bound);
    }
}

/// What stays as long as the socket does.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    _lock: File,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the control socket was not removed");
        }
    }
}

/// The process of the node that runs on this home, if one does.
///
/// # Errors
/// When its lock cannot be read.
pub fn running(home: &Home) -> io::Result<Option<u32>> {
    let mut file = match File::open(home.dir().join("node.lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            Read::take(&mut file, 20).read_to_string(&mut process)?;
            // One that is just starting has not written it.
            Ok(Some(process.trim().parse().unwrap_or(0)))
        }
    }
}

/// Keeps nodes from running on this home while the file that is returned is open.
///
/// # Errors
/// [`ProblemKind::Running`] when one runs; otherwise what the system says.
pub fn exclude(home: &Home) -> Result<File, Problem> {
    lock(home)
}

/// Takes the lock that only one running node of a home has; it holds the number of its process.
fn lock(home: &Home) -> Result<File, Problem> {
    let path = home.dir().join("node.lock");
    let failed = |error: io::Error| io_problem(&path, &error);
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let mut file = options.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(failed(error)),
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            // Only for the message; a node that is just starting has not written it.
            let _ = file.take(20).read_to_string(&mut process);
            let home = home.dir().display();
            let message = match process.trim().parse::<u32>() {
                Ok(process) => format!("another node is running on {home}: process {process}"),
                Err(_) => format!("another node is running on {home}"),
            };
            return Err(Problem::new(ProblemKind::Running, message));
        }
    }
    let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    let written = written.and_then(|_| writeln!(file, "{}", std::process::id()));
    written.map_err(failed)?;
    Ok(file)
}

/// Removes the socket of a node that ended without doing so.
fn remove_stale(path: &Path) -> Result<(), Problem> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_problem(path, &error)),
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!(
                "{} is not a socket: the node does not replace it",
                path.display()
            );
            Err(Problem::new(ProblemKind::Malformed, message))
        }
        // Several homes may name one socket; the lock is only of one of them.
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            let message = format!("another node answers on {}", path.display());
            Err(Problem::new(ProblemKind::Running, message))
        }
        Ok(_) => fs::remove_file(path).map_err(|error| io_problem(path, &error)),
    }
}

pub(super) fn io_problem(path: &Path, error: &io::Error) -> Problem {
    Problem::new(ProblemKind::Io, format!("{}: {error}", path.display()))
}

/// How many may be connected.
#[derive(Debug)]
struct Slots {
    all: Arc<Semaphore>,
    /// None where only this user and root are answered.
    members: Option<Arc<Semaphore>>,
}

/// Accepts only whom the node answers, and only so many at once.
#[derive(Debug)]
pub(super) struct Guarded {
    listener: UnixListener,
    slots: Slots,
}

impl axum::serve::Listener for Guarded {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Connection, Peer) {
        loop {
            let Ok(slot) = self.slots.all.clone().acquire_owned().await else {
                // Nobody closes the semaphore.
                std::future::pending::<()>().await;
                continue;
            };
            let (stream, _) = axum::serve::Listener::accept(&mut self.listener).await;
            let peer = Peer::of(&stream);
            let member = match (peer, &self.slots.members) {
                (Some(Peer::Administrator), _) => None,
                (Some(Peer::Member), Some(members)) => members.clone().try_acquire_owned().ok(),
                (Some(Peer::Member) | None, _) => None,
            };
            match peer {
                Some(peer) if peer == Peer::Administrator || member.is_some() => {
                    let slots = (slot, member);
                    return (
                        Connection {
                            stream,
                            _slots: slots,
                        },
                        peer,
                    );
                }
                Some(_) | None => tracing::warn!("refused another user on the control socket"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        // Only to name it, which nothing does.
        Ok(Peer::Administrator)
    }
}

/// A connection and its slots: of all, and of the members.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    _slots: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What all handlers share.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) node: Arc<Node>,
    ending: CancellationToken,
}

type Answer<T> = Result<Json<T>, Problem>;
type Given = Result<Bytes, BytesRejection>;

fn router(control: Control) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/peers", get(peers))
        .route("/store", get(store_ls))
        .route("/store/gc", post(store_gc))
        .route("/store/fsck", post(store_fsck))
        .route("/store/pin", post(store_pin))
        .route("/store/unpin", post(store_unpin))
        .route("/fetch", post(fetch))
        .route(
            "/fetch-locked",
            post(fetch_locked).layer(DefaultBodyLimit::max(LOCKED_BYTES_MAX)),
        )
        .route("/publish", post(publish))
        .route("/find", post(find))
        .route("/search", post(search))
        .route("/reload", post(reload))
        .route("/announce", post(announce))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/draw", post(draw))
        .route("/survey", post(survey))
        .route("/look", post(look))
        .route("/archive/{root}", get(archive::send))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .layer(middleware::from_fn_with_state(
            control.clone(),
            until_the_end,
        ))
        // The outermost: what a peer may not ask is not even read.
        .layer(middleware::from_fn(admit))
        .with_state(control)
}

/// Gives up on a request when the node ends.
async fn until_the_end(State(control): State<Control>, request: Request, next: Next) -> Response {
    tokio::select! {
        response = next.run(request) => response,
        () = control.ending.cancelled() => stopping().into_response(),
    }
}

async fn unknown(request: Request) -> Problem {
    let message = format!(
        "the running node does not know {} {}",
        request.method(),
        request.uri().path()
    );
    protocol(message)
}

async fn status(State(control): State<Control>) -> Answer<Status> {
    Ok(Json(control.node.status().await?))
}

async fn peers(State(control): State<Control>) -> Answer<Vec<PeerReport>> {
    Ok(Json(control.node.peers().await?))
}

async fn store_ls(State(control): State<Control>) -> Answer<Vec<Artifact>> {
    Ok(Json(control.node.store_ls().await?))
}

async fn store_gc(State(control): State<Control>) -> Answer<Cleaned> {
    Ok(Json(control.node.store_gc().await?))
}

async fn store_fsck(State(control): State<Control>) -> Answer<FsckReport> {
    Ok(Json(control.node.store_fsck().await?))
}

async fn store_pin(State(control): State<Control>, body: Given) -> Answer<ChangedWire> {
    let RootWire { root } = read(body)?;
    let changed = control.node.store_pin(root).await?;
    Ok(Json(ChangedWire { changed }))
}

async fn store_unpin(State(control): State<Control>, body: Given) -> Answer<ChangedWire> {
    let RootWire { root } = read(body)?;
    let changed = control.node.store_unpin(root).await?;
    Ok(Json(ChangedWire { changed }))
}

async fn publish(State(control): State<Control>, body: Given) -> Answer<Published> {
    let PublishWire { archive, envelope } = read(body)?;
    if archive.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(protocol("the archive's path is not absolute"));
    }
    let statement = Statement::read(envelope.as_bytes()).map_err(protocol)?;
    Ok(Json(control.node.publish(archive, statement).await?))
}

async fn find(State(control): State<Control>, body: Given) -> Answer<FindWire> {
    let spec: FindSpec = read(body)?;
    Ok(Json(control.node.find(&spec).await?.into()))
}

async fn search(State(control): State<Control>, body: Given) -> Answer<SearchReport> {
    let spec: SearchSpec = read(body)?;
    spec.query.check().map_err(protocol)?;
    Ok(Json(control.node.search(&spec).await?))
}

async fn reload(State(control): State<Control>) -> Answer<Reloaded> {
    Ok(Json(control.node.reload_all().await?))
}

async fn announce(State(control): State<Control>) -> Answer<()> {
    Ok(Json(control.node.announce().await?))
}

async fn pause(State(control): State<Control>, body: Given) -> Answer<Vec<PauseReason>> {
    let PauseRequest { until } = read(body)?;
    Ok(Json(control.node.pause(until).await?))
}

async fn resume(State(control): State<Control>) -> Answer<Vec<PauseReason>> {
    Ok(Json(control.node.resume().await?))
}

async fn draw(State(control): State<Control>, body: Given) -> Answer<Option<ArtifactKey>> {
    let network: NetworkId = read(body)?;
    Ok(Json(control.node.draw(network).await?))
}

async fn survey(State(control): State<Control>, body: Given) -> Answer<Survey> {
    let SurveyWire { network, point } = read(body)?;
    Ok(Json(control.node.survey(network, point).await?))
}

async fn look(State(control): State<Control>, body: Given) -> Answer<Vec<HeldWire>> {
    let LookWire { network, points } = read(body)?;
    let held = control.node.look(network, points).await?;
    Ok(Json(held.iter().map(HeldWire::of).collect()))
}

async fn fetch(State(control): State<Control>, body: Given) -> Result<Response, Problem> {
    let spec: FetchSpec = read(body)?;
    Ok(fetch_lines(control, Fetch::Wanted(spec)))
}

async fn fetch_locked(State(control): State<Control>, body: Given) -> Result<Response, Problem> {
    let spec: LockedSpec = read(body)?;
    Ok(fetch_lines(control, Fetch::Locked(spec)))
}

/// What is to be fetched.
enum Fetch {
    Wanted(FetchSpec),
    Locked(LockedSpec),
}

/// The lines of a fetch. The fetch runs as this stream is read: when the client goes away, the
/// stream is dropped and the fetch with it.
fn fetch_lines(control: Control, fetch: Fetch) -> Response {
    let (events, receiver) = Events::new();
    let told = events.clone();
    let fetching = async move {
        let tell = |event| told.tell(event);
        let fetched = async {
            match &fetch {
                Fetch::Wanted(spec) => control.node.fetch_report(spec, &tell).await,
                Fetch::Locked(spec) => control.node.fetch_locked_report(spec, &tell).await,
            }
        };
        tokio::select! {
            result = fetched => result.map_err(Problem::from),
            () = control.ending.cancelled() => Err(stopping()),
        }
    };
    let lines = Lines {
        events,
        receiver,
        state: Fetching::Runs(Box::pin(fetching)),
    };
    let lines = futures::stream::unfold(lines, |mut lines| async move {
        let line = lines.next().await?;
        // Only a map with keys that are no strings could fail, and there is none.
        let written = serde_json::to_vec(&line).map_err(io::Error::other);
        let line = written.map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        });
        Some((line, lines))
    });
    let lines = Body::from_stream(lines);
    ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response()
}

struct Lines {
    events: Arc<Events>,
    receiver: mpsc::Receiver<FetchEvent>,
    state: Fetching,
}

enum Fetching {
    Runs(Pin<Box<dyn Future<Output = Result<FetchReport, Problem>> + Send>>),
    /// What is left to tell before this is the last line.
    Ends(FetchLine),
    Over,
}

impl fmt::Debug for Fetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runs(_) => "Runs",
            Self::Ends(_) => "Ends",
            Self::Over => "Over",
        })
    }
}

impl Lines {
    async fn next(&mut self) -> Option<FetchLine> {
        if let Fetching::Runs(fetching) = &mut self.state {
            let last = tokio::select! {
                Some(event) = self.receiver.recv() => return Some(FetchLine::Event(event)),
                result = fetching => match result {
                    Ok(report) => FetchLine::Fetched(Box::new(report)),
                    Err(problem) => FetchLine::Problem(Box::new(problem)),
                },
            };
            self.state = Fetching::Ends(last);
        }
        if let Ok(event) = self.receiver.try_recv() {
            return Some(FetchLine::Event(event));
        }
        if let Some(event) = self.events.rest() {
            return Some(FetchLine::Event(event));
        }
        match std::mem::replace(&mut self.state, Fetching::Over) {
            Fetching::Ends(last) => Some(last),
            Fetching::Runs(_) | Fetching::Over => None,
        }
    }
}

/// The way of events to a client that may read slowly: bounded, and no verified byte is lost.
#[derive(Debug)]
pub(super) struct Events {
    sender: mpsc::Sender<FetchEvent>,
    /// Verified bytes that found no room.
    untold: AtomicU64,
}

impl Events {
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<FetchEvent>) {
        let (sender, receiver) = mpsc::channel(EVENTS_PENDING_MAX);
        let untold = AtomicU64::new(0);
        (Arc::new(Self { sender, untold }), receiver)
    }

    pub(super) fn tell(&self, event: FetchEvent) {
        match event {
            FetchEvent::Verified { bytes } => {
                let bytes = bytes + self.untold.swap(0, Ordering::Relaxed);
                if self
                    .sender
                    .try_send(FetchEvent::Verified { bytes })
                    .is_err()
                {
                    self.untold.fetch_add(bytes, Ordering::Relaxed);
                }
            }
            // Of these there are few, and they are only for people.
            FetchEvent::Asking { .. }
            | FetchEvent::Waiting
            | FetchEvent::Begin { .. }
            | FetchEvent::ProviderFailed { .. } => {
                let _ = self.sender.try_send(event);
            }
        }
    }

    pub(super) fn rest(&self) -> Option<FetchEvent> {
        let bytes = self.untold.swap(0, Ordering::Relaxed);
        (bytes > 0).then_some(FetchEvent::Verified { bytes })
    }
}

fn read<T: DeserializeOwned>(body: Given) -> Result<T, Problem> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => protocol(format!(
            "the request is longer than {REQUEST_BYTES_MAX} bytes"
        )),
        _ => protocol(error.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(protocol)
}

fn protocol(message: impl fmt::Display) -> Problem {
    Problem::new(ProblemKind::Protocol, message)
}

fn stopping() -> Problem {
    Problem::new(ProblemKind::Stopping, "the running node is ending")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ProblemKind::Protocol => StatusCode::BAD_REQUEST,
            ProblemKind::NotAllowed => StatusCode::FORBIDDEN,
            ProblemKind::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        (status, Json(self)).into_response()
    }
}
