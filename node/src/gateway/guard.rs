//! Who may ask, and how what is asked is kept from others: a token and TLS, both read from files and read
//! again when the node reloads.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{GatewayConfig, GatewayError};

const TOKEN_BYTES_MIN: usize = 16;
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of an `Authorization` header that are looked at.
const GIVEN_BYTES_MAX: usize = 4096;

/// What the configuration names.
#[derive(Debug)]
pub(super) struct Guard {
    token_file: Option<PathBuf>,
    /// Certificates and their key.
    tls_files: Option<(PathBuf, PathBuf)>,
    read: RwLock<ReadFiles>,
}

#[derive(Debug, Default)]
struct ReadFiles {
    token: Option<Token>,
    tls: Option<Arc<ServerConfig>>,
}

/// A token, as its hash: comparing hashes takes as long wherever they differ.
#[derive(Debug, Clone, Copy)]
struct Token(blake3::Hash);

impl Guard {
    /// Reads the files that the configuration names; relative paths are below `dir`.
    ///
    /// # Errors
    /// When one cannot be read or does not hold what it should.
    pub(super) fn new(config: &GatewayConfig, dir: &Path) -> Result<Self, GatewayError> {
        let below = |path: &PathBuf| dir.join(path);
        let tls_files = match (&config.tls_certificate, &config.tls_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((below(certificate), below(key))),
            _ => return Err(GatewayError::HalfTls),
        };
        let guard = Self {
            token_file: config.token_file.as_ref().map(below),
            tls_files,
            read: RwLock::default(),
        };
        guard.read_again()?;
        Ok(guard)
    }

    /// Reads all files again.
    ///
    /// # Errors
    /// As [`new`](Self::new); then what was read before holds.
    pub(super) fn read_again(&self) -> Result<(), GatewayError> {
        let read = ReadFiles {
            token: self.token_file.as_deref().map(read_token).transpose()?,
            tls: match &self.tls_files {
                None => None,
                Some((certificate, key)) => Some(Arc::new(read_tls(certificate, key)?)),
            },
        };
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls_files.is_some()
    }

    pub(super) fn has_token(&self) -> bool {
        self.token_file.is_some()
    }

    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
        read.tls.clone().map(TlsAcceptor::from)
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
        match &read.token {
            None => true,
            Some(token) => given(headers).is_some_and(|given| token.is(&given)),
        }
    }
}

impl Token {
    fn is(self, given: &[u8]) -> bool {
        // blake3 compares its hashes in constant time.
        self.0 == blake3::hash(given)
    }
}

/// The token of a request: `Bearer TOKEN`, or the password of `Basic`, which browsers and tools that take
/// a URL with a password send.
fn given(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let text = all.next()?.to_str().ok()?;
    if all.next().is_some() || text.len() > GIVEN_BYTES_MAX {
        return None;
    }
    let (scheme, rest) = text.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let mut decoded = BASE64_STANDARD.decode(rest.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded.split_off(colon + 1))
}

/// Lets pass who has the token, and whoever asks if the process lives.
pub(super) async fn guarded(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    if !guard.has_token() {
        return next.run(request).await;
    }
    if request.uri().path() != "/healthz" && !guard.admits(request.headers()) {
        let body = "this gateway asks for its token: Authorization: Bearer TOKEN\n";
        let mut answer = (StatusCode::UNAUTHORIZED, body).into_response();
        let headers = answer.headers_mut();
        for way in ["Bearer realm=\"qk\"", "Basic realm=\"qk\""] {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(way));
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        return answer;
    }
    let mut answer = next.run(request).await;
    // Caches that many share must not give it to those without the token.
    let shared = answer.headers().get(header::CACHE_CONTROL);
    let own = shared
        .and_then(|value| value.to_str().ok()?.strip_prefix("public"))
        .and_then(|rest| HeaderValue::from_str(&format!("private{rest}")).ok());
    if let Some(own) = own {
        answer.headers_mut().insert(header::CACHE_CONTROL, own);
    }
    answer
}

fn read_file(path: &Path) -> Result<Vec<u8>, GatewayError> {
    let unread = |error| GatewayError::File {
        path: path.to_owned(),
        why: format!("{error}"),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unread)?;
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(unread)?;
    Ok(bytes)
}

fn read_token(path: &Path) -> Result<Token, GatewayError> {
    let text = read_token_text(path)?;
    Ok(Token(blake3::hash(text.as_bytes())))
}

/// The token in a file.
///
/// # Errors
/// When it cannot be read, or holds none.
pub(super) fn read_token_text(path: &Path) -> Result<String, GatewayError> {
    let bytes = read_file(path)?;
    let text = std::str::from_utf8(bytes.trim_ascii()).unwrap_or_default();
    let is_token =
        text.len() >= TOKEN_BYTES_MIN && text.bytes().all(|byte| byte.is_ascii_graphic());
    match is_token {
        true => Ok(text.to_owned()),
        // What it holds is not shown: it may be a token with a typing error.
        false => Err(GatewayError::File {
            path: path.to_owned(),
            why: format!(
                "expected a token of at least {TOKEN_BYTES_MIN} letters, digits and signs without spaces"
            ),
        }),
    }
}

fn read_tls(certificate: &Path, key: &Path) -> Result<ServerConfig, GatewayError> {
    let wrong = |path: &Path, why: String| GatewayError::File {
        path: path.to_owned(),
        why,
    };
    let chain = read_file(certificate)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|error| wrong(certificate, format!("no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "no certificate in it".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&read_file(key)?)
        .map_err(|error| wrong(key, format!("no private key in PEM: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, secret));
    let mut config = config.map_err(|error| wrong(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn headers(texts: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(text).unwrap());
        }
        headers
    }

    fn guard(dir: &Path) -> Result<Guard, GatewayError> {
        let config = GatewayConfig {
            token_file: Some("token".into()),
            ..GatewayConfig::default()
        };
        Guard::new(&config, dir)
    }

    #[test]
    fn who_has_the_token_is_admitted_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let guard = guard(dir.path()).unwrap();
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for good in [
            format!("Bearer {TOKEN}"),
            format!("bearer  {TOKEN} "),
            basic(&format!("anybody:{TOKEN}")),
            basic(&format!(":{TOKEN}")),
        ] {
            assert!(guard.admits(&headers(&[&good])), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            TOKEN,
            "Digest 0123456789abcdef",
            "Basic 0123456789abcdef",
            &basic(TOKEN),
            &format!("Bearer {}", "a".repeat(5000)),
        ] {
            assert!(!guard.admits(&headers(&[bad])), "{bad}");
        }
        assert!(!guard.admits(&HeaderMap::new()));
        let good = format!("Bearer {TOKEN}");
        assert!(!guard.admits(&headers(&[&good, &good])));
        // Nothing that is printed has it.
        assert!(!format!("{guard:?}").contains(TOKEN));
    }

    #[test]
    fn a_file_that_holds_no_token_is_refused_and_the_one_before_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(guard(dir.path()).is_err());
        std::fs::write(&path, TOKEN).unwrap();
        let guard = guard(dir.path()).unwrap();
        for bad in [
            "short",
            "",
            "with spaces in between",
            "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ] {
            std::fs::write(&path, bad).unwrap();
            let error = guard.read_again().unwrap_err().to_string();
            assert!(
                error.contains("token") && !error.contains("spaces in b"),
                "{error}"
            );
            assert!(guard.admits(&headers(&[&format!("Bearer {TOKEN}")])));
        }
        std::fs::write(&path, "another-token-of-it").unwrap();
        guard.read_again().unwrap();
        assert!(!guard.admits(&headers(&[&format!("Bearer {TOKEN}")])));
        assert!(guard.admits(&headers(&["Bearer another-token-of-it"])));
    }
}
