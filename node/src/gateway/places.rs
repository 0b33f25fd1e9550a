//! Places for connections: so many in all, and so many for each address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bits of an IPv6 address that belong to one customer: the rest is the customer's to vary.
const PREFIX_BITS: u32 = 64;

/// Counts connections.
#[derive(Debug)]
pub(super) struct Places {
    taken: Mutex<BTreeMap<IpAddr, usize>>,
    max: usize,
    per_address_max: usize,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken.
    All,
    /// This address has as many as it may.
    Address,
}

/// A place that is taken while this lives.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(super) fn new(max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: Mutex::default(),
            max,
            per_address_max,
        })
    }

    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let address = group(address);
        let mut taken = self.lock();
        if taken.values().sum::<usize>() >= self.max {
            return Err(Full::All);
        }
        let of_address = taken.entry(address).or_default();
        if *of_address >= self.per_address_max {
            return Err(Full::Address);
        }
        *of_address += 1;
        Ok(Place {
            places: Arc::clone(self),
            address,
        })
    }

    /// Places that are taken now.
    pub(super) fn taken(&self) -> usize {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        // Counts are whole after every step under the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(of_address) = taken.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// What counts as one address.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let kept = u128::MAX << (u128::BITS - PREFIX_BITS);
            Ipv6Addr::from(u128::from(address) & kept).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let places = Places::new(3, 2);
        let at = |text: &str| places.take(text.parse().unwrap());
        let first = at("192.0.2.1").unwrap();
        let _second = at("192.0.2.1").unwrap();
        assert_eq!(at("192.0.2.1").unwrap_err(), Full::Address);
        assert_eq!(at("::ffff:192.0.2.1").unwrap_err(), Full::Address);
        let _other = at("192.0.2.2").unwrap();
        assert_eq!(at("192.0.2.3").unwrap_err(), Full::All);
        drop(first);
        assert_eq!(places.taken(), 2);
        let _again = at("192.0.2.3").unwrap();
    }

    #[test]
    fn a_customers_prefix_is_one_address() {
        let places = Places::new(9, 1);
        let _one = places.take("2001:db8:0:1::1".parse().unwrap()).unwrap();
        let same = places.take("2001:db8:0:1:ffff::2".parse().unwrap());
        assert_eq!(same.unwrap_err(), Full::Address);
        assert!(places.take("2001:db8:0:2::1".parse().unwrap()).is_ok());
        assert_eq!(places.taken(), 1);
    }
}
