//! Figures of whole networks, with messages.

use super::{Axes, Figure, Of, Row, Size, axes, column, plain, row, up_to};

/// Figures of which each run takes long.
pub(super) const LONG: [&str; 4] = ["withhold", "survey", "repair", "large"];

/// Servers and laptops, from 10^2 to 10^5 together.
const SIZES: [(u32, u32); 7] = [
    (60, 37),
    (200, 120),
    (600, 370),
    (2000, 1200),
    (6000, 3700),
    (20_000, 12_000),
    (60_000, 37_000),
];

pub(super) fn figures(size: Size) -> Vec<Figure> {
    vec![
        withhold(size),
        look_ups(size),
        growth(size),
        stale(size),
        survey(size),
        repair(),
        hints(size),
        lab(size),
        availability(size),
        prefix(size),
        large(),
    ]
}

fn withhold(size: Size) -> Figure {
    const FILE: &str = "withhold.toml";
    const NO_KEYS: &str = "principals.nodes_have_keys=false";
    let ways: [(&str, &[&str]); 6] = [
        ("one path", &["nodes.seeds=1", NO_KEYS]),
        ("separate paths", &[NO_KEYS]),
        ("and the committee is asked", &[]),
        ("and one mirror", &["nodes.mirrors=1"]),
        ("and three mirrors", &["nodes.mirrors=3"]),
        (
            "no mirror, assigned, committee asked",
            &["policy.count=\"assigned\""],
        ),
    ];
    let mut rows = Vec::new();
    for (name, sets) in ways {
        for sybils in up_to(size, &[20, 10], 2) {
            let count = format!("hostile.sybils={sybils}");
            let sets = [sets, &[count.as_str()]].concat();
            rows.push(row(FILE, name, f64::from(sybils), &sets));
        }
    }
    Figure {
        name: "withhold",
        title: "How long index nodes can hide a dissent",
        text: "Two colluding principals of 20 are the first to state a root of twelve releases, a wrong one, and the policy asks for two. An hour later the first of the committee dissents. So many Sybils (x) with identities nearer to the release than any honest node show everything but that, for 14 hours: the share of fetches begun after the dissent that trust the wrong root all the same, and how long after the dissent that still happened. One path: a look-up begins with one node of the client's own table. Twenty Sybils are all twenty holders, and hide it from whoever only asks the index, as long as they like; of ten holders out of twenty honest ones are heard, but often too late, since three answers and a met policy decide. Asking the committee adds next to nothing there: where the policy is met, only members with known addresses are asked. A mirror ends it: it holds what was put, whoever is near, and a look-up waits up to a second for one that it asked. (It did not, when this figure was first made: then 7 % trusted the wrong root with three mirrors, those who had three Sybils among their first eight nodes.) The few seconds after the dissent that are left are those in which it is being put. Under `assigned` the two are believed only where both are of the committee, which is seldom, and there as long as without.",
        rows,
        columns: vec![
            column(
                "fetches after the dissent",
                Of::Measure("decisions after a dissent"),
            ),
            column(
                "trust the wrong root",
                Of::Measure("dissents that stayed hidden, share"),
            ),
            column(
                "hidden min, p50",
                Of::P50("minutes that a dissent stays hidden"),
            ),
            column("longest", Of::Max("minutes that a dissent stays hidden")),
            column("disputed", Of::Measure("disputed")),
            column("unproven", Of::Measure("unproven")),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}

/// Networks of each size, with what is set as well.
fn of_sizes(size: Size, more: impl Fn(u32) -> Vec<String>) -> Vec<Row> {
    let count = match size {
        Size::Small => 1,
        Size::Medium => 5,
        Size::Full => SIZES.len(),
    };
    let sizes = SIZES.iter().take(count);
    let rows = sizes.map(|(servers, laptops)| {
        let mut sets = vec![
            format!("nodes.servers={servers}"),
            format!("nodes.laptops={laptops}"),
        ];
        sets.extend(more(*laptops));
        row(
            "scale.toml",
            "half an hour",
            f64::from(servers + laptops),
            &sets,
        )
    });
    rows.collect()
}

fn look_ups(size: Size) -> Figure {
    Figure {
        name: "look-ups",
        title: "Look-ups and upkeep as the network grows",
        text: "Success, hops to the nearest node that answered, time to a decision, and what a node sends to stay known (newer manifests every ten minutes from twenty nodes, announcements every six hours), by nodes (x). Some 4,000 fetches a day in each, so that small networks have as many to measure. Tables' own upkeep is kad's and not in it.",
        rows: of_sizes(size, |laptops| {
            vec![format!(
                "workload.fetches_a_day={}",
                (4000 / laptops).max(1)
            )]
        }),
        columns: vec![
            column("success", Of::Measure("look-up success")),
            column("hops p50", Of::P50("hops")),
            column("hops p99", Of::P99("hops")),
            column("decision s, p50", Of::P50("seconds to a decision")),
            column("p99", Of::P99("seconds to a decision")),
            column(
                "upkeep B/h/node",
                Of::Measure("upkeep bytes per node and hour"),
            ),
        ],
        plots: vec![
            axes("nodes", "seconds to a decision, p99", 4),
            axes("nodes", "upkeep, bytes per node and hour", 5),
        ],
        grows: Vec::new(),
    }
}

fn growth(size: Size) -> Figure {
    Figure {
        name: "growth",
        title: "What a run costs as the network grows",
        text: "Half a simulated hour in which each laptop fetches once an hour, by nodes (x). Memory is that of the process, some 28 MB of which are there in the smallest network; two runs at a time share the machine. Events grow as the nodes do, and one takes longer as these fit into no cache of the processor any more.",
        rows: of_sizes(size, |_| vec!["workload.fetches_a_day=24".to_owned()]),
        columns: vec![
            column("events", Of::Events),
            column("processor s", Of::ProcessorSeconds),
            column("events/s", Of::EventsPerSecond),
            column("memory MB", Of::Memory),
            column("bytes/node", Of::MemoryPerNode),
        ],
        plots: vec![
            Axes {
                log_y: true,
                ..axes("nodes", "processor seconds", 1)
            },
            Axes {
                log_y: true,
                ..axes("nodes", "memory, MB", 3)
            },
        ],
        grows: vec![0, 1, 3],
    }
}

fn stale(size: Size) -> Figure {
    let minutes = up_to(size, &[10, 30, 60, 240, 720], 5);
    let rows = minutes.iter().map(|minutes| {
        let sets = [
            format!("network.table_minutes={minutes}"),
            "nodes.servers=1000".to_owned(),
            "churn.server_up_hours=3".to_owned(),
            "churn.down_hours=1".to_owned(),
            "hours=3".to_owned(),
            "network.refresh_minutes=240".to_owned(),
        ];
        let line = "1,000 servers that stay three hours";
        row("scale.toml", line, f64::from(*minutes), &sets)
    });
    Figure {
        name: "stale",
        title: "Look-ups against the upkeep of tables",
        text: "How often a node looks through its table (x, minutes) under heavy churn. Each time costs about log2(N/20) look-ups of twenty answers of some 1,500 bytes: here six, 180 kB, which is computed and not simulated. Between two times it names nodes that have gone, and each of these costs a look-up a time-out.",
        rows: rows.collect(),
        columns: vec![
            column("success", Of::Measure("look-up success")),
            column("decision s, p50", Of::P50("seconds to a decision")),
            column("p90", Of::P90("seconds to a decision")),
            column("p99", Of::P99("seconds to a decision")),
            column("whole look-up s, p50", Of::P50("whole look-up seconds")),
        ],
        plots: vec![axes(
            "minutes between looks through the table",
            "seconds of a whole look-up, median",
            4,
        )],
        grows: Vec::new(),
    }
}

fn survey(size: Size) -> Figure {
    let servers = up_to(size, &[20, 200, 2000, 6000], 3);
    let rows = servers.iter().map(|servers| {
        let sets = [
            format!("nodes.servers={servers}"),
            "nodes.laptops=0".to_owned(),
            "principals.survey_minutes=1".to_owned(),
            "workload.crates=2000".to_owned(),
            "hours=6".to_owned(),
            "network.refresh_minutes=240".to_owned(),
        ];
        let line = "2,000 releases, one survey a minute";
        row("scale.toml", line, f64::from(*servers), &sets)
    });
    Figure {
        name: "survey",
        title: "What a verifier's patrol costs",
        text: "Bytes that a verifier's surveys and looks send and receive, one survey a minute as `qk verify --watch` makes them, by servers (x), over the first six hours, in which everything is new to it. Surveys are a look-up and eight lists of points; looks are whole look-ups, at most 32 after a survey, of which eight go to what is known.",
        rows: rows.collect(),
        columns: vec![
            column(
                "surveys B/h",
                Of::Measure("survey bytes per verifier and hour"),
            ),
            column("looks B/h", Of::Measure("look bytes per verifier and hour")),
            column(
                "looks in an hour",
                Of::Measure("looks per verifier and hour"),
            ),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}

fn repair() -> Figure {
    let file = "repair.toml";
    Figure {
        name: "repair",
        title: "What repair is good for",
        text: "300 servers that stay four hours and lose what they held when they go, for a day; nobody puts a statement again. Hourly each holder looks at nodes that came and puts there what they are to hold (`protocol::repair`), or does not. Found: of the statements that some holder still had, and of all.",
        rows: vec![
            plain(file, "with repair", 1.0),
            row(file, "without", 0.0, &["network.repair=false"]),
        ],
        columns: vec![
            column(
                "statements left, share",
                Of::Measure("statements left, share"),
            ),
            column("look-up success", Of::Measure("look-up success")),
            column("held per server", Of::Measure("statements held per server")),
            column(
                "repair B/h/node",
                Of::Measure("repair bytes per node and hour"),
            ),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}

fn hints(size: Size) -> Figure {
    let keys = up_to(size, &[1000, 10_000, 100_000], 2);
    let rows = keys.iter().map(|keys| {
        let sets = [
            format!("workload.crates={keys}"),
            "workload.proofs=0".to_owned(),
            "nodes.servers=1000".to_owned(),
            "hours=0.02".to_owned(),
        ];
        let line = "1,000 servers, 3 providers a key";
        row("scale.toml", line, f64::from(*keys), &sets)
    });
    Figure {
        name: "hints",
        title: "Hints and statements of one node",
        text: "What one server holds with so many keys (x), each with three providers and its publisher's statement, at twenty holders. A node takes at most 65,536 hints in all.",
        rows: rows.collect(),
        columns: vec![
            column("hints p50", Of::P50("hints of a server")),
            column("p99", Of::P99("hints of a server")),
            column("most", Of::Max("hints of a server")),
            column(
                "statements, mean",
                Of::Measure("statements held per server"),
            ),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}

fn lab(size: Size) -> Figure {
    let mut rows = vec![
        plain("lab.toml", "with a cache", 200.0),
        row("lab.toml", "without", 200.0, &["nodes.lab_cache=false"]),
    ];
    if size == Size::Full {
        let few = "nodes.lab=50";
        rows.push(row("lab.toml", "with a cache", 50.0, &[few]));
        let sets = [few, "nodes.lab_cache=false"];
        rows.push(row("lab.toml", "without", 50.0, &sets));
    }
    Figure {
        name: "lab",
        title: "What a cache saves a laboratory",
        text: "Bytes that so many machines (x) fetch from outside, with the cache as their parent and without one: 60 crates by Zipf's law, 16 fetches a machine and day, for twelve hours.",
        rows,
        columns: vec![
            column(
                "bytes from outside",
                Of::Measure("bytes into the laboratory"),
            ),
            column("fetches", Of::Measure("fetches")),
            column("arrived", Of::Measure("arrived")),
            column("arrives after s, p50", Of::P50("seconds to arrive")),
            column("p99", Of::P99("seconds to arrive")),
        ],
        plots: vec![Axes {
            log_x: false,
            ..axes("machines", "bytes from outside", 0)
        }],
        grows: Vec::new(),
    }
}

fn availability(size: Size) -> Figure {
    let providers = up_to(size, &[1, 2, 3, 5, 10, 20], 6);
    let rows = providers.iter().map(|providers| {
        let set = format!("workload.providers={providers}");
        let line = "servers that are there a third of the time";
        row("availability.toml", line, f64::from(*providers), &[set])
    });
    Figure {
        name: "availability",
        title: "Availability under churn",
        text: "Share of trusted artifacts that arrive when so many providers (x) have them, none of whom stays: sessions of four hours, eight hours away.",
        rows: rows.collect(),
        columns: vec![
            column("delivered", Of::Measure("delivered, share of trusted")),
            column(
                "providers not reached",
                Of::Measure("providers not reached"),
            ),
            column("arrives after s, p50", Of::P50("seconds to arrive")),
            column(
                "load: bytes given, p50",
                Of::P50("bytes given by a provider"),
            ),
            column("p99", Of::P99("bytes given by a provider")),
            column("most", Of::Max("bytes given by a provider")),
        ],
        plots: vec![
            axes("providers", "share of trusted artifacts that arrive", 0),
            axes("providers", "bytes given by a provider, p99", 4),
        ],
        grows: Vec::new(),
    }
}

fn prefix(size: Size) -> Figure {
    let bits = up_to(size, &[256, 10, 8, 6, 4, 3], 5);
    let rows = bits.iter().map(|bits| {
        let set = format!("workload.prefix_bits={bits}");
        let line = "2,000 releases, 200 servers";
        row("prefix.toml", line, f64::from(*bits), &[set])
    });
    Figure {
        name: "prefix",
        title: "Reading by prefix",
        text: "What a reader gets that names only the first bits (x) of a point, so that holders do not learn which of the releases it is after: bytes of all answers of one look-up, and releases among which it hides. 256 is the whole point. Each bit less doubles both; hiding among ten costs twice as much as not hiding, and among a hundred thirty times.",
        rows: rows.collect(),
        columns: vec![
            column("releases, p50", Of::P50("releases by prefix")),
            column("bytes, p50", Of::P50("bytes by prefix")),
            column("bytes, p99", Of::P99("bytes by prefix")),
            column("answers, p50", Of::P50("answers by prefix")),
            column("seconds, p50", Of::P50("whole look-up seconds")),
        ],
        plots: vec![axes(
            "bits that are named",
            "bytes of one look-up, median",
            1,
        )],
        grows: Vec::new(),
    }
}

fn large() -> Figure {
    Figure {
        name: "large",
        title: "Large runs",
        text: "A day of 10,000 nodes with look-ups, publications, rebuilds and churn, and 100,000 nodes (x), each on one thread beside the other. Their checks are safety, integrity, liveness of the last fetches, conservation, and that every fault that is enabled happened.",
        rows: vec![
            plain("day.toml", "day.toml", 10_000.0),
            plain("hundred-thousand.toml", "hundred-thousand.toml", 100_000.0),
        ],
        columns: vec![
            column("nodes", Of::Nodes),
            column("simulated h", Of::Hours),
            column("events", Of::Events),
            column("memory MB", Of::Memory),
            column("bytes/node", Of::MemoryPerNode),
            column("clock s", Of::WallSeconds),
            column("processor s", Of::ProcessorSeconds),
            column("events/s", Of::EventsPerSecond),
            column("checks that hold", Of::ChecksHeld),
            column("that fail", Of::ChecksFailed),
        ],
        plots: Vec::new(),
        grows: Vec::new(),
    }
}
