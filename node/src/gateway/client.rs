//! The reader's side: a gateway, or any web server with the two files of a blob, as one more
//! provider of blocks.
//!
//! A server is asked for the outboard once and then for ranges of the archive. Both become the wire
//! form that peers send, so that what is wrong is found, and blamed, in the one place where
//! everything is verified.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axum::http::{HeaderName, Response, StatusCode, Uri, header};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use qk_protocol::blocks::{Blob, BlockRange, EncodeError, OutboardWalk, RangeError, weave};
use qk_protocol::hash::NetworkId;
use qk_protocol::message::REPLY_BYTES_MAX;
use qk_protocol::transfer::{RANGE_TIMEOUT, Why};
use tokio::sync::oneshot;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::GatewayConfig;
use super::guard::read_token_text;

/// Gateways in the place of those of the configuration, separated by commas or spaces.
pub const GATEWAYS_VARIABLE: &str = "QK_GATEWAY";
/// A file with the token of the gateways, in the place of those of the configuration.
pub const TOKEN_VARIABLE: &str = "QK_GATEWAY_TOKEN_FILE";
/// Gateways that are asked; each costs connections of its own.
pub const GATEWAYS_MAX: usize = 8;
/// A gateway's address may be this long.
const URL_BYTES_MAX: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// No byte for so long, and the next provider is asked.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// A server may send one to another place, say to one that is near.
const REDIRECTS_MAX: u32 = 3;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// What is read between two looks at whether anybody still waits for it.
const READ_BYTES_MAX: usize = 64 << 10;

/// Where a gateway is: `https://host/path/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayUrl {
    text: String,
    is_https: bool,
}

/// Why a text is not the address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gateway {given:?}: {why}")]
pub struct GatewayUrlError {
    given: String,
    why: Cow<'static, str>,
}

impl GatewayUrl {
    /// Reads an address: `https`, or `http` as what comes is verified anyway.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self, GatewayUrlError> {
        let refuse = |why| GatewayUrlError {
            given: text.chars().take(100).collect(),
            why: Cow::Borrowed(why),
        };
        if text.len() > URL_BYTES_MAX {
            return Err(refuse("too long"));
        }
        let uri: Uri = text
            .parse()
            .map_err(|_| refuse("expected https://host/path/"))?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(refuse("expected https:// or http://")),
        };
        if uri.host().is_none_or(str::is_empty) {
            return Err(refuse("expected a host"));
        }
        if uri
            .authority()
            .is_some_and(|one| one.as_str().contains('@'))
        {
            return Err(refuse("a password does not belong into an address"));
        }
        if uri.query().is_some() || text.contains('#') {
            return Err(refuse("expected no ? and no #"));
        }
        let mut text = text.to_owned();
        if !text.ends_with('/') {
            text.push('/');
        }
        Ok(Self { text, is_https })
    }

    /// Host and, if there is one, port.
    fn authority(&self) -> &str {
        let rest = self.text.split_once("://").map_or("", |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    fn is_loopback(&self) -> bool {
        let address = self.authority().parse::<SocketAddr>();
        address.is_ok_and(|address| address.ip().is_loopback())
    }
}

impl std::str::FromStr for GatewayUrl {
    type Err = GatewayUrlError;

    fn from_str(text: &str) -> Result<Self, GatewayUrlError> {
        Self::parse(text)
    }
}

/// A token, which is shown nowhere.
#[derive(Clone)]
struct Token(Arc<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// The gateways that the owner named: those of `QK_GATEWAY` if it is set, else those of the
/// configuration; each once, at most [`GATEWAYS_MAX`].
///
/// # Errors
/// When one is not an address.
pub fn gateways(config: &GatewayConfig) -> Result<Vec<GatewayUrl>, GatewayUrlError> {
    match std::env::var(GATEWAYS_VARIABLE) {
        Ok(text) => parse_all(text.split([',', ' ']).filter(|one| !one.is_empty())),
        Err(_) => parse_all(config.from.iter().map(String::as_str)),
    }
}

/// A client for each gateway, with its token where one is configured; relative paths are below `dir`.
///
/// # Errors
/// When a token cannot be read, or would be sent where others can read it.
pub(crate) fn clients(
    urls: Vec<GatewayUrl>,
    config: &GatewayConfig,
    dir: &Path,
) -> Result<Vec<Client>, GatewayUrlError> {
    let everywhere = std::env::var_os(TOKEN_VARIABLE).filter(|value| !value.is_empty());
    let client = |url: GatewayUrl| {
        let file = match &everywhere {
            Some(file) => Some(PathBuf::from(file)),
            None => config
                .tokens
                .get(url.authority())
                .map(|file| dir.join(file)),
        };
        let refuse = |why: String| GatewayUrlError {
            given: url.to_string(),
            why: Cow::Owned(why),
        };
        let token = match file {
            None => None,
            Some(_) if !url.is_https && !url.is_loopback() => {
                return Err(refuse("its token is sent over https only".to_owned()));
            }
            Some(file) => {
                let text = read_token_text(&file).map_err(|error| refuse(error.to_string()))?;
                Some(Token(text.into()))
            }
        };
        Ok(Client {
            token,
            ..Client::new(url)
        })
    };
    urls.into_iter().map(client).collect()
}

fn parse_all<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<GatewayUrl>, GatewayUrlError> {
    let mut urls: Vec<GatewayUrl> = Vec::new();
    for text in texts {
        let url = GatewayUrl::parse(text)?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.len() > GATEWAYS_MAX {
        tracing::warn!(
            "{} gateways: only the first {GATEWAYS_MAX} are asked",
            urls.len()
        );
        urls.truncate(GATEWAYS_MAX);
    }
    Ok(urls)
}

/// Why a gateway gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum GatewayPullError {
    /// It does not have the file, or not for us.
    #[error("the gateway answered {0}")]
    Lacks(StatusCode),
    /// It asks to come again later.
    #[error("the gateway answered {0}")]
    Busy(StatusCode),
    /// Its answer is not one to this request, or about another file.
    #[error("the gateway {0}")]
    Malformed(&'static str),
    /// Its outboard is not that of the root.
    #[error("the gateway's outboard is forged: {0}")]
    Wrong(#[source] EncodeError),
    /// The answer ended early.
    #[error("the answer ended after {got} of {expected} bytes")]
    Truncated {
        /// Bytes that came.
        got: usize,
        /// Bytes that were asked for.
        expected: usize,
    },
    /// Nothing came for too long.
    #[error("the gateway is silent")]
    Late,
    /// No connection, or it broke.
    #[error("{0}")]
    Transport(String),
    /// Not in the blob: the mistake is here.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nobody waits for it any more.
    #[error("given up")]
    Cancelled,
}

impl GatewayPullError {
    /// What it means for the transfer.
    pub fn why(&self) -> Why {
        match self {
            Self::Lacks(_) => Why::Lacks,
            Self::Busy(_) => Why::Busy,
            Self::Malformed(_) => Why::Malformed,
            Self::Wrong(EncodeError::Corrupt { block, .. }) => Why::Wrong(*block),
            Self::Wrong(_) => Why::Malformed,
            Self::Truncated { .. } => Why::Ended,
            Self::Late | Self::Cancelled => Why::Late,
            Self::Transport(_) | Self::Range(_) => Why::Unreachable,
        }
    }
}

impl From<io::Error> for GatewayPullError {
    fn from(error: io::Error) -> Self {
        // ureq wraps its own errors, time-outs among them, where a body is read.
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Late,
            // Said to be compressed, and is not.
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                Self::Malformed("encodes what it sends, and wrongly")
            }
            _ => Self::Transport(error.to_string()),
        }
    }
}

impl From<ureq::Error> for GatewayPullError {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::Late,
            ureq::Error::Io(error) => error.into(),
            ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => {
                Self::Transport("the proxy that the environment names is not usable".to_owned())
            }
            ureq::Error::TooManyRedirects => Self::Malformed("redirects too often"),
            ureq::Error::LargeResponseHeader(..) => Self::Malformed("answers with long headers"),
            ureq::Error::Decompress(..) => Self::Malformed("encodes what it sends, and wrongly"),
            ureq::Error::Protocol(_) => Self::Malformed("does not speak HTTP"),
            other => Self::Transport(other.to_string()),
        }
    }
}

/// Asks one gateway. Its clones share connections, which are kept open between requests.
#[derive(Debug, Clone)]
pub struct Client {
    url: GatewayUrl,
    agent: Agent,
    token: Option<Token>,
}

/// A blob at one gateway, whose outboard was fetched. Cheap to clone.
#[derive(Clone)]
pub struct RemoteBlob {
    client: Client,
    blob: Blob,
    outboard: Arc<Vec<u8>>,
}

impl Client {
    /// A client that connects when it is first asked to, through the proxy of the environment.
    pub fn new(url: GatewayUrl) -> Self {
        Self::with_silence(url, SILENCE_TIMEOUT)
    }

    /// As [`new`](Self::new), with another bound on how long no byte may come.
    pub fn with_silence(url: GatewayUrl, silence_max: Duration) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Nobody sends a reader of https to where others can watch.
            .https_only(url.is_https)
            .max_redirects(REDIRECTS_MAX)
            .max_response_header_size(HEADER_BYTES_MAX)
            .timeout_connect(Some(CONNECT_TIMEOUT.min(silence_max)))
            .timeout_recv_response(Some(silence_max))
            .timeout_per_read(Some(silence_max))
            .timeout_global(Some(RANGE_TIMEOUT))
            .user_agent(concat!("qk/", env!("CARGO_PKG_VERSION")))
            // Ranges are of the file, not of something that was made of it.
            .accept_encoding("identity")
            .tls_config(tls)
            .build();
        Self {
            url,
            agent: config.new_agent(),
            token: None,
        }
    }

    /// A request; a redirect to another place goes without the token.
    fn get(&self, url: &str) -> RequestBuilder<WithoutBody> {
        let request = self.agent.get(url);
        match &self.token {
            Some(Token(token)) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Asks what a node of a network would answer; both are messages of `/qk/index/1`. Nothing that it
    /// says is verified here.
    ///
    /// # Errors
    /// See [`GatewayPullError`].
    pub async fn ask_index(
        &self,
        network: NetworkId,
        request: Vec<u8>,
    ) -> Result<Vec<u8>, GatewayPullError> {
        let client = self.clone();
        on_thread(move |cancelled| {
            let asked = BASE64_URL_SAFE_NO_PAD.encode(request);
            let url = format!("{}-/networks/{network}/index?{asked}", client.url);
            let response = client.get(&url).call()?;
            match response.status() {
                StatusCode::OK => at_most(response, REPLY_BYTES_MAX, cancelled),
                status => Err(refusal(status)),
            }
        })
        .await
    }

    /// Where it asks.
    pub fn url(&self) -> &GatewayUrl {
        &self.url
    }

    /// Fetches the outboard of a blob, and compares all of it with the root.
    ///
    /// # Errors
    /// See [`GatewayPullError`].
    pub async fn open(&self, blob: Blob) -> Result<RemoteBlob, GatewayPullError> {
        let expected = usize::try_from(blob.outboard_bytes()).unwrap_or(usize::MAX);
        let client = self.clone();
        let outboard = match expected {
            // A block alone is compared with the root itself.
            0 => Vec::new(),
            _ => {
                on_thread(move |cancelled| client.get_outboard(&blob, expected, cancelled)).await?
            }
        };
        Ok(RemoteBlob {
            client: self.clone(),
            blob,
            outboard: Arc::new(outboard),
        })
    }

    fn get_outboard(
        &self,
        blob: &Blob,
        expected: usize,
        cancelled: &AtomicBool,
    ) -> Result<Vec<u8>, GatewayPullError> {
        let url = format!("{}artifacts/{}.obao4", self.url, blob.root());
        let response = self.get(&url).call()?;
        match response.status() {
            StatusCode::OK => {}
            status => return Err(refusal(status)),
        }
        let outboard = body(response, expected, cancelled)?;
        let mut walk = OutboardWalk::new(blob, 0..blob.outboard_bytes());
        loop {
            let checked = walk.next_bytes(&outboard[..], READ_BYTES_MAX);
            if checked.map_err(GatewayPullError::Wrong)?.is_empty() {
                return Ok(outboard);
            }
        }
    }
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBlob")
            .field("url", &self.client.url)
            .field("blob", &self.blob)
            .finish_non_exhaustive()
    }
}

impl RemoteBlob {
    /// Who has it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Fetches a range and returns it in the wire form that [`verify`](qk_protocol::blocks::verify)
    /// takes, not verified yet. Dropping the future gives it up.
    ///
    /// # Errors
    /// See [`GatewayPullError`].
    pub async fn pull(&self, range: BlockRange) -> Result<Vec<u8>, GatewayPullError> {
        let this = self.clone();
        on_thread(move |cancelled| this.get_range(range, cancelled)).await
    }

    fn get_range(
        &self,
        range: BlockRange,
        cancelled: &AtomicBool,
    ) -> Result<Vec<u8>, GatewayPullError> {
        self.blob.check(&range.into())?;
        let (span, size) = (self.blob.bytes_of(range), self.blob.size());
        let asked = format!("{}-{}", span.start, span.end.saturating_sub(1));
        let url = format!("{}artifacts/{}", self.client.url, self.blob.root());
        let request = self.client.get(&url);
        let response = request.header("range", format!("bytes={asked}")).call()?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                if text(&response, &header::CONTENT_RANGE) != Some(&format!("bytes {asked}/{size}"))
                {
                    return Err(GatewayPullError::Malformed(
                        "answers with another range, or of another size",
                    ));
                }
            }
            // Who does not know ranges answers with everything, which is not read.
            StatusCode::OK if span == (0..size) => {}
            StatusCode::OK => return Err(GatewayPullError::Malformed("does not know ranges")),
            status => return Err(refusal(status)),
        }
        let expected = usize::try_from(span.end - span.start).unwrap_or(usize::MAX);
        let data = body(response, expected, cancelled)?;
        Ok(weave(&self.blob, range, &data, &self.outboard)?)
    }
}

fn refusal(status: StatusCode) -> GatewayPullError {
    match status {
        StatusCode::TOO_MANY_REQUESTS => GatewayPullError::Busy(status),
        _ if status.is_server_error() => GatewayPullError::Busy(status),
        _ => GatewayPullError::Lacks(status),
    }
}

fn text<'a>(response: &'a Response<Body>, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Reads a body of exactly `expected` bytes, bounded before it is read.
fn body(
    response: Response<Body>,
    expected: usize,
    cancelled: &AtomicBool,
) -> Result<Vec<u8>, GatewayPullError> {
    let encoding = text(&response, &header::CONTENT_ENCODING).unwrap_or("identity");
    if !encoding.eq_ignore_ascii_case("identity") {
        return Err(GatewayPullError::Malformed("encodes what it sends"));
    }
    let length = text(&response, &header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
    if length.is_some_and(|length: usize| length != expected) {
        return Err(GatewayPullError::Malformed("has a file of another size"));
    }
    let bytes = at_most(response, expected, cancelled)?;
    match bytes.len() {
        got if got < expected => Err(GatewayPullError::Truncated { got, expected }),
        _ => Ok(bytes),
    }
}

/// Reads a body of at most `bytes_max` bytes.
fn at_most(
    response: Response<Body>,
    bytes_max: usize,
    cancelled: &AtomicBool,
) -> Result<Vec<u8>, GatewayPullError> {
    let mut reader = response.into_body().into_reader();
    // One byte more tells too much from enough, and lets the connection be used again.
    let mut bytes = vec![0; bytes_max + 1];
    let mut got = 0;
    while got <= bytes_max {
        if cancelled.load(Ordering::Relaxed) {
            return Err(GatewayPullError::Cancelled);
        }
        let end = bytes.len().min(got + READ_BYTES_MAX);
        match reader.read(&mut bytes[got..end]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(read_error(error)),
        }
    }
    if got > bytes_max {
        return Err(GatewayPullError::Malformed(
            "sends more than it was asked for",
        ));
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// What ureq says while a body is read: its own errors come wrapped.
fn read_error(error: io::Error) -> GatewayPullError {
    match error.downcast::<ureq::Error>() {
        Ok(error) => error.into(),
        Err(error) => error.into(),
    }
}

/// Runs a blocking request on a thread of its own. The runtime's own threads would be waited for
/// when the process ends, and a server that is silent must not hold that up.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, GatewayPullError> + Send + 'static,
) -> Result<T, GatewayPullError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _cancels = Cancels(cancelled.clone());
    let (sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new().name("qk-gateway".to_owned());
    // Nobody listens after the end.
    let spawned = thread.spawn(move || drop(sender.send(work(&cancelled))));
    spawned.map_err(GatewayPullError::from)?;
    receiver.await.unwrap_or(Err(GatewayPullError::Cancelled))
}

/// Says so when nobody waits any more.
struct Cancels(Arc<AtomicBool>);

impl Drop for Cancels {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_others_refused() {
        let read = |text: &str| GatewayUrl::parse(text).map(|url| url.to_string());
        for (text, url) in [
            ("https://host.example", "https://host.example/"),
            ("http://192.0.2.1:8080/a", "http://192.0.2.1:8080/a/"),
            ("https://[2001:db8::1]/a/", "https://[2001:db8::1]/a/"),
        ] {
            assert_eq!(read(text).unwrap(), url);
        }
        let long = format!("https://host.example/{}", "a".repeat(URL_BYTES_MAX));
        for text in [
            "",
            "host.example",
            "/path",
            "ftp://host.example/",
            "https://",
            "https://user:pass@host/",
            "https://host/?a",
            "https://host/#a",
            &long,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_gateway_is_asked_once_and_not_too_many() {
        let many: Vec<String> = (0..20)
            .map(|i| format!("http://192.0.2.{}/", i / 2))
            .collect();
        let urls = parse_all(many.iter().map(String::as_str)).unwrap();
        assert_eq!(urls.len(), GATEWAYS_MAX);
        assert_eq!(urls[1].to_string(), "http://192.0.2.1/");
    }
}
