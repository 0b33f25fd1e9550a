//! From a file to a scenario, or to the line and the field that are wrong and what is allowed.

use toml::de::{DeTable, DeValue};

use super::Scenario;

/// Why a text is no scenario: says the line, the field and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioError(String);

impl std::fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "scenario: {}", self.0)
    }
}

impl std::error::Error for ScenarioError {}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// Says the line, the field and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        // What serde refuses it names with the line and what would be allowed.
        let scenario: Self = toml::from_str(text)
            .map_err(|error| ScenarioError(error.to_string().trim_end().to_owned()))?;
        scenario.check().map_err(|wrong| {
            let line =
                line_of(text, &wrong.field).map_or(String::new(), |at| format!("line {at}: "));
            ScenarioError(format!("{line}{} {}", wrong.field, wrong.allowed))
        })?;
        Ok(scenario)
    }

    /// As [`parse`](Self::parse), with some fields set, each as `table.field=value`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and for what is no such field or value.
    pub fn parse_with(text: &str, sets: &[String]) -> Result<Self, ScenarioError> {
        if sets.is_empty() {
            return Self::parse(text);
        }
        Self::parse(text)?;
        let wrong = |set: &str, why: &str| ScenarioError(format!("--set {set}: {why}"));
        let mut root: toml::Table =
            toml::from_str(text).map_err(|error| ScenarioError(error.to_string()))?;
        for set in sets {
            let (field, value) = set
                .split_once('=')
                .ok_or_else(|| wrong(set, "is not of the form table.field=value"))?;
            let read: toml::Table = toml::from_str(&format!("value = {value}"))
                .map_err(|_| wrong(set, "the value is not TOML; texts are in quotes"))?;
            let (tables, last) = match field.rsplit_once('.') {
                Some((tables, last)) => (tables.split('.').collect(), last),
                None => (Vec::new(), field),
            };
            let mut at = &mut root;
            for table in tables {
                let entry = at.entry(table).or_insert_with(|| toml::Table::new().into());
                at = entry
                    .as_table_mut()
                    .ok_or_else(|| wrong(set, "there is no such table"))?;
            }
            at.insert(last.to_owned(), read["value"].clone());
        }
        let scenario: Self = root.try_into().map_err(|error: toml::de::Error| {
            ScenarioError(error.to_string().trim_end().to_owned())
        })?;
        scenario
            .check()
            .map_err(|wrong| ScenarioError(wrong.to_string()))?;
        Ok(scenario)
    }
}

/// The line on which a field stands; that of the table where it has its default.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut at = None;
    let mut table = Some(root.get_ref());
    let mut list = None;
    for part in field.split('.') {
        let value = match (table, list) {
            (Some(table), _) => table.get(part)?,
            (None, Some(list)) => {
                let list: &toml::de::DeArray<'_> = list;
                list.get(part.parse::<usize>().ok()?)?
            }
            (None, None) => break,
        };
        at = Some(value.span().start);
        (table, list) = match value.get_ref() {
            DeValue::Table(table) => (Some(table), None),
            DeValue::Array(array) => (None, Some(array)),
            _ => (None, None),
        };
    }
    at.map(|at| text[..at].matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use qk_protocol::policy::Count;

    use super::*;
    use crate::scenario::Without;

    fn error(text: &str) -> String {
        Scenario::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_a_small_network() {
        assert_eq!(Scenario::parse("").unwrap(), Scenario::default());
    }

    #[test]
    fn what_cannot_be_played_is_named_with_its_line_and_what_is_allowed() {
        let text = "hours = 2\n\n[policy]\nthreshold = 0\n";
        assert_eq!(
            error(text),
            "scenario: line 4: policy.threshold is 0: allowed is 1 to 100"
        );
        let text =
            "hours = 2\n[[partitions]]\n[[partitions]]\none_way = true\nshare_percent = 100\n";
        assert_eq!(
            error(text),
            "scenario: line 5: partitions.1.share_percent is 100: allowed is 1 to 99"
        );
        let text = "[principals]\nverifiers = 3\ncolluding = 2\nlazy = 2\n";
        assert_eq!(
            error(text),
            "scenario: line 4: principals.lazy is 2: allowed is 0 to 1"
        );
    }

    #[test]
    fn unknown_fields_and_words_are_named_with_what_there_is() {
        let text = error("[nodes]\nserver = 3\n");
        assert!(
            text.contains("line 2") && text.contains("`server`"),
            "{text}"
        );
        assert!(text.contains("`servers`, `laptops`"), "{text}");
        let text = error("[policy]\ncount = \"some\"\n");
        assert!(
            text.contains("line 2") && text.contains("`any` or `assigned`"),
            "{text}"
        );
    }

    #[test]
    fn fields_can_be_set_beside_the_file() {
        let with = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|one| (*one).to_owned()).collect();
            Scenario::parse_with("[nodes]\nservers = 3\n", &sets).map_err(|error| error.to_string())
        };
        let read = with(&["nodes.servers=5", "hours=2", "policy.count=\"assigned\""]).unwrap();
        assert_eq!(
            (read.nodes.servers, read.hours, read.policy.count),
            (5, 2.0, Count::Assigned)
        );
        for (set, told) in [
            ("nodes.servers", "table.field=value"),
            ("policy.count=assigned", "in quotes"),
            ("nodes.servers.more=1", "no such table"),
            ("nodes.server=1", "unknown field `server`"),
            ("nodes.servers=0", "nodes.servers is 0: allowed is 1 to"),
        ] {
            let error = with(&[set]).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn each_defence_can_be_switched_off_by_its_name() {
        for name in Without::ALL {
            let text = format!("[without]\n{name} = true\n");
            let read = Scenario::parse(&text).unwrap().without;
            assert_eq!(Some(read), Without::only(name));
        }
        assert_eq!(Without::only("luck"), None);
    }
}
