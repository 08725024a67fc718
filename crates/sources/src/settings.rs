//! What only a Git source knows, as its row keeps it: how much is kept, what happens to moved tags, what is
//! shown, and in which folders packages are.

use larder_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    folders::{FolderPattern, Folders},
    git::Keep,
    plan::MovedTags,
};

/// The settings of a Git source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitSettings {
    /// `light` or `full`.
    pub keep: KeepWord,
    /// `freeze` or `follow`.
    pub moved_tags: MovedTagsWord,
    /// Whether clients are told where the Git repository is.
    pub show_source: bool,
    /// The folders that hold packages; none: the root alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<FolderPattern>,
}

/// See [`Keep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepWord {
    /// [`Keep::Light`]
    Light,
    /// [`Keep::Full`]
    Full,
}

/// See [`MovedTags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MovedTagsWord {
    /// [`MovedTags::Freeze`]
    Freeze,
    /// [`MovedTags::Follow`]
    Follow,
}

impl Default for GitSettings {
    fn default() -> Self {
        Self { keep: KeepWord::Light, moved_tags: MovedTagsWord::Freeze, show_source: true, packages: Vec::new() }
    }
}

impl GitSettings {
    /// Reads what [`write`](Self::write) wrote.
    pub fn read(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| Error::internal("reading the settings of a source", error))
    }

    /// As the row keeps them.
    pub fn write(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// How much is kept, for the Git port.
    pub fn keep(&self) -> Keep {
        match self.keep {
            KeepWord::Light => Keep::Light,
            KeepWord::Full => Keep::Full,
        }
    }

    /// Whether every version stays downloadable for good.
    pub fn keeps_everything(&self) -> bool {
        self.keep == KeepWord::Full
    }

    /// Which folders hold packages.
    pub fn folders(&self) -> Folders {
        Folders::matching(&self.packages)
    }

    /// What happens to moved tags, for the plan.
    pub fn moved_tags(&self) -> MovedTags {
        match self.moved_tags {
            MovedTagsWord::Freeze => MovedTags::Freeze,
            MovedTagsWord::Follow => MovedTags::Follow,
        }
    }
}
