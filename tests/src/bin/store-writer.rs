//! Opens a store and works on it until it is killed, saying what is acknowledged; now and then it
//! closes the store and opens it again.
//!
//! `store-writer DIR SEED FIRST`: numbers of new things begin at FIRST. Lines on stdout: `opening`,
//! `open`, `> THREAD OP…` before a group of operations, `< THREAD` when it is acknowledged,
//! `closing`, `closed`.

use std::io::Write;
use std::path::Path;

use qk_node::store::{Keep, Store};
use qk_protocol::time::UnixTime;
use qk_tests::store_load::{self, Op, THREADS, What};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, seed, first] = &args[..] else {
        anyhow::bail!("usage: store-writer DIR SEED FIRST");
    };
    let (seed, first): (u64, u64) = (seed.parse()?, first.parse()?);
    let mut states: Vec<_> = (0..THREADS)
        .map(|thread| {
            let rng = StdRng::seed_from_u64(seed ^ (thread << 56));
            (first.next_multiple_of(THREADS) + thread, rng)
        })
        .collect();
    let mut rng = StdRng::seed_from_u64(seed ^ (THREADS << 56));
    loop {
        say("opening")?;
        let store = Store::open(Path::new(dir), store_load::options())?;
        say("open")?;
        let groups = rng.random_range(5..60);
        std::thread::scope(|scope| {
            let numbered = states.iter_mut().zip(0..);
            let threads: Vec<_> = numbered
                .map(|((next, rng), thread)| {
                    let store = &store;
                    scope.spawn(move || work(store, thread, groups, next, rng))
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))?
            })
        })?;
        say("closing")?;
        drop(store);
        say("closed")?;
    }
}

fn work(
    store: &Store,
    thread: u64,
    groups: u64,
    next: &mut u64,
    rng: &mut StdRng,
) -> anyhow::Result<()> {
    for _ in 0..groups {
        let ops = choose(next, thread, rng);
        let line: Vec<String> = ops.iter().map(Op::to_string).collect();
        say(&format!("> {thread} {}", line.join(" ")))?;
        carry_out(store, &ops)?;
        say(&format!("< {thread}"))?;
        if thread == 0 && rng.random_bool(0.02) {
            store.compact()?;
        }
    }
    Ok(())
}

/// New things mostly; else something older put or taken away.
fn choose(next: &mut u64, thread: u64, rng: &mut StdRng) -> Vec<Op> {
    let mut fresh = || {
        *next += THREADS;
        *next - THREADS
    };
    let op = |put, what, number| Op { put, what, number };
    match rng.random_range(0..100) {
        0..50 => {
            let count = rng.random_range(1..6);
            (0..count)
                .map(|_| op(true, What::Statement, fresh()))
                .collect()
        }
        50..60 => vec![op(true, What::Blob, fresh())],
        60..70 => vec![op(true, What::Pin, fresh())],
        kind => {
            let what = match kind {
                70..92 => What::Statement,
                92..96 => What::Pin,
                _ => What::Blob,
            };
            // Seldom put back and many statements at once, so that more than half of the journal
            // dies and there is something to compact.
            let put = rng.random_bool(0.1);
            let count = if what == What::Statement {
                rng.random_range(1..25)
            } else {
                1
            };
            let older = (0..count).map(|_| rng.random_range(0..=*next / THREADS));
            older.map(|n| op(put, what, n * THREADS + thread)).collect()
        }
    }
}

fn carry_out(store: &Store, ops: &[Op]) -> anyhow::Result<()> {
    let records: Vec<_> = ops
        .iter()
        .filter(|op| op.put && op.what == What::Statement)
        .map(|op| store_load::record(op.number))
        .collect();
    if !records.is_empty() {
        store.append(records)?;
    }
    let mut removed = Vec::new();
    for op in ops {
        match (op.what, op.put) {
            (What::Statement, true) => {}
            (What::Statement, false) => removed.push(store_load::record(op.number).id),
            (What::Pin, true) => drop(store.pin(store_load::pin(op.number))?),
            (What::Pin, false) => drop(store.unpin(store_load::pin(op.number))?),
            (What::Blob, true) => {
                let (root, bytes) = store_load::blob(op.number);
                let mut temp = store.begin()?;
                temp.write_all(&bytes)?;
                store.commit(temp, root, Keep::Durable, UnixTime(op.number))?;
            }
            (What::Blob, false) => drop(store.remove_blob(&store_load::blob(op.number).0)?),
        }
    }
    if !removed.is_empty() {
        store.remove(&removed)?;
    }
    Ok(())
}

/// One line in one write, so that a kill never leaves half of one that counts.
fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{line}\n").as_bytes())?;
    stdout.flush()
}
