//! HTTP as plain as it gets: a question, a server that lies, a proxy that counts.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use qk_protocol::blocks;

use crate::lab::PATIENCE;

/// What a request's head may have here.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Asks for a path; the status and the body, or nothing where nobody answers.
pub fn get(address: &str, path: &str) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, bytes[end + 4..].to_vec()))
}

/// A server of this process, and how often it was asked. It ends with the process.
#[derive(Debug)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Server {
    /// How often it was asked: for ranges of the archive, or to connect.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Its address as that of a gateway.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn start(
        answer: impl Fn(TcpStream, String, &AtomicUsize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let (counted, answer) = (asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (counted, answer) = (counted.clone(), answer.clone());
                thread::spawn(move || {
                    let (stream, head) = read_head(stream)?;
                    // Who does not like the answer goes away.
                    answer(stream, head, &counted)
                });
            }
        });
        Self { address, asked }
    }
}

fn read_head(mut stream: TcpStream) -> io::Result<(TcpStream, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok((stream, String::from_utf8_lossy(&head).into_owned()))
}

/// A gateway with the right outboard of an archive, and a wrong bit in every range of it.
///
/// # Panics
/// When the bytes are no blob.
pub fn lying(archive: Vec<u8>) -> Server {
    let size = archive.len();
    let (_, outboard) = blocks::outboard(&archive[..], size as u64).expect("a slice reads");
    Server::start(move |mut stream, head, asked| {
        let range = head.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("range: bytes=")
                .map(str::to_owned)
        });
        let Some((first, last)) = range.as_deref().and_then(parse_range) else {
            let length = outboard.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            )?;
            return stream.write_all(&outboard);
        };
        asked.fetch_add(1, Ordering::SeqCst);
        let mut part = archive[first..=last].to_vec();
        part[0] ^= 1;
        let length = part.len();
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        )?;
        stream.write_all(&part)
    })
}

fn parse_range(text: &str) -> Option<(usize, usize)> {
    let (first, last) = text.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// What a gateway in between makes of an answer.
#[derive(Debug)]
pub enum Between {
    /// This body.
    Body(Vec<u8>),
    /// Bytes without end.
    Endless,
}

/// A gateway that asks another one and changes the bodies of its answers, by the path that was asked for.
pub fn between(
    upstream: &str,
    change: impl Fn(&str, Vec<u8>) -> Between + Send + Sync + 'static,
) -> Server {
    let upstream = upstream.to_owned();
    Server::start(move |mut stream, head, asked| {
        asked.fetch_add(1, Ordering::SeqCst);
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut there = TcpStream::connect(&upstream)?;
        let once = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        there.write_all(once.as_bytes())?;
        let mut answer = Vec::new();
        there.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = answer.split_off(end.map_or(answer.len(), |end| end + 4));
        let lines = String::from_utf8_lossy(&answer).into_owned();
        let kept = lines.lines().filter(|line| {
            let line = line.to_ascii_lowercase();
            !line.is_empty()
                && !line.starts_with("content-length")
                && !line.starts_with("connection")
        });
        let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
        match change(&path, body) {
            Between::Body(body) => {
                let length = body.len();
                write!(
                    stream,
                    "{kept}Content-Length: {length}\r\nConnection: close\r\n\r\n"
                )?;
                stream.write_all(&body)
            }
            Between::Endless => {
                write!(stream, "{kept}Connection: close\r\n\r\n")?;
                loop {
                    stream.write_all(&[0; 16 << 10])?;
                }
            }
        }
    })
}

/// Makes a certificate for 127.0.0.1 that vouches for itself: `own.pem`, its `key.pem`, and
/// `trusted.pem`, which has those that the registry is known by as well. `None` where openssl is not
/// installed.
///
/// # Panics
/// When it cannot be written.
pub fn certificate(dir: &Path) -> Option<()> {
    let curve = "ec_paramgen_curve:P-256";
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", curve])
        .args(["-nodes", "-days", "2", "-subj", "/CN=a test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("own.pem"))
        .stderr(Stdio::null())
        .status();
    assert!(made.ok()?.success(), "openssl made no certificate");
    let mut trusted = fs::read("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    trusted.extend(fs::read(dir.join("own.pem")).expect("a certificate"));
    fs::write(dir.join("trusted.pem"), trusted).expect("a file");
    Some(())
}

/// A proxy that connects as it is told to.
pub fn proxy() -> Server {
    Server::start(|mut stream, head, asked| {
        let Some(to) = head
            .strip_prefix("CONNECT ")
            .and_then(|rest| rest.split(' ').next())
        else {
            return write!(stream, "HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n");
        };
        asked.fetch_add(1, Ordering::SeqCst);
        let there = TcpStream::connect(to)?;
        write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
        let (mut from, mut into) = (stream.try_clone()?, there.try_clone()?);
        let up = thread::spawn(move || {
            let copied = io::copy(&mut from, &mut into);
            let _ = into.shutdown(Shutdown::Write);
            copied
        });
        let _ = io::copy(&mut { there }, &mut stream);
        let _ = stream.shutdown(Shutdown::Both);
        let _ = up.join();
        Ok(())
    })
}

/// Gives out the files of a directory.
pub fn files(directory: &Path) -> Server {
    let directory = directory.to_owned();
    Server::start(move |mut stream, head, asked| {
        asked.fetch_add(1, Ordering::SeqCst);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let (status, body) = match fs::read(directory.join(path.trim_start_matches('/'))) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        )?;
        stream.write_all(&body)
    })
}
