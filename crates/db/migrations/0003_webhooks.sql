-- What forges tell: the secret that they show, and what they have told already.

-- The secret of a Git source's webhook, sealed. Without a row nothing is believed.
create table webhooks (
  source_id text primary key references sources (id) on delete cascade,
  key_id text not null,
  sealed bytea not null,
  created_at bigint not null
);

-- Deliveries that were acted upon, so that none is twice, by whichever replica it comes in. Swept by age, and only so
-- many per source.
create table deliveries (
  source_id text not null references sources (id) on delete cascade,
  -- A digest of what the forge calls it and of what is in it.
  delivery text not null,
  accepted_at bigint not null,
  primary key (source_id, delivery)
);
create index deliveries_source on deliveries (source_id, accepted_at);
create index deliveries_accepted on deliveries (accepted_at);
