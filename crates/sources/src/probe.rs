//! What comes of asking another registry what it is, before anybody wants something of it. How it is asked is the business
//! of its format's room.

use serde_json::{Value, json};

/// What another registry answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It is a registry of the format, and opens for the credential.
    Works {
        /// How it tells what it has, in the format's own word, if there are several ways.
        layout: Option<String>,
        /// How many packages it names, if it does.
        names: Option<usize>,
    },
    /// It lets nobody in without a credential, or not with this one. Why, for people.
    Refused(String),
    /// It cannot be reached, or is in trouble. Why, for people.
    Unreachable(String),
    /// Something else answers there. What, for people.
    NoRegistry(String),
}

impl Probed {
    /// Its word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Works { .. } => "works",
            Self::Refused(_) => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::NoRegistry(_) => "no registry",
        }
    }

    /// Why it does not work.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Works { .. } => None,
            Self::Refused(why) | Self::Unreachable(why) | Self::NoRegistry(why) => Some(why),
        }
    }

    /// For people.
    pub fn sentence(&self) -> String {
        match self {
            Self::Works { layout, names } => {
                let layout = layout.iter().map(|layout| format!(", {layout}"));
                let names = names.iter().map(|names| match names {
                    1 => ", names 1 package".to_owned(),
                    names => format!(", names {names} packages"),
                });
                format!("works{}", layout.chain(names).collect::<String>())
            }
            Self::Refused(why) => format!("refused: {why}"),
            Self::Unreachable(why) => format!("cannot be asked: {why}"),
            Self::NoRegistry(why) => format!("this is no such registry: {why}"),
        }
    }

    /// For a JSON document.
    pub fn document(&self) -> Value {
        let (layout, names) = match self {
            Self::Works { layout, names } => (layout.as_ref(), *names),
            _ => (None, None),
        };
        json!({ "result": self.word(), "layout": layout, "names": names, "problem": self.problem() })
    }
}
