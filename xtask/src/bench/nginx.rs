//! nginx over HTTPS, and curl that trusts its certificate.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bench::sample;
use crate::cargo;

/// More than nginx takes to listen, on a machine that is busy.
const START_MAX: Duration = Duration::from_secs(20);

/// nginx that gives out the files of one directory, until it is dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    dir: PathBuf,
    host: IpAddr,
    port: u16,
}

impl Nginx {
    /// Starts it on a free port of `host`, with a certificate of its own; what it needs is put into
    /// `dir`, which is new.
    ///
    /// # Errors
    /// When openssl or nginx cannot be started, or nginx does not listen.
    pub fn start(files: &Path, dir: &Path, host: IpAddr) -> Result<Self> {
        std::fs::create_dir(dir)?;
        cargo::run_aside(
            Command::new("openssl")
                .args([
                    "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                ])
                .args(["-subj", "/CN=qk"])
                .args(["-addext", &format!("subjectAltName=IP:{host}")])
                .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                .args(["-keyout", "key.pem", "-out", "cert.pem"])
                .current_dir(dir)
                .stdin(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let port = TcpListener::bind((host, 0))?.local_addr()?.port();
        let configuration = configuration(files, dir, host, port);
        std::fs::write(dir.join("nginx.conf"), configuration)?;
        let child = Command::new("nginx")
            .arg("-p")
            .arg(dir)
            .args(["-e", "error.log", "-c", "nginx.conf"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nginx")?;
        let nginx = Self {
            child,
            dir: dir.to_owned(),
            host,
            port,
        };
        nginx.wait()?;
        Ok(nginx)
    }

    /// The address of one of the files.
    pub fn url(&self, file: &str) -> String {
        format!("https://{}:{}/{file}", self.host, self.port)
    }

    /// Its certificate, which vouches for itself, as PEM.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    /// The certificate's key, as PEM.
    pub fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }

    /// `curl` of one file into another.
    pub fn curl(&self, file: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(self.certificate())
            .arg(self.url(file))
            .stdin(Stdio::null());
        curl
    }

    /// Processor seconds of its worker so far.
    ///
    /// # Errors
    /// When `/proc` does not say.
    pub fn cpu(&self) -> Result<f64> {
        let master = self.child.id();
        let path = format!("/proc/{master}/task/{master}/children");
        let workers = std::fs::read_to_string(path)?;
        let workers = workers.split_whitespace();
        workers.map(|worker| sample::cpu_of(worker.parse()?)).sum()
    }

    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < START_MAX {
            if TcpStream::connect((self.host, self.port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = std::fs::read_to_string(self.dir.join("error.log")).unwrap_or_default();
        bail!("nginx does not listen: {}", log.trim())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker only when it is told to end, not when it is killed.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").arg(&id).status();
        let _ = self.child.wait();
    }
}

/// What curl says about how long the transfer took, without its own start and end.
///
/// # Errors
/// When it fails; what it said is in the message.
pub fn seconds(curl: &mut Command, into: &Path) -> Result<f64> {
    curl.arg("--output").arg(into);
    let output = curl.args(["--write-out", "%{time_total}"]).output()?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        cargo::describe(curl),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let total = String::from_utf8(output.stdout)?;
    total
        .parse()
        .with_context(|| format!("curl took {total:?}"))
}

/// As Debian ships it (sendfile, one worker a connection), with everything it writes in one place.
fn configuration(files: &Path, dir: &Path, host: IpAddr, port: u16) -> String {
    let (files, dir) = (files.display(), dir.display());
    // Its worker would otherwise be a user who may not read what this one made.
    let user = match rustix::process::geteuid().is_root() {
        true => "user root;",
        false => "",
    };
    format!(
        "{user} daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;
        events {{ worker_connections 64; }}
        http {{
            access_log off; sendfile on; tcp_nopush on; types {{ }}
            client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
            uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
            server {{
                listen {host}:{port} ssl;
                ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;
                root {files};
            }}
        }}
        "
    )
}
