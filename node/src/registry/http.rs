//! HTTP as cargo speaks it to registries: its proxy, its certificates, its patience.

use std::io::Read;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use tame_index::external::http::{Response, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::config::CargoConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of a server, unless `http.timeout` says otherwise.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for one file, however fast it drips.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(600);
const RETRIES_MAX: u64 = 10;
const RETRY_DELAY: Duration = Duration::from_millis(300);
const REDIRECTS_MAX: u32 = 5;
const CA_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why a request had no useful answer. No variant holds a URL, which may contain a password.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The proxy of the environment or of cargo's configuration is unusable.
    #[error("the proxy that the environment or cargo's configuration names is not usable")]
    Proxy,
    /// The file of `http.cainfo` is unusable.
    #[error("certificates in {file}: {why}")]
    Certificates {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The server answered with an error.
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// The body is longer than it may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
    /// No or no whole answer: no route, no name, time-out, broken TLS.
    #[error("{0}")]
    Transport(String),
}

impl HttpError {
    /// Whether another try may help.
    fn is_passing(&self) -> bool {
        match self {
            Self::Status(status) => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Transport(_) => true,
            Self::Proxy | Self::Certificates { .. } | Self::TooLong(_) => false,
        }
    }

    /// Whether the server could not be reached at all, as when there is no network.
    pub(super) fn is_transport(&self) -> bool {
        matches!(self, Self::Transport(_))
    }
}

/// An HTTP client with cargo's settings; it connects when it is first asked to.
#[derive(Debug)]
pub(super) struct Client {
    settings: Settings,
    agent: OnceLock<Agent>,
}

#[derive(Debug)]
struct Settings {
    proxy: Option<String>,
    no_proxy: Option<String>,
    cainfo: Option<PathBuf>,
    timeout: Duration,
    retries: u64,
    user_agent: String,
}

impl Client {
    pub(super) fn new(config: &CargoConfig) -> Self {
        let seconds = config
            .number(&["http", "timeout"])
            .or_else(|| config.env_text("HTTP_TIMEOUT")?.parse().ok());
        let settings = Settings {
            proxy: config.text(&["http", "proxy"]),
            no_proxy: ["NO_PROXY", "no_proxy"]
                .iter()
                .find_map(|name| config.env_text(name)),
            cainfo: config.text(&["http", "cainfo"]).map(PathBuf::from),
            timeout: seconds
                .map_or(SILENCE_TIMEOUT, Duration::from_secs)
                .clamp(Duration::from_secs(1), WHOLE_TIMEOUT),
            retries: config
                .number(&["net", "retry"])
                .unwrap_or(2)
                .min(RETRIES_MAX),
            user_agent: config
                .text(&["http", "user-agent"])
                .unwrap_or_else(|| concat!("qk/", env!("CARGO_PKG_VERSION")).to_owned()),
        };
        Self {
            settings,
            agent: OnceLock::new(),
        }
    }

    /// Sends a GET and hands the answer to `read`; both are tried again where that may help.
    /// Statuses other than 2xx and 304 that `expected` does not name are errors.
    pub(super) fn get<T>(
        &self,
        url: &str,
        headers: &[(header::HeaderName, header::HeaderValue)],
        expected: &[StatusCode],
        mut read: impl FnMut(Response<Body>) -> Result<T, HttpError>,
    ) -> Result<T, HttpError> {
        let mut tries = 0;
        loop {
            let error = match self.get_once(url, headers, expected).and_then(&mut read) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if tries >= self.settings.retries || !error.is_passing() {
                return Err(error);
            }
            tracing::debug!(%error, tries, "asking the registry again");
            std::thread::sleep(RETRY_DELAY * 2u32.pow(tries.min(4) as u32));
            tries += 1;
        }
    }

    fn get_once(
        &self,
        url: &str,
        headers: &[(header::HeaderName, header::HeaderValue)],
        expected: &[StatusCode],
    ) -> Result<Response<Body>, HttpError> {
        let mut request = self.agent()?.get(url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.call().map_err(transport)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED || expected.contains(&status) {
            Ok(response)
        } else {
            Err(HttpError::Status(status))
        }
    }

    fn agent(&self) -> Result<&Agent, HttpError> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let agent = self.settings.agent()?;
        Ok(self.agent.get_or_init(|| agent))
    }
}

impl Settings {
    fn agent(&self) -> Result<Agent, HttpError> {
        let root_certs = match &self.cainfo {
            Some(file) => certificates(file)?,
            None => RootCerts::PlatformVerifier,
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(REDIRECTS_MAX)
            .timeout_connect(Some(CONNECT_TIMEOUT.min(self.timeout)))
            .timeout_recv_response(Some(self.timeout))
            .timeout_per_read(Some(self.timeout))
            .timeout_global(Some(WHOLE_TIMEOUT))
            .user_agent(&self.user_agent)
            .tls_config(TlsConfig::builder().root_certs(root_certs).build());
        let config = match &self.proxy {
            Some(url) => config.proxy(Some(self.proxy(url)?)),
            // Proxies of the environment are ureq's default.
            None => config,
        };
        Ok(config.build().new_agent())
    }

    /// The proxy of cargo's configuration, which `NO_PROXY` limits as it does with cargo.
    fn proxy(&self, url: &str) -> Result<Proxy, HttpError> {
        let proxy = Proxy::new(url).map_err(|_| HttpError::Proxy)?;
        let Some(except) = &self.no_proxy else {
            return Ok(proxy);
        };
        let mut builder = Proxy::builder(proxy.protocol())
            .host(proxy.host())
            .port(proxy.port());
        if let Some(name) = proxy.username() {
            builder = builder.username(name);
        }
        if let Some(password) = proxy.password() {
            builder = builder.password(password);
        }
        for expression in except.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            builder = builder.no_proxy(expression);
        }
        builder.build().map_err(|_| HttpError::Proxy)
    }
}

/// Reads a whole body of at most `bytes_max` bytes, counted after decompression.
pub(super) fn body(response: Response<Body>, bytes_max: u64) -> Result<Vec<u8>, HttpError> {
    let mut bytes = Vec::new();
    response
        .into_body()
        .into_reader()
        .take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| HttpError::Transport(error.to_string()))?;
    if bytes.len() as u64 > bytes_max {
        return Err(HttpError::TooLong(bytes_max));
    }
    Ok(bytes)
}

fn certificates(file: &PathBuf) -> Result<RootCerts, HttpError> {
    let bad = |why: String| HttpError::Certificates {
        file: file.clone(),
        why,
    };
    let mut pem = Vec::new();
    std::fs::File::open(file)
        .and_then(|open| open.take(CA_BYTES_MAX).read_to_end(&mut pem))
        .map_err(|error| bad(error.to_string()))?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(RootCerts::new_with_certs(&found))
}

/// Drops what ureq says about URLs: they may hold passwords of the user's.
fn transport(error: ureq::Error) -> HttpError {
    match error {
        ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => HttpError::Proxy,
        ureq::Error::BadUri(_) => HttpError::Transport("its URL is not usable".to_owned()),
        ureq::Error::StatusCode(code) => {
            HttpError::Status(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY))
        }
        other => HttpError::Transport(other.to_string()),
    }
}

/// A URL without user, password, query and fragment, for messages.
pub(super) fn redacted(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        None => url.to_owned(),
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_no_secrets() {
        let url = "sparse+https://user:pass@registry.example:81/index/?token=1#x";
        assert_eq!(redacted(url), "sparse+https://registry.example:81/index/");
        let error = transport(ureq::Error::BadUri("https://user:pass@".into()));
        assert!(!error.to_string().contains("pass"));
    }
}
