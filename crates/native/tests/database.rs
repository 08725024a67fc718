//! What the Executor port promises, on every database behind it: SQLite always, PostgreSQL when
//! `LARDER_TEST_POSTGRES_URL` names a database in which the tests may make and remove schemas.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::HashSet, future::Future, os::unix::fs::PermissionsExt as _, sync::Arc, task::Poll};

use larder_core::{Digest, Error, Kind, Time};
use larder_db::{
    Batch, CommitError, Db, Dialect, Executor, ExecutorError, Row, Statement, Value, executor::GUARD, settings, stamps,
};
use larder_native::{database::connect, host::system};
use larder_testkit::Scratch;
use sqlx::{Column as _, Connection as _, Executor as _, Statement as _, TypeInfo as _};

/// Tables of the port's own tests; the version is theirs as well.
const TABLES: &str = "
    create table guard (holds bigint not null);
    create table things (id bigint primary key, word text, raw bytea, ratio double precision);
    create table parts (id bigint primary key, thing bigint not null references things (id));
";
const ADD: &str = "insert into things (id, word) values ($1, $2)";
const WORDS: &str = "select id, word from things order by id";
const WORD_IS: &str =
    "insert into guard (holds) select case when exists (select 1 from things where id = $1 and word = $2) then 1 end";

async fn with_tables(scratch: &Scratch) -> Arc<dyn Executor> {
    let executor = scratch.executor().await;
    assert_eq!(executor.migrate(1, TABLES, Time::from_seconds(1)).await.unwrap(), 1);
    executor
}

fn add(id: i64, word: &str) -> Statement {
    Statement::write(ADD, [id.into(), word.into()])
}

async fn words(executor: &dyn Executor) -> Vec<(i64, String)> {
    let rows = executor.query(Statement::read(WORDS, [])).await.unwrap();
    let read = |row: Row| {
        let mut cells = row.cells();
        (cells.int().unwrap(), cells.text().unwrap())
    };
    rows.into_iter().map(read).collect()
}

#[tokio::test]
async fn values_come_back_as_they_were() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        let rows = [
            (i64::MIN, Some("größer 倉庫 🦀 \u{202e} 'quoted' \"$1\""), Some(vec![0, 255, 0]), Some(0.1)),
            (0, Some(""), Some(vec![]), Some(-1e300)),
            (i64::MAX, None, None, None),
        ];
        let insert = "insert into things (id, word, raw, ratio) values ($1, $2, $3, $4)";
        for (id, word, raw, ratio) in rows.clone() {
            let values = [id.into(), word.into(), raw.into(), ratio.into()];
            executor.batch(vec![Statement::write(insert, values)]).await.unwrap();
        }
        let select = "select ratio, raw, word, id from things order by id";
        let found = executor.query(Statement::read(select, [])).await.unwrap();
        assert_eq!(found.len(), rows.len());
        for (row, (id, word, raw, ratio)) in found.into_iter().zip(rows) {
            let mut cells = row.cells();
            assert_eq!(cells.optional_float().unwrap(), ratio);
            assert_eq!(cells.optional_bytes().unwrap(), raw);
            assert_eq!(cells.optional_text().unwrap().as_deref(), word);
            assert_eq!(cells.int().unwrap(), id);
        }
        let nothing = "select id from things where word = $1 or id = $2";
        let values = [Value::Text(None), Value::Int(None)];
        assert!(executor.query(Statement::read(nothing, values)).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_batch_tells_what_each_statement_did() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        let done = executor
            .batch(vec![
                add(1, "a"),
                add(2, "a"),
                Statement::guard("both", WORD_IS, [2.into(), "a".into()]),
                Statement::write("update things set word = $1 where word = $2", ["b".into(), "a".into()]),
                Statement::read("delete from things where id = $1 returning id, word", [1.into()]),
                Statement::read(WORDS, []),
                Statement::write("delete from things where id = $1", [7.into()]),
            ])
            .await
            .unwrap();
        assert_eq!(done.iter().map(|done| done.affected).collect::<Vec<_>>(), [1, 1, 0, 2, 1, 1, 0]);
        assert_eq!(done[4].rows, [Row(vec![1.into(), "b".into()])]);
        assert_eq!(done[5].rows, [Row(vec![2.into(), "b".into()])]);
        assert!(executor.batch(vec![]).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_batch_is_committed_whole_or_not_at_all() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        executor.batch(vec![add(1, "kept")]).await.unwrap();
        let refused = [
            vec![add(2, "x"), add(1, "a key that is taken")],
            vec![add(2, "x"), Statement::write("insert into parts (id, thing) values ($1, $2)", [1.into(), 9.into()])],
            vec![add(2, "x"), Statement::write("insert into parts (id, thing) values (1, null)", [])],
        ];
        for batch in refused {
            let error = executor.batch(batch).await.unwrap_err();
            assert!(matches!(error, ExecutorError::Constraint(_)), "{error:?}");
            assert_eq!(Error::from(error).kind(), Kind::Conflict);
        }
        let error = executor.batch(vec![add(3, "x"), Statement::write("not sql", [])]).await.unwrap_err();
        assert!(matches!(error, ExecutorError::Failed(_)), "{error:?}");
        assert_eq!(words(executor.as_ref()).await, [(1, "kept".to_owned())]);
    }
}

#[tokio::test]
async fn a_light_batch_is_one_like_any_other_but_for_the_disk() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        let asks = match executor.dialect() {
            Dialect::Sqlite => "pragma synchronous",
            Dialect::Postgres => "select current_setting('synchronous_commit')",
        };
        let before = executor.batch(vec![Statement::read(asks, [])]).await.unwrap();
        executor.batch_lightly(vec![add(1, "a")]).await.unwrap();
        let error = executor.batch_lightly(vec![add(2, "b"), add(1, "taken")]).await.unwrap_err();
        assert!(matches!(error, ExecutorError::Constraint(_)), "{error:?}");
        let guard = Statement::guard("not so", WORD_IS, [1.into(), "z".into()]);
        let error = executor.batch_lightly(vec![add(3, "c"), guard]).await.unwrap_err();
        assert!(matches!(error, ExecutorError::Guard("not so")), "{error:?}");
        assert_eq!(words(executor.as_ref()).await, [(1, "a".to_owned())]);
        // The batches after it wait for the disk as those before.
        assert_eq!(executor.batch(vec![Statement::read(asks, [])]).await.unwrap(), before);
    }
}

#[tokio::test]
async fn a_guard_that_does_not_hold_undoes_the_batch_and_is_named() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        let guard = |name, id: i64, word: &str| Statement::guard(name, WORD_IS, [id.into(), word.into()]);
        let batch = vec![add(1, "a"), guard("first", 1, "a"), guard("second", 1, "b"), guard("third", 1, "c")];
        let error = executor.batch(batch).await.unwrap_err();
        assert!(matches!(error, ExecutorError::Guard("second")), "{error:?}");
        assert!(words(executor.as_ref()).await.is_empty());

        executor.batch(vec![add(1, "a"), guard("seen within its batch", 1, "a")]).await.unwrap();
        let rows = executor.query(Statement::read("select count(*) from guard", [])).await.unwrap();
        assert_eq!(rows, [Row(vec![0.into()])]);

        let odd = Statement::guard("odd", "select 1", []);
        assert!(matches!(executor.batch(vec![odd]).await, Err(ExecutorError::Failed(_))));
    }
}

/// 16 at once, 50 times each, over two executors: as two processes would do it.
async fn sixteen_times_fifty<F: Future<Output = ()> + Send + 'static>(
    scratch: &Scratch,
    first: &Arc<dyn Executor>,
    work: fn(Arc<dyn Executor>, i64) -> F,
) {
    let second = scratch.executor().await;
    let tasks = (0..16).map(|task| {
        let executor = if task % 2 == 0 { Arc::clone(first) } else { Arc::clone(&second) };
        tokio::spawn(async move {
            for round in 0..50 {
                work(Arc::clone(&executor), task * 50 + round).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_many_decide_again_under_a_guard() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        executor.batch(vec![add(1, "0")]).await.unwrap();
        sixteen_times_fifty(&scratch, &executor, |executor, _| async move {
            loop {
                let seen = words(executor.as_ref()).await.remove(0).1;
                let next = (seen.parse::<u32>().unwrap() + 1).to_string();
                let batch = vec![
                    Statement::guard("unchanged", WORD_IS, [1.into(), seen.into()]),
                    Statement::write("update things set word = $1 where id = 1", [next.into()]),
                ];
                match executor.batch(batch).await {
                    Ok(_) => return,
                    Err(ExecutorError::Guard("unchanged")) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
        .await;
        assert_eq!(words(executor.as_ref()).await, [(1, "800".to_owned())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_touch_different_rows_all_succeed() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        sixteen_times_fifty(&scratch, &executor, |executor, number| async move {
            let free = "insert into guard (holds)
                select case when not exists (select 1 from things where id = $1) then 1 end";
            let batch = vec![Statement::guard("free", free, [number.into()]), add(number, "x")];
            executor.batch(batch).await.unwrap();
        })
        .await;
        assert_eq!(words(executor.as_ref()).await.len(), 800);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_nobody_waits_for_leaves_nothing_half_done() {
    for scratch in Scratch::each().await {
        let executor = with_tables(&scratch).await;
        for id in 0..20 {
            let mut batch = Box::pin(executor.batch(vec![add(id, "a"), add(id + 100, "b")]));
            // Begins, and is dropped in the middle.
            std::future::poll_fn(|context| {
                let _ = batch.as_mut().poll(context);
                Poll::Ready(())
            })
            .await;
        }
        executor.batch(vec![add(1_000, "last")]).await.unwrap();
        let ids: HashSet<i64> = words(executor.as_ref()).await.into_iter().map(|(id, _)| id).collect();
        assert!(ids.contains(&1_000));
        for id in 0..20 {
            assert_eq!(ids.contains(&id), ids.contains(&(id + 100)), "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_are_applied_once_and_a_newer_database_is_refused() {
    let host = system();
    for scratch in Scratch::each().await {
        let openers: Vec<_> = futures_util::future::join_all((0..6).map(|_| scratch.executor())).await;
        let open = openers.into_iter().map(|executor| tokio::spawn(Db::open(executor, host.clone())));
        for opened in open.collect::<Vec<_>>() {
            opened.await.unwrap().unwrap();
        }
        let db = scratch.db(&host).await;
        let applied = "select version from migrations order by version";
        let versions = db.read(Statement::read(applied, [])).await.unwrap();
        let expected: Vec<_> = (1..=versions.len()).map(|n| Row(vec![i64::try_from(n).unwrap().into()])).collect();
        assert_eq!(versions, expected);

        let newer = "insert into migrations (version, applied_at) values (999, 0)";
        db.commit(Statement::write(newer, []).into()).await.unwrap();
        let error = Db::open(scratch.executor().await, host.clone()).await.unwrap_err();
        assert!(error.message().contains("999"), "{error}");
    }
}

#[tokio::test]
async fn a_migration_that_fails_leaves_no_trace() {
    for scratch in Scratch::each().await {
        let executor = scratch.executor().await;
        let at = Time::from_seconds(1);
        executor.migrate(1, "create table one (id bigint); create table one (id bigint);", at).await.unwrap_err();
        assert_eq!(executor.migrate(1, "create table one (id bigint);", at).await.unwrap(), 1);
        assert_eq!(executor.migrate(1, "never run", at).await.unwrap(), 1);
        assert_eq!(executor.migrate(3, "never run", at).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn every_text_prepares() {
    let host = system();
    for scratch in Scratch::each().await {
        let db = scratch.db(&host).await;
        let texts = larder_db::statements(db.dialect());
        let names: HashSet<_> = texts.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), texts.len(), "two texts have one name");
        let odd = texts.iter().find(|(_, text)| text.contains("into guard") && !text.starts_with(GUARD));
        assert_eq!(odd, None, "guards begin with `{GUARD}`");
        let wrong = match db.dialect() {
            Dialect::Sqlite => wrong_on_sqlite(scratch.url(), &texts).await,
            Dialect::Postgres => wrong_on_postgres(scratch.url(), &texts).await,
        };
        assert!(wrong.is_empty(), "{:?}:\n{}", db.dialect(), wrong.join("\n"));
    }
}

async fn wrong_on_sqlite(url: &str, texts: &[(&str, &'static str)]) -> Vec<String> {
    let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
    let mut wrong = Vec::new();
    for (name, text) in texts {
        if let Err(error) = (&mut connection).prepare(sqlx::SqlSafeStr::into_sql_str(*text)).await {
            wrong.push(format!("{name}: {error}"));
        }
    }
    wrong
}

/// Without types, so that a text says enough by itself; and it gives only types that a row can hold.
async fn wrong_on_postgres(url: &str, texts: &[(&str, &'static str)]) -> Vec<String> {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let mut wrong = Vec::new();
    for (name, text) in texts {
        match (&mut connection).prepare(sqlx::SqlSafeStr::into_sql_str(*text)).await {
            Ok(prepared) => {
                let kinds = ["INT8", "INT4", "BOOL", "TEXT", "BYTEA", "FLOAT8"];
                let odd = prepared.columns().iter().filter(|column| !kinds.contains(&column.type_info().name()));
                wrong.extend(odd.map(|column| format!("{name}: `{}` is a {}", column.name(), column.type_info())));
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    wrong
}

#[tokio::test]
async fn commits_speak_of_guards_and_of_kinds() {
    let host = system();
    for scratch in Scratch::each().await {
        let db = scratch.db(&host).await;
        db.commit(settings::put("color", "green", host.now()).into()).await.unwrap();
        db.commit(settings::put("color", "blue", host.now()).into()).await.unwrap();
        assert_eq!(settings::get(&db, "color").await.unwrap().as_deref(), Some("blue"));

        let never = Statement::guard("never", "insert into guard (holds) select case when 1 = 2 then 1 end", []);
        let batch = Batch::new().with(settings::put("color", "red", host.now())).with(never);
        let error = db.commit(batch).await.unwrap_err();
        assert!(matches!(error, CommitError::Guard("never")));
        assert_eq!(Error::from(error).kind(), Kind::Conflict);
        assert_eq!(settings::get(&db, "color").await.unwrap().as_deref(), Some("blue"));

        let nul = db.commit(settings::put("a\0b", "", host.now()).into()).await.unwrap_err();
        assert_eq!(Error::from(nul).kind(), Kind::Invalid);
        assert_eq!(settings::get(&db, "a\0b").await.unwrap_err().kind(), Kind::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stamps_only_grow_and_are_never_shared() {
    let host = system();
    for scratch in Scratch::each().await {
        let (one, other) = (scratch.db(&host).await, scratch.db(&host).await);
        let tasks = (0..8_u8).map(|task| {
            let db = if task % 2 == 0 { one.clone() } else { other.clone() };
            tokio::spawn(async move {
                let mut given = Vec::new();
                for round in 0..10_u8 {
                    let digest = Digest::of(&[task, round]);
                    let at = stamps::stamp(&db, "/p/a.json", &format!("view {task}"), digest).await.unwrap();
                    assert_eq!(stamps::stamp(&db, "/p/a.json", &format!("view {task}"), digest).await.unwrap(), at);
                    given.push(at);
                }
                assert!(given.is_sorted_by(|earlier, later| earlier < later), "{given:?}");
                given
            })
        });
        let mut all = HashSet::new();
        for task in tasks.collect::<Vec<_>>() {
            all.extend(task.await.unwrap());
        }
        assert_eq!(all.len(), 80);
        // Another replica that has the same document of the same view gives the same stamp.
        let digest = Digest::of(b"same");
        let at = stamps::stamp(&one, "/p/b.json", "v", digest).await.unwrap();
        assert_eq!(stamps::stamp(&other, "/p/b.json", "v", digest).await.unwrap(), at);
        assert!(at >= host.now().seconds() - 60);
    }
}

#[tokio::test]
async fn a_full_database_says_so_and_works_again_with_room() {
    let scratch = Scratch::sqlite();
    let executor = with_tables(&scratch).await;
    let limit = |sql| executor.batch(vec![Statement::read(sql, [])]);
    limit("pragma max_page_count = 20").await.unwrap();
    let large = "x".repeat(200_000);
    let error = executor.batch(vec![add(1, "small"), add(2, &large)]).await.unwrap_err();
    assert!(matches!(error, ExecutorError::Full(_)), "{error:?}");
    assert_eq!(Error::from(error).kind(), Kind::Full);
    assert!(words(executor.as_ref()).await.is_empty());
    limit("pragma max_page_count = 20000").await.unwrap();
    executor.batch(vec![add(1, "small"), add(2, &large)]).await.unwrap();
    assert_eq!(words(executor.as_ref()).await.len(), 2);
}

#[tokio::test]
async fn connections_that_the_server_ended_are_made_again() {
    let Some(scratch) = Scratch::postgres().await else { return };
    let (executor, other) = (with_tables(&scratch).await, scratch.executor().await);
    let end_connection = async || {
        let mine = executor.query(Statement::read("select pg_backend_pid()", [])).await.unwrap().remove(0);
        let end = Statement::read("select pg_terminate_backend(cast($1 as int), 10000)", mine.0);
        assert_eq!(other.query(end).await.unwrap(), [Row(vec![true.into()])]);
    };
    end_connection().await;
    assert!(words(executor.as_ref()).await.is_empty());
    end_connection().await;
    executor.batch(vec![add(1, "a")]).await.unwrap();
    assert_eq!(words(executor.as_ref()).await.len(), 1);
}

#[tokio::test]
async fn only_the_owner_may_read_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/deep/larder.db");
    let executor = connect(&format!("sqlite:{}", path.display())).await.unwrap();
    executor.migrate(1, TABLES, Time::from_seconds(1)).await.unwrap();
    executor.batch(vec![add(1, "a")]).await.unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    for name in ["larder.db", "larder.db-wal", "larder.db-shm"] {
        assert_eq!(mode(&path.with_file_name(name)), 0o600, "{name}");
    }
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[tokio::test]
async fn a_wrong_url_is_explained_without_its_password() {
    for url in [
        "",
        "mysql://u:hunter2@localhost/x",
        "postgres://u:hunter2@localhost:port/x",
        "sqlite:",
        "sqlite::memory:",
        "sqlite:/nowhere/at/all?mode=hunter2",
        "/path/with/hunter2",
    ] {
        let error = connect(url).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{url}");
        assert!(!error.chain().contains("hunter2"), "{}", error.chain());
    }
    // Nobody listens there: it is opened all the same, and tells when it is used.
    let executor = connect("postgres://u:hunter2@127.0.0.1:1/x").await.unwrap();
    let error = executor.query(Statement::read("select 1", [])).await.unwrap_err();
    assert!(matches!(error, ExecutorError::Unavailable(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"));
}
