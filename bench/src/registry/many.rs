//! A hundred machines that pull one image at the same moment, as those of a cluster do after a deployment.

use anyhow::Result;
use futures_util::future::try_join_all;

use super::{Setting, client::Connection, compare, content::Image, layers, settle, table::Table};

/// How many pull at once.
const PULLERS: usize = 100;
/// Layers of the image.
const LAYERS: usize = 5;
/// Bytes of a layer.
const SIZE: usize = 100_000_000;

const REPOSITORY: &str = "bench/many";
const TAG: &str = "deployed";

pub async fn measure(setting: &Setting<'_>) -> Result<()> {
    let image = Image::noise(9, LAYERS, SIZE);
    let title = format!("{PULLERS} pulls at once of an image of 500 MB, once");
    let mut table = Table::new(title, &layers::COLUMNS);
    for registry in &setting.registries {
        let mut connection = Connection::open(&registry.door).await?;
        for blob in &image.blobs {
            connection.push_blob(REPOSITORY, blob).await?;
        }
        connection.push_manifest(REPOSITORY, TAG, &image.manifest).await?;
        settle(setting.place, SIZE).await?;
        let one = async || {
            let mut connection = Connection::open(&registry.pulls).await?;
            connection.pull_manifest(REPOSITORY, TAG, &image).await?;
            for blob in &image.blobs {
                connection.pull_blob(REPOSITORY, blob).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let all = async { try_join_all((0..PULLERS).map(|_| one())).await.map(drop) };
        table.add(registry.name, layers::watched(&[registry.pid], image.size() * PULLERS, all).await?);
    }
    table.print();
    compare(table.larder_to("distribution-3", 1), "distribution-3: CPU time");
    Ok(())
}
