//! Where the time of a large download goes.

use super::super::serve::Blobs;
use super::swarm::*;
use super::*;

/// Prints where the time of a large download goes; run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_two_hundred_megabytes() {
    let artifact = artifact(200_000_000);
    let mut cpu_before = cpu();
    let mut rate = |what: &str, took: Duration| {
        let cpu_now = cpu();
        let cpu_took = cpu_now - std::mem::replace(&mut cpu_before, cpu_now);
        println!(
            "{what:<30} {:>7.0} ms {:>5.0} MB/s, cpu {:>5.0} ms",
            took.as_secs_f64() * 1e3,
            200.0 / took.as_secs_f64(),
            cpu_took.as_secs_f64() * 1e3,
        );
    };
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let root = artifact.blob.root();

    let start = std::time::Instant::now();
    let held = provider.shelf.open(root).expect("opens").expect("is here");
    let mut wires = Vec::new();
    for unit in artifact.blob.units(64) {
        wires.push((
            unit,
            encode(&artifact.blob, &unit.into(), &held.data, &held.outboard).expect("encodes"),
        ));
    }
    rate("encode alone, 1 thread", start.elapsed());
    let start = std::time::Instant::now();
    let verified: Vec<_> = wires
        .iter()
        .map(|(unit, wire)| verify(&artifact.blob, &(*unit).into(), wire).expect("verifies"))
        .collect();
    rate("verify alone, 1 thread", start.elapsed());
    let scratch = tempfile::tempdir().expect("a directory");
    let part = Part::open(scratch.path(), artifact.blob).expect("opens");
    let start = std::time::Instant::now();
    for one in &verified {
        part.write_verified(one).expect("writes");
    }
    rate("write alone, 1 thread", start.elapsed());
    let start = std::time::Instant::now();
    assert_eq!(part.valid().expect("reads").len(), 763);
    rate("find what is valid", start.elapsed());
    let start = std::time::Instant::now();
    part.finish().expect("is whole");
    rate("finish (whole check)", start.elapsed());
    drop((wires, verified));

    let mut lane = client.lane(&provider.node).await;
    let start = std::time::Instant::now();
    let units: Vec<_> = artifact.blob.units(64).collect();
    let ask = |unit: &BlockRange| artifact.request(unit.start().0, unit.end().0);
    lane.ask(&ask(&units[0])).await.expect("asks");
    for next in units.iter().skip(1) {
        lane.ask(&ask(next)).await.expect("asks");
        lane.answer().await.expect("answers");
    }
    lane.answer().await.expect("answers");
    rate("lane alone, encode and wire", start.elapsed());
    drop(lane);

    let start = std::time::Instant::now();
    let finished = client
        .fetch(artifact.blob, &[&provider.node])
        .await
        .expect("arrives");
    rate("download, everything", start.elapsed());
    assert!(is_whole(&artifact, &finished));
}

/// What this process has used on all processors, in hundredths of a second.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("reads");
    let (_, after_name) = stat.rsplit_once(')').expect("has a name");
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let sum: u64 = ticks
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(sum * 10)
}
