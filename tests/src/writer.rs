//! A process that works on a store and says what was acknowledged, to be ended at any moment.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::store_load::{Expected, Op, THREADS};

/// A writer under way. One that is dropped is killed.
#[derive(Debug)]
pub struct Writer {
    child: Child,
    lines: mpsc::Receiver<(Instant, String)>,
}

/// What a writer did until it was killed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Groups of operations that were acknowledged.
    pub groups: u64,
    /// The operations in them.
    pub operations: u64,
    /// Groups that were under way.
    pub cut_off: u64,
    /// Whether it was opening or closing a store.
    pub between: bool,
    /// How often it closed one.
    pub closed: u64,
    /// The next number that nothing has yet.
    pub next_number: u64,
}

impl Writer {
    /// Starts `program`, one of this package's.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut child = Command::new(program)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            while stdout.read_line(&mut line).is_ok_and(|len| len > 0) {
                if line.ends_with('\n') {
                    sender
                        .send((Instant::now(), line.trim_end().to_owned()))
                        .ok();
                }
                line.clear();
            }
        });
        Self { child, lines }
    }

    /// Waits for the next line.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn next_line(&self, most: Duration) -> (Instant, String) {
        self.lines.recv_timeout(most).expect("the writer goes on")
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// `kill -9`, without waiting for the end.
    ///
    /// # Panics
    /// When it has ended before.
    pub fn kill(&mut self) {
        self.child.kill().expect("it has not ended by itself");
    }

    /// Waits until the killed process is gone, and hands over what it said and was not read yet.
    ///
    /// # Panics
    /// When it has ended by itself.
    pub fn said(mut self) -> Vec<String> {
        let status = self.child.wait().expect("its end can be awaited");
        assert_eq!(status.code(), None, "it ended by itself: {status}");
        self.lines.iter().map(|(_, line)| line).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Takes down what was acknowledged; `opened` if the line that says so was read before.
///
/// # Panics
/// At lines that no writer says.
pub fn take_down(
    lines: &[String],
    opened: bool,
    expected: &mut Expected,
    acknowledged: impl Fn(&mut Expected, Op),
) -> Done {
    let mut under_way: [Vec<Op>; THREADS as usize] = Default::default();
    let mut done = Done {
        between: !opened,
        ..Done::default()
    };
    for line in lines {
        let mut words = line.split(' ');
        match words.next() {
            Some(">") => {
                let ops = begun(&mut words, &mut under_way);
                for op in ops.iter() {
                    done.next_number = done.next_number.max(op.number + 1);
                }
            }
            Some("<") => {
                let thread: usize = words.next().unwrap().parse().unwrap();
                done.groups += 1;
                for op in under_way[thread].drain(..) {
                    done.operations += 1;
                    acknowledged(expected, op);
                }
            }
            Some("open") => done.between = false,
            Some("closing" | "opening") => done.between = true,
            Some("closed") => done.closed += 1,
            Some(_) | None => panic!("the writer said {line:?}"),
        }
    }
    for op in under_way.iter().flatten() {
        expected.cut_off(*op);
    }
    done.cut_off = under_way.iter().filter(|ops| !ops.is_empty()).count() as u64;
    done
}

fn begun<'a>(
    words: &mut std::str::Split<'_, char>,
    under_way: &'a mut [Vec<Op>; THREADS as usize],
) -> &'a [Op] {
    let thread: usize = words.next().unwrap().parse().unwrap();
    assert!(under_way[thread].is_empty(), "one group at a time");
    under_way[thread] = words.map(|op| op.parse().unwrap()).collect();
    &under_way[thread]
}

/// A number from the environment, as campaigns are told their size and seed.
///
/// # Panics
/// When it is something else.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")),
        Err(_) => default,
    }
}

/// Ends the test if something takes forever: a test of its own process, as all campaigns are.
#[derive(Debug)]
pub struct Watch {
    _alive: mpsc::Sender<()>,
}

impl Watch {
    /// Ends it if this is not dropped within `most`.
    pub fn new(what: String, most: Duration) -> Self {
        let (alive, seen) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if seen.recv_timeout(most) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{what} hangs");
                std::process::exit(101);
            }
        });
        Self { _alive: alive }
    }
}
