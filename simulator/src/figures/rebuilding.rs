//! Figures of rebuilding alone: no messages, an index that shows everybody at once what was stated.

use qk_protocol::watch::ENTRIES_MAX;

use super::{Axes, Figure, Of, Size, axes, column, plain, row, up_to};

pub(super) fn figures(size: Size) -> Vec<Figure> {
    vec![proofs(size), wrong(size), strangers(), copier(), liar()]
}

fn proofs(size: Size) -> Figure {
    const FILE: &str = "rebuilds.toml";
    let mut rows = Vec::new();
    for keys in up_to(size, &[1000, 10_000, 100_000], 2) {
        for verifiers in up_to(size, &[10, 30, 100, 300, 900], 3) {
            // What a committee of five owes has to fit its members' queues.
            if keys * 5 / verifiers > ENTRIES_MAX as u32 {
                continue;
            }
            for (name, set) in [
                ("committee", "principals.committee=true"),
                ("audit only", "principals.committee=false"),
            ] {
                let sets = [
                    format!("workload.crates={keys}"),
                    format!("principals.verifiers={verifiers}"),
                    set.to_owned(),
                ];
                let line = format!("{name}, {keys} keys");
                rows.push(row(FILE, line, f64::from(verifiers), &sets));
            }
        }
    }
    for floor in ["true", "false"] {
        let line = format!("uniform floor {floor}, 1000 keys");
        let set = format!("principals.uniform_floor={floor}");
        rows.push(row(FILE, line, 100.0, &[set]));
    }
    Figure {
        name: "proofs",
        title: "Time from publication to proofs",
        text: "Hours from a release to its first, second and third rebuild by a verifier, while a backlog of so many keys waits; verifiers (x) build ten a day each, 100 releases come a day, and the run is three days. A dash: it did not happen in that time. Medians are of the proofs that happened within the three days (their number stands beside them), so that few and early ones look fast: read them with the share of keys. What decides is how many rebuilds there are for a key, ten times the verifiers by the keys: a committee of five pays its five before it is done, audits spread the first ones thinner. Rows in which a committee would owe more than the 1,024 entries of a queue are left out: there the backlog never ends; 900 verifiers are about as many as a manifest of 256 KiB names. What the uniform floor costs are builds of what was proven already.",
        rows,
        columns: vec![
            column("1 proof, p50 h", Of::P50("hours to 1 proof")),
            column("releases with it", Of::Count("hours to 1 proof")),
            column("2 proofs, p50 h", Of::P50("hours to 2 proofs")),
            column("3 proofs, p50 h", Of::P50("hours to 3 proofs")),
            column("3 proofs, p90 h", Of::P90("hours to 3 proofs")),
            column("releases with them", Of::Count("hours to 3 proofs")),
            column("keys with 1", Of::Measure("keys with 1 proof, share")),
            column("keys with 3", Of::Measure("keys with 3 proofs, share")),
            column(
                "builds of what was proven",
                Of::Measure("builds spent on what was proven, share"),
            ),
        ],
        plots: vec![
            axes("verifiers", "hours to 1 proof, median", 0),
            axes("verifiers", "share of keys with 3 proofs", 7),
        ],
        grows: Vec::new(),
    }
}

fn wrong(size: Size) -> Figure {
    let shares: &[u32] = match size {
        Size::Small => &[0],
        Size::Medium | Size::Full => &[0, 5, 10, 20, 30, 40],
    };
    let policies = [
        ("any, 2", "any", 2),
        ("any, 4", "any", 4),
        ("assigned, 4 of 5", "assigned", 4),
    ];
    let of = |(name, count, threshold): (&str, &str, u32)| {
        let each = shares.iter().map(move |percent| {
            let sets = [
                format!("principals.colluding={}", percent / 2),
                format!("policy.count=\"{count}\""),
                format!("policy.threshold={threshold}"),
            ];
            row("wrong.toml", name, f64::from(*percent), &sets)
        });
        each.collect::<Vec<_>>()
    };
    Figure {
        name: "wrong",
        title: "Wrong roots that clients accept",
        text: "Share of decisions that trust a wrong root, by the share of 50 principals that collude (x, percent). They are the first to state anything of each release, all at once; the honest committee comes later and dissents, which refuses. Clients decide at random times of three days. Two who speak first are enough for `any, 2`, in all decisions that are made before the committee's first dissent: a share that hardly grows with the number of colluders, since it is the time that the committee takes to notice and build. It is the price of trusting early. Who asks for four needs four, and who asks for four of the five that the ranking assigned has colluders believed only where these happen to be four of a committee that nobody chooses: below 1 % even where 40 % collude. So choose `assigned` where waiting for the committee is bearable, and a threshold above the number of principals that could be in league otherwise. Where principals collude, `refuse` keeps clients from the right root as well.",
        rows: policies.into_iter().flat_map(of).collect(),
        columns: vec![
            column("trusted wrong", Of::Measure("trusted wrong, share")),
            column("trusted right", Of::Measure("trusted right, share")),
        ],
        plots: vec![Axes {
            log_x: false,
            ..axes(
                "colluding principals, percent",
                "share of decisions that trust a wrong root",
                0,
            )
        }],
        grows: Vec::new(),
    }
}

fn strangers() -> Figure {
    let policies = [
        ("any, 2", ["policy.count=\"any\"", "policy.threshold=2"]),
        (
            "assigned, 4 of 5",
            ["policy.count=\"assigned\"", "policy.threshold=4"],
        ),
    ];
    let of = |(name, policy): (&str, [&str; 2])| {
        let with = [policy[0], policy[1], "hostile.strangers=64"];
        let without = [&with[..], &["without.manifest=true"]].concat();
        [
            row("wrong.toml", format!("{name}, 64 Sybils"), 1.0, &with),
            row(
                "wrong.toml",
                format!("{name}, the same where the manifest lets anybody in"),
                0.0,
                &without,
            ),
        ]
    };
    Figure {
        name: "strangers",
        title: "Sybils outside the manifest",
        text: "The same attack by 64 keys that are in no manifest, and what it does where they count as if they were (x is 1 with the manifest and 0 without). Keys cost nothing, so without it their number decides.",
        rows: policies.into_iter().flat_map(of).collect(),
        columns: vec![
            column("trusted wrong", Of::Measure("trusted wrong, share")),
            column("trusted right", Of::Measure("trusted right, share")),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}

fn copier() -> Figure {
    Figure {
        name: "copier",
        title: "A lone copier",
        text: "Hours until an honest rebuild says that a copied observation's work differs, with the work digest and without it. Without it nothing ever does, as long as what was copied is right.",
        rows: vec![
            plain("copier.toml", "with the work digest", 1.0),
            row("copier.toml", "without", 0.0, &["without.work_digest=true"]),
        ],
        columns: vec![
            column("copies", Of::Measure("copies")),
            column("found after h, p50", Of::P50("hours to find a copy")),
            column("p90", Of::P90("hours to find a copy")),
            column("longest", Of::Max("hours to find a copy")),
            column("not found", Of::Measure("copies not found")),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}

fn liar() -> Figure {
    Figure {
        name: "liar",
        title: "A lying dissenter",
        text: "Hours for which one principal that states a root of its own keeps a client that knows all statements from trusting, where a dissent calls the next ranks and where it only refuses.",
        rows: vec![
            plain("copier.toml", "escalate", 1.0),
            row(
                "copier.toml",
                "refuse",
                0.0,
                &["policy.on_dissent=\"refuse\""],
            ),
            row(
                "copier.toml",
                "escalate, 4 builds a day",
                1.0,
                &["principals.builds_a_day=4"],
            ),
        ],
        columns: vec![
            column("lies", Of::Measure("lies")),
            column("blocked h, p50", Of::P50("hours that a lie blocks")),
            column("p90", Of::P90("hours that a lie blocks")),
            column("longest", Of::Max("hours that a lie blocks")),
            column("still blocked", Of::Measure("lies that still block")),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}
