-- What clients push: uploads that continue, leases on what they have put, versions that refer to each other, and rules
-- about what is kept.

-- Uploads that may go on in another request, after a restart, or on another replica.
create table uploads (
  id text primary key,
  format text not null,
  package text not null,
  -- Who began it; only the same principal goes on with it.
  principal text not null,
  -- The algorithm of the digest that is computed on the way: `sha256`, …
  algorithm text not null,
  -- How many bytes are safe: where the next request goes on.
  written bigint not null,
  -- What the store needs to go on, in its own words; NULL before the first byte.
  state text,
  -- Where the store keeps the bytes meanwhile, and those that are too few to be sent on. Garbage collection leaves both
  -- alone while this row is there.
  staged text,
  tail text,
  tail_size bigint not null,
  -- The digest's state after `written` bytes; NULL if it could not be saved: then the bytes are read again at the end.
  hash bytea,
  -- The one request that writes now, and until when it is believed to be alive.
  writer text,
  writer_until bigint not null,
  -- 1: somebody went on although the writer before had not let go. It may have written late, so that the bytes are proven
  -- before they become a blob.
  taken_over bigint not null,
  created_at bigint not null,
  touched_at bigint not null
);
create index uploads_touched on uploads (touched_at);
create index uploads_package on uploads (format, package);
create unique index uploads_staged on uploads (staged);
create unique index uploads_tail on uploads (tail);

-- A blob that a client has put, mounted or was told of, and may now refer to: seen in this package, and safe, until then.
create table leases (
  format text not null,
  package text not null,
  digest text not null,
  until bigint not null,
  primary key (format, package, digest)
);
create index leases_digest on leases (digest);
create index leases_until on leases (until);

-- Bytes that no row refers to any more, and when they go. Until then they are accounted for.
create table trash (
  location text primary key,
  -- The blob whose bytes they were; NULL for those of an upload that came to nothing.
  digest text,
  size bigint not null,
  trashed_at bigint not null
);
create index trash_at on trash (trashed_at);

-- Versions that refer to other versions of their package, by reference. The other one may not be there (yet).
create table edges (
  version_id text not null references versions (id) on delete cascade,
  package_id text not null references packages (id) on delete cascade,
  -- `part`: this version consists of the other, which lives as long as it does. `subject`: this version is about the
  -- other, and lives as long as that.
  kind text not null,
  reference text not null,
  primary key (version_id, kind, reference)
);
create index edges_reference on edges (package_id, reference, kind);

-- When nothing was found to refer to it any more, at the last look; NULL while something does.
alter table versions add column orphaned_at bigint;
create index versions_reference on versions (package_id, reference);
create index versions_orphaned on versions (orphaned_at) where orphaned_at is not null;

-- Which blobs a package has must not cost a look at every package that shares them.
alter table artifacts add column package_id text;
update artifacts set package_id = (select package_id from versions where versions.id = artifacts.version_id);
create index artifacts_package on artifacts (package_id, digest);
-- Whether another package has a blob too must not cost a look at every artifact that shares it.
drop index artifacts_digest;
create index artifacts_digest on artifacts (digest, package_id);
-- The newest pointers first.
create index pointers_changed on pointers (package_id, changed_at);

-- Rules for the packages that a pattern names.
create table policies (
  id text primary key,
  format text not null,
  pattern text not null,
  -- JSON: which names never move, what is kept, how much there may be.
  rules text not null,
  created_at bigint not null,
  unique (format, pattern)
);

-- The history of one thing.
create index events_subject on events (subject, at);

-- When something of an upstream registry was last asked for, and what it was then: what is fresh is not asked for again.
create table upstream_checks (
  source_id text not null references sources (id) on delete cascade,
  -- What was asked for, in the format's own words.
  subject text not null,
  checked_at bigint not null,
  -- Tells whether it has changed since: a digest, an ETag.
  validator text not null,
  primary key (source_id, subject)
);
create index upstream_checks_at on upstream_checks (checked_at);
