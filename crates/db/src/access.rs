//! Accesses: who read what, from where, with what result, for as long as retention says. They are collected in memory
//! (`larder-audit`) and land here in batches. Changes are in [`crate::events`].

use larder_core::{Id, Result, Time};

use crate::{Db, Row, Statement, Value};

/// How many rows [`INSERT_MANY`] writes.
const MANY: usize = 16;

statements! {
    INSERT = "insert into access (id, first_at, last_at, principal, action, format, package, version, result, address,
        user_agent, count) values
        ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        on conflict (id) do nothing";
    INSERT_MANY = "insert into access (id, first_at, last_at, principal, action, format, package, version, result, address,
        user_agent, count) values
        ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12),
        ($13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24),
        ($25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36),
        ($37, $38, $39, $40, $41, $42, $43, $44, $45, $46, $47, $48),
        ($49, $50, $51, $52, $53, $54, $55, $56, $57, $58, $59, $60),
        ($61, $62, $63, $64, $65, $66, $67, $68, $69, $70, $71, $72),
        ($73, $74, $75, $76, $77, $78, $79, $80, $81, $82, $83, $84),
        ($85, $86, $87, $88, $89, $90, $91, $92, $93, $94, $95, $96),
        ($97, $98, $99, $100, $101, $102, $103, $104, $105, $106, $107, $108),
        ($109, $110, $111, $112, $113, $114, $115, $116, $117, $118, $119, $120),
        ($121, $122, $123, $124, $125, $126, $127, $128, $129, $130, $131, $132),
        ($133, $134, $135, $136, $137, $138, $139, $140, $141, $142, $143, $144),
        ($145, $146, $147, $148, $149, $150, $151, $152, $153, $154, $155, $156),
        ($157, $158, $159, $160, $161, $162, $163, $164, $165, $166, $167, $168),
        ($169, $170, $171, $172, $173, $174, $175, $176, $177, $178, $179, $180),
        ($181, $182, $183, $184, $185, $186, $187, $188, $189, $190, $191, $192)
        on conflict (id) do nothing";
    IS_NEW = "insert into guard (holds) select case when (
        not exists (select 1 from access where id = $1)) then 1 end";
    LIST = "select id, first_at, last_at, principal, action, format, package, version, result, address,
        user_agent, count from access
        where last_at >= $1 and (last_at < $2 or (last_at = $2 and id < $3))
        and (cast($4 as text) = '' or principal = $4) and (cast($5 as text) = '' or action = $5)
        and (cast($6 as text) = '' or format = $6) and (cast($7 as text) = '' or package = $7)
        order by last_at desc, id desc limit $8";
    SWEEP = "delete from access where id in (select id from access where last_at < $1 order by last_at limit $2)";
}

/// Equal accesses within one short time.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Access {
    /// Its identity.
    pub id: Id,
    /// The first of them, in microseconds since 1970.
    pub first_at: Time,
    /// The last of them.
    pub last_at: Time,
    /// Who: `anonymous`, `token:NAME`.
    pub principal: String,
    /// What: `metadata`, `download`, `list`, `search`, …
    pub action: String,
    /// The id of a format; empty if it was about none.
    pub format: String,
    /// The name of a package; empty if it was about none; `*` if detail was given up because there was too much.
    pub package: String,
    /// A version; empty if it was about none.
    pub version: String,
    /// The HTTP status.
    pub result: u16,
    /// From where: an IP address.
    pub address: String,
    /// With what client.
    pub user_agent: String,
    /// How many.
    pub count: u64,
}

impl Access {
    fn values(&self) -> [Value; 12] {
        [
            self.id.into(),
            self.first_at.into(),
            self.last_at.into(),
            (&self.principal).into(),
            (&self.action).into(),
            (&self.format).into(),
            (&self.package).into(),
            (&self.version).into(),
            i64::from(self.result).into(),
            (&self.address).into(),
            (&self.user_agent).into(),
            i64::try_from(self.count).unwrap_or(i64::MAX).into(),
        ]
    }
}

/// Adds accesses, with as few statements as possible. A row that is there already stays as it is.
pub fn insert(accesses: &[Access]) -> impl Iterator<Item = Statement> {
    let whole = accesses.chunks_exact(MANY);
    let rest = whole.remainder();
    let values = |some: &[Access]| some.iter().flat_map(Access::values).collect::<Vec<_>>();
    whole
        .map(move |many| Statement::write(INSERT_MANY, values(many)))
        .chain(rest.iter().map(|one| Statement::write(INSERT, one.values())))
}

/// Guard `access_is_new`: this row was not written yet. With it, a batch that was committed although its answer was
/// lost is not written twice.
pub fn is_new(id: Id) -> Statement {
    Statement::guard("access_is_new", IS_NEW, [id.into()])
}

/// Which accesses are wanted. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Not before.
    pub since: Option<Time>,
    /// Before.
    pub until: Option<Time>,
    /// Only of this principal.
    pub principal: Option<String>,
    /// Only this action.
    pub action: Option<String>,
    /// Only of this format.
    pub format: Option<String>,
    /// Only of this package.
    pub package: Option<String>,
}

/// One page of the accesses that are wanted, the newest first: those before `before`, at most `limit`.
pub async fn list(db: &Db, wanted: &Wanted, before: Option<(Time, Id)>, limit: u32) -> Result<Vec<Access>> {
    let until = wanted.until.unwrap_or(Time::from_micros(i64::MAX));
    // No id is before the empty text: `until` itself is not wanted.
    let (at, id) = before.map_or((until, String::new()), |(at, id)| (at, id.to_string()));
    let text = |value: &Option<String>| Value::from(value.as_deref().unwrap_or(""));
    let values = [
        wanted.since.unwrap_or(Time::from_micros(i64::MIN)).into(),
        at.into(),
        id.into(),
        text(&wanted.principal),
        text(&wanted.action),
        text(&wanted.format),
        text(&wanted.package),
        i64::from(limit).into(),
    ];
    db.read(Statement::read(LIST, values)).await?.into_iter().map(access).collect()
}

/// Deletes at most `limit` of the accesses that ended before `before`.
pub fn sweep(before: Time, limit: u32) -> Statement {
    Statement::write(SWEEP, [before.into(), i64::from(limit).into()])
}

fn access(row: Row) -> Result<Access> {
    let mut cells = row.cells();
    Ok(Access {
        id: cells.id()?,
        first_at: cells.time()?,
        last_at: cells.time()?,
        principal: cells.text()?,
        action: cells.text()?,
        format: cells.text()?,
        package: cells.text()?,
        version: cells.text()?,
        result: u16::try_from(cells.int()?).unwrap_or(0),
        address: cells.text()?,
        user_agent: cells.text()?,
        count: cells.count()?,
    })
}
