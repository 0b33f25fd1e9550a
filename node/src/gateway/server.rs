//! Accepting connections, and how much one may cost.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::artifact::artifact;
use super::dashboard::{self, Pages};
use super::forms::Forms;
use super::guard::{Guard, guarded};
use super::health::{healthz, readyz};
use super::index::{index, network, networks};
use super::metrics::{HttpCounters, Route, metrics};
use super::named::{Names, by_release, quick};
use super::paced::Paced;
use super::places::{Place, Places};
use super::{GatewayConfig, GatewayKey};
use crate::blocks::serve::Blobs;
use crate::home::{Home, HomeError};
use crate::node::Node;

/// How long clients may take to read their last bytes when the node ends.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long to wait after the system had no connection to give.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Bytes that packed artifacts may take unless the owner says otherwise.
const PACKED_BYTES_MAX: u64 = 1 << 30;

/// How much HTTP may cost.
#[derive(Debug, Clone)]
pub struct GatewayLimits {
    /// Connections of all clients.
    pub connections_max: usize,
    /// Connections of one IPv4 address, or one IPv6 prefix of 64 bits.
    pub connections_per_address_max: usize,
    /// How long a request's first byte to the end of its headers may take; also how long a
    /// connection may rest between two requests.
    pub header_timeout: Duration,
    /// Bytes of a request's line and headers, and bytes of an answer that wait in memory. At least
    /// 8 KiB.
    pub header_bytes_max: usize,
    /// How long 64 KiB may take to leave: slower readers are dropped.
    pub piece_timeout: Duration,
}

impl Default for GatewayLimits {
    /// 128 connections with at most 320 KiB each, 16 an address; slower than 8 KiB/s is dropped.
    fn default() -> Self {
        Self {
            connections_max: 128,
            connections_per_address_max: 16,
            header_timeout: Duration::from_secs(10),
            header_bytes_max: 16 << 10,
            piece_timeout: Duration::from_secs(8),
        }
    }
}

impl GatewayLimits {
    /// The defaults, but for what is configured.
    pub fn of(config: &GatewayConfig) -> Self {
        let defaults = Self::default();
        Self {
            connections_max: config.connections_max.unwrap_or(defaults.connections_max),
            connections_per_address_max: config
                .connections_per_address_max
                .unwrap_or(defaults.connections_per_address_max),
            ..defaults
        }
    }
}

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Not an address.
    #[error("gateway address {0:?}: expected an IP address and a port, as 127.0.0.1:8080")]
    Address(String),
    /// The system does not give it.
    #[error("gateway address {address}: {error}")]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// A certificate without a key, or a key without a certificate.
    #[error("gateway: tls_certificate and tls_key belong together, and one of them is missing")]
    HalfTls,
    /// A file that the configuration names.
    #[error("gateway: {path}: {why}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Its signing key.
    #[error(transparent)]
    Key(#[from] HomeError),
}

/// The gateway, bound and not answering yet.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    limits: GatewayLimits,
    counters: HttpCounters,
    guard: Arc<Guard>,
    forms: Arc<Forms>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client(IpAddr);

impl Client {
    /// Whether it has an address of this machine or of a local network.
    pub(super) fn is_local(self) -> bool {
        match self.0.to_canonical() {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
        }
    }
}

/// What all handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) node: Arc<Node>,
    pub(super) given: Option<Arc<dyn Blobs>>,
    pub(super) counters: HttpCounters,
    pub(super) places: Arc<Places>,
    pub(super) guard: Arc<Guard>,
    pub(super) forms: Arc<Forms>,
    pub(super) names: Arc<Names>,
    pub(super) pages: Arc<Pages>,
}

impl Gateway {
    /// Binds an address, for what is configured. What it packs and signs with lies in `home`.
    ///
    /// # Errors
    /// When it is none, or is not to be had; when a file that the configuration names, or the key, cannot be
    /// read.
    pub async fn bind(
        address: &str,
        limits: GatewayLimits,
        config: &GatewayConfig,
        home: &Home,
    ) -> Result<Self, GatewayError> {
        let guard = Guard::new(config, home.dir())?;
        let packed = config.packed_bytes_max.unwrap_or(PACKED_BYTES_MAX);
        let forms = Forms::new(home.packed(), packed, GatewayKey::of(home)?);
        let parsed: Result<SocketAddr, _> = address.parse();
        let address = parsed.map_err(|_| GatewayError::Address(address.to_owned()))?;
        let bound = TcpListener::bind(address).await;
        let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|error| GatewayError::Bind { address, error })?;
        Ok(Self {
            listener,
            address,
            limits,
            counters: HttpCounters::new(),
            guard: Arc::new(guard),
            forms: Arc::new(forms),
        })
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as clients have it: `https://192.0.2.1:8443/`.
    pub fn url(&self) -> String {
        let scheme = match self.guard.has_tls() {
            true => "https",
            false => "http",
        };
        format!("{scheme}://{}/", self.address)
    }

    /// Answers for `node` until `shutdown`; then nothing is accepted any more, and answers under way
    /// have a moment to end.
    pub async fn serve(self, node: Arc<Node>, shutdown: impl Future<Output = ()> + Send) {
        let places = Places::new(
            self.limits.connections_max,
            self.limits.connections_per_address_max,
        );
        let mut reloads = node.reloads();
        let app = router(Shared {
            given: node.given_to_all(),
            node,
            counters: self.counters.clone(),
            places: places.clone(),
            guard: self.guard.clone(),
            forms: self.forms.clone(),
            names: Arc::default(),
            pages: Arc::default(),
        });
        let ending = CancellationToken::new();
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                Ok(()) = reloads.changed() => {
                    if let Err(error) = self.guard.read_again() {
                        tracing::error!(%error, "the gateway goes on with what it read before");
                    }
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the gateway cannot accept a connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            match places.take(from.ip()) {
                Ok(place) => {
                    self.counters.accepted();
                    let connection = Connection {
                        app: app.clone(),
                        limits: self.limits.clone(),
                        ending: ending.clone(),
                        client: Client(from.ip()),
                        _place: place,
                    };
                    connections.spawn(connection.serve(stream, self.guard.acceptor()));
                }
                Err(full) => {
                    tracing::debug!(%from, ?full, "a connection to the gateway was refused");
                    self.counters.refused(full);
                }
            }
        }
        ending.cancel();
        // What has not ended by itself is dropped with the set.
        let farewell = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL_MAX, farewell).await;
    }
}

/// A connection, and what it may cost.
struct Connection {
    app: Router,
    limits: GatewayLimits,
    ending: CancellationToken,
    client: Client,
    _place: Place,
}

impl Connection {
    async fn serve(self, stream: TcpStream, acceptor: Option<TlsAcceptor>) {
        // The last bytes of an answer should not wait for company.
        let _ = stream.set_nodelay(true);
        let stream = Paced::new(stream, self.limits.piece_timeout);
        let Some(acceptor) = acceptor else {
            return self.answer(stream).await;
        };
        let greeted = timeout(self.limits.header_timeout, acceptor.accept(stream));
        match greeted.await {
            Ok(Ok(stream)) => self.answer(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS with a client of the gateway"),
            Err(_) => tracing::debug!("a client of the gateway does not get on with TLS"),
        }
    }

    async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(self.limits.header_bytes_max);
        let (app, client) = (TowerToHyperService::new(self.app), self.client);
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(client);
            app.call(request)
        });
        let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let served = tokio::select! {
            served = serving.as_mut() => served,
            () = self.ending.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection to the gateway broke");
        }
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/artifacts/{name}", get(artifact))
        .route("/{name}/{version}/{file}", get(by_release))
        .route("/{release}/{file}", get(quick))
        .route("/minisign.pub", get(public_key))
        .route("/-/networks", get(networks))
        .route("/-/networks/{id}", get(network))
        .route("/-/networks/{id}/index", get(index))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(dashboard::routes())
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(
            shared.guard.clone(),
            guarded,
        ))
        .layer(middleware::from_fn_with_state(shared.clone(), counted))
        .with_state(shared)
}

async fn public_key(State(shared): State<Shared>) -> Response {
    shared.forms.key().public_file().into_response()
}

async fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "there is nothing here\n").into_response()
}

/// Counts an answer when its last byte was taken, or its client has gone.
async fn counted(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let (begun, route) = (Instant::now(), Route::of(request.uri().path()));
    let answer = next.run(request).await;
    let watch = Watch {
        counters: shared.counters,
        route,
        status: answer.status(),
        begun,
        bytes: 0,
    };
    answer.map(|body| Body::new(Watched { body, watch }))
}

struct Watch {
    counters: HttpCounters,
    route: Route,
    status: StatusCode,
    begun: Instant,
    bytes: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        self.counters
            .answered(self.route, self.status, self.bytes, took);
    }
}

struct Watched {
    body: Body,
    watch: Watch,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.watch.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
