//! Who is at the other end of the control socket, and what they may ask.
//!
//! A user's own node answers its user and root. A node of the whole system also answers the members
//! of one group: that they could open the socket, which has mode 0660 and that group, is the
//! kernel's word that they belong to it. They may fetch and query; what is trusted, kept and told is
//! the administrator's, who is whoever the node runs as, or root.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use tokio::net::UnixStream;

use super::server::Guarded;
use super::{Problem, ProblemKind};

/// Bytes of `/etc/group` that are looked through.
const GROUPS_BYTES_MAX: u64 = 1 << 20;

/// What a member of the group may ask; whatever is not named here is the administrator's. A path
/// that ends in `/` stands for all below it.
const OF_MEMBERS: [(Method, &str); 8] = [
    (Method::GET, "/status"),
    (Method::GET, "/peers"),
    (Method::GET, "/store"),
    (Method::GET, "/archive/"),
    (Method::POST, "/fetch"),
    (Method::POST, "/fetch-locked"),
    (Method::POST, "/find"),
    (Method::POST, "/search"),
];

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// The user that the node runs as, or root.
    Administrator,
    /// Anybody else who could open the socket.
    Member,
}

impl Peer {
    /// Who it is; `None` where the kernel does not say.
    pub(super) fn of(stream: &UnixStream) -> Option<Self> {
        let uid = stream.peer_cred().ok()?.uid();
        Some(match may_ask(uid, own_uid()) {
            true => Self::Administrator,
            false => Self::Member,
        })
    }

    fn may(self, method: &Method, path: &str) -> bool {
        let named = |(of, allowed): &(Method, &str)| {
            of == method
                && match allowed.ends_with('/') {
                    true => path.starts_with(allowed),
                    false => path == *allowed,
                }
        };
        match self {
            Self::Administrator => true,
            Self::Member => OF_MEMBERS.iter().any(named),
        }
    }
}

impl Connected<IncomingStream<'_, Guarded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        *stream.remote_addr()
    }
}

/// Refuses what this peer may not ask, before anything of it is read.
pub(super) async fn admit(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.may(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    let message = format!(
        "{} {} is for the administrator of this node: members of its group may fetch and query; \
         ask root, or whoever the node runs as",
        request.method(),
        request.uri().path()
    );
    tracing::warn!(method = %request.method(), path = request.uri().path(), "refused a member of the group");
    Problem::new(ProblemKind::NotAllowed, message).into_response()
}

pub(super) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub(super) fn may_ask(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// Whether the node at the other end is this user's own, or root's.
pub(super) fn is_ours(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| may_ask(peer.uid(), own_uid()))
}

/// Whether whoever serves a socket of many users may: the directory that it lies in is theirs, and
/// nobody else but root can put a socket there.
pub(super) fn is_in_its_place(stream: &UnixStream, socket: &Path) -> bool {
    let Some(dir) = socket.parent().and_then(|dir| fs::metadata(dir).ok()) else {
        return false;
    };
    let Ok(server) = stream.peer_cred() else {
        return false;
    };
    let closed = dir.mode() & 0o022 == 0;
    closed && dir.uid() == server.uid()
}

/// The number of a group of this machine, by name or by its number.
///
/// # Errors
/// When there is none.
pub(super) fn group(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let mut groups = String::new();
    let file = fs::File::open("/etc/group")?;
    io::Read::read_to_string(&mut io::Read::take(file, GROUPS_BYTES_MAX), &mut groups)?;
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let named = fields.next() == Some(name);
        named.then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| {
        let why = format!("there is no group {name}: `groupadd --system {name}` makes it");
        io::Error::new(io::ErrorKind::NotFound, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_fetch_and_query_and_nothing_else() {
        let asked = [
            (Method::GET, "/status"),
            (Method::GET, "/archive/00"),
            (Method::POST, "/fetch"),
            (Method::POST, "/find"),
        ];
        for (method, path) in asked {
            assert!(Peer::Member.may(&method, path), "{path}");
        }
        let refused = [
            (Method::POST, "/status"),
            (Method::POST, "/store/gc"),
            (Method::POST, "/store/pin"),
            (Method::POST, "/publish"),
            (Method::POST, "/reload"),
            (Method::POST, "/announce"),
            (Method::POST, "/whatever/comes/next"),
            (Method::GET, "/fetch/.."),
        ];
        for (method, path) in refused {
            assert!(!Peer::Member.may(&method, path), "{path}");
            assert!(Peer::Administrator.may(&method, path), "{path}");
        }
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group("root").unwrap(), 0);
        assert_eq!(group("4711").unwrap(), 4711);
        assert!(group("no-such-group").is_err());
    }
}
