//! The node that fetches: a look-up with a decision, then a transfer of what was decided.

use std::collections::BTreeMap;
use std::time::Duration;

use qk_protocol::blocks::{self, Blob, Request as BlocksRequest, Status, VerifyError};
use qk_protocol::decide::Decision;
use qk_protocol::fetch::{Decided, Fetch, FetchIn, FetchOut};
use qk_protocol::hash::Root;
use qk_protocol::message::{Contact, NodeId, Reply, Request};
use qk_protocol::time::{Machine, Now};
use qk_protocol::transfer::{In, Out, RangeEnd, Slot, Transfer, Why};

/// How the fetch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every block was verified and written.
    Done,
    Unproven,
    /// Another end, in words.
    Other(String),
}

/// What the client wants of the world.
#[derive(Debug)]
pub(crate) enum Action {
    Ask(NodeId, Request),
    Pull(NodeId, Slot, BlocksRequest),
}

#[derive(Debug)]
pub(crate) struct Client {
    fetch: Fetch,
    transfer: Option<Transfer<NodeId>>,
    pulls: BTreeMap<Slot, BlocksRequest>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) decided: Option<Box<Decided>>,
    /// What was written.
    pub(crate) file: Vec<u8>,
    pub(crate) bans: u64,
}

impl Client {
    pub(crate) fn new(fetch: Fetch) -> Self {
        Self {
            fetch,
            transfer: None,
            pulls: BTreeMap::new(),
            outcome: None,
            decided: None,
            file: Vec::new(),
            bans: 0,
        }
    }

    pub(crate) fn root(&self) -> Option<Root> {
        match &self.decided.as_ref()?.verdict.decision {
            Decision::Trusted(trusted) => Some(trusted.subject.root),
            Decision::Unproven(_)
            | Decision::Disputed { .. }
            | Decision::Stale { .. }
            | Decision::Blocked { .. } => None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        let transfer = self.transfer.as_ref().and_then(Machine::deadline);
        self.fetch.deadline().into_iter().chain(transfer).min()
    }

    pub(crate) fn start(&mut self, now: Now) -> Vec<Action> {
        self.look(FetchIn::Start(Vec::new()), now)
    }

    pub(crate) fn on_reply(&mut self, from: NodeId, reply: Reply, now: Now) -> Vec<Action> {
        self.look(FetchIn::Reply(from, reply), now)
    }

    pub(crate) fn on_tick(&mut self, now: Now) -> Vec<Action> {
        let mut actions = self.look(FetchIn::Tick, now);
        actions.extend(self.transfer_in(In::Tick, now));
        actions
    }

    pub(crate) fn on_late(&mut self, slot: Slot, now: Now) -> Vec<Action> {
        if self.pulls.remove(&slot).is_none() {
            return Vec::new();
        }
        self.transfer_in(In::Range(slot, RangeEnd::Failed(Why::Late)), now)
    }

    /// Verifies an answer and writes it. One to a range that was given up is not looked at.
    pub(crate) fn on_range(
        &mut self,
        slot: Slot,
        answer: Result<Vec<u8>, Status>,
        now: Now,
    ) -> Vec<Action> {
        let Some(request) = self.pulls.remove(&slot) else {
            return Vec::new();
        };
        let end = match answer {
            Ok(wire) => self.write(&request, &wire),
            Err(Status::Lacks) => RangeEnd::Failed(Why::Lacks),
            Err(Status::Busy) => RangeEnd::Failed(Why::Busy),
            Err(Status::NotSpoken) => RangeEnd::Failed(Why::NotSpoken),
            Err(Status::Ok | Status::BadRange) => RangeEnd::Failed(Why::Malformed),
        };
        self.transfer_in(In::Range(slot, end), now)
    }

    fn write(&mut self, request: &BlocksRequest, wire: &[u8]) -> RangeEnd {
        match blocks::verify(&request.blob, &request.ranges, wire) {
            Ok(verified) => {
                for (at, bytes) in verified.data() {
                    let at = usize::try_from(at).expect("the artifact is in memory");
                    self.file[at..at + bytes.len()].copy_from_slice(bytes);
                }
                RangeEnd::Verified {
                    received: u32::try_from(wire.len()).unwrap_or(u32::MAX),
                }
            }
            Err(VerifyError::Wrong { block, .. }) => RangeEnd::Failed(Why::Wrong(block)),
            Err(VerifyError::Truncated { .. }) => RangeEnd::Failed(Why::Ended),
            Err(VerifyError::Excess { .. } | VerifyError::Range(_)) => {
                RangeEnd::Failed(Why::Malformed)
            }
        }
    }

    fn look(&mut self, input: FetchIn, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        self.fetch.handle(input, now, &mut out);
        let mut actions = Vec::new();
        for one in out {
            match one {
                FetchOut::Ask(contact, request) => actions.push(Action::Ask(contact.node, request)),
                // It waits for the decision.
                FetchOut::Likely(..) => {}
                FetchOut::Decided(decided) => self.on_decided(decided),
                FetchOut::Provider(Contact { node, .. }) => {
                    actions.extend(self.transfer_in(In::Provider(node), now));
                }
                FetchOut::NoMoreProviders => {
                    actions.extend(self.transfer_in(In::NoMoreProviders, now));
                }
            }
        }
        actions
    }

    fn on_decided(&mut self, decided: Box<Decided>) {
        assert!(self.decided.is_none(), "decided once");
        match &decided.verdict.decision {
            Decision::Trusted(trusted) => {
                match Blob::new(trusted.subject.root, trusted.subject.size) {
                    Ok(blob) => {
                        self.file = vec![0; usize::try_from(blob.size()).unwrap_or_default()];
                        self.transfer = Some(Transfer::new(blob, &[]));
                    }
                    Err(error) => self.outcome = Some(Outcome::Other(error.to_string())),
                }
            }
            Decision::Unproven(_) => self.outcome = Some(Outcome::Unproven),
            other @ (Decision::Disputed { .. }
            | Decision::Stale { .. }
            | Decision::Blocked { .. }) => {
                self.outcome = Some(Outcome::Other(format!("{other:?}")));
            }
        }
        self.decided = Some(decided);
    }

    fn transfer_in(&mut self, input: In<NodeId>, now: Now) -> Vec<Action> {
        let (Some(transfer), Some(decided)) = (&mut self.transfer, &self.decided) else {
            return Vec::new();
        };
        let Decision::Trusted(trusted) = &decided.verdict.decision else {
            return Vec::new();
        };
        let subject = trusted.subject;
        let mut out = Vec::new();
        transfer.handle(input, now, &mut out);
        let mut actions = Vec::new();
        for one in out {
            match one {
                Out::Pull {
                    slot,
                    from,
                    range,
                    encoding,
                    ..
                } => {
                    let Ok(blob) = Blob::new(subject.root, subject.size) else {
                        continue;
                    };
                    let request = BlocksRequest {
                        blob,
                        encoding,
                        ranges: range.into(),
                    };
                    self.pulls.insert(slot, request.clone());
                    actions.push(Action::Pull(from, slot, request));
                }
                Out::Reset(slot) => {
                    self.pulls.remove(&slot);
                }
                Out::Ban(..) => self.bans += 1,
                Out::Done => self.outcome = Some(Outcome::Done),
                Out::Failed(error) => self.outcome = Some(Outcome::Other(error.to_string())),
            }
        }
        actions
    }
}
