//! Whether the machine runs on battery: the platform's part. On Linux what the kernel says below
//! `/sys/class/power_supply`; elsewhere nobody is asked, and it never does.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the kernel describes power supplies.
const SYSTEM_DIR: &str = "/sys/class/power_supply";
/// Another directory of the same form, for tests.
const DIR_VARIABLE: &str = "QK_POWER_SUPPLY_DIR";
/// Supplies that are looked at.
const SUPPLIES_MAX: usize = 64;
/// Bytes of one attribute; the kernel's are words.
const ATTRIBUTE_BYTES_MAX: u64 = 64;

/// Where this process looks.
pub(crate) fn dir() -> PathBuf {
    let given = std::env::var_os(DIR_VARIABLE).filter(|value| !value.is_empty());
    given.map_or_else(|| PathBuf::from(SYSTEM_DIR), PathBuf::from)
}

/// Whether a battery of the machine itself is discharging and nothing feeds it. Reads a few small
/// files, which firmware may answer slowly: off the reactor.
pub(crate) fn on_battery(dir: &Path) -> bool {
    // Machines without supplies have no such directory, containers an empty one.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut discharging = false;
    for entry in entries.take(SUPPLIES_MAX) {
        match supply(&entry.path()) {
            Supply::Feeds => return false,
            Supply::Discharging => discharging = true,
            Supply::Idle => {}
        }
    }
    discharging
}

enum Supply {
    /// Mains, or a charger that is plugged in.
    Feeds,
    /// A battery that is being emptied.
    Discharging,
    /// Neither, or not the machine's.
    Idle,
}

fn supply(dir: &Path) -> Supply {
    // The battery of a mouse says nothing about the machine.
    if attribute(dir, "scope").is_some_and(|scope| scope == "Device") {
        return Supply::Idle;
    }
    match attribute(dir, "type").as_deref() {
        Some("Battery" | "UPS") => match attribute(dir, "status").as_deref() {
            Some("Discharging") => Supply::Discharging,
            _ => Supply::Idle,
        },
        Some(_) if attribute(dir, "online").is_some_and(|online| online != "0") => Supply::Feeds,
        Some(_) | None => Supply::Idle,
    }
}

fn attribute(dir: &Path, name: &str) -> Option<String> {
    let mut text = String::new();
    let file = File::open(dir.join(name)).ok()?;
    file.take(ATTRIBUTE_BYTES_MAX)
        .read_to_string(&mut text)
        .ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn has(self, name: &str, attributes: &[(&str, &str)]) -> Self {
            let dir = self.0.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            for (attribute, value) in attributes {
                fs::write(dir.join(attribute), format!("{value}\n")).unwrap();
            }
            self
        }

        fn on_battery(&self) -> bool {
            on_battery(self.0.path())
        }
    }

    const EMPTYING: [(&str, &str); 2] = [("type", "Battery"), ("status", "Discharging")];
    const PULLED: [(&str, &str); 2] = [("type", "Mains"), ("online", "0")];

    #[test]
    fn a_laptop_whose_plug_is_pulled() {
        let laptop = Machine::new().has("AC", &PULLED).has("BAT0", &EMPTYING);
        assert!(laptop.on_battery());
        // Plugged in, the battery may be emptied all the same when the charger is weak.
        let laptop = laptop.has("AC", &[("online", "1")]);
        assert!(!laptop.on_battery());
        let laptop = laptop.has("AC", &PULLED).has("BAT0", &[("status", "Full")]);
        assert!(!laptop.on_battery());
    }

    #[test]
    fn a_charger_on_usb_feeds_and_one_battery_of_two_is_enough() {
        let laptop = Machine::new()
            .has("BAT0", &[("type", "Battery"), ("status", "Not charging")])
            .has("BAT1", &EMPTYING)
            .has(
                "ucsi-0",
                &[("type", "USB"), ("online", "0"), ("scope", "System")],
            );
        assert!(laptop.on_battery());
        assert!(!laptop.has("ucsi-0", &[("online", "1")]).on_battery());
    }

    #[test]
    fn what_is_not_the_machines_own_battery_says_nothing() {
        assert!(!Machine::new().on_battery());
        assert!(!on_battery(Path::new("/does/not/exist")));
        let mouse = [EMPTYING[0], EMPTYING[1], ("scope", "Device")];
        assert!(!Machine::new().has("hidpp_battery_0", &mouse).on_battery());
        let odd = Machine::new().has(
            "BAT0",
            &[("type", &"x".repeat(10_000)), ("status", "\u{0}")],
        );
        assert!(!odd.on_battery());
        assert!(
            Machine::new()
                .has("ups", &[("type", "UPS"), ("status", "Discharging")])
                .on_battery()
        );
    }
}
