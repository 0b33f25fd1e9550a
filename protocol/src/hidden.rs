//! Hidden reads: look-ups by a prefix that many locations share, in place of the point itself.
//!
//! How long a prefix may be follows from how many points there are, which a [`Survey`] of a random range
//! tells: a sample, since points are hashes. Only what most of the nodes that answered name is counted,
//! and less than was counted is assumed, so that errors and single liars lead to shorter prefixes. Nodes that lie
//! together could make the index look full; so no prefix is longer than [`HIDDEN_BITS_MAX`] whatever
//! they say.

use crate::hash::Point;
use crate::message::Get;
use crate::watch::patrol::Survey;

/// Points that share the prefix of a hidden read, if there are as many at all.
pub const HIDDEN_AMONG_MIN: u64 = 256;
/// Bits of a prefix at most: with it a reader hides in a part of 4096 of everything that a registry has.
pub const HIDDEN_BITS_MAX: u16 = 12;

/// Why a read cannot be hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "look-ups cannot be hidden in this network: with so many nodes and so few entries, none of them holds {HIDDEN_AMONG_MIN} that share a prefix"
)]
pub struct CannotHide;

/// How many first bits of a point may be told.
///
/// # Errors
/// When a prefix that is short enough is more than the nodes hold that one look-up finds.
pub fn hidden_bits(survey: &Survey) -> Result<u16, CannotHide> {
    let majority = survey.answered / 2 + 1;
    let counted = survey
        .points
        .iter()
        .filter(|(_, named_by)| *named_by as usize >= majority);
    let counted = counted.count() as u64;
    // Two standard deviations of what a random range has.
    let surely = counted.saturating_sub(2 * counted.isqrt());
    // As long as half of them are enough to hide among.
    let all = u128::from(surely) << survey.bits.min(64);
    let mut bits = 0;
    while bits < HIDDEN_BITS_MAX && all >> (bits + 1) >= u128::from(HIDDEN_AMONG_MIN) {
        bits += 1;
    }
    match bits < survey.bits.min(HIDDEN_BITS_MAX) {
        true => Err(CannotHide),
        false => Ok(bits),
    }
}

/// Asks for everything at all points that share so many first bits with this one; of it, only these are
/// in the question.
pub fn hidden(point: Point, bits: u16) -> Get {
    let mut shown = [0; 32];
    for (at, byte) in shown.iter_mut().enumerate() {
        let kept = usize::from(bits).saturating_sub(8 * at).min(8);
        // With none of eight bits kept, all are shifted out.
        let mask = 0xff_u8.checked_shl(8 - kept as u32).unwrap_or(0);
        *byte = point.0[at] & mask;
    }
    Get {
        point: Point(shown),
        bits,
        observer: None,
        after: None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::hash::Blake3;
    use crate::index::{Hints, MemoryShelf, Rules, answer};
    use crate::lookup::{Lookup, LookupIn, LookupOut};
    use crate::message::{Contact, NodeId, POINTS_MAX, Request};
    use crate::testing::{NOW, scenario};
    use crate::time::{Machine, Now};

    fn point(number: u64) -> Point {
        Point(*Blake3::of(&number.to_le_bytes()).as_bytes())
    }

    fn nearest(to: Point, points: u64) -> Vec<Point> {
        let mut all: Vec<Point> = (0..points).map(point).collect();
        all.sort_unstable_by_key(|one| one.distance(&to));
        all.truncate(POINTS_MAX);
        all
    }

    /// What nodes that hold everything let a survey say.
    fn surveyed(points: u64, answers: usize) -> Survey {
        let at = point(u64::MAX);
        Survey::of(at, &[], &vec![nearest(at, points); answers])
    }

    #[test]
    fn so_many_bits_are_told_that_enough_points_share_them() {
        for points in [0, 1, 255, 256, 600, 1000, 3000, 20_000] {
            let bits = hidden_bits(&surveyed(points, 3)).unwrap();
            let shares = points >> bits;
            println!("{points} points: {bits} bits, shared by some {shares}");
            assert!(bits == 0 || shares >= HIDDEN_AMONG_MIN, "{points}: {bits}");
            assert!(shares < 8 * HIDDEN_AMONG_MIN, "{points}: {bits}");
        }
        let crates = Survey {
            bits: 11,
            points: (0..900).map(|number| (point(number), 3)).collect(),
            answered: 3,
        };
        assert_eq!(hidden_bits(&crates), Ok(HIDDEN_BITS_MAX));
    }

    #[test]
    fn who_makes_points_up_narrows_nothing() {
        let at = point(u64::MAX);
        let honest = nearest(at, 600);
        let bits = hidden_bits(&Survey::of(at, &[], &vec![honest.clone(); 3])).unwrap();
        let made_up: Vec<Point> = (0..POINTS_MAX as u16)
            .map(|number| {
                let mut point = at;
                point.0[30..].copy_from_slice(&number.to_be_bytes());
                point
            })
            .collect();
        let one_lies = [honest.clone(), made_up.clone(), honest];
        assert_eq!(hidden_bits(&Survey::of(at, &[], &one_lies)), Ok(bits));
        // If all do, they learn so much and no more.
        let all_lie = Survey::of(at, &[], &vec![made_up; 3]);
        assert_eq!(hidden_bits(&all_lie), Ok(HIDDEN_BITS_MAX));
    }

    #[test]
    fn where_no_node_holds_enough_nothing_is_hidden() {
        let sparse = Survey {
            bits: 9,
            points: (0..40).map(|number| (point(number), 5)).collect(),
            answered: 5,
        };
        assert_eq!(hidden_bits(&sparse), Err(CannotHide));
    }

    proptest! {
        #[test]
        fn a_question_tells_the_prefix_and_no_more(point: [u8; 32], other: [u8; 32], bits in 0..=256_u16) {
            let (point, other) = (Point(point), Point(other));
            let get = hidden(point, bits);
            prop_assert!(get.point.shares_prefix(&point, bits));
            prop_assert_eq!(hidden(get.point, bits), get.clone());
            if other.shares_prefix(&point, bits) {
                prop_assert_eq!(hidden(other, bits), get);
            }
        }
    }

    /// What a look-up asks of nodes that hold everything, and bytes of the answers.
    fn look_up(shelf: &MemoryShelf, get: Get) -> (Vec<Get>, usize) {
        let scenario = scenario();
        let key = scenario.network.key(None);
        let rules = Rules {
            network: &scenario.network,
            key: &key,
        };
        let contact = |id: u8| Contact {
            node: NodeId(vec![id; 34]),
            addrs: vec![b"somewhere".to_vec().into()],
        };
        let mut lookup = Lookup::new(get, (0..8).map(contact));
        let now = Now {
            mono: Duration::ZERO,
            unix: NOW,
        };
        let (mut asked, mut bytes) = (Vec::new(), 0);
        let mut inputs = vec![LookupIn::Start];
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            lookup.handle(input, now, &mut out);
            for LookupOut::Ask(contact, request) in out {
                let Request::Get(get) = &request else {
                    panic!("a look-up gets");
                };
                asked.push(get.clone());
                let hints = Hints::default();
                let (reply, _) = answer(shelf, &hints, &rules, &contact, request, vec![], NOW);
                bytes += reply.encode().len();
                inputs.push(LookupIn::Reply(contact.node, reply));
            }
        }
        assert!(lookup.is_done());
        (asked, bytes)
    }

    #[test]
    fn all_that_share_the_prefix_are_read_and_nothing_else_is_told() {
        let said = scenario().says("ann", "right").says("bob", "right");
        let said = said.says("cyd", "right");
        let mut shelf = MemoryShelf::default();
        for number in 0..1500 {
            for held in &said.held {
                shelf.keep(point(number), held.statement.clone());
            }
        }
        let wanted = point(7);
        let bits = hidden_bits(&surveyed(1500, 3)).unwrap();
        let (asked, hidden_bytes) = look_up(&shelf, hidden(wanted, bits));
        let shares = |number: &u64| point(*number).shares_prefix(&wanted, bits);
        let among = (0..1500).filter(shares).count();
        assert!(among as u64 >= HIDDEN_AMONG_MIN, "{among}");
        for get in &asked {
            assert_eq!(
                (get.point, get.bits),
                (hidden(wanted, bits).point, bits),
                "{get:?}"
            );
        }
        let (exact, exact_bytes) = look_up(&shelf, hidden(wanted, 256));
        assert!(exact.iter().all(|get| get.point == wanted));
        println!(
            "hidden among {among} locations of 3 statements: {hidden_bytes} bytes in {} answers; exact: {exact_bytes} bytes in {}",
            asked.len(),
            exact.len()
        );
        assert!(hidden_bytes > 20 * exact_bytes);
    }
}
