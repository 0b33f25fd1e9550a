//! The routing table: kad's buckets, filled by us.
//!
//! kad keeps and refreshes the table and answers which nodes are near a point. It stores no
//! records and no providers: its store would take them from anybody, unsigned.

use std::borrow::Cow;
use std::iter;
use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::kad::store::{self, RecordStore};
use libp2p::kad::{
    self, Addresses, BucketInserts, Caching, KBucketKey, KBucketRef, ProviderRecord, Record,
    RecordKey, RoutingUpdate, StoreInserts,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use qk_protocol::hash::Point;
use qk_protocol::message::ADDRESSES_MAX;

use super::address::{AddressRules, Contact, Prefix, bare, ip_of, is_circuit, is_private};
use super::limits::{BUCKET_PER_PREFIX_MAX, TABLE_PER_PREFIX_MAX};

/// How often kad looks for new neighbours.
const BOOTSTRAP_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Longest time of one of kad's own look-ups.
const QUERY_TIME_MAX: Duration = Duration::from_secs(60);
const PARALLEL_QUERIES: NonZeroUsize = NonZeroUsize::new(3).unwrap();

pub(super) type Table = kad::Behaviour<NoStore>;

/// kad as a routing table; `server` is whether others may put this node into theirs.
pub(super) fn new(local: PeerId, protocol: StreamProtocol, server: bool) -> Table {
    let mut config = kad::Config::new(protocol);
    config
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_record_filtering(StoreInserts::Unfiltered) // NoStore refuses, which resets the stream
        .set_record_ttl(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_record_ttl(None)
        .set_provider_publication_interval(None)
        .set_caching(Caching::Disabled)
        .set_periodic_bootstrap_interval(Some(BOOTSTRAP_INTERVAL))
        .set_query_timeout(QUERY_TIME_MAX)
        .set_parallelism(PARALLEL_QUERIES);
    let mut table = kad::Behaviour::with_config(local, NoStore, config);
    table.set_mode(Some(match server {
        true => kad::Mode::Server,
        false => kad::Mode::Client,
    }));
    table
}

/// Puts a node into the table if it has a permitted address and its prefix does not hold too many
/// places already. Says whether the node is in the table now.
pub(super) fn offer(table: &mut Table, contact: &Contact, rules: &AddressRules) -> bool {
    let mut addrs = rules.keep(contact.peer, contact.addrs.iter().cloned());
    // Whoever is reached over relays only is no server.
    addrs.retain(|address| !is_circuit(address));
    if addrs.is_empty() || !has_room_for(table, &contact.peer, &addrs) {
        return false;
    }
    addrs
        .into_iter()
        .map(|address| table.add_address(&contact.peer, address))
        .fold(false, |any, update| {
            any | (update == RoutingUpdate::Success)
        })
}

/// The `n` nodes of the table nearest to `point`, nearest first.
pub(super) fn closest(table: &mut Table, point: Point, n: usize) -> Vec<Contact> {
    let mut found: Vec<([u8; 32], Contact)> = entries(table)
        .into_iter()
        .map(|contact| (contact.point().distance(&point), contact))
        .collect();
    found.sort_by_key(|(distance, _)| *distance);
    found.truncate(n);
    found.into_iter().map(|(_, contact)| contact).collect()
}

/// All nodes of the table.
pub(super) fn entries(table: &mut Table) -> Vec<Contact> {
    table
        .kbuckets()
        .flat_map(|bucket| contacts_of(&bucket))
        .collect()
}

/// One node of the table.
pub(super) fn find(table: &mut Table, peer: PeerId) -> Option<Contact> {
    let contacts = table.kbucket(peer).map(|bucket| contacts_of(&bucket))?;
    contacts.into_iter().find(|contact| contact.peer == peer)
}

fn contacts_of(bucket: &KBucketRef<'_, KBucketKey<PeerId>, Addresses>) -> Vec<Contact> {
    bucket
        .iter()
        .map(|entry| Contact {
            peer: *entry.node.key.preimage(),
            // kad keeps addresses with `/p2p` at the end.
            addrs: entry
                .node
                .value
                .iter()
                .map(bare)
                .take(ADDRESSES_MAX)
                .collect(),
        })
        .collect()
}

// One operator with many identities in one network shall not fill the table. Private addresses
// and loopback are exempt: where rules permit them, the network is the owner's.
fn has_room_for(table: &mut Table, peer: &PeerId, addrs: &[Multiaddr]) -> bool {
    let prefixes: Vec<Prefix> = addrs.iter().filter_map(public_prefix).collect();
    if prefixes.is_empty() {
        return true;
    }
    let same = |contact: &Contact| {
        contact.peer != *peer
            && contact
                .addrs
                .iter()
                .filter_map(public_prefix)
                .any(|prefix| prefixes.contains(&prefix))
    };
    let count = |contacts: &[Contact]| contacts.iter().filter(|c| same(c)).count();
    let in_table = count(&entries(table));
    let in_bucket = table
        .kbucket(*peer)
        .map_or(0, |bucket| count(&contacts_of(&bucket)));
    in_table < TABLE_PER_PREFIX_MAX && in_bucket < BUCKET_PER_PREFIX_MAX
}

fn public_prefix(address: &Multiaddr) -> Option<Prefix> {
    let ip = ip_of(address)?;
    (!is_private(ip)).then(|| Prefix::of(address))?
}

/// A store that holds nothing and takes nothing.
#[derive(Debug)]
pub(super) struct NoStore;

impl RecordStore for NoStore {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> store::Result<()> {
        Err(store::Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> store::Result<()> {
        Err(store::Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

#[cfg(test)]
mod tests {
    use qk_protocol::hash::Location;

    use super::*;

    const RULES: AddressRules = AddressRules {
        allow_private: true,
        quic: true,
    };

    fn table() -> Table {
        let protocol = StreamProtocol::new("/qk/test/kad/1");
        new(PeerId::random(), protocol, true)
    }

    fn node(ip: impl std::fmt::Display) -> Contact {
        Contact {
            peer: PeerId::random(),
            addrs: vec![format!("/ip4/{ip}/tcp/1").parse().unwrap()],
        }
    }

    #[test]
    fn one_prefix_cannot_fill_the_table() {
        let mut table = table();
        let taken = |table: &mut Table, prefix: &str| {
            (0..200)
                .filter(|last| offer(table, &node(format_args!("{prefix}.{last}")), &RULES))
                .count()
        };
        assert_eq!(taken(&mut table, "8.8.8"), TABLE_PER_PREFIX_MAX);
        assert_eq!(taken(&mut table, "8.8.9"), TABLE_PER_PREFIX_MAX);
        // The same number of nodes of the owner's own network get in as kad has places for.
        assert!(taken(&mut table, "10.0.0") > 20);
    }

    #[test]
    fn only_permitted_addresses_enter() {
        let mut table = table();
        let public = AddressRules {
            allow_private: false,
            ..RULES
        };
        assert!(!offer(&mut table, &node("10.0.0.1"), &public));
        let mut mixed = node("10.0.0.1");
        mixed.addrs.push("/ip4/8.8.8.8/tcp/1".parse().unwrap());
        assert!(offer(&mut table, &mixed, &public));
        let found = find(&mut table, mixed.peer).unwrap();
        assert_eq!(found.addrs, mixed.addrs[1..]);
    }

    #[test]
    fn nearest_first_as_kad_has_it() {
        let mut table = table();
        for number in 0..100 {
            offer(&mut table, &node(format_args!("10.0.0.{number}")), &RULES);
        }
        let location = Location([3; 32]);
        let key = KBucketKey::new(location.0.to_vec());
        let expected: Vec<PeerId> = table
            .get_closest_local_peers(&key)
            .take(7)
            .map(KBucketKey::into_preimage)
            .collect();
        let near = closest(&mut table, location.point(), 7);
        let near: Vec<PeerId> = near.into_iter().map(|contact| contact.peer).collect();
        assert_eq!(near, expected);
    }
}
