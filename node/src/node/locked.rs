//! Carries out a fetch of what a lock pins: its own proof decides, and only the artifact is asked for.

use std::sync::Arc;

use qk_protocol::bundle::{Bundle, BundleError};
use qk_protocol::candidate::Candidate;
use qk_protocol::decide::{Decision, Held, Trusted};
use qk_protocol::fetch::{Decided, Fetch, Want};
use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::policy::Policy;
use qk_protocol::statement::Subject;
use serde::{Deserialize, Serialize};

use super::fetch::{
    FetchError, FetchEvent, Fetched, From, Got, LAN_PATIENCE, OnEvent, Stages, not_trusted,
};
use super::here::archive;
use super::looking::Looking;
use super::member::{Member, unix_now};
use super::shelf::StoreShelf;
use super::{Node, NodeError};
use crate::manners::Whose;
use crate::store::Store;

/// Named nodes that are asked for the artifact before it is looked up who has it.
const NAMED_MAX: usize = 4;

/// What a lock pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedSpec {
    /// The proof, as a bundle's text.
    pub bundle: String,
    /// The artifact that it has to prove.
    pub subject: Subject,
    /// Use only what is here.
    pub offline: bool,
    /// A policy of the project that asks; it can only make the owner's stricter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// Why a lock does not lead to an artifact.
#[derive(Debug, thiserror::Error)]
pub enum LockedError {
    /// The proof.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It proves something else.
    #[error("its proof is of {proven}, and not of {pinned}, which the lock names")]
    OtherArtifact {
        /// What it proves.
        proven: Root,
        /// What the lock says.
        pinned: Root,
    },
    /// Its network is not joined here.
    #[error("its proof is of network {0}, which is not joined here")]
    NotJoined(NetworkId),
}

impl Node {
    /// Fetches what a lock pins into the store, if its bundle proves it. Nobody is asked for statements: ages
    /// are judged as the bundle says, and what is known here takes back what it took back, be it by a
    /// newer manifest or by statements in the store.
    ///
    /// # Errors
    /// See [`FetchError`]; [`FetchError::Locked`] where the bundle does not verify, or proves something else.
    pub async fn fetch_locked(
        &self,
        spec: &LockedSpec,
        on_event: OnEvent<'_>,
    ) -> Result<Fetched, FetchError> {
        let mut clock = Stages::new();
        let text = spec.bundle.clone();
        let parsed = tokio::task::spawn_blocking(move || Bundle::parse(text.as_bytes())).await;
        let bundle = parsed
            .map_err(|_| NodeError::Stopping)?
            .map_err(LockedError::from)?;
        let id = bundle.network().id();
        let member = self.member(id).map_err(|_| LockedError::NotJoined(id))?;
        self.check_accepted(&member)?;
        let policy = match &spec.policy {
            Some(project) => self.policy(&member).stricter(project),
            None => self.policy(&member),
        };
        let release = bundle.key().release();
        let point = release.location(member.key()).point();
        let root = spec.subject.root;
        let look = move |store: &Store| {
            let held = StoreShelf { store, network: id }.held(point);
            Ok((held, archive(store, root)?))
        };
        let (held, here) = match self.door().is_begun() {
            true => self.blocking(look).await?,
            false => (Vec::new(), None),
        };
        let (decided, trusted) = judge(&bundle, &member, &policy, &held, spec.subject)?;
        clock.end("decide");
        let done = |path, from, providers: Vec<super::Share>, clock: Stages| Fetched {
            network: id,
            blocks_verified: spec.subject.size.div_ceil(qk_protocol::blocks::BLOCK_BYTES),
            trusted: trusted.clone(),
            archive: path,
            decided: decided.clone(),
            from,
            fetched_bytes: providers.iter().map(|share| share.bytes).sum(),
            providers,
            stages: clock.stages,
        };
        if let Some(path) = here {
            return Ok(done(path, From::Store, Vec::new(), clock));
        }
        if spec.offline {
            return Err(FetchError::NotHere(root));
        }
        self.up(&member).await?;
        let want = Want {
            network: Arc::new(member.joined().network.clone()),
            network_key: *member.key(),
            policy,
            hidden: None,
            own: None,
            candidates: vec![Candidate::of(bundle.key())],
        };
        let got = self.have(&member, &want, &trusted, on_event).await?;
        clock.end("download");
        let (finished, providers) = match got {
            Got::Here(path) => return Ok(done(path, From::Store, Vec::new(), clock)),
            Got::Downloaded(finished, providers) => (Some(finished), providers),
            Got::Nothing => (None, Vec::new()),
        };
        self.keep(&member, bundle.statements().to_vec()).await?;
        let path = self
            .adopt(finished, root)
            .await?
            .ok_or(NodeError::Stopping)?;
        clock.end("adopt");
        self.share_fetched(&member, point, root);
        Ok(done(path, From::Network, providers, clock))
    }

    /// Downloads an artifact: from nodes that are named here, parents first, or else from whoever is found to
    /// have it.
    async fn have(
        &self,
        member: &Arc<Member>,
        want: &Want,
        trusted: &Trusted,
        on_event: OnEvent<'_>,
    ) -> Result<Got, FetchError> {
        let release = &want.candidates[0].release;
        let point = release.location(member.key()).point();
        member.await_lan(LAN_PATIENCE).await;
        let parents = member.parents().await;
        let seeds = member.seeds(point).await;
        let named = seeds.into_iter().take(parents.len() + NAMED_MAX).collect();
        let looking = |parents| {
            let machine = Fetch::new(want.clone(), Vec::new()).ok_or(FetchError::NoNetwork)?;
            Ok::<_, FetchError>(Looking::new(member.clone(), machine, parents))
        };
        // That one of these lacks it is not worth a line.
        let quiet = |event: FetchEvent| match event {
            FetchEvent::ProviderFailed { banned: false, .. } => {}
            event => on_event(event),
        };
        let mut without = looking(parents)?;
        let got = self.download(&mut without, named, trusted, Whose::Owner, &quiet);
        let error = match got.await {
            Err(error @ FetchError::Download { .. }) => error,
            got => return got,
        };
        // As hidden as any other look-up.
        let found = self.look_up(member, release).await?.providers.into_iter();
        let having = found.filter(|one| one.root == trusted.subject.root);
        let having: Vec<_> = having.map(|one| one.contact).collect();
        if having.is_empty() {
            return Err(error);
        }
        let mut without = looking(Vec::new())?;
        self.download(&mut without, having, trusted, Whose::Owner, on_event)
            .await
    }
}

/// What the bundle comes to here and now.
fn judge(
    bundle: &Bundle,
    member: &Member,
    policy: &Policy,
    held: &[Held],
    pinned: Subject,
) -> Result<(Decided, Trusted), FetchError> {
    let joined = member.joined();
    let checked = bundle.decide_knowing(Some(&joined.network), Some(policy), held, unix_now());
    let checked = checked.map_err(LockedError::from)?;
    let verdict = checked.decisive().clone();
    let decided = Decided {
        candidate: 0,
        verdict,
        statements: bundle.statements().to_vec(),
        answered: 0,
        known: 0,
    };
    let trusted = match &decided.verdict.decision {
        Decision::Trusted(trusted) => (**trusted).clone(),
        _ => return Err(not_trusted(member, decided)),
    };
    if trusted.subject != pinned {
        let (proven, pinned) = (trusted.subject.root, pinned.root);
        return Err(LockedError::OtherArtifact { proven, pinned }.into());
    }
    Ok((decided, trusted))
}
