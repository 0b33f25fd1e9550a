//! How a crate is named.

use qk_node::registry::Ask;

/// A crate, and which release of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrateSpec {
    pub name: String,
    pub ask: Ask,
}

impl std::str::FromStr for CrateSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, req) = match text.split_once('@') {
            Some((name, req)) => (name, Some(req)),
            None => (text, None),
        };
        let CrateName(name) = name.parse()?;
        let ask = Ask::parse(req).map_err(|error| error.to_string())?;
        Ok(Self { name, ask })
    }
}

impl std::fmt::Display for CrateSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.ask {
            Ask::Newest => self.name.fmt(f),
            Ask::Exact(version) => write!(f, "{}@{version}", self.name),
            Ask::Matching(req) => write!(f, "{}@{req}", self.name),
        }
    }
}

/// The name of a crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrateName(pub String);

impl std::str::FromStr for CrateName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        qk_protocol::key::check_crate_name(name).map_err(|error| error.to_string())?;
        Ok(Self(name.to_owned()))
    }
}
