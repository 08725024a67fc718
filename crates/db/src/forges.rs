//! What became of the repositories that forges list: which are sources here, and which are not, and why. The sources
//! themselves are in [`crate::sources`], what a forge said in [`crate::upstream_documents`].

use larder_core::{Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    OF_SOURCE = "select remote_id, name, state, note, changed, looked_at, child_id from forge_repositories
        where source_id = $1 order by name, remote_id";
    OF_CHILD = "select remote_id, name, state, note, changed, looked_at, child_id from forge_repositories
        where child_id = $1 order by remote_id limit 1";
    PUT = "insert into forge_repositories (source_id, remote_id, name, state, note, changed, looked_at, child_id)
        values ($1, $2, $3, $4, $5, $6, $7, $8)
        on conflict (source_id, remote_id) do update set name = excluded.name, state = excluded.state,
        note = excluded.note, changed = excluded.changed, looked_at = excluded.looked_at, child_id = excluded.child_id";
    REMOVE = "delete from forge_repositories where source_id = $1 and remote_id = $2";
}

/// A repository of a forge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// The forge's own name for it, which it keeps when it is renamed.
    pub remote_id: String,
    /// Its path there.
    pub name: String,
    /// What became of it.
    pub state: RepositoryState,
    /// Why, for people.
    pub note: Option<String>,
    /// What the forge said of its last change when its files were last looked at.
    pub changed: String,
    /// When that was.
    pub looked_at: Time,
    /// The source that it is here.
    pub child_id: Option<Id>,
}

/// What became of a repository of a forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryState {
    /// It is a source. Without one, somebody removed that source, and it stays removed.
    Added,
    /// It holds no package.
    Plain,
    /// It is a source already that the forge did not add.
    Taken,
    /// It cannot be one.
    Refused,
    /// It was a source, and the forge does not list it any more.
    Gone,
}

impl RepositoryState {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Plain => "plain",
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::Gone => "gone",
        }
    }

    fn read(text: &str) -> Self {
        match text {
            "added" => Self::Added,
            "taken" => Self::Taken,
            "refused" => Self::Refused,
            "gone" => Self::Gone,
            _ => Self::Plain,
        }
    }
}

fn repository(mut cells: Cells) -> Result<Repository> {
    Ok(Repository {
        remote_id: cells.text()?,
        name: cells.text()?,
        state: RepositoryState::read(&cells.text()?),
        note: cells.optional_text()?,
        changed: cells.text()?,
        looked_at: cells.time()?,
        child_id: cells.optional_id()?,
    })
}

/// What is known of the repositories of a forge, by name.
pub async fn of_source(db: &Db, source: Id) -> Result<Vec<Repository>> {
    let rows = db.read(Statement::read(OF_SOURCE, [source.into()])).await?;
    rows.into_iter().map(|row| repository(row.cells())).collect()
}

/// What is known of the repository that a source is.
pub async fn of_child(db: &Db, child: Id) -> Result<Option<Repository>> {
    db.read_one(Statement::read(OF_CHILD, [child.into()])).await?.map(|row| repository(row.cells())).transpose()
}

/// Remembers a repository.
pub fn put(source: Id, seen: &Repository) -> Statement {
    Statement::write(
        PUT,
        [
            source.into(),
            seen.remote_id.as_str().into(),
            seen.name.as_str().into(),
            seen.state.as_str().into(),
            seen.note.clone().into(),
            seen.changed.as_str().into(),
            seen.looked_at.into(),
            seen.child_id.into(),
        ],
    )
}

/// Forgets a repository.
pub fn remove(source: Id, remote_id: &str) -> Statement {
    Statement::write(REMOVE, [source.into(), remote_id.into()])
}
