//! The store as the shelf of one network's index.

use std::sync::Arc;

use qk_protocol::decide::Held;
use qk_protocol::hash::{NetworkId, Point};
use qk_protocol::index::Shelf;
use qk_protocol::statement::Statement;
use qk_protocol::time::UnixTime;

use crate::store::{Record, Store, StoreError};

/// What the store holds of one network. A failing disk answers as an empty shelf and is logged.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreShelf<'a> {
    pub(super) store: &'a Store,
    pub(super) network: NetworkId,
}

impl StoreShelf<'_> {
    /// The statements at a point, verified again, and when each was stored.
    pub(super) fn held(&self, point: Point) -> Vec<Held> {
        let records = self.or_empty(self.store.statements_at(&self.network, &point));
        let held = records.iter().filter_map(|record| match Statement::read(&record.bytes) {
            Ok(statement) => Some(Held {
                statement: Arc::new(statement),
                stored: record.stored,
            }),
            Err(error) => {
                tracing::error!(id = %record.id, %error, "a stored statement no longer verifies");
                None
            }
        });
        held.collect()
    }

    fn or_empty<T>(&self, read: Result<Vec<T>, StoreError>) -> Vec<T> {
        read.unwrap_or_else(|error| {
            tracing::error!(%error, "the index cannot be read");
            Vec::new()
        })
    }
}

impl Shelf for StoreShelf<'_> {
    fn at(&self, point: Point) -> Vec<Arc<Statement>> {
        self.held(point)
            .into_iter()
            .map(|held| held.statement)
            .collect()
    }

    fn near(&self, point: Point, limit: usize) -> Vec<Point> {
        self.or_empty(self.store.near(&self.network, &point, limit))
    }
}

/// A statement as the store keeps it.
pub(super) fn record(statement: &Statement, point: Point, stored: UnixTime) -> Record {
    Record {
        id: statement.id(),
        network: statement.network(),
        point,
        key: statement.key_id(),
        observer: statement.observer(),
        root: statement
            .observation()
            .map(|observation| observation.subject.root),
        stored,
        bytes: statement.envelope().to_vec(),
    }
}
