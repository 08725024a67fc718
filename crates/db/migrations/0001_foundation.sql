-- The tables of the house. Generic: no table knows a format. Columns are bigint, text, bytea and double precision only,
-- which SQLite and PostgreSQL both read; ids are UUIDv7 as text; times are microseconds since 1970.

-- A batch aborts when a guard inserts NULL here. It never holds a row for longer than a batch.
create table guard (holds bigint not null);

create table settings (
  key text primary key,
  value text not null,
  changed_at bigint not null
);

-- What changed, for the caches of every replica: each reads what is newer than its last look. Swept after an hour.
create table changes (
  id text primary key,
  at bigint not null,
  topic text not null
);
create index changes_at on changes (at);

create table credentials (
  id text primary key,
  name text not null unique,
  kind text not null,
  username text,
  -- The one host that it may be sent to; set by the first source that uses it.
  host text,
  key_id text not null,
  sealed bytea not null,
  created_at bigint not null
);

create table sources (
  id text primary key,
  name text not null unique,
  -- `git`, `upload`, or the id of a format whose upstream registry it is.
  kind text not null,
  url text not null,
  credential_id text references credentials (id),
  every_seconds bigint not null,
  -- JSON: what only this kind of source knows (keep, policies, patterns).
  settings text not null,
  created_at bigint not null,
  -- `new`, `ok`, `failed`, `held` or `released`.
  state text not null,
  -- Why it failed or is held, for people.
  problem text,
  -- When the last sync that reached the source ended.
  synced_at bigint,
  -- JSON: counts of the last sync.
  report text
);

-- Every ref of a Git source as the last sync saw it: taken in, or skipped with its reason; oddities in `warning`.
create table source_refs (
  source_id text not null references sources (id) on delete cascade,
  -- `refs/tags/v1.0.0`
  name text not null,
  commit_id text not null,
  skipped text,
  warning text,
  changed_at bigint not null,
  primary key (source_id, name)
);

create table packages (
  id text primary key,
  format text not null,
  name text not null,
  source_id text references sources (id),
  -- JSON: what lists and searches show of it.
  summary text not null,
  created_at bigint not null,
  changed_at bigint not null,
  unique (format, name)
);
create index packages_source on packages (source_id);

create table versions (
  id text primary key,
  package_id text not null references packages (id) on delete cascade,
  -- Normal form; several rows share it when a tag moved or a branch went on: one per reference.
  version text not null,
  display text not null,
  -- What the bytes are made from: a commit in hex, or the digest of an upload.
  reference text not null,
  stable bigint not null,
  -- 1: in the metadata. 0: in the metadata only while a pointer names it; its artifacts can be downloaded all the same.
  listed bigint not null,
  -- The ref or the upload that it came from.
  origin text not null,
  released_at bigint not null,
  -- JSON: the format's own.
  metadata text not null,
  created_at bigint not null,
  unique (package_id, version, reference)
);

-- Movable names: a branch, a dist-tag, an image tag.
create table pointers (
  package_id text not null references packages (id) on delete cascade,
  name text not null,
  version_id text not null references versions (id) on delete cascade,
  changed_at bigint not null,
  primary key (package_id, name)
);
create index pointers_version on pointers (version_id);

create table blobs (
  digest text primary key,
  size bigint not null,
  -- Its key in the store.
  location text not null,
  -- `live`; `missing` when its bytes were not there or not right at the last look.
  state text not null,
  created_at bigint not null,
  -- Nothing collects it before.
  lease_until bigint not null
);

create unique index blobs_location on blobs (location);

create table artifacts (
  id text primary key,
  version_id text not null references versions (id) on delete cascade,
  name text not null,
  digest text not null references blobs (digest),
  size bigint not null,
  -- SHA-1 in hex, for the protocols that print it.
  sha1 text not null,
  created_at bigint not null,
  unique (version_id, name)
);
create index artifacts_digest on artifacts (digest);

create table tokens (
  id text primary key,
  name text not null,
  hash bytea not null unique,
  created_at bigint not null,
  expires_at bigint,
  revoked_at bigint,
  used_at bigint
);
create unique index tokens_name on tokens (name) where revoked_at is null;

create table grants (
  id text primary key,
  -- `anonymous`, `token:NAME`
  principal text not null,
  actions text not null,
  format text not null,
  pattern text not null,
  created_at bigint not null,
  unique (principal, actions, format, pattern)
);

create table jobs (
  id text primary key,
  kind text not null,
  -- What it is about: the id of a source. There is at most one waiting and one running job per kind and subject.
  subject text not null,
  -- `waiting`, `running`, `done` or `failed`.
  state text not null,
  run_at bigint not null,
  lease_until bigint,
  worker text,
  attempts bigint not null,
  progress text,
  problem text,
  created_at bigint not null,
  finished_at bigint
);
create unique index jobs_waiting on jobs (kind, subject) where state = 'waiting';
create unique index jobs_running on jobs (kind, subject) where state = 'running';
create index jobs_due on jobs (run_at) where state = 'waiting';
create index jobs_finished on jobs (finished_at);

-- Every change, for ever.
create table events (
  id text primary key,
  at bigint not null,
  actor text not null,
  -- `token.create`, `source.sync`, …
  action text not null,
  -- The thing: `token:ci`, `source:lib`, `package:FORMAT:NAME`.
  subject text not null,
  -- JSON object.
  detail text not null
);
create index events_at on events (at);
create index events_actor on events (actor, at);
create index events_action on events (action, at);

-- Every access, for as long as retention says. Equal accesses within one batch are one row with their count.
create table access (
  id text primary key,
  first_at bigint not null,
  last_at bigint not null,
  principal text not null,
  -- `metadata`, `download`, `list`, `search`, …
  action text not null,
  format text not null,
  package text not null,
  version text not null,
  -- HTTP status.
  result bigint not null,
  address text not null,
  user_agent text not null,
  count bigint not null
);
create index access_last on access (last_at);

-- Per day (days since 1970). `download`: counted here; `install`: told by clients. Kept apart, never added up.
create table statistics (
  format text not null,
  package text not null,
  version text not null,
  day bigint not null,
  kind text not null,
  count bigint not null,
  primary key (format, package, version, day, kind)
);

-- The `Last-Modified` of each document per view: strictly later than every other one given out for the same path,
-- because clients compare it for equality and share one cache between tokens.
create table stamps (
  path text not null,
  view text not null,
  digest text not null,
  -- Whole seconds since 1970.
  at bigint not null,
  primary key (path, view),
  unique (path, at)
);
