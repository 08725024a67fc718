//! What registries upstream say, as they said it last: kept compressed, and given back as it came. When it was last asked
//! for is in [`crate::upstream_checks`].

use std::io::{Read as _, Write as _};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use larder_core::{Error, Host, Id, Result, Time};

use crate::{Cells, Db, Statement};

statements! {
    FIND = "select content, size, validator, fetched_at from upstream_documents where source_id = $1 and subject = $2";
    LOOK = "select validator, fetched_at from upstream_documents where source_id = $1 and subject = $2";
    // The one database has no cast to bytes, and the other one must be told that $3 is some: from what stands beside it.
    PUT = "insert into upstream_documents (source_id, subject, content, size, validator, fetched_at)
        select id, cast($2 as text), coalesce((select content from upstream_documents where 1 = 0), $3),
            cast($4 as bigint), cast($5 as text), cast($6 as bigint)
        from sources where id = $1
        on conflict (source_id, subject) do update set content = excluded.content, size = excluded.size,
            validator = excluded.validator, fetched_at = excluded.fetched_at";
    REMOVE = "delete from upstream_documents where source_id = $1 and subject = $2";
    REMOVE_OF_SOURCE = "delete from upstream_documents where source_id = $1";
    LOOK_AT_TWO = "select subject, validator, fetched_at from upstream_documents
        where source_id = $1 and subject in ($2, $3)";
    NOTIFY_UNLESS_SAME = "insert into changes (id, at, topic)
        select cast($1 as text), cast($2 as bigint), cast($3 as text)
        where not exists (select 1 from upstream_documents where source_id = $4 and subject = $5 and validator = $6)";
    PAGE = "select subject, validator from upstream_documents
        where source_id = $1 and substr(subject, 1, length(cast($2 as text))) = $2 and subject > $3
        order by subject limit $4";
}

/// What an upstream said.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// Compressed with gzip.
    gzip: Vec<u8>,
    /// How many bytes it has without that.
    pub size: u64,
    /// Makes the next question a conditional one.
    pub validator: String,
    /// When it came.
    pub fetched_at: Time,
}

impl Document {
    /// Compresses what came.
    pub fn new(content: &[u8], validator: impl Into<String>, fetched_at: Time) -> Self {
        let mut gzip = GzEncoder::new(Vec::with_capacity(content.len() / 6), Compression::fast());
        // Writing to memory cannot fail.
        let gzip = gzip.write_all(content).and_then(|()| gzip.finish()).unwrap_or_default();
        Self { gzip, size: content.len() as u64, validator: validator.into(), fetched_at }
    }

    /// The bytes as they came. Takes a moment for each megabyte.
    pub fn content(&self) -> Result<Vec<u8>> {
        let damaged = |source: Box<dyn std::error::Error + Send + Sync>| {
            Error::internal("reading what an upstream said: the stored document is damaged", source)
        };
        let size = usize::try_from(self.size).map_err(|error| damaged(error.into()))?;
        let mut content = Vec::with_capacity(size);
        // One byte more than announced would be damage as well, and is not read further.
        let read = GzDecoder::new(self.gzip.as_slice()).take(self.size + 1).read_to_end(&mut content);
        match read {
            Ok(read) if read == size => Ok(content),
            Ok(read) => Err(damaged(format!("{read} bytes instead of {size}").into())),
            Err(error) => Err(damaged(error.into())),
        }
    }
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes ({})", self.size, self.validator)
    }
}

fn document(mut cells: Cells) -> Result<Document> {
    Ok(Document { gzip: cells.bytes()?, size: cells.count()?, validator: cells.text()?, fetched_at: cells.time()? })
}

/// The document of a subject, which is the format's own word for what it is about.
pub async fn find(db: &Db, source: Id, subject: &str) -> Result<Option<Document>> {
    let row = db.read_one(Statement::read(FIND, [source.into(), subject.into()])).await?;
    row.map(|row| document(row.cells())).transpose()
}

/// The validator of a document and when it came, without the document.
pub async fn look(db: &Db, source: Id, subject: &str) -> Result<Option<(String, Time)>> {
    let row = db.read_one(Statement::read(LOOK, [source.into(), subject.into()])).await?;
    row.map(|row| {
        let mut cells = row.cells();
        Ok((cells.text()?, cells.time()?))
    })
    .transpose()
}

/// Like [`look`], at two documents at once.
pub async fn look_at_two(db: &Db, source: Id, subjects: [&str; 2]) -> Result<[Option<(String, Time)>; 2]> {
    let values = [source.into(), subjects[0].into(), subjects[1].into()];
    let mut found = [None, None];
    for row in db.read(Statement::read(LOOK_AT_TWO, values)).await? {
        let mut cells = row.cells();
        let place = usize::from(cells.text()? == subjects[1]);
        found[place] = Some((cells.text()?, cells.time()?));
    }
    Ok(found)
}

/// Says that what `topic` names has changed, unless a document is still the one with this validator.
pub fn notify_unless_same(host: &Host, topic: &str, source: Id, subject: &str, validator: &str) -> Statement {
    let values =
        [host.new_id().into(), host.now().into(), topic.into(), source.into(), subject.into(), validator.into()];
    Statement::write(NOTIFY_UNLESS_SAME, values)
}

/// The subjects that begin with `prefix`, in their order, after `after`; each with its validator. At most
/// `limit`.
pub async fn page(db: &Db, source: Id, prefix: &str, after: &str, limit: u32) -> Result<Vec<(String, String)>> {
    let values = [source.into(), prefix.into(), after.into(), i64::from(limit).into()];
    let rows = db.read(Statement::read(PAGE, values)).await?;
    rows.into_iter()
        .map(|row| {
            let mut cells = row.cells();
            Ok((cells.text()?, cells.text()?))
        })
        .collect()
}

/// Keeps a document instead of the one before it, unless its source is gone.
pub fn put(source: Id, subject: &str, document: &Document) -> Statement {
    let Document { gzip, size, validator, fetched_at } = document;
    let values = [
        source.into(),
        subject.into(),
        gzip.clone().into(),
        i64::try_from(*size).unwrap_or(i64::MAX).into(),
        validator.as_str().into(),
        (*fetched_at).into(),
    ];
    Statement::write(PUT, values)
}

/// Forgets a document.
pub fn remove(source: Id, subject: &str) -> Statement {
    Statement::write(REMOVE, [source.into(), subject.into()])
}

/// Forgets every document of a source.
pub fn remove_of_source(source: Id) -> Statement {
    Statement::write(REMOVE_OF_SOURCE, [source.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_or_is_said_to_be_damaged() {
        let content = "the same again and again, ".repeat(1000).into_bytes();
        let document = Document::new(&content, "v1", Time::from_seconds(5));
        assert!(document.gzip.len() < content.len() / 10);
        assert_eq!(document.content().unwrap(), content);
        for size in [0, document.size - 1, document.size + 1] {
            assert!(Document { size, ..document.clone() }.content().is_err(), "{size}");
        }
        let mut half = document.clone();
        half.gzip.truncate(half.gzip.len() / 2);
        assert!(half.content().is_err());
    }
}
