//! Statements: what somebody signed about an artifact key.
//!
//! A statement is an in-toto Statement v1 in a DSSE envelope with exactly one ed25519 signature. A
//! value of type [`Statement`] has been verified: there is no other way to make one than
//! [`Statement::read`], which [`Statement::sign`] goes through as well.

use std::collections::BTreeMap;
use std::fmt;

use ed25519_dalek::SigningKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::canonical::{self, CanonicalError};
use crate::dsse::{self, DsseError};
use crate::hash::{Blake3, Fields, KeyId, NetworkId, PublicKey, Root, Sha256, StatementId, Work};
use crate::key::{ArtifactKey, KeyError};
use crate::time::UnixTime;

/// An envelope may be this long.
pub const STATEMENT_BYTES_MAX: usize = 16 * 1024;
/// Longest text in an environment, and longest list of tools.
pub const ENVIRONMENT_TEXT_BYTES_MAX: usize = 128;
/// Most tools that an environment names.
pub const ENVIRONMENT_TOOLS_MAX: usize = 32;
/// Longest text that explains a failure or a retraction.
pub const DETAIL_BYTES_MAX: usize = 1024;
/// Most earlier statements whose `work` one observation speaks about.
pub const WORK_CHECKS_MAX: usize = 64;
/// Largest artifact that a statement may speak about.
pub const ARTIFACT_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const OBSERVATION: &str = "urn:qk:predicate:observation:v1";
const FAILURE: &str = "urn:qk:predicate:failure:v1";
const RETRACTION: &str = "urn:qk:predicate:retraction:v1";

/// A verified statement and the exact envelope that it was read from.
#[derive(Clone, PartialEq, Eq)]
pub struct Statement {
    id: StatementId,
    envelope: Vec<u8>,
    network: NetworkId,
    observer: PublicKey,
    key: ArtifactKey,
    key_id: KeyId,
    body: Body,
}

/// What is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// "I built the key and got this artifact."
    Observation(Observation),
    /// "I tried and could not build." Never counts for or against a root.
    Failure(Failure),
    /// "I take that statement of mine back."
    Retraction(Retraction),
}

/// What somebody got from building a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The artifact.
    pub subject: Subject,
    /// As whom the observer built.
    pub role: Role,
    /// Where it was built.
    pub environment: Environment,
    /// BLAKE3 of the build log.
    pub log: Blake3,
    /// When the build began.
    pub started: UnixTime,
    /// When it ended.
    pub finished: UnixTime,
    /// The work digest, where the observer made one.
    pub work: Option<Work>,
    /// Whether the `work` of earlier observations of the same root is right.
    pub work_checks: BTreeMap<StatementId, bool>,
}

/// An artifact, named by both digests and its size. Two are the same only if all three are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Subject {
    /// BLAKE3 of the archive.
    pub root: Root,
    /// SHA-256 of the archive.
    pub sha256: Sha256,
    /// Bytes of the archive.
    pub size: u64,
}

/// As whom an observer built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// First, to put the artifact into the network.
    Publisher,
    /// To check what others state.
    Verifier,
}

/// Where something was built. Recorded for people who look into a difference; decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Distribution and version.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Versions of the tools that took part.
    pub tools: BTreeMap<String, String>,
    /// Kind of sandbox.
    pub sandbox: String,
    /// Processors that the build could use.
    pub cpus: u32,
}

/// A build that did not come to an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its class.
    pub reason: Reason,
    /// One line for people.
    pub detail: String,
    /// Where it was tried.
    pub environment: Environment,
    /// BLAKE3 of the build log, if the build got that far.
    pub log: Option<Blake3>,
    /// When the build began.
    pub started: UnixTime,
    /// When it ended.
    pub finished: UnixTime,
}

/// Why a build failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A library of the system that no sandbox has.
    MissingSystemLibrary,
    /// The compiler said no.
    CompileError,
    /// Out of wall or processor time.
    TimeOut,
    /// Out of memory.
    OutOfMemory,
    /// The packaged `Cargo.lock` does not fit the manifest.
    StaleLock,
    /// The package has no executables with these features.
    NoBinaries,
    /// Anything else.
    Other,
}

/// Takes back an earlier statement by the same observer about the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retraction {
    /// Which statement.
    pub retracts: StatementId,
    /// Why, for people.
    pub detail: String,
    /// When.
    pub at: UnixTime,
}

/// Why bytes are no statement.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The envelope is wrong, or its signature.
    #[error("statement: {0}")]
    Envelope(#[from] DsseError),
    /// The payload is not canonical JSON of the expected shape.
    #[error("statement: payload: {0}")]
    Payload(#[from] CanonicalError),
    /// Not an in-toto statement of a type known here.
    #[error("statement: {member} is {got:?}, which is not known here")]
    Type {
        /// `_type` or `predicateType`.
        member: &'static str,
        /// The beginning of its value.
        got: String,
    },
    /// The artifact key in it is unusable.
    #[error("statement: {0}")]
    Key(#[from] KeyError),
    /// `key_id` is not the id of `key`.
    #[error("statement: key_id is {got}, but the key's id is {expected}")]
    KeyId {
        /// What it says.
        got: KeyId,
        /// What it should say.
        expected: KeyId,
    },
    /// The payload names another observer than the one who signed.
    #[error("statement: names observer {observer}, but {signer} signed it")]
    Observer {
        /// In the payload.
        observer: PublicKey,
        /// Who signed.
        signer: PublicKey,
    },
    /// Exactly one signature is expected.
    #[error("statement: {0} signatures, expected exactly one")]
    Signatures(usize),
    /// A member is out of bounds.
    #[error("statement: {0}")]
    Bounds(&'static str),
}

impl Statement {
    /// Reads an envelope of at most [`STATEMENT_BYTES_MAX`] bytes and verifies everything about it
    /// that needs no manifest: form, signature, observer, key and key id.
    ///
    /// # Errors
    /// For anything else; each reason has its own variant.
    pub fn read(envelope: &[u8]) -> Result<Self, StatementError> {
        let signed = dsse::verify(envelope, PAYLOAD_TYPE, STATEMENT_BYTES_MAX)?;
        let signer = match signed.signers.iter().collect::<Vec<_>>()[..] {
            [signer] => *signer,
            ref signers => return Err(StatementError::Signatures(signers.len())),
        };
        let payload = &signed.payload;
        let read = match predicate_type(payload)?.as_str() {
            OBSERVATION => read_payload::<ObservationJson>(payload)?,
            FAILURE => read_payload::<FailureJson>(payload)?,
            RETRACTION => read_payload::<RetractionJson>(payload)?,
            other => return Err(unknown("predicateType", other)),
        };
        let (about, body) = read;
        if about.observer != signer {
            return Err(StatementError::Observer {
                observer: about.observer,
                signer,
            });
        }
        about.key.check()?;
        let expected = about.key.id();
        if about.key_id != expected {
            return Err(StatementError::KeyId {
                got: about.key_id,
                expected,
            });
        }
        Ok(Self {
            id: statement_id(&signer, payload),
            envelope: envelope.to_vec(),
            network: about.network,
            observer: signer,
            key: about.key,
            key_id: expected,
            body,
        })
    }

    /// Makes and signs a statement.
    ///
    /// # Errors
    /// When `key` or `body` is out of the bounds that a reader checks.
    pub fn sign(
        network: NetworkId,
        key: ArtifactKey,
        body: Body,
        signer: &SigningKey,
    ) -> Result<Self, StatementError> {
        let about = About {
            network,
            observer: dsse::public_key(signer),
            key_id: key.id(),
            key,
        };
        let payload = match body {
            Body::Observation(observation) => {
                write_payload(ObservationJson::new(about, observation))?
            }
            Body::Failure(failure) => write_payload(FailureJson::new(about, failure))?,
            Body::Retraction(retraction) => write_payload(RetractionJson::new(about, retraction))?,
        };
        Self::read(&dsse::sign(PAYLOAD_TYPE, &payload, &[signer]))
    }

    /// `derive_key("qk statement v1", observer ‖ PAE)`, the PAE with its length before it.
    pub fn id(&self) -> StatementId {
        self.id
    }

    /// The envelope as it was read.
    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    /// The network that it speaks in.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The key that signed it.
    pub fn observer(&self) -> PublicKey {
        self.observer
    }

    /// The artifact key that it is about.
    pub fn key(&self) -> &ArtifactKey {
        &self.key
    }

    /// The id of that key.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// What it says.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The observation, if it is one.
    pub fn observation(&self) -> Option<&Observation> {
        match &self.body {
            Body::Observation(observation) => Some(observation),
            Body::Failure(_) | Body::Retraction(_) => None,
        }
    }
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statement")
            .field("id", &self.id)
            .field("observer", &self.observer)
            .field("key_id", &self.key_id)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// The members that every predicate has.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct About {
    network: NetworkId,
    observer: PublicKey,
    key: ArtifactKey,
    key_id: KeyId,
}

/// The layout of an in-toto Statement v1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InToto<P> {
    #[serde(rename = "_type")]
    type_: String,
    subject: Vec<SubjectJson>,
    predicate_type: String,
    predicate: P,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectJson {
    name: String,
    digest: BTreeMap<String, String>,
}

/// A predicate on the wire: what it says beside the subject, and what the subject must then be.
trait Predicate: Serialize + DeserializeOwned {
    const TYPE: &'static str;
    fn subject(&self) -> SubjectJson;
    fn into_parts(self) -> Result<(About, Body), StatementError>;
}

// `flatten` and `deny_unknown_fields` exclude each other; that unknown members are refused follows
// from `canonical::from_bytes`, which writes again what was read.
#[derive(Debug, Serialize, Deserialize)]
struct ObservationJson {
    #[serde(flatten)]
    about: About,
    artifact: Subject,
    role: Role,
    environment: Environment,
    log: Blake3,
    started: UnixTime,
    finished: UnixTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    work: Option<Work>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    work_checks: BTreeMap<StatementId, bool>,
}

impl ObservationJson {
    fn new(about: About, observation: Observation) -> Self {
        Self {
            about,
            artifact: observation.subject,
            role: observation.role,
            environment: observation.environment,
            log: observation.log,
            started: observation.started,
            finished: observation.finished,
            work: observation.work,
            work_checks: observation.work_checks,
        }
    }
}

impl Predicate for ObservationJson {
    const TYPE: &'static str = OBSERVATION;

    fn subject(&self) -> SubjectJson {
        let key = &self.about.key;
        SubjectJson {
            name: format!("{}-{}-{}.tar", key.name, key.version, key.target),
            digest: [
                ("blake3".to_owned(), self.artifact.root.to_string()),
                ("sha256".to_owned(), self.artifact.sha256.to_string()),
            ]
            .into(),
        }
    }

    fn into_parts(self) -> Result<(About, Body), StatementError> {
        check_environment(&self.environment)?;
        check_times(self.started, self.finished)?;
        if self.artifact.size == 0 || self.artifact.size > ARTIFACT_BYTES_MAX {
            return Err(StatementError::Bounds(
                "an artifact of no bytes or of more than 2 GiB",
            ));
        }
        if self.work_checks.len() > WORK_CHECKS_MAX {
            return Err(StatementError::Bounds("more than 64 work checks"));
        }
        let observation = Observation {
            subject: self.artifact,
            role: self.role,
            environment: self.environment,
            log: self.log,
            started: self.started,
            finished: self.finished,
            work: self.work,
            work_checks: self.work_checks,
        };
        Ok((self.about, Body::Observation(observation)))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct FailureJson {
    #[serde(flatten)]
    about: About,
    reason: Reason,
    detail: String,
    environment: Environment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<Blake3>,
    started: UnixTime,
    finished: UnixTime,
}

impl FailureJson {
    fn new(about: About, failure: Failure) -> Self {
        Self {
            about,
            reason: failure.reason,
            detail: failure.detail,
            environment: failure.environment,
            log: failure.log,
            started: failure.started,
            finished: failure.finished,
        }
    }
}

impl Predicate for FailureJson {
    const TYPE: &'static str = FAILURE;

    fn subject(&self) -> SubjectJson {
        let key = &self.about.key;
        SubjectJson {
            name: format!("{}-{}.crate", key.name, key.version),
            digest: [("sha256".to_owned(), key.flags.source.to_string())].into(),
        }
    }

    fn into_parts(self) -> Result<(About, Body), StatementError> {
        check_environment(&self.environment)?;
        check_times(self.started, self.finished)?;
        check_detail(&self.detail)?;
        let failure = Failure {
            reason: self.reason,
            detail: self.detail,
            environment: self.environment,
            log: self.log,
            started: self.started,
            finished: self.finished,
        };
        Ok((self.about, Body::Failure(failure)))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct RetractionJson {
    #[serde(flatten)]
    about: About,
    retracts: StatementId,
    detail: String,
    at: UnixTime,
}

impl RetractionJson {
    fn new(about: About, retraction: Retraction) -> Self {
        Self {
            about,
            retracts: retraction.retracts,
            detail: retraction.detail,
            at: retraction.at,
        }
    }
}

impl Predicate for RetractionJson {
    const TYPE: &'static str = RETRACTION;

    fn subject(&self) -> SubjectJson {
        SubjectJson {
            name: "statement".to_owned(),
            digest: [("qkStatementV1".to_owned(), self.retracts.to_string())].into(),
        }
    }

    fn into_parts(self) -> Result<(About, Body), StatementError> {
        check_detail(&self.detail)?;
        let retraction = Retraction {
            retracts: self.retracts,
            detail: self.detail,
            at: self.at,
        };
        Ok((self.about, Body::Retraction(retraction)))
    }
}

fn write_payload<P: Predicate>(predicate: P) -> Result<Vec<u8>, StatementError> {
    Ok(canonical::to_bytes(&InToto {
        type_: STATEMENT_TYPE.to_owned(),
        subject: vec![predicate.subject()],
        predicate_type: P::TYPE.to_owned(),
        predicate,
    })?)
}

fn read_payload<P: Predicate>(payload: &[u8]) -> Result<(About, Body), StatementError> {
    let statement: InToto<P> = canonical::from_bytes(payload, STATEMENT_BYTES_MAX)?;
    if statement.type_ != STATEMENT_TYPE {
        return Err(unknown("_type", &statement.type_));
    }
    if statement.subject != [statement.predicate.subject()] {
        return Err(StatementError::Bounds(
            "the subject is not the one that the predicate speaks of",
        ));
    }
    statement.predicate.into_parts()
}

/// Only the member that says how to read the rest.
fn predicate_type(payload: &[u8]) -> Result<String, StatementError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Peek {
        predicate_type: String,
    }
    let peek: Peek = serde_json::from_slice(payload).map_err(CanonicalError::from)?;
    Ok(peek.predicate_type)
}

fn statement_id(observer: &PublicKey, payload: &[u8]) -> StatementId {
    StatementId(
        Fields::derive("qk statement v1")
            .id(observer.as_bytes())
            .text(dsse::pae(PAYLOAD_TYPE, payload))
            .finish(),
    )
}

fn check_environment(environment: &Environment) -> Result<(), StatementError> {
    let tools = environment
        .tools
        .iter()
        .flat_map(|(name, version)| [name, version]);
    let mut texts = [&environment.os, &environment.kernel, &environment.sandbox]
        .into_iter()
        .chain(tools);
    if environment.tools.len() > ENVIRONMENT_TOOLS_MAX
        || texts.any(|text| {
            text.len() > ENVIRONMENT_TEXT_BYTES_MAX || text.chars().any(char::is_control)
        })
    {
        return Err(StatementError::Bounds(
            "an environment of more than 32 tools, or a text in it of more than 128 bytes or with control characters",
        ));
    }
    Ok(())
}

fn check_times(started: UnixTime, finished: UnixTime) -> Result<(), StatementError> {
    if started > finished {
        return Err(StatementError::Bounds("finished before it started"));
    }
    Ok(())
}

fn check_detail(detail: &str) -> Result<(), StatementError> {
    if detail.len() > DETAIL_BYTES_MAX || detail.chars().any(char::is_control) {
        return Err(StatementError::Bounds(
            "a detail of more than 1024 bytes or with control characters",
        ));
    }
    Ok(())
}

fn unknown(member: &'static str, got: &str) -> StatementError {
    StatementError::Type {
        member,
        got: got.chars().take(80).collect(),
    }
}

#[cfg(test)]
mod tests;
