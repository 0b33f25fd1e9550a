//! When this node pauses, and why: a machine without clock or I/O.

use std::fmt;

use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};

use super::config::PauseConfig;

/// Why a node pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum PauseReason {
    /// The machine runs on battery.
    Battery,
    /// The connection is metered.
    Metered,
    /// Somebody asked for it.
    Request {
        /// When it ends; only when somebody asks for that, if it is not set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<UnixTime>,
    },
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Battery => "on battery",
            Self::Metered => "the connection is metered",
            Self::Request { until: None } => "on request, until `qk node resume`",
            Self::Request { until: Some(_) } => "on request, for a while",
        })
    }
}

/// A pause that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// When it ends; open, if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixTime>,
}

/// What was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noticed {
    /// Whether the machine runs on battery.
    Battery(bool),
    /// Whether the connection is metered.
    Metered(bool),
    /// A pause was asked for, or its end.
    Request(Option<PauseRequest>),
}

/// All that pauses a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    config: PauseConfig,
    battery: bool,
    metered: bool,
    request: Option<PauseRequest>,
}

impl Pause {
    /// Nothing noticed yet.
    pub(crate) fn new(config: PauseConfig, request: Option<PauseRequest>) -> Self {
        Self {
            config,
            battery: false,
            metered: false,
            request,
        }
    }

    pub(crate) fn handle(&mut self, noticed: Noticed) {
        match noticed {
            Noticed::Battery(battery) => self.battery = battery,
            Noticed::Metered(metered) => self.metered = metered,
            Noticed::Request(request) => self.request = request,
        }
    }

    /// Why it pauses now; it does not, if nothing is named.
    pub(crate) fn reasons(&self, now: UnixTime) -> Vec<PauseReason> {
        let request = self.request.filter(|request| !is_over(request, now));
        let reasons = [
            (self.config.battery && self.battery).then_some(PauseReason::Battery),
            (self.config.metered && self.metered).then_some(PauseReason::Metered),
            request.map(|request| PauseReason::Request {
                until: request.until,
            }),
        ];
        reasons.into_iter().flatten().collect()
    }

    /// When the reasons change without anything being noticed.
    pub(crate) fn deadline(&self, now: UnixTime) -> Option<UnixTime> {
        let request = self.request.filter(|request| !is_over(request, now));
        request.and_then(|request| request.until)
    }
}

fn is_over(request: &PauseRequest, now: UnixTime) -> bool {
    request.until.is_some_and(|until| until <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(config: PauseConfig) -> Pause {
        Pause::new(config, None)
    }

    #[test]
    fn each_reason_pauses_by_itself_and_only_the_last_one_ends_it() {
        let mut pause = pause(PauseConfig::default());
        let now = UnixTime(100);
        assert_eq!(pause.reasons(now), []);
        pause.handle(Noticed::Battery(true));
        pause.handle(Noticed::Metered(true));
        pause.handle(Noticed::Request(Some(PauseRequest { until: None })));
        let request = PauseReason::Request { until: None };
        let all = [PauseReason::Battery, PauseReason::Metered, request];
        assert_eq!(pause.reasons(now), all);
        pause.handle(Noticed::Battery(false));
        pause.handle(Noticed::Request(None));
        assert_eq!(pause.reasons(now), [PauseReason::Metered]);
        pause.handle(Noticed::Metered(false));
        assert_eq!(pause.reasons(now), []);
    }

    #[test]
    fn what_the_owner_turned_off_does_not_pause() {
        let mut pause = pause(PauseConfig {
            battery: false,
            metered: false,
        });
        pause.handle(Noticed::Battery(true));
        pause.handle(Noticed::Metered(true));
        assert_eq!(pause.reasons(UnixTime(0)), []);
        pause.handle(Noticed::Request(Some(PauseRequest { until: None })));
        assert_eq!(pause.reasons(UnixTime(0)).len(), 1);
    }

    #[test]
    fn a_request_ends_when_it_said() {
        let mut pause = pause(PauseConfig::default());
        let until = Some(UnixTime(200));
        pause.handle(Noticed::Request(Some(PauseRequest { until })));
        assert_eq!(
            pause.reasons(UnixTime(199)),
            [PauseReason::Request { until }]
        );
        assert_eq!(pause.deadline(UnixTime(199)), until);
        assert_eq!(pause.reasons(UnixTime(200)), []);
        assert_eq!(pause.deadline(UnixTime(200)), None);
    }
}
