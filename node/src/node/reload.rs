//! A running node reads its configuration again.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use serde::Serialize;

use super::{Node, NodeError};
use crate::control::Reloaded;
use crate::home::{Config, HomeError};

/// Settings that count as soon as they are read. All others shape what is made once, when the node
/// starts: connections, listeners, limits, the store.
const READ_AGAIN: [&str; 3] = ["confirm_changes", "hidden_reads", "policy"];

impl Node {
    /// Reads `config.toml` again, and looks again at the networks on disk.
    ///
    /// # Errors
    /// When a file cannot be read. A bad configuration changes nothing and does not keep the
    /// networks from being looked at.
    pub async fn reload_all(&self) -> Result<Reloaded, NodeError> {
        let changed = self.reload_config();
        self.reloads.send_modify(|reloads| *reloads += 1);
        let reloaded = self.reload().await?;
        let (settings, restart) = changed?;
        Ok(Reloaded {
            settings,
            restart,
            ..reloaded
        })
    }

    /// Takes what can be taken, and says what that is and what needs a restart.
    fn reload_config(&self) -> Result<(Vec<String>, Vec<String>), HomeError> {
        let read = self.home.config()?;
        let before = self.config();
        let changed = differing(&before, &read);
        let (now, later) = changed
            .into_iter()
            .partition(|name| READ_AGAIN.contains(&name.as_str()));
        // What counts at the next start stays as it is here, so that it is named until then.
        let taken = Config {
            policy: read.policy,
            confirm_changes: read.confirm_changes,
            hidden_reads: read.hidden_reads,
            ..(*before).clone()
        };
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(taken);
        Ok((now, later))
    }
}

/// The names of the settings in which two configurations differ.
fn differing(one: &Config, other: &Config) -> BTreeSet<String> {
    let (one, other) = (members(one), members(other));
    let names = one.keys().chain(other.keys());
    let differ = names.filter(|name| one.get(*name) != other.get(*name));
    differ.cloned().collect()
}

fn members(config: &impl Serialize) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(members)) => members,
        // A configuration came from TOML, whose keys are texts.
        Ok(_) | Err(_) => serde_json::Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::control::tests::fixture::TestHome;
    use crate::manners::{ShareFlags, Size};
    use crate::node::NodeOptions;

    #[tokio::test]
    async fn what_counts_at_once_and_what_at_the_next_start() {
        let home = TestHome::new();
        let id = home.join("lab", &[]);
        // What a command line says is not what the file said.
        let share = ShareFlags {
            leech: true,
            quota: Some(Size(7 << 30)),
            ..ShareFlags::default()
        };
        let options = NodeOptions {
            offline: true,
            share,
            ..NodeOptions::default()
        };
        let node = Node::start(home.home.clone(), options).await.unwrap();
        let threshold = |node: &Node| node.policy(&node.member(id).unwrap()).threshold;
        assert_eq!(threshold(&node), 2);
        let write = |text: &str| fs::write(home.path().join("config.toml"), text).unwrap();

        write("mdns = false\nquic = false\nquota_bytes = 5\n[policy]\nthreshold = 7\n");
        let reloaded = node.reload_all().await.unwrap();
        assert_eq!(reloaded.settings, ["policy"]);
        assert_eq!(reloaded.restart, ["quota_bytes"]);
        assert_eq!(threshold(&node), 7);
        // What waits for a restart is named again; what was taken is not.
        let reloaded = node.reload_all().await.unwrap();
        assert!(reloaded.settings.is_empty());
        assert_eq!(reloaded.restart, ["quota_bytes"]);

        // A bad file changes nothing, and networks are looked at all the same.
        write("policy = 3\n");
        home.rename(id, "laboratory");
        let error = node.reload_all().await.unwrap_err();
        assert!(error.to_string().contains("config.toml"), "{error}");
        assert_eq!(threshold(&node), 7);
        let joined = node.member(id).unwrap().joined();
        assert_eq!(joined.network.manifest().name, "laboratory");
    }
}
