//! Look-ups of releases, by a prefix where the owner wants to be hidden.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qk_protocol::hash::Point;
use qk_protocol::hidden::{hidden, hidden_bits};
use qk_protocol::key::Release;
use rand::RngExt;

use super::member::{Found, Member};
use super::{Node, NodeError};

/// How long it is believed how full an index is.
const BITS_FRESH: Duration = Duration::from_secs(3600);

impl Node {
    /// Looks a release up to the end, as the owner wants it; only what is about it is returned.
    ///
    /// # Errors
    /// When the look-up is to be hidden and cannot be.
    pub(super) async fn look_up(
        &self,
        member: &Arc<Member>,
        release: &Release,
    ) -> Result<Found, NodeError> {
        let point = release.location(member.key()).point();
        let bits = self.hidden_bits(member).await?;
        let mut found = member.find_by(hidden(point, bits.unwrap_or(256))).await;
        // A holder may answer with statements of other releases, or of other networks.
        found
            .statements
            .retain(|one| one.network() == member.id() && one.key().release() == *release);
        if bits.is_some() {
            let observed = found.statements.iter().filter_map(|one| one.observation());
            let roots: Vec<_> = observed.map(|one| one.subject.root).collect();
            found.providers.retain(|one| roots.contains(&one.root));
        }
        Ok(found)
    }

    /// How many first bits of a point may be told in a network; all, where the owner does not mind.
    ///
    /// # Errors
    /// When a look-up cannot be hidden there.
    pub(super) async fn hidden_bits(&self, member: &Arc<Member>) -> Result<Option<u16>, NodeError> {
        if !self.config().hidden_reads {
            return Ok(None);
        }
        // One finds out, and the others wait for it.
        let mut known = member.hidden().lock().await;
        if let Some((since, bits)) = *known
            && since.elapsed() < BITS_FRESH
        {
            return Ok(Some(bits));
        }
        // Anywhere: nothing is asked about what is wanted. What is here says nothing of what others hold.
        let anywhere = Point(rand::rng().random());
        let survey = self.survey_with(member, anywhere, None).await?;
        let bits = hidden_bits(&survey)?;
        tracing::debug!(
            bits,
            listed = survey.points.len(),
            "how much of a point is told"
        );
        // Who heard nobody knows nothing.
        if survey.answered > 0 {
            *known = Some((Instant::now(), bits));
        }
        Ok(Some(bits))
    }
}
