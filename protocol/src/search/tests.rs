use super::*;
use crate::testing::{NOW, Scenario, public, scenario, subject};

fn states(scenario: Scenario, who: &str, krate: &str, version: &str, what: &str) -> Scenario {
    scenario.says_but(who, what, |draft| {
        draft.key.name = krate.to_owned();
        draft.key.version = version.to_owned();
    })
}

/// `fd-find` 10.2.0 proven, 10.3.0 not yet; `ripgrep` disputed; `fd` only by a stranger.
fn known() -> Scenario {
    let mut scenario = scenario();
    for (who, krate, version, what) in [
        ("ann", "fd-find", "10.2.0", "old fd"),
        ("bob", "fd-find", "10.2.0", "old fd"),
        ("ann", "fd-find", "10.1.0", "older fd"),
        ("bob", "fd-find", "10.1.0", "older fd"),
        ("ann", "fd-find", "10.3.0", "new fd"),
        ("ann", "ripgrep", "14.1.1", "rg"),
        ("bob", "ripgrep", "14.1.1", "other rg"),
        ("zoe", "fd", "1.0.0", "trojan"),
    ] {
        scenario = states(scenario, who, krate, version, what);
    }
    scenario
}

fn found(scenario: &Scenario, query: &Query) -> Vec<String> {
    let bins = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let executables = [
        (subject("old fd").root, bins(&["fd"])),
        (subject("rg").root, bins(&["rg"])),
        (subject("trojan").root, bins(&["fd"])),
    ];
    let hits = search(
        query,
        &Known {
            network: &scenario.network,
            policy: &scenario.policy,
            own: scenario.own,
            statements: &scenario.held,
            executables: &executables.into(),
            now: NOW,
        },
    );
    let text = |hit: Hit| {
        let bins = hit.executables.iter().flatten().cloned();
        let bins = bins.collect::<Vec<_>>().join(",");
        format!(
            "{} {:?} {} [{bins}]",
            hit.release, hit.state, hit.principals
        )
    };
    hits.into_iter().map(text).collect()
}

fn query(text: &str) -> Query {
    Query {
        text: text.to_owned(),
        ..Query::default()
    }
}

#[test]
fn a_crate_is_found_by_its_name_and_by_what_it_runs() {
    let known = known();
    let fd = [
        "fd-find@10.3.0 Unproven 1 []",
        "fd-find@10.2.0 Proven 2 [fd]",
    ];
    assert_eq!(found(&known, &query("FD_Fi")), fd);
    assert_eq!(
        found(&known, &query("rg")),
        ["ripgrep@14.1.1 Disputed 2 [rg]"]
    );
    // An executable that is called exactly so comes before a crate whose name only begins so.
    let known = states(known, "ann", "fda", "1.0.0", "fda");
    let ranked = [fd[0], fd[1], "fda@1.0.0 Unproven 1 []"];
    assert_eq!(found(&known, &query("fd")), ranked);
    assert_eq!(found(&known, &query("nothing")), [""; 0]);
    assert_eq!(found(&known, &query("")).len(), 4);
    let all = Query {
        all: true,
        ..query("fd-find")
    };
    assert_eq!(found(&known, &all).len(), 3);
}

#[test]
fn conditions_are_all_met() {
    let known = known();
    let only = |change: fn(&mut Query)| {
        let mut query = query("");
        change(&mut query);
        found(&known, &query)
    };
    let fd = "fd-find@10.2.0 Proven 2 [fd]";
    assert_eq!(only(|query| query.bin = Some("fd".to_owned())), [fd]);
    assert_eq!(only(|query| query.bin = Some("f".to_owned())), [""; 0]);
    assert_eq!(only(|query| query.proven = true), [fd]);
    let target = |target: &str| BTreeSet::from([target.to_owned()]);
    let mut elsewhere = query("fd");
    elsewhere.targets = target("aarch64-apple-darwin");
    assert_eq!(found(&known, &elsewhere), [""; 0]);
    elsewhere.targets = target("x86_64-unknown-linux-gnu");
    assert_eq!(found(&known, &elsewhere).len(), 2);
}

#[test]
fn strangers_are_not_found_but_for_oneself() {
    let known = known();
    let trojan = "fd@1.0.0 Unproven 0 [fd]";
    assert!(!found(&known, &query("")).contains(&trojan.to_owned()));
    let mut own = known;
    own.own = Some(public("zoe"));
    assert!(found(&own, &query("fd")).contains(&"fd@1.0.0 Proven 0 [fd]".to_owned()));
}

#[test]
fn a_name_is_read_without_a_look_at_the_signature() {
    let scenario = known();
    let statement = &scenario.held[0].statement;
    let mut envelope = statement.envelope().to_vec();
    assert_eq!(crate_of(&envelope).as_deref(), Some("fd-find"));
    let sig = envelope.windows(5).position(|part| part == b"\"sig\"");
    envelope[sig.unwrap() + 10] ^= 1;
    assert_eq!(crate_of(&envelope).as_deref(), Some("fd-find"));
    assert_eq!(crate_of(b"{\"payload\":\"!\"}"), None);
    assert_eq!(crate_of(&[0xff; 40]), None);
}

#[test]
fn a_query_is_bounded() {
    query("").check().unwrap();
    query(&"x".repeat(NAME_BYTES_MAX + 1)).check().unwrap_err();
    let mut many = query("");
    many.targets = (0..=SEARCH_TARGETS_MAX).map(|n| n.to_string()).collect();
    many.check().unwrap_err();
}
