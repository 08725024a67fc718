-- Packages of other registries, names that never leave the house, several packages in one repository, repositories that a
-- forge lists, and what is known to be wrong with versions.

-- What registries upstream say, as they said it last.
create table upstream_documents (
  source_id text not null references sources (id) on delete cascade,
  -- What it is about, in the format's own words.
  subject text not null,
  -- The bytes, compressed with gzip, and how many they are without it.
  content bytea not null,
  size bigint not null,
  -- What makes the next question a conditional one: a date, an entity tag, a hash.
  validator text not null,
  fetched_at bigint not null,
  primary key (source_id, subject)
);

-- Upstreams are asked in this order, and then in that in which they were added.
alter table sources add column position bigint;
-- The source that found this one: a forge whose repositories are sources of their own.
alter table sources add column parent_id text references sources (id) on delete set null;
-- 1: its owner keeps it for reading only.
alter table sources add column archived bigint not null default 0;
create index sources_parent on sources (parent_id);

-- What became of the repositories that a forge lists.
create table forge_repositories (
  source_id text not null references sources (id) on delete cascade,
  -- The forge's own name for it, which it keeps when it is renamed.
  remote_id text not null,
  -- Its path there.
  name text not null,
  -- `added`, `plain`, `taken`, `refused`, `gone`
  state text not null,
  -- Why, for people.
  note text,
  -- What the forge said of its last change when its files were last looked at, and when that was.
  changed text not null,
  looked_at bigint not null,
  -- The source that it is here.
  child_id text references sources (id) on delete set null,
  primary key (source_id, remote_id)
);
create index forge_repositories_child on forge_repositories (child_id);

-- The folder of the tree that a version is made of, without slashes at its ends; empty for all of it.
alter table versions add column folder text not null default '';

-- Names that no upstream is asked for, and no upstream may bring.
create table reservations (
  id text primary key,
  format text not null,
  pattern text not null,
  created_at bigint not null,
  unique (format, pattern)
);

-- What is known to be wrong with versions of packages, whether they are here or not.
create table advisories (
  id text primary key,
  format text not null,
  package text not null,
  -- Who says so: `own`, `source:ID`, or the name of an import.
  feed text not null,
  -- Its name there.
  remote_id text not null,
  -- Which versions, as a constraint of the format.
  affected text not null,
  -- JSON: title, link, CVE, severity and the like, as the format tells it.
  detail text not null,
  reported_at bigint not null,
  changed_at bigint not null,
  unique (format, package, feed, remote_id)
);
create index advisories_feed on advisories (feed, remote_id);
