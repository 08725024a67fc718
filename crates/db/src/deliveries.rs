//! Deliveries: what came through webhooks and was acted upon, so that the same thing told twice is acted upon once,
//! whichever replica hears of it. Bounded by age ([`sweep`]) and, per source, by number ([`trim`]).

use std::time::Duration;

use larder_core::{Id, Time};

use crate::Statement;

/// How long a delivery is remembered: forges deliver again by hand for three days.
pub const RETENTION: Duration = Duration::from_secs(3 * 86_400);

/// How many deliveries of one source are remembered.
const KEPT: i64 = 1_000;

statements! {
    NEW = "insert into guard (holds) select case when not exists
        (select 1 from deliveries where source_id = $1 and delivery = $2 and accepted_at > $3) then 1 end";
    PUT = "insert into deliveries (source_id, delivery, accepted_at) values ($1, $2, $3)
        on conflict (source_id, delivery) do update set accepted_at = excluded.accepted_at";
    TRIM = "delete from deliveries where source_id = $1 and accepted_at <= (
        select accepted_at from deliveries where source_id = $1
        order by accepted_at desc limit 1 offset cast($2 as bigint))";
    SWEEP = "delete from deliveries where accepted_at < $1";
}

/// Guard `delivery is new`: it was not accepted after `since`.
pub fn is_new(source: Id, delivery: &str, since: Time) -> Statement {
    Statement::guard("delivery is new", NEW, [source.into(), delivery.into(), since.into()])
}

/// Remembers a delivery.
pub fn put(source: Id, delivery: &str, at: Time) -> Statement {
    Statement::write(PUT, [source.into(), delivery.into(), at.into()])
}

/// Forgets the oldest deliveries of a source that has too many.
pub fn trim(source: Id) -> Statement {
    Statement::write(TRIM, [source.into(), KEPT.into()])
}

/// Forgets the deliveries accepted before `before`.
pub fn sweep(before: Time) -> Statement {
    Statement::write(SWEEP, [before.into()])
}
