//! `kill -9` of a whole node, again and again: a few rounds as an ordinary test,
//! `QK_NODE_KILL_ROUNDS` of them with randomness from `QK_NODE_KILL_SEED` as a campaign.

use std::str::FromStr;

#[test]
fn what_a_killed_node_acknowledged_it_has() {
    let (rounds, seed) = (
        number("QK_NODE_KILL_ROUNDS", 4),
        number("QK_NODE_KILL_SEED", 1),
    );
    let figures = qk_tests::node_load::campaign(rounds, seed).unwrap();
    eprintln!("seed {seed}: {figures:#?}");
    assert!(
        figures.acknowledged >= rounds,
        "too little was done: {figures:?}"
    );
    assert!(figures.looked_up >= figures.acknowledged, "{figures:?}");
    assert!(figures.cut_off > 0, "no kill hit a request: {figures:?}");
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => u64::from_str(&text).expect("a number"),
        Err(_) => default,
    }
}
