//! A node of this process: it takes part in a lab's network over the same libp2p as `qk` does, but
//! answers as a test wants it to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use qk_node::blocks::behaviour::OnLane;
use qk_node::net::{Contact, Keypair, Limits, Multiaddr, NatConfig, Net, NetConfig};
use qk_protocol::blocks::{self, Blob, Encoding, REQUEST_HEAD_BYTES, Status};
use qk_protocol::hash::{NetworkId, NetworkKey, Point, Root};
use qk_protocol::key::Release;
use qk_protocol::message::{self, Answer, Have, Reply, Request};
use serde_bytes::ByteBuf;

use crate::lab::PATIENCE;

/// How long one question may take.
const ASK_TIME: Duration = Duration::from_secs(20);

/// A node of this process.
#[derive(Debug)]
pub struct Peer {
    net: Net,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
    says: Arc<Mutex<Vec<u8>>>,
    drops: Arc<AtomicBool>,
    names: Arc<Mutex<Named>>,
}

/// Whom a node names to those who ask about another point than one.
#[derive(Debug, Default)]
struct Named {
    closer: Vec<message::Contact>,
    hidden: Option<Point>,
}

impl Peer {
    /// Starts one that listens on a free port of loopback and knows nothing: it answers every
    /// request with "no statements" and remembers the request. `on_lane` serves blocks.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(network: NetworkId, on_lane: Option<OnLane>) -> Self {
        Self::start_at(
            "/ip4/127.0.0.1/tcp/0",
            Keypair::generate_ed25519(),
            network,
            on_lane,
        )
        .await
    }

    /// Starts one that listens nowhere and only asks.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn asking(network: NetworkId) -> Self {
        Self::start_on(&[], Keypair::generate_ed25519(), network, None).await
    }

    /// As [`start`](Self::start), at an address and with a key that were chosen before.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_at(
        listen: &str,
        identity: Keypair,
        network: NetworkId,
        on_lane: Option<OnLane>,
    ) -> Self {
        Self::start_on(&[listen], identity, network, on_lane).await
    }

    async fn start_on(
        listen: &[&str],
        identity: Keypair,
        network: NetworkId,
        on_lane: Option<OnLane>,
    ) -> Self {
        let config = NetConfig {
            identity,
            network,
            listen: listen
                .iter()
                .map(|one| one.parse().expect("an address"))
                .collect(),
            external: Vec::new(),
            bootstrap: Vec::new(),
            server: !listen.is_empty(),
            nat: NatConfig::default(),
            lan: None,
            pre_shared: None,
            quic: false,
            allow_private: true,
            limits: Limits::server(),
        };
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remembered = asked.clone();
        let says = Arc::new(Mutex::new(nothing().encode()));
        let said = says.clone();
        let drops = Arc::new(AtomicBool::default());
        let dropping = drops.clone();
        let names = Arc::new(Mutex::new(Named::default()));
        let naming = names.clone();
        let answer = move |_, _, request: Vec<u8>| {
            let dropped = match dropping.load(Ordering::SeqCst) {
                true => taken(&request),
                false => None,
            };
            let named = || naming.lock().expect("no panic").answer(&request);
            let other = dropped.or_else(named);
            remembered.lock().expect("no panic").push(request);
            let answer = other.unwrap_or_else(|| said.lock().expect("no panic").clone());
            async { answer }
        };
        let net = Net::start(config, answer, on_lane).await.expect("a node");
        Self {
            net,
            asked,
            says,
            drops,
            names,
        }
    }

    /// From now on it answers every request with this.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn says(&self, answer: Answer) {
        let reply = Reply {
            closer: Vec::new(),
            answer,
        };
        *self.says.lock().expect("no panic") = reply.encode();
    }

    /// From now on it says that it took every statement that is put here, and shows it to nobody.
    pub fn drops(&self) {
        self.drops.store(true, Ordering::SeqCst);
    }

    /// From now on it names these nodes to who asks about any other point than the hidden one, as an honest
    /// node names those it knows.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn names(&self, closer: Vec<message::Contact>, hidden: Point) {
        let hidden = Some(hidden);
        *self.names.lock().expect("no panic") = Named { closer, hidden };
    }

    /// Its network side.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Where it listens, with its peer id.
    ///
    /// # Panics
    /// When it has ended.
    pub async fn address(&self) -> String {
        let addrs = self.net.listen_addrs().await.expect("it runs");
        format!("{}/p2p/{}", addrs[0], self.net.local_peer())
    }

    /// Every request that it was sent, as the bytes that came.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.lock().expect("no panic").clone()
    }

    /// Whether any request has anything about a release in it: its name, its registry, its place in the
    /// network of this key, or a statement.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn was_told_of(&self, release: &Release, key: &NetworkKey) -> bool {
        let location = release.location(key);
        let needles: [&[u8]; 4] = [
            &location.0,
            &location.point().0,
            release.name.as_bytes(),
            release.registry.as_bytes(),
        ];
        let has = |request: &Vec<u8>, needle: &[u8]| {
            let mut parts = request.windows(needle.len());
            parts.any(|part| part == needle)
        };
        let asked = self.asked();
        let mut asked = asked.iter();
        asked.any(|request| needles.iter().any(|needle| has(request, needle)))
            || self.was_given(release)
    }

    /// Whether a statement about a release was put here; statements are packed in base64.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn was_given(&self, release: &Release) -> bool {
        let asked = self.asked().into_iter();
        let mut requests = asked.filter_map(|bytes| Request::decode(&bytes).ok());
        requests.any(|request| match request.message {
            Request::Put(statements) => {
                statements.iter().any(|one| one.key().release() == *release)
            }
            _ => false,
        })
    }

    /// Asks the node at an address; `None` where it gives no answer.
    pub async fn ask(&self, address: &str, request: &Request) -> Option<Reply> {
        let address: Multiaddr = address.parse().expect("an address");
        let contact: Contact = self
            .net
            .name(&address)
            .expect("an address that names its node");
        let bytes = self
            .net
            .ask(contact, request.encode(), ASK_TIME)
            .await
            .ok()?;
        Reply::decode(&bytes).ok().map(|decoded| decoded.message)
    }

    /// Tells the node at an address that this one has a root.
    ///
    /// # Panics
    /// When it is not believed.
    pub async fn announce(&self, address: &str, point: Point, root: Root) {
        let addrs = self.net.listen_addrs().await.expect("it runs");
        let told = self.claim(address, point, root, &addrs).await;
        let taken = Answer::Taken {
            taken: 1,
            refused: 0,
        };
        assert_eq!(told.map(|reply| reply.answer), Some(taken));
    }

    /// Tells the node at an address that this one has a root, and can be reached at addresses of its
    /// choice.
    ///
    /// # Panics
    /// When there is no answer, not even that it does not believe this.
    pub async fn claim(
        &self,
        address: &str,
        point: Point,
        root: Root,
        addrs: &[Multiaddr],
    ) -> Option<Reply> {
        let addrs = addrs.iter().map(|addr| ByteBuf::from(addr.to_vec()));
        let have = Request::Have(Have {
            roots: vec![(point, root)],
            addrs: addrs.collect(),
        });
        let asked = tokio::time::timeout(PATIENCE, self.ask(address, &have));
        asked.await.expect("in time")
    }
}

impl Named {
    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let hidden = self.hidden?;
        let Request::Get(get) = Request::decode(request).ok()?.message else {
            return None;
        };
        let closer = self.closer.clone();
        (get.point != hidden).then(|| {
            Reply {
                closer,
                ..nothing()
            }
            .encode()
        })
    }
}

/// The answer of who took all statements of a `Put`; nothing for other requests.
fn taken(request: &[u8]) -> Option<Vec<u8>> {
    let Request::Put(statements) = Request::decode(request).ok()?.message else {
        return None;
    };
    let reply = Reply {
        closer: Vec::new(),
        answer: Answer::Taken {
            taken: u32::try_from(statements.len()).ok()?,
            refused: 0,
        },
    };
    Some(reply.encode())
}

fn nothing() -> Reply {
    Reply {
        closer: Vec::new(),
        answer: Answer::Statements {
            statements: Vec::new(),
            providers: Vec::new(),
            next: None,
        },
    }
}

/// A provider of `bytes` that flips a bit of everything that it sends; `asked` says whether it was.
///
/// # Panics
/// When `bytes` are no blob.
pub fn lying(bytes: Vec<u8>, asked: Arc<AtomicBool>) -> OnLane {
    // The last byte is one of the blob's: every hash above it is right, and it is not.
    serving(bytes, asked, |wire| {
        *wire.last_mut().expect("a block") ^= 4;
    })
}

/// A provider of `bytes`, as honest as any.
///
/// # Panics
/// When `bytes` are no blob.
pub fn giving(bytes: Vec<u8>) -> OnLane {
    serving(bytes, Arc::default(), |_| ())
}

fn serving(bytes: Vec<u8>, asked: Arc<AtomicBool>, change: fn(&mut Vec<u8>)) -> OnLane {
    let (blob, tree) = blocks::outboard(&bytes[..], bytes.len() as u64).expect("a slice reads");
    let given = Arc::new((bytes, tree, blob));
    Arc::new(move |_, stream| {
        let (given, asked) = (given.clone(), asked.clone());
        tokio::spawn(async move {
            asked.store(true, Ordering::SeqCst);
            // An error is the reader's good right: it leaves a liar, or has all that it wants.
            let _ = serve(stream, &given, change).await;
        });
    })
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    (bytes, tree, blob): &(Vec<u8>, Vec<u8>, Blob),
    change: fn(&mut Vec<u8>),
) -> std::io::Result<()> {
    loop {
        let mut request = vec![0; REQUEST_HEAD_BYTES];
        stream.read_exact(&mut request).await?;
        let head = request[..].try_into().expect("a head");
        let rest = blocks::Request::rest_bytes(&head).map_err(std::io::Error::other)?;
        request.resize(REQUEST_HEAD_BYTES + rest, 0);
        stream
            .read_exact(&mut request[REQUEST_HEAD_BYTES..])
            .await?;
        let request = blocks::Request::decode(&request).map_err(std::io::Error::other)?;
        if request.encoding != Encoding::Raw {
            stream.write_all(&[Status::NotSpoken.byte()]).await?;
            stream.flush().await?;
            continue;
        }
        let wire = blocks::encode(blob, &request.ranges, &bytes[..], &tree[..]);
        let mut wire = wire.map_err(std::io::Error::other)?;
        change(&mut wire);
        stream.write_all(&[Status::Ok.byte()]).await?;
        stream.write_all(&wire).await?;
        stream.flush().await?;
    }
}
