//! Writes to sled alone, as if it were the only copy, until it is killed; for comparison.
//!
//! `sled-writer DIR FIRST plain|synced`: lines as those of `store-writer`. An entry is acknowledged
//! after sled's `flush`, which promises an fsync; `synced` syncs the file as well.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use qk_tests::store_load;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, first, how] = &args[..] else {
        anyhow::bail!("usage: sled-writer DIR FIRST plain|synced");
    };
    let dir = Path::new(dir);
    say("opening")?;
    let db = store_load::sled(dir)?;
    say("open")?;
    for number in first.parse::<u64>()?.. {
        let record = store_load::record(number);
        say(&format!("> 0 +s{number}"))?;
        db.insert(record.id.0, record.bytes)?;
        db.flush()?;
        if how == "synced" {
            File::open(dir.join("db"))?.sync_all()?;
        }
        say("< 0")?;
    }
    Ok(())
}

/// One line in one write, so that a kill never leaves half of one that counts.
fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{line}\n").as_bytes())?;
    stdout.flush()
}
