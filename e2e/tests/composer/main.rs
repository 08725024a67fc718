//! What people see who use Larder with Composer: each case is a sentence, on `SQLite` and disk, and again on `PostgreSQL`
//! and S3. One program, so that everything is linked once.

mod advisories;
mod cold;
mod configuration;
mod confusion;
mod crashes;
mod dists;
mod forges;
mod hostile;
mod install;
mod lockfiles;
mod monorepo;
mod operator;
mod permissions;
mod policies;
mod replicas;
mod requests;
mod sources;
mod uploads;
mod upstream;
mod upstream_faults;
mod upstream_layouts;
mod webhooks;
