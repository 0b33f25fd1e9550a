//! Accepting connections, and how much one may cost.

use std::io;
use std::net::SocketAddr;
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
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::GatewayConfig;
use super::artifact::artifact;
use super::health::{healthz, readyz};
use super::metrics::{HttpCounters, Route, metrics};
use super::paced::Paced;
use super::places::{Place, Places};
use crate::blocks::serve::Blobs;
use crate::node::Node;

/// How long clients may take to read their last bytes when the node ends.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long to wait after the system had no connection to give.
const ACCEPT_REST: Duration = Duration::from_millis(100);

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
}

/// The gateway, bound and not answering yet.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    limits: GatewayLimits,
    counters: HttpCounters,
}

/// What all handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) node: Arc<Node>,
    pub(super) given: Option<Arc<dyn Blobs>>,
    pub(super) counters: HttpCounters,
    pub(super) places: Arc<Places>,
}

impl Gateway {
    /// Binds an address.
    ///
    /// # Errors
    /// When it is none, or is not to be had.
    pub async fn bind(address: &str, limits: GatewayLimits) -> Result<Self, GatewayError> {
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
        })
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers for `node` until `shutdown`; then nothing is accepted any more, and answers under way
    /// have a moment to end.
    pub async fn serve(self, node: Arc<Node>, shutdown: impl Future<Output = ()> + Send) {
        let places = Places::new(
            self.limits.connections_max,
            self.limits.connections_per_address_max,
        );
        let app = router(Shared {
            given: node.given_to_all(),
            node,
            counters: self.counters.clone(),
            places: places.clone(),
        });
        let ending = CancellationToken::new();
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
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
                    let one = connection(
                        stream,
                        app.clone(),
                        self.limits.clone(),
                        ending.clone(),
                        place,
                    );
                    connections.spawn(one);
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

async fn connection(
    stream: TcpStream,
    app: Router,
    limits: GatewayLimits,
    ending: CancellationToken,
    _place: Place,
) {
    // The last bytes of an answer should not wait for company.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Paced::new(stream, limits.piece_timeout));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes_max);
    let mut serving = pin!(builder.serve_connection(io, TowerToHyperService::new(app)));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = ending.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the gateway broke");
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/artifacts/{name}", get(artifact))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(shared.clone(), counted))
        .with_state(shared)
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
