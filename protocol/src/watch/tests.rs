use proptest::prelude::*;

use super::budget::{Budget, Circumstances, Hours, Spent, Wait};
use super::*;
use crate::assign::CALLS_A_DAY_MAX;
use crate::hash::NetworkId;
use crate::testing::*;
use crate::time::UnixTime;

const NETWORK: NetworkId = NetworkId([1; 32]);
const HOUR: u64 = 3600;

fn key_of(number: usize) -> ArtifactKey {
    ArtifactKey {
        name: format!("crate{number}"),
        ..key()
    }
}

fn failed(class: Class) -> End {
    End::Failed {
        class,
        detail: "it said so".to_owned(),
    }
}

fn begun(queue: &mut Queue, now: UnixTime) -> Option<String> {
    queue.begin(now).map(|entry| entry.key.name.clone())
}

fn budget() -> Budget {
    Budget {
        cpu_seconds: None,
        jobs: 2,
        disk_bytes: 1 << 30,
        free_bytes: 1 << 20,
        hours: None,
        idle: false,
        time_limit_seconds: 60,
    }
}

const QUIET: Circumstances = Circumstances {
    minute: 12 * 60,
    load_percent: 10,
    processors: 2,
    free_bytes: 1 << 40,
    paused: false,
};

#[test]
fn calls_come_first_and_nothing_twice() {
    let mut queue = Queue::default();
    let by = principal_id("ann");
    assert!(queue.add(NETWORK, key_of(1), Why::Audit, NOW));
    assert!(queue.add(NETWORK, key_of(2), Why::Assigned, NOW));
    assert!(queue.add(NETWORK, key_of(3), Why::Called { by }, NOW.plus(1)));
    assert!(!queue.add(NETWORK, key_of(2), Why::Assigned, NOW.plus(2)));
    // What was drawn may be owed, too.
    assert!(!queue.add(NETWORK, key_of(1), Why::Called { by }, NOW.plus(3)));
    for expected in ["crate1", "crate3", "crate2"] {
        assert_eq!(begun(&mut queue, NOW.plus(4)).as_deref(), Some(expected));
        assert_eq!(begun(&mut queue, NOW.plus(4)), None, "one after another");
        assert!(!queue.add(NETWORK, key_of(1), Why::Audit, NOW) || expected != "crate1");
        queue.end(End::Built(Agreement::Identical), NOW.plus(5));
        queue.retain(|entry| entry.why != Why::Audit);
    }
    assert_eq!(queue.agreed()[&Agreement::Identical], 3);
    assert_eq!(queue.results().count(), 3);
}

#[test]
fn what_fails_is_in_nobodys_way_and_waits_longer_each_time() {
    let mut queue = Queue::default();
    let mut now = NOW;
    queue.add(NETWORK, key_of(1), Why::Assigned, now);
    let mut delays = Vec::new();
    for _ in 0..8 {
        assert_eq!(begun(&mut queue, now).as_deref(), Some("crate1"));
        let due = queue.end(failed(Class::TimeOut), now).unwrap();
        delays.push(due.since(now) / DAY);
        assert_eq!(queue.next_due(now), Some(due));
        // Published later, and rebuilt first.
        queue.add(NETWORK, key_of(2), Why::Audit, now);
        assert_eq!(begun(&mut queue, now).as_deref(), Some("crate2"));
        queue.end(End::Built(Agreement::First), now);
        now = due;
        // Even where both are due.
        queue.add(NETWORK, key_of(3), Why::Audit, now);
        assert_eq!(begun(&mut queue, now).as_deref(), Some("crate3"));
        queue.end(End::Built(Agreement::Differs), now);
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(queue.failed()[&Class::TimeOut], 8);
    assert_eq!(queue.waiting(now)[0].last, Some(Class::TimeOut));
}

#[test]
fn a_process_that_died_begins_with_something_else() {
    let mut queue = Queue::default();
    queue.add(NETWORK, key_of(1), Why::Assigned, NOW);
    queue.add(NETWORK, key_of(2), Why::Assigned, NOW.plus(1));
    assert_eq!(begun(&mut queue, NOW.plus(1)).as_deref(), Some("crate1"));
    let text = serde_json::to_string(&queue).unwrap();
    let read: Queue = serde_json::from_str(&text).unwrap();
    assert_eq!(read, queue);
    let mut queue = read.resumed(NOW.plus(2));
    assert_eq!(queue.waiting(NOW.plus(2)).len(), 2);
    assert_eq!(begun(&mut queue, NOW.plus(2)).as_deref(), Some("crate2"));
    queue.end(End::Stopped, NOW.plus(2));
    queue.retain(|entry| entry.key.name == "crate1");
    // Once may be anything; a machine that it takes down again has some rest.
    assert_eq!(begun(&mut queue, NOW.plus(2)).as_deref(), Some("crate1"));
    let mut queue = queue.resumed(NOW.plus(3));
    assert_eq!(begun(&mut queue, NOW.plus(3)), None);
    assert!(begun(&mut queue, NOW.plus(3 + 20 * 60)).is_some());
}

#[test]
fn one_rebuild_of_five_is_an_audit_and_idle_time_is_for_audits() {
    let mut queue = Queue::default();
    assert!(queue.wants_audit(NOW), "nothing else to do");
    for number in 0..30 {
        queue.add(NETWORK, key_of(number), Why::Assigned, NOW);
    }
    let mut whys = Vec::new();
    for number in 100..120 {
        if queue.wants_audit(NOW) {
            queue.add(NETWORK, key_of(number), Why::Audit, NOW);
        }
        whys.push(queue.begin(NOW).unwrap().why == Why::Audit);
        queue.end(failed(Class::CompileError), NOW);
    }
    let audits = whys.iter().filter(|audit| **audit).count();
    assert_eq!(audits, 4, "{whys:?}");
}

#[test]
fn a_dissenter_is_answered_ten_times_a_day_and_no_more() {
    let mut queue = Queue::default();
    let why = Why::Called {
        by: principal_id("ann"),
    };
    let mut taken = |day: u64| {
        let now = NOW.plus(day * DAY);
        let all = 0..CALLS_A_DAY_MAX + 5;
        let taken: Vec<usize> = all
            .filter(|number| queue.add(NETWORK, key_of(*number), why, now))
            .collect();
        queue.retain(|_| false);
        taken.len()
    };
    assert_eq!([taken(0), taken(1)], [CALLS_A_DAY_MAX, CALLS_A_DAY_MAX]);
}

#[test]
fn a_full_queue_keeps_what_is_urgent() {
    let mut queue = Queue::default();
    for number in 0..ENTRIES_MAX {
        assert!(queue.add(NETWORK, key_of(number), Why::Audit, NOW));
    }
    assert!(!queue.add(NETWORK, key_of(5000), Why::Audit, NOW.plus(1)));
    assert!(queue.add(NETWORK, key_of(5001), Why::Assigned, NOW.plus(1)));
    assert_eq!(queue.waiting(NOW).len(), ENTRIES_MAX);
    assert_eq!(begun(&mut queue, NOW.plus(1)).as_deref(), Some("crate5001"));
}

#[test]
fn one_release_does_not_fill_the_queue() {
    let mut queue = Queue::default();
    for number in 0..100 {
        let mut varied = key_of(1);
        varied.flags.features = [format!("feature{number}")].into();
        queue.add(NETWORK, varied, Why::Assigned, NOW);
    }
    assert_eq!(queue.waiting(NOW).len(), RELEASE_ENTRIES_MAX);
    assert!(queue.add(NETWORK, key_of(2), Why::Assigned, NOW.plus(1)));
}

#[test]
fn what_is_owed_is_what_principals_stand_behind() {
    let ranked = crate::assign::Ranking::of(network(), &Candidate::of(&key()));
    let first = ranked.ranks()[0].principal;
    let owed = |scenario: &Scenario| duties(&scenario.network, &scenario.held, first);
    let others: Vec<&str> = VERIFIERS
        .into_iter()
        .filter(|name| principal_id(name) != first)
        .collect();
    let said = scenario().says(others[0], "right");
    assert_eq!(owed(&said), [(key(), Why::Assigned)]);
    // A stranger gives nobody work, however many keys it makes up.
    assert_eq!(owed(&scenario().says("zoe", "right")), []);
    // Nor does anybody with builds that no client takes.
    let odd = scenario().says_but(others[0], "right", |draft| {
        draft.key.flags.rustc.version = "1.0.0".to_owned();
    });
    assert_eq!(owed(&odd), []);
}

#[test]
fn hours_are_read_as_people_write_them() {
    let hours = |text: &str| text.parse::<Hours>();
    let night = hours("22-06").unwrap();
    assert_eq!(night.to_string(), "22:00-06:00");
    assert_eq!(hours(&night.to_string()), Ok(night));
    for (minute, inside) in [
        (0, true),
        (359, true),
        (360, false),
        (1319, false),
        (1320, true),
    ] {
        assert_eq!(night.contains(minute), inside, "{minute}");
    }
    let day = hours(" 9:30 - 17 ").unwrap();
    assert!(day.contains(9 * 60 + 30) && !day.contains(17 * 60) && !day.contains(0));
    assert!(hours("20-24").unwrap().contains(23 * 60 + 59));
    for text in [
        "", "22", "22-", "25-6", "24-6", "22-06-07", "9:60-10", "+9-10", "9-9", "a-b", "009-10",
    ] {
        assert!(hours(text).is_err(), "{text}");
    }
}

#[test]
fn each_budget_holds_by_itself() {
    let spent = Spent::default();
    let waits = |budget: &Budget, now: &Circumstances| budget.waits(&spent, now, NOW);
    let mut given = budget();
    assert_eq!(waits(&given, &QUIET), []);
    let paused = Circumstances {
        paused: true,
        ..QUIET
    };
    assert_eq!(waits(&given, &paused), [Wait::Paused]);
    assert_eq!(given.stops(&paused), [Wait::Paused]);
    let full = Circumstances {
        free_bytes: 1000,
        ..QUIET
    };
    assert_eq!(waits(&given, &full), [Wait::Disk]);
    let busy = Circumstances {
        load_percent: 101,
        ..QUIET
    };
    assert_eq!(waits(&given, &busy), []);
    given.idle = true;
    assert_eq!(waits(&given, &busy), [Wait::Busy]);
    assert_eq!(given.stops(&busy), [], "its own load stops nothing");
    given.hours = Some("22-06".parse().unwrap());
    assert_eq!(waits(&given, &busy), [Wait::Hours, Wait::Busy]);
    assert_eq!(given.stops(&QUIET), [Wait::Hours]);
    given.cpu_seconds = Some(0);
    assert_eq!(waits(&given, &QUIET), [Wait::Hours, Wait::Cpu]);
}

#[test]
fn what_a_build_takes_beyond_the_day_is_taken_off_the_next_days() {
    let mut given = budget();
    given.cpu_seconds = Some(HOUR);
    let mut queue = Queue::default();
    let left = |queue: &Queue, day: u64| given.cpu_left(queue.spent(), NOW.plus(day * DAY));
    assert_eq!(left(&queue, 0), Some(HOUR));
    queue.spend(1, &given, NOW);
    assert_eq!(left(&queue, 0), Some(HOUR - 1), "however little");
    queue.spend(HOUR * 500 - 1, &given, NOW);
    assert_eq!(left(&queue, 0), Some(HOUR / 2));
    queue.spend(2 * HOUR * 1000, &given, NOW);
    assert_eq!(
        [0, 1, 2, 3].map(|day| left(&queue, day)),
        [0, 0, HOUR / 2, HOUR].map(Some)
    );
    // A clock that goes back gives nothing back.
    queue.spend(1, &given, UnixTime(NOW.0 - DAY));
    assert_eq!(left(&queue, 0), Some(0));
    given.cpu_seconds = None;
    assert_eq!(given.cpu_left(queue.spent(), NOW), None);
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize, u8),
    Begin,
    End(u8),
    Later(u64),
    Die,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..12_usize, 0..3_u8).prop_map(|(number, why)| Step::Add(number, why)),
        Just(Step::Begin),
        (0..6_u8).prop_map(Step::End),
        (1..40 * DAY).prop_map(Step::Later),
        Just(Step::Die),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// Whatever happens: nothing is there twice, what is taken is due, what failed comes after what
    /// has not, what is neither built nor dropped is never lost, and what is remembered can be read.
    #[test]
    fn the_queue_keeps_its_promises(steps in steps()) {
        let mut queue = Queue::default();
        let mut now = NOW;
        let mut there = BTreeSet::new();
        for step in steps {
            match step {
                Step::Add(number, why) => {
                    let why = [Why::Audit, Why::Assigned, Why::Called { by: principal_id("ann") }][usize::from(why)];
                    if queue.add(NETWORK, key_of(number), why, now) {
                        prop_assert!(there.insert(key_of(number).name));
                    }
                }
                Step::Begin => {
                    let was = queue.building().cloned();
                    let fresh = queue.waiting(now).iter().any(|one| one.due <= now && one.tries == 0);
                    let due = queue.waiting(now).iter().any(|one| one.due <= now);
                    let begun = queue.begin(now).cloned();
                    prop_assert_eq!(begun.is_some(), was.is_none() && due);
                    if let Some(entry) = begun {
                        prop_assert!(entry.due <= now);
                        prop_assert!(!fresh || entry.tries == 0);
                    }
                }
                Step::End(how) => {
                    let was = queue.building().cloned();
                    let end = match how {
                        0 => End::Built(Agreement::First),
                        1 => End::Dropped,
                        2 => End::Stopped,
                        3 => failed(Class::NotHad),
                        4 => failed(Class::CompileError),
                        _ => failed(Class::Interrupted),
                    };
                    let again = queue.end(end, now);
                    prop_assert_eq!(again.is_some(), was.is_some() && how > 1);
                    if let Some(was) = was.filter(|_| how < 2) {
                        there.remove(&was.entry.key.name);
                    }
                }
                Step::Later(seconds) => now = now.plus(seconds),
                Step::Die => {
                    let text = serde_json::to_string(&queue).unwrap();
                    let read: Queue = serde_json::from_str(&text).unwrap();
                    prop_assert_eq!(&read, &queue);
                    queue = read.resumed(now);
                    prop_assert!(queue.building().is_none());
                }
            }
            let mut names: Vec<String> = queue.waiting(now).iter().map(|one| one.key.name.clone()).collect();
            names.extend(queue.building().map(|one| one.entry.key.name.clone()));
            prop_assert_eq!(names.len(), there.len());
            prop_assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), there.clone());
            prop_assert!(queue.results().count() <= RESULTS_MAX);
        }
    }
}
