//! A few rounds of the campaign `node-kill`, as an ordinary test.

#[test]
fn what_a_killed_node_acknowledged_it_has() {
    let figures = qk_tests::node_load::campaign(4, 1).unwrap();
    eprintln!("{figures:#?}");
    assert!(
        figures.acknowledged >= 4,
        "too little was done: {figures:?}"
    );
    assert!(figures.looked_up >= figures.acknowledged, "{figures:?}");
    assert!(figures.cut_off > 0, "no kill hit a request: {figures:?}");
}
