use proptest::prelude::*;

use super::*;
use crate::index::STRANGER_STATEMENTS_MAX;
use crate::lookup::ASKS_MAX;
use crate::message::Cursor;
use crate::testing::{NOW, Scenario, VERIFIERS, public, scenario, subject};

fn now(millis: u64) -> Now {
    Now {
        mono: Duration::from_millis(millis),
        unix: NOW,
    }
}

fn contact(id: u8) -> Contact {
    Contact {
        node: NodeId(vec![id]),
        addrs: vec![vec![id].into()],
    }
}

fn want(scenario: &Scenario) -> Want {
    Want {
        network_key: scenario.network.key(None),
        network: Arc::new(scenario.network.clone()),
        policy: scenario.policy.clone(),
        own: scenario.own,
        candidates: vec![scenario.candidate.clone()],
        hidden: None,
    }
}

fn fetch(nodes: u8) -> Fetch {
    Fetch::new(want(&scenario()), (0..nodes).map(contact).collect()).unwrap()
}

fn provider(root: &str, contact: Contact) -> Provider {
    Provider {
        root: subject(root).root,
        contact,
    }
}

fn reply(said: &Scenario, providers: Vec<Provider>) -> Reply {
    Reply::only(Answer::Statements {
        statements: said.held.iter().map(|one| one.statement.clone()).collect(),
        providers,
        next: None,
    })
}

fn proven() -> Scenario {
    scenario().says("ann", "right").says("bob", "right")
}

/// What a fetch did, in words. Members of the committee cannot be found.
fn step(fetch: &mut Fetch, input: FetchIn, millis: u64) -> Vec<String> {
    let mut out = Vec::new();
    fetch.handle(input, now(millis), &mut out);
    while let Some(at) = out
        .iter()
        .position(|one| matches!(one, FetchOut::Ask(contact, _) if contact.addrs.is_empty()))
    {
        let FetchOut::Ask(member, _) = out.remove(at) else {
            unreachable!();
        };
        fetch.handle(FetchIn::Failed(member.node), now(millis), &mut out);
    }
    out.retain(|one| !matches!(one, FetchOut::Likely(..)));
    let words = out.into_iter().map(|one| match one {
        FetchOut::Likely(..) => unreachable!(),
        FetchOut::Ask(contact, _) => format!("ask {}", contact.node.0[0]),
        FetchOut::Decided(decided) => match decided.verdict.decision {
            Decision::Trusted(_) => "trusted".to_owned(),
            Decision::Unproven(_) => "unproven".to_owned(),
            Decision::Disputed { .. } => "disputed".to_owned(),
            Decision::Stale { .. } | Decision::Blocked { .. } => "other".to_owned(),
        },
        FetchOut::Provider(contact) => format!("provider {}", contact.node.0[0]),
        FetchOut::NoMoreProviders => "no more".to_owned(),
    });
    words.collect()
}

fn start(fetch: &mut Fetch) -> Vec<String> {
    step(fetch, FetchIn::Start(Vec::new()), 0)
}

fn answers(fetch: &mut Fetch, node: u8, reply: Reply) -> Vec<String> {
    step(fetch, FetchIn::Reply(contact(node).node, reply), 1)
}

#[test]
fn three_answers_decide_and_later_ones_name_more() {
    let mut fetch = fetch(4);
    assert_eq!(start(&mut fetch).len(), 4);
    let one = || reply(&proven(), vec![provider("right", contact(9))]);
    assert!(answers(&mut fetch, 0, one()).is_empty());
    assert!(answers(&mut fetch, 1, one()).is_empty());
    assert_eq!(answers(&mut fetch, 2, one()), ["trusted", "provider 9"]);
    let late = vec![
        provider("right", contact(9)),
        provider("wrong", contact(7)),
        provider("right", contact(8)),
    ];
    let last = answers(&mut fetch, 3, reply(&proven(), late));
    assert_eq!(last, ["provider 8", "no more"]);
    assert_eq!(fetch.deadline(), None);
    assert!(answers(&mut fetch, 3, one()).is_empty(), "it is over");
}

#[test]
fn without_the_threshold_it_ends_unproven_and_nothing_follows() {
    let said = scenario()
        .says("ann", "right")
        .says("ann.2", "right")
        .says("zoe", "right");
    let mut fetch = fetch(2);
    start(&mut fetch);
    let one = || reply(&said, vec![provider("right", contact(9))]);
    assert!(answers(&mut fetch, 0, one()).is_empty());
    assert_eq!(answers(&mut fetch, 1, one()), ["unproven"]);
    let mut more = one();
    more.closer = vec![contact(5)];
    assert!(answers(&mut fetch, 1, more).is_empty());
    // The same with one more principal is trusted.
    let mut fetch = self::fetch(2);
    start(&mut fetch);
    answers(&mut fetch, 0, one());
    let last = answers(&mut fetch, 1, reply(&said.says("bob", "right"), Vec::new()));
    assert_eq!(last, ["trusted", "provider 9", "no more"]);
}

#[test]
fn a_dissent_in_the_last_answer_disputes() {
    let mut fetch = fetch(3);
    start(&mut fetch);
    answers(&mut fetch, 0, reply(&proven(), Vec::new()));
    answers(&mut fetch, 1, reply(&proven(), Vec::new()));
    let last = answers(
        &mut fetch,
        2,
        reply(&scenario().says("cyd", "wrong"), Vec::new()),
    );
    assert_eq!(last, ["disputed"]);
}

fn with_parent(nodes: u8, parent: u8) -> Fetch {
    fetch(nodes).with_parents(vec![contact(parent)])
}

fn grace_after(millis: u64) -> u64 {
    millis + u64::try_from(crate::lookup::PARENT_GRACE.as_millis()).unwrap()
}

#[test]
fn a_parents_answer_decides_after_a_grace_and_it_is_named_first() {
    let mut fetch = with_parent(4, 2);
    assert_eq!(start(&mut fetch).len(), 4);
    let one = || reply(&proven(), vec![provider("right", contact(9))]);
    assert!(
        answers(&mut fetch, 2, one()).is_empty(),
        "others have a grace"
    );
    assert_eq!(
        step(&mut fetch, FetchIn::Tick, grace_after(1)),
        ["trusted", "provider 2", "provider 9"]
    );
    // Without a parent the same waits for two more answers.
    let mut fetch = self::fetch(4);
    start(&mut fetch);
    answers(&mut fetch, 2, one());
    assert!(step(&mut fetch, FetchIn::Tick, grace_after(1)).is_empty());
}

/// What a cache has need not come from afar, so that it is waited for, but not for ever.
#[test]
fn a_parent_is_waited_for_even_where_others_suffice() {
    let one = || reply(&proven(), vec![provider("right", contact(9))]);
    let begin = || {
        let mut fetch = with_parent(4, 2);
        start(&mut fetch);
        for node in [0, 1, 3] {
            assert!(answers(&mut fetch, node, one()).is_empty());
        }
        fetch
    };
    let mut late = begin();
    assert!(step(&mut late, FetchIn::Tick, 4000).is_empty());
    let silent = step(&mut late, FetchIn::Tick, 5000);
    assert_eq!(silent, ["trusted", "provider 9", "no more"]);
    let mut gone = begin();
    let failed = step(&mut gone, FetchIn::Failed(contact(2).node), 100);
    assert_eq!(failed, ["trusted", "provider 9", "no more"]);
    let mut there = begin();
    let last = answers(&mut there, 2, one());
    assert_eq!(last, ["trusted", "provider 2", "provider 9", "no more"]);
}

#[test]
fn a_dissent_within_the_grace_disputes() {
    let mut fetch = with_parent(4, 2);
    start(&mut fetch);
    answers(&mut fetch, 2, reply(&proven(), Vec::new()));
    let dissent = reply(&scenario().says("cyd", "wrong"), Vec::new());
    answers(&mut fetch, 0, dissent);
    assert!(step(&mut fetch, FetchIn::Tick, grace_after(1)).is_empty());
    answers(&mut fetch, 1, reply(&proven(), Vec::new()));
    let last = answers(&mut fetch, 3, reply(&proven(), Vec::new()));
    assert_eq!(last, ["disputed"]);
}

/// What it does not prove is not believed for want of others' answers.
#[test]
fn a_parent_that_knows_too_little_ends_nothing() {
    let mut fetch = with_parent(3, 0);
    start(&mut fetch);
    answers(
        &mut fetch,
        0,
        reply(&scenario().says("ann", "right"), Vec::new()),
    );
    assert!(step(&mut fetch, FetchIn::Tick, grace_after(1)).is_empty());
    let last = answers(&mut fetch, 1, reply(&proven(), Vec::new()));
    assert_eq!(last, ["trusted", "provider 0"]);
}

#[test]
fn nobody_to_ask_decides_at_once() {
    assert_eq!(start(&mut fetch(0)), ["unproven"]);
    let mut fetch = fetch(0);
    let known = step(&mut fetch, FetchIn::Start(proven().held), 0);
    assert_eq!(known, ["trusted", "no more"]);
    let mut nothing = want(&scenario());
    nothing.candidates.clear();
    assert!(Fetch::new(nothing, Vec::new()).is_none());
}

/// What the first answer proves is said at once, and the decision is left to all of them.
#[test]
fn what_is_likely_is_said_before_a_dissent_can_arrive() {
    let mut fetch = fetch(3);
    start(&mut fetch);
    let first = reply(&proven(), vec![provider("right", contact(9))]);
    let out = raw(&mut fetch, FetchIn::Reply(contact(0).node, first), 1);
    let [FetchOut::Likely(likely, having)] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!(likely.root(), Some(subject("right").root));
    assert_eq!(having[..], [contact(9)]);
    let second = reply(&proven(), vec![provider("right", contact(8))]);
    let out = raw(&mut fetch, FetchIn::Reply(contact(1).node, second), 2);
    assert!(out.is_empty(), "it is said once: {out:?}");
    let last = reply(&scenario().says("cyd", "wrong"), Vec::new());
    assert_eq!(answers(&mut fetch, 2, last), ["disputed"]);
}

/// Where nobody has it there is nothing to begin, and where a parent is to be heard nobody else is.
#[test]
fn nothing_is_likely_without_providers_or_before_a_parent_was_heard() {
    let mut alone = fetch(3);
    start(&mut alone);
    let first = FetchIn::Reply(contact(0).node, reply(&proven(), Vec::new()));
    assert!(raw(&mut alone, first, 1).is_empty());
    let mut with_parent = fetch(3).with_parents(vec![contact(2)]);
    start(&mut with_parent);
    let one = || reply(&proven(), vec![provider("right", contact(9))]);
    let first = FetchIn::Reply(contact(0).node, one());
    assert!(raw(&mut with_parent, first, 1).is_empty());
    let out = raw(&mut with_parent, FetchIn::Reply(contact(2).node, one()), 2);
    let Some(FetchOut::Likely(_, having)) = out.first() else {
        panic!("{out:?}");
    };
    assert_eq!(having[..], [contact(2), contact(9)], "the parent first");
}

#[test]
fn a_refusal_is_no_answer() {
    let mut fetch = fetch(3);
    start(&mut fetch);
    answers(&mut fetch, 0, reply(&proven(), Vec::new()));
    let refused = || Reply::only(Answer::Refused("not now".to_owned()));
    assert!(answers(&mut fetch, 1, refused()).is_empty());
    let mut out = Vec::new();
    let last = FetchIn::Reply(contact(2).node, refused());
    fetch.handle(last, now(1), &mut out);
    let Some(FetchOut::Decided(decided)) = out.first() else {
        panic!("{out:?}");
    };
    assert_eq!((decided.answered, decided.known), (1, 3));
}

/// Whoever answers with thousands of statements by made-up keys keeps nobody's dissent out.
#[test]
fn a_flood_by_strangers_keeps_no_principal_out() {
    let mut flood = proven();
    for number in 0..FETCH_STRANGER_STATEMENTS_MAX + 50 {
        flood = flood.says(&format!("stranger {number}"), "right");
    }
    let mut fetch = fetch(3);
    start(&mut fetch);
    answers(&mut fetch, 0, reply(&flood, Vec::new()));
    assert_eq!(fetch.statements.len(), 2 + FETCH_STRANGER_STATEMENTS_MAX);
    answers(&mut fetch, 1, reply(&flood, Vec::new()));
    let last = answers(
        &mut fetch,
        2,
        reply(&scenario().says("cyd", "wrong"), Vec::new()),
    );
    assert_eq!(last, ["disputed"]);
    const { assert!(STRANGER_STATEMENTS_MAX <= FETCH_STRANGER_STATEMENTS_MAX) };
}

/// A node that names many false providers, or a true one with a false address, shuts out nobody.
#[test]
fn false_providers_leave_room_for_true_ones() {
    let mut fetch = fetch(3);
    start(&mut fetch);
    let false_ones = (100..=255_u8).map(|id| provider("right", contact(id)));
    let mut false_ones: Vec<Provider> = false_ones.collect();
    let mut wrong_address = provider("right", contact(9));
    wrong_address.contact.addrs = vec![b"elsewhere".to_vec().into()];
    false_ones.insert(0, wrong_address);
    answers(&mut fetch, 0, reply(&proven(), false_ones));
    answers(&mut fetch, 1, reply(&proven(), Vec::new()));
    let honest = vec![provider("right", contact(9)), provider("right", contact(8))];
    let last = answers(&mut fetch, 2, reply(&proven(), honest));
    assert_eq!(last[..2], ["trusted", "provider 9"]);
    let named = last.iter().filter(|word| word.starts_with("provider"));
    assert_eq!(named.count(), FETCH_PROVIDERS_OF_ONE_MAX + 2);
    assert_eq!(
        last[last.len() - 3..],
        ["provider 9", "provider 8", "no more"]
    );
}

#[test]
fn statements_of_other_networks_and_releases_are_not_taken() {
    let mut fetch = fetch(1);
    start(&mut fetch);
    let other = scenario()
        .says_but("ann", "right", |draft| {
            draft.network = crate::hash::NetworkId([9; 32])
        })
        .says_but("ann", "right", |draft| {
            draft.key.version = "9.9.9".to_owned()
        });
    answers(&mut fetch, 0, reply(&other, Vec::new()));
    assert_eq!(fetch.statements.len(), 0);
}

#[derive(Debug, Clone)]
enum Act {
    Answer(u8, u8, bool),
    Fail(u8),
    Tick(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..12_u8, 0..16_u8, any::<bool>()).prop_map(|(node, said, more)| Act::Answer(node, said, more)),
        1 => (0..12_u8).prop_map(Act::Fail),
        1 => (0..2000_u64).prop_map(Act::Tick),
    ];
    prop::collection::vec(act, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_ends_once_whatever_comes_in_whatever_order(acts in acts(), seeds in 0..10_u8) {
        let all = scenario().says("ann", "right").says("bob", "right").says("cyd", "right").says("zoe", "wrong");
        let mut fetch = fetch(seeds);
        let mut done = start(&mut fetch);
        let (mut clock, mut pages) = (0, 0);
        for act in acts {
            let input = match act {
                Act::Answer(node, said, more) => {
                    let held = all.held.iter().enumerate().filter(|(bit, _)| said >> bit & 1 == 1);
                    pages += 1;
                    let mut cursor = [0; 32];
                    cursor[31] = pages;
                    let answer = Answer::Statements {
                        statements: held.map(|(_, one)| one.statement.clone()).collect(),
                        providers: vec![provider("right", contact(node / 2)), provider("wrong", contact(node))],
                        next: more.then_some(Cursor {
                            point: crate::hash::Point([0; 32]),
                            statement: StatementId(cursor),
                        }),
                    };
                    let closer = vec![contact(node.wrapping_add(3) % 12)];
                    FetchIn::Reply(contact(node).node, Reply { closer, answer })
                }
                Act::Fail(node) => FetchIn::Failed(contact(node).node),
                Act::Tick(millis) => {
                    clock += millis;
                    FetchIn::Tick
                }
            };
            done.extend(step(&mut fetch, input, clock));
        }
        while let Some(deadline) = fetch.deadline() {
            clock = clock.max(u64::try_from(deadline.as_millis()).unwrap());
            done.extend(step(&mut fetch, FetchIn::Tick, clock));
            prop_assert!(done.len() < 10_000, "it ends");
        }
        let count = |word: &str| done.iter().filter(|done| *done == word).count();
        let trusted = count("trusted");
        prop_assert_eq!(trusted + count("unproven") + count("disputed"), 1);
        prop_assert_eq!(count("no more"), trusted);
        let last = if trusted == 1 { "no more" } else { "unproven" };
        prop_assert_eq!(done.last().unwrap(), last, "nothing follows");
        prop_assert!(done.iter().filter(|done| done.starts_with("ask")).count() <= ASKS_MAX);
        let mut providers: Vec<_> = done.iter().filter(|done| done.starts_with("provider")).collect();
        let named = providers.len();
        providers.sort();
        providers.dedup();
        prop_assert_eq!(providers.len(), named, "each is named once");
    }
}

/// The node of a principal of the fixture, whose key is in the manifest.
fn member(name: &str) -> NodeId {
    NodeId::of_key(&public(name))
}

/// Nodes that are asked, members by name.
fn asked(out: &[FetchOut]) -> Vec<String> {
    let of = |node: &NodeId| {
        let name = VERIFIERS.into_iter().find(|name| member(name) == *node);
        name.map_or_else(|| node.0[0].to_string(), str::to_owned)
    };
    let asks = out.iter().filter_map(|one| match one {
        FetchOut::Ask(contact, _) => Some(of(&contact.node)),
        _ => None,
    });
    // The other active key of each.
    asks.filter(|name| name != "0").collect()
}

fn raw(fetch: &mut Fetch, input: FetchIn, millis: u64) -> Vec<FetchOut> {
    let mut out = Vec::new();
    fetch.handle(input, now(millis), &mut out);
    out
}

fn decided(out: &[FetchOut]) -> Option<&Decision> {
    out.iter().find_map(|one| match one {
        FetchOut::Decided(decided) => Some(&decided.verdict.decision),
        _ => None,
    })
}

#[test]
fn members_of_whom_the_index_has_nothing_are_asked_directly() {
    // The committee is bob, cyd and eve.
    let one = || reply(&scenario().says("bob", "right"), Vec::new());
    let mut fetch = fetch(1);
    start(&mut fetch);
    let out = raw(&mut fetch, FetchIn::Reply(contact(0).node, one()), 1);
    assert!(decided(&out).is_none());
    let mut names = asked(&out);
    names.sort();
    assert_eq!(names, ["cyd", "eve"]);
    assert_eq!(fetch.time_of(&member("cyd")), MEMBER_TIMEOUT);
    let said = reply(&scenario().says("cyd", "right"), Vec::new());
    let out = raw(&mut fetch, FetchIn::Reply(member("cyd"), said), 100);
    assert!(decided(&out).is_none(), "eve may still answer");
    let mut last = Vec::new();
    while last.is_empty() {
        let deadline = fetch.deadline().unwrap();
        last = raw(
            &mut fetch,
            FetchIn::Tick,
            u64::try_from(deadline.as_millis()).unwrap(),
        );
    }
    assert!(matches!(decided(&last), Some(Decision::Trusted(_))));
    // Without them it is unproven.
    let mut alone = self::fetch(1);
    start(&mut alone);
    assert_eq!(answers(&mut alone, 0, one()), ["unproven"]);
}

#[test]
fn a_member_tells_of_a_dissent_that_the_index_withholds() {
    let known = |name| Contact {
        node: member(name),
        addrs: vec![vec![1].into()],
    };
    let withheld = || Reply {
        closer: vec![known("eve"), known("cyd")],
        ..reply(
            &scenario().says("bob", "right").says("ann", "right"),
            Vec::new(),
        )
    };
    let mut fetch = self::fetch(3);
    start(&mut fetch);
    answers(&mut fetch, 0, reply(&scenario(), Vec::new()));
    answers(&mut fetch, 1, reply(&scenario(), Vec::new()));
    let out = raw(&mut fetch, FetchIn::Reply(contact(2).node, withheld()), 1);
    assert!(
        decided(&out).is_none(),
        "three have answered, but not eve and cyd"
    );
    assert_eq!(asked(&out).len(), 2, "each once");
    let dissent = reply(&scenario().says("eve", "wrong"), Vec::new());
    raw(&mut fetch, FetchIn::Reply(member("eve"), dissent), 2);
    let mut last = raw(&mut fetch, FetchIn::Failed(member("cyd")), 3);
    while decided(&last).is_none() {
        let deadline = fetch.deadline().unwrap();
        last = raw(
            &mut fetch,
            FetchIn::Tick,
            u64::try_from(deadline.as_millis()).unwrap(),
        );
    }
    assert!(matches!(decided(&last), Some(Decision::Disputed { .. })));
    // One that is silent is waited for only a moment, and without members the dissent stays withheld.
    let mut fetch = self::fetch(3);
    start(&mut fetch);
    answers(&mut fetch, 0, reply(&scenario(), Vec::new()));
    answers(&mut fetch, 1, reply(&scenario(), Vec::new()));
    raw(&mut fetch, FetchIn::Reply(contact(2).node, withheld()), 1);
    let grace = u64::try_from(MEMBER_GRACE.as_millis()).unwrap();
    assert!(decided(&raw(&mut fetch, FetchIn::Tick, grace)).is_none());
    let last = raw(&mut fetch, FetchIn::Tick, grace + 1);
    assert!(matches!(decided(&last), Some(Decision::Trusted(_))));
}

#[test]
fn a_mirror_that_was_asked_may_still_tell_of_a_dissent() {
    let begin = || {
        let mirrors = ["mia", "mia.2"].map(|name| Contact {
            node: member(name),
            addrs: vec![vec![1].into()],
        });
        let seeds = (0..3).map(contact).chain(mirrors).collect();
        let mut fetch = Fetch::new(want(&scenario()), seeds).unwrap();
        start(&mut fetch);
        for node in 0..2 {
            answers(&mut fetch, node, reply(&proven(), Vec::new()));
        }
        let third = FetchIn::Reply(contact(2).node, reply(&proven(), Vec::new()));
        assert!(decided(&raw(&mut fetch, third, 1)).is_none());
        fetch
    };
    let mut fetch = begin();
    let dissent = reply(&scenario().says("eve", "wrong"), Vec::new());
    let mut last = raw(&mut fetch, FetchIn::Reply(member("mia"), dissent), 2);
    while decided(&last).is_none() {
        let deadline = fetch.deadline().unwrap();
        let millis = u64::try_from(deadline.as_millis()).unwrap();
        last = raw(&mut fetch, FetchIn::Tick, millis);
    }
    assert!(matches!(decided(&last), Some(Decision::Disputed { .. })));
    // One answer of a mirror will do.
    let mut fetch = begin();
    let nothing = reply(&scenario(), Vec::new());
    let out = raw(&mut fetch, FetchIn::Reply(member("mia"), nothing), 2);
    assert!(matches!(decided(&out), Some(Decision::Trusted(_))));
    // They are waited for only a moment.
    let mut fetch = begin();
    let grace = u64::try_from(MIRROR_GRACE.as_millis()).unwrap();
    assert!(decided(&raw(&mut fetch, FetchIn::Tick, grace)).is_none());
    let last = raw(&mut fetch, FetchIn::Tick, grace + 1);
    assert!(matches!(decided(&last), Some(Decision::Trusted(_))));
}

#[test]
fn members_that_nobody_knows_hold_up_nothing_that_is_proven() {
    let mut fetch = fetch(1);
    start(&mut fetch);
    let out = raw(
        &mut fetch,
        FetchIn::Reply(contact(0).node, reply(&proven(), Vec::new())),
        1,
    );
    assert!(matches!(decided(&out), Some(Decision::Trusted(_))));
    assert!(asked(&out).is_empty());
}

#[test]
fn a_node_of_a_key_has_libp2ps_identity() {
    let node = NodeId::of_key(&PublicKey([7; 32]));
    assert_eq!(node.0.len(), 38);
    assert_eq!(node.0[..6], [0, 36, 8, 1, 18, 32]);
}
