//! The webhook of a Git source, as people paste it into a forge: in `larder source show`, and made anew by `larder source
//! rotate-webhook`.

use anyhow::Result;
use larder_core::Error;
use larder_db::sources::Source;
use serde_json::{Value, json};

use super::Desk;
use crate::output::Output;

/// What a forge needs to tell of changes.
pub struct Webhook {
    url: String,
    /// The secret, or why it cannot be shown.
    secret: Result<String, Error>,
}

impl Webhook {
    /// That of a Git source.
    pub async fn of(desk: &Desk, source: &Source) -> Self {
        let secret = desk.house.sources.webhook_secret(&desk.actor, source).await;
        Self { url: url_of(desk, source), secret }
    }

    /// For a JSON document.
    pub fn document(&self) -> Value {
        json!({
            "url": self.url,
            "secret": self.secret.as_ref().ok(),
            "problem": self.secret.as_ref().err().map(Error::message),
        })
    }

    /// For people.
    pub fn print(&self, out: Output) -> Result<()> {
        out.line(format!("  webhook     {}", self.url))?;
        let secret = match &self.secret {
            Ok(secret) => secret,
            Err(error) => error.message(),
        };
        Ok(out.line(format!("  secret      {secret}"))?)
    }
}

/// Makes another secret.
pub async fn rotate(desk: &Desk, name: &str) -> Result<()> {
    let source = desk.house.sources.find(name).await?;
    let secret = desk.house.sources.rotate_webhook(&desk.actor, &source).await?;
    let url = url_of(desk, &source);
    desk.out.either(&json!({ "source": source.name, "url": url, "secret": secret }), &secret)?;
    desk.out.hint(format!("Give it to the forge that tells {url} of changes: the old one is refused from now on."));
    Ok(())
}

fn url_of(desk: &Desk, source: &Source) -> String {
    format!("{}/webhooks/{}", desk.public_url().trim_end_matches('/'), source.name)
}
