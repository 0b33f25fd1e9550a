//! What a running node does again and again, and when: pure, so that a node and a simulation agree.

use crate::hash::Point;
use crate::time::{DAY_SECONDS, UnixTime};

/// How often newer manifests and timestamps are asked for, in seconds.
pub const REFRESH_SECONDS: u64 = 600;
/// How often others are told again what a node has, which they forget after a day, in seconds.
pub const ANNOUNCE_SECONDS: u64 = 6 * 3600;
/// A week has so many turns of [`ANNOUNCE_SECONDS`].
const TURNS: u64 = 7 * DAY_SECONDS / ANNOUNCE_SECONDS;
/// A statement is put again at every turn for so long: when it was signed nobody may have listened.
const NEW_SECONDS: u64 = DAY_SECONDS;

/// Whether statements at a point are to be put again in this turn: new ones, and those whose turn of
/// the week it is.
pub fn put_again(point: &Point, stored: UnixTime, now: UnixTime) -> bool {
    let turn = u64::from(u16::from_be_bytes([point.0[0], point.0[1]])) % TURNS;
    now.since(stored) < NEW_SECONDS || now.0 / ANNOUNCE_SECONDS % TURNS == turn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_put_at_once_and_all_else_once_a_week() {
        let (stored, day) = (UnixTime(1_000_000_000), DAY_SECONDS);
        for first in 0..=255 {
            let point = Point([first; 32]);
            let turns = |from: u64, days: u64| {
                let turns = (0..days * day).step_by(ANNOUNCE_SECONDS as usize);
                let at = turns.map(|after| UnixTime(stored.0 + from + after));
                at.filter(|now| put_again(&point, stored, *now)).count()
            };
            assert_eq!(turns(0, 1), 4, "in the first day");
            assert_eq!(turns(2 * day, 7), 1, "in a week after that");
        }
    }
}
