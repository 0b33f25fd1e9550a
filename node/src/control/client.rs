//! A command's side of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use qk_protocol::decide::Held;
use qk_protocol::hash::{NetworkId, Point, Root};
use qk_protocol::key::ArtifactKey;
use qk_protocol::policy::Policy;
use qk_protocol::statement::Statement;
use qk_protocol::time::UnixTime;
use qk_protocol::watch::patrol::Survey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::archive::Receiving;
use super::peer::{is_in_its_place, is_ours, own_uid};
use super::report::{FindWire, HeldWire};
use super::server::io_problem;
use super::{
    ANSWER_BYTES_MAX, Artifact, ChangedWire, Cleaned, FetchLine, FetchReport, FindReport, FindSpec,
    LookWire, PeerReport, Problem, ProblemKind, PublishWire, Reloaded, RootWire, Status,
    SurveyWire,
};
use crate::home::{Home, create_private_dir};
use crate::manners::{PauseReason, PauseRequest};
use crate::node::{FetchEvent, FetchSpec, LockedSpec, Published, SearchReport, SearchSpec};
use crate::service::SYSTEM_SOCKET;
use crate::store::FsckReport;

/// The running node of a home. Each question goes over a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    /// Set for the node of another user, which many share.
    shared: Option<Arc<Shared>>,
}

/// What this user keeps to himself when another user's node fetches for him.
#[derive(Debug)]
struct Shared {
    /// The user's own policy: the node knows only its own.
    floor: Option<Policy>,
    /// Where archives come to lie, as long as this client is used.
    received: TempDir,
}

impl Client {
    /// The running node of this home; `None` when none runs.
    ///
    /// # Errors
    /// When the socket belongs to another user, or cannot be reached although it is there.
    pub async fn connect(home: &Home) -> Result<Option<Self>, Problem> {
        if let Some(named) = home.named_socket() {
            return match Self::connect_at(home, named).await? {
                Some(client) => Ok(Some(client)),
                None => {
                    let message = format!("no node answers on {}", named.display());
                    Err(Problem::new(ProblemKind::Other, message))
                }
            };
        }
        let client = Self {
            socket: home.socket(),
            shared: None,
        };
        Ok(client.dial().await?.map(|_| client))
    }

    /// The node of the whole system, if one runs and this user may ask it.
    ///
    /// # Errors
    /// When somebody else serves its socket.
    pub async fn connect_system(home: &Home) -> Result<Option<Self>, Problem> {
        match Self::connect_at(home, Path::new(SYSTEM_SOCKET)).await {
            Err(problem) if problem.kind == ProblemKind::NotAllowed => Ok(None),
            connected => connected,
        }
    }

    async fn connect_at(home: &Home, socket: &Path) -> Result<Option<Self>, Problem> {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let message = format!("{}: you are not in its group", socket.display());
                return Err(Problem::new(ProblemKind::NotAllowed, message));
            }
            Err(error) => return Err(io_problem(socket, &error)),
        };
        let socket = socket.to_owned();
        if stream.peer_cred().is_ok_and(|peer| peer.uid() == own_uid()) {
            return Ok(Some(Self {
                socket,
                shared: None,
            }));
        }
        if !is_in_its_place(&stream, &socket) {
            return Err(other_user(&socket));
        }
        let config = home.config()?;
        let work = home.work();
        let made = create_private_dir(&work).and_then(|()| {
            tempfile::Builder::new()
                .prefix("received-")
                .tempdir_in(&work)
        });
        let received = made.map_err(|error| io_problem(&work, &error))?;
        Ok(Some(Self {
            socket,
            shared: Some(Arc::new(Shared {
                floor: config.policy,
                received,
            })),
        }))
    }

    /// See [`Access::status`](crate::access::Access::status).
    ///
    /// # Errors
    /// The same for all methods here: the node's own, or one about the connection.
    pub async fn status(&self) -> Result<Status, Problem> {
        self.get("/status").await
    }

    /// See [`Access::peers`](crate::access::Access::peers).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn peers(&self) -> Result<Vec<PeerReport>, Problem> {
        self.get("/peers").await
    }

    /// See [`Access::store_ls`](crate::access::Access::store_ls).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn store_ls(&self) -> Result<Vec<Artifact>, Problem> {
        self.get("/store").await
    }

    /// See [`Access::store_gc`](crate::access::Access::store_gc).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn store_gc(&self) -> Result<Cleaned, Problem> {
        self.post("/store/gc", &()).await
    }

    /// See [`Access::store_fsck`](crate::access::Access::store_fsck).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn store_fsck(&self) -> Result<FsckReport, Problem> {
        self.post("/store/fsck", &()).await
    }

    /// See [`Access::store_pin`](crate::access::Access::store_pin).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn store_pin(&self, root: Root) -> Result<bool, Problem> {
        let answer: ChangedWire = self.post("/store/pin", &RootWire { root }).await?;
        Ok(answer.changed)
    }

    /// See [`Access::store_unpin`](crate::access::Access::store_unpin).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn store_unpin(&self, root: Root) -> Result<bool, Problem> {
        let answer: ChangedWire = self.post("/store/unpin", &RootWire { root }).await?;
        Ok(answer.changed)
    }

    /// See [`Access::publish`](crate::access::Access::publish).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn publish(
        &self,
        archive: Option<PathBuf>,
        statement: &Statement,
    ) -> Result<Published, Problem> {
        // The node has another working directory.
        let absolute =
            |path: PathBuf| std::path::absolute(&path).map_err(|error| io_problem(&path, &error));
        let request = PublishWire {
            archive: archive.map(absolute).transpose()?,
            envelope: String::from_utf8(statement.envelope().to_vec()).map_err(protocol)?,
        };
        self.post("/publish", &request).await
    }

    /// See [`Access::find`](crate::access::Access::find). Statements are verified once more here.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn find(&self, spec: &FindSpec) -> Result<FindReport, Problem> {
        let wire: FindWire = self.post("/find", spec).await?;
        wire.try_into().map_err(protocol)
    }

    /// See [`Access::search`](crate::access::Access::search).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn search(&self, spec: &SearchSpec) -> Result<SearchReport, Problem> {
        let policy = self.floored(spec.policy.clone());
        let spec = SearchSpec {
            policy,
            ..spec.clone()
        };
        self.post("/search", &spec).await
    }

    /// See [`Access::reload`](crate::access::Access::reload).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn reload(&self) -> Result<Reloaded, Problem> {
        self.post("/reload", &()).await
    }

    /// See [`Access::announce`](crate::access::Access::announce).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn announce(&self) -> Result<(), Problem> {
        self.post("/announce", &()).await
    }

    /// See [`Access::pause`](crate::access::Access::pause).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn pause(&self, until: Option<UnixTime>) -> Result<Vec<PauseReason>, Problem> {
        self.post("/pause", &PauseRequest { until }).await
    }

    /// See [`Access::resume`](crate::access::Access::resume).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn resume(&self) -> Result<Vec<PauseReason>, Problem> {
        self.post("/resume", &()).await
    }

    /// See [`Access::draw`](crate::access::Access::draw).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn draw(&self, network: NetworkId) -> Result<Option<ArtifactKey>, Problem> {
        self.post("/draw", &network).await
    }

    /// See [`Access::survey`](crate::access::Access::survey).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn survey(&self, network: NetworkId, point: Point) -> Result<Survey, Problem> {
        self.post("/survey", &SurveyWire { network, point }).await
    }

    /// See [`Access::look`](crate::access::Access::look). Statements are verified once more here.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn look(&self, network: NetworkId, points: Vec<Point>) -> Result<Vec<Held>, Problem> {
        let wire: Vec<HeldWire> = self.post("/look", &LookWire { network, points }).await?;
        let held = wire.iter().map(HeldWire::read);
        held.collect::<Result<_, _>>().map_err(protocol)
    }

    /// See [`Access::fetch`](crate::access::Access::fetch). Dropping the future closes the
    /// connection, which ends the fetch in the node.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn fetch(
        &self,
        spec: &FetchSpec,
        on_event: &(dyn Fn(FetchEvent) + Send + Sync),
    ) -> Result<FetchReport, Problem> {
        let spec = FetchSpec {
            policy: self.floored(spec.policy.clone()),
            ..spec.clone()
        };
        self.fetch_there("/fetch", &spec, on_event).await
    }

    /// See [`Access::fetch_locked`](crate::access::Access::fetch_locked), and [`fetch`](Self::fetch).
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn fetch_locked(
        &self,
        spec: &LockedSpec,
        on_event: &(dyn Fn(FetchEvent) + Send + Sync),
    ) -> Result<FetchReport, Problem> {
        let spec = LockedSpec {
            policy: self.floored(spec.policy.clone()),
            ..spec.clone()
        };
        self.fetch_there("/fetch-locked", &spec, on_event).await
    }

    /// What is asked for in another user's node: this user's own policy is a floor there, too.
    fn floored(&self, asked: Option<Policy>) -> Option<Policy> {
        let floor = self.shared.as_ref().and_then(|shared| shared.floor.clone());
        match (asked, floor) {
            (Some(asked), Some(floor)) => Some(asked.stricter(&floor)),
            (asked, floor) => asked.or(floor),
        }
    }

    /// An archive of the node's store, checked, as a file in `dir`.
    async fn receive(&self, root: Root, size: u64, dir: &Path) -> Result<PathBuf, Problem> {
        let path = format!("/archive/{root}");
        let mut exchange = self.ask(Method::GET, &path, Bytes::new()).await?;
        if !exchange.response.status().is_success() {
            return Err(exchange.problem().await);
        }
        let mut receiving = Receiving::new(dir, root, size)?;
        while let Some(piece) = exchange.more().await? {
            let taken = tokio::task::spawn_blocking(move || {
                receiving.take(&piece)?;
                Ok::<_, Problem>(receiving)
            });
            receiving = taken.await.map_err(gone)??;
        }
        receiving.finish()
    }

    /// Fetches in the running node; what another user's node got is handed over.
    async fn fetch_there(
        &self,
        path: &str,
        spec: &impl Serialize,
        on_event: &(dyn Fn(FetchEvent) + Send + Sync),
    ) -> Result<FetchReport, Problem> {
        let mut report = self.fetched_there(path, spec, on_event).await?;
        if let Some(shared) = &self.shared {
            let subject = &report.trusted.subject;
            let received = self.receive(subject.root, subject.size, shared.received.path());
            report.archive = received.await?;
        }
        Ok(report)
    }

    async fn fetched_there(
        &self,
        path: &str,
        spec: &impl Serialize,
        on_event: &(dyn Fn(FetchEvent) + Send + Sync),
    ) -> Result<FetchReport, Problem> {
        let mut exchange = self.ask(Method::POST, path, to_json(spec)?).await?;
        if !exchange.response.status().is_success() {
            return Err(exchange.problem().await);
        }
        let mut pending = BytesMut::new();
        while let Some(bytes) = exchange.more().await? {
            pending.extend_from_slice(&bytes);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line = pending.split_to(end + 1);
                match serde_json::from_slice(&line).map_err(other_version)? {
                    FetchLine::Event(event) => on_event(event),
                    FetchLine::Fetched(report) => return Ok(*report),
                    FetchLine::Problem(problem) => return Err(*problem),
                }
            }
            if pending.len() > ANSWER_BYTES_MAX {
                return Err(protocol("the running node's answer has no end"));
            }
        }
        Err(gone("it closed the connection during the fetch"))
    }

    async fn get<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, Problem> {
        self.ask(Method::GET, path, Bytes::new())
            .await?
            .answer()
            .await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &'static str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::POST, path, to_json(body)?)
            .await?
            .answer()
            .await
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Exchange, Problem> {
        let Some(stream) = self.dial().await? else {
            return Err(gone("nobody listens on its socket any more"));
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        let mut driving = JoinSet::new();
        driving.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the control connection broke");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "qk")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(protocol)?;
        Ok(Exchange {
            response: sender.send_request(request).await.map_err(gone)?,
            _driving: driving,
        })
    }

    /// Whether whoever serves the socket may.
    fn may_trust(&self, stream: &UnixStream) -> bool {
        is_ours(stream) || (self.shared.is_some() && is_in_its_place(stream, &self.socket))
    }

    /// A connection; `None` when nobody listens.
    async fn dial(&self) -> Result<Option<UnixStream>, Problem> {
        match UnixStream::connect(&self.socket).await {
            Ok(stream) if self.may_trust(&stream) => Ok(Some(stream)),
            Ok(_) => Err(other_user(&self.socket)),
            Err(error) if is_nobody(&error) => Ok(None),
            Err(error) => Err(io_problem(&self.socket, &error)),
        }
    }
}

/// An answer under way. Dropping it closes the connection.
#[derive(Debug)]
struct Exchange {
    response: Response<Incoming>,
    _driving: JoinSet<()>,
}

impl Exchange {
    async fn answer<T: DeserializeOwned>(self) -> Result<T, Problem> {
        if !self.response.status().is_success() {
            return Err(self.problem().await);
        }
        serde_json::from_slice(&self.whole().await?).map_err(other_version)
    }

    /// The problem that is the answer.
    async fn problem(self) -> Problem {
        let status = self.response.status();
        match self.whole().await {
            Ok(body) => serde_json::from_slice(&body)
                .unwrap_or_else(|_| protocol(format!("the running node answered {status}"))),
            Err(problem) => problem,
        }
    }

    async fn whole(self) -> Result<Bytes, Problem> {
        let body = Limited::new(self.response.into_body(), ANSWER_BYTES_MAX);
        Ok(body.collect().await.map_err(gone)?.to_bytes())
    }

    /// The next bytes of the answer.
    async fn more(&mut self) -> Result<Option<Bytes>, Problem> {
        while let Some(frame) = self.response.frame().await {
            if let Ok(bytes) = frame.map_err(gone)?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

fn to_json(value: &impl Serialize) -> Result<Bytes, Problem> {
    Ok(serde_json::to_vec(value).map_err(protocol)?.into())
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn protocol(error: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::Protocol, error)
}

fn other_version(error: serde_json::Error) -> Problem {
    protocol(format!(
        "the running node answers something that qk {} does not know, is it of another version? ({error})",
        env!("CARGO_PKG_VERSION")
    ))
}

fn other_user(socket: &Path) -> Problem {
    let message = format!("{} is served by another user: not asked", socket.display());
    Problem::new(ProblemKind::Other, message)
}

fn gone(error: impl std::fmt::Display) -> Problem {
    Problem::new(
        ProblemKind::Stopping,
        format!("the running node went away: {error}"),
    )
}
