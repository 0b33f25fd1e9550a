//! What the owner configures: `[share]` and `[pause]`, and sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The smallest rate cap, bytes a second: below it a range of 1 MiB takes longer than readers wait.
pub const RATE_MIN: u64 = 32 << 10;

/// How many connections a node has whose owner named no address to listen on.
const LAPTOP_CONNECTIONS: usize = 16;
/// What such a node gives, bytes a second.
const LAPTOP_UPLOAD_RATE: Size = Size(1 << 20);

/// Bytes: a number, or a text such as `2 MiB`, `500 kB` or `10G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Size(pub u64);

/// How this node shares: `[share]` in `config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShareConfig {
    /// Whether what was fetched is given and announced like what one built oneself; no by default.
    pub fetched: Option<bool>,
    /// Give nothing: no blocks are served, nothing is announced.
    pub leech: bool,
    /// Whether others are told what is here; yes by default. Who asks is served all the same.
    pub announce: Option<bool>,
    /// Bytes a second that leave, all networks and peers together.
    pub upload_rate: Option<Size>,
    /// Bytes a second that are downloaded for others.
    pub download_rate: Option<Size>,
    /// Whether `download_rate` and `download_month` also hold for the owner's own fetches; no by
    /// default.
    pub download_own: bool,
    /// Bytes that may leave in a calendar month (UTC); then nothing is given until the next.
    pub upload_month: Option<Size>,
    /// Bytes that may be downloaded in a calendar month (UTC); then only the owner's own fetches are.
    pub download_month: Option<Size>,
    /// Connections that each network may have.
    pub connections: Option<usize>,
}

/// What a command line says of sharing; each member that is set stands before the configuration's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShareFlags {
    /// Share what was fetched, unless [`ShareConfig::fetched`] says no.
    pub share: bool,
    /// See [`ShareConfig::leech`].
    pub leech: bool,
    /// See [`ShareConfig::announce`].
    pub no_announce: bool,
    /// See [`ShareConfig::upload_rate`].
    pub upload_rate: Option<Size>,
    /// See [`ShareConfig::download_rate`].
    pub download_rate: Option<Size>,
    /// See [`ShareConfig::connections`].
    pub connections: Option<usize>,
    /// Bytes that the store may take.
    pub quota: Option<Size>,
    /// Whether the owner named no address to listen on: then what is not set is as a laptop's owner
    /// would choose it.
    pub laptop: bool,
}

/// When this node pauses by itself: `[pause]` in `config.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PauseConfig {
    /// While the machine runs on battery.
    pub battery: bool,
    /// While the connection is metered, as NetworkManager says.
    pub metered: bool,
}

impl Default for PauseConfig {
    fn default() -> Self {
        Self {
            battery: true,
            metered: true,
        }
    }
}

impl ShareConfig {
    /// With what a command line says; what contradicts itself is resolved towards giving less.
    pub fn with(mut self, flags: &ShareFlags) -> Self {
        self.leech |= flags.leech;
        if flags.share {
            self.fetched.get_or_insert(true);
        }
        if flags.no_announce {
            self.announce = Some(false);
        }
        self.upload_rate = flags.upload_rate.or(self.upload_rate);
        self.download_rate = flags.download_rate.or(self.download_rate);
        self.connections = flags.connections.or(self.connections);
        if flags.laptop {
            self.upload_rate.get_or_insert(LAPTOP_UPLOAD_RATE);
            self.connections.get_or_insert(LAPTOP_CONNECTIONS);
        }
        self
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        for (name, rate) in [
            ("upload_rate", self.upload_rate),
            ("download_rate", self.download_rate),
        ] {
            if rate.is_some_and(|rate| rate.0 < RATE_MIN) {
                return Err(format!(
                    "share.{name} is less than {RATE_MIN} bytes a second, too slow for a block's reader: `leech = true` gives nothing"
                ));
            }
        }
        if self.connections.is_some_and(|connections| connections < 2) {
            return Err(
                "share.connections is less than 2: a node needs one to ask and one to be asked"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let not = || format!("{text:?} is no size such as 500000, \"2 MiB\" or \"500 kB\"");
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| not())?;
        let unit = unit.trim().trim_end_matches("/s").to_ascii_lowercase();
        let factor = match unit.as_str() {
            "" | "b" => 1,
            "k" | "ki" | "kib" => 1 << 10,
            "m" | "mi" | "mib" => 1 << 20,
            "g" | "gi" | "gib" => 1 << 30,
            "t" | "ti" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(not()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(not)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl Visitor<'_> for Sizes {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, or a size such as \"2 MiB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                let bytes = u64::try_from(bytes);
                bytes.map(Size).map_err(|_| E::custom("less than no bytes"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Size>().map(|size| size.0);
        for (text, bytes) in [
            ("0", 0),
            ("500000", 500_000),
            ("2 MiB", 2 << 20),
            ("2MiB/s", 2 << 20),
            ("64k", 64 << 10),
            ("500 kB", 500_000),
            ("1 GB", 1_000_000_000),
            ("3T", 3 << 40),
        ] {
            assert_eq!(read(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.5 MiB",
            "2 MiBs",
            "99999999999 TiB",
            "1 1",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_configuration_is_read_and_what_is_unknown_refused() {
        let read = |text: &str| toml::from_str::<ShareConfig>(text);
        let config = read("upload_rate = \"2 MiB\"\nupload_month = 5000\nfetched = true").unwrap();
        assert_eq!(config.upload_rate, Some(Size(2 << 20)));
        assert_eq!(config.upload_month, Some(Size(5000)));
        assert_eq!(config.fetched, Some(true));
        assert!(config.check().is_ok());
        assert!(read("upload = 1").is_err());
        assert!(read("upload_rate = -5").is_err());
        let slow = read("upload_rate = 100").unwrap().check().unwrap_err();
        assert!(slow.contains("share.upload_rate"), "{slow}");
        assert!(read("connections = 1").unwrap().check().is_err());
        let pause: PauseConfig = toml::from_str("battery = false").unwrap();
        assert!(!pause.battery && pause.metered);
        assert!(toml::from_str::<PauseConfig>("mains = true").is_err());
    }

    #[test]
    fn flags_stand_before_the_configuration_and_defaults_behind() {
        let config = ShareConfig {
            upload_rate: Some(Size(64 << 10)),
            ..ShareConfig::default()
        };
        let laptop = ShareFlags {
            laptop: true,
            ..ShareFlags::default()
        };
        let both = config.clone().with(&laptop);
        assert_eq!(both.upload_rate, Some(Size(64 << 10)));
        assert_eq!(both.connections, Some(16));
        let told = ShareFlags {
            upload_rate: Some(Size(5 << 20)),
            no_announce: true,
            leech: true,
            ..laptop
        };
        let both = config.with(&told);
        assert_eq!(both.upload_rate, Some(Size(5 << 20)));
        assert!(both.leech && both.announce == Some(false));
        // A service is started with `--share`, and the owner's file may say no later.
        let shares = ShareFlags {
            share: true,
            ..ShareFlags::default()
        };
        for (said, fetched) in [(None, true), (Some(true), true), (Some(false), false)] {
            let config = ShareConfig {
                fetched: said,
                ..ShareConfig::default()
            };
            assert_eq!(config.with(&shares).fetched, Some(fetched));
        }
        let server = ShareConfig::default().with(&ShareFlags::default());
        assert_eq!(server, ShareConfig::default());
    }
}
