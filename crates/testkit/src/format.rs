//! A format of no protocol, for tests of what every format has in common.

use std::cmp::Ordering;

use larder_core::{
    Result,
    format::{Format, Proxied},
};

/// A format with this id and upstreams: names are what they are, versions are ordered as text. It finds nothing in trees.
#[derive(Clone, Copy, Debug)]
pub struct Things(pub &'static str);

impl Format for Things {
    fn id(&self) -> &'static str {
        self.0
    }

    fn title(&self) -> &'static str {
        self.0
    }

    fn artifact(&self) -> &'static str {
        "thing"
    }

    fn proxied(&self) -> Option<Proxied> {
        Some(Proxied { prefix: true, links: true })
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        a.cmp(b)
    }

    fn package_name(&self, name: &str) -> Result<String> {
        Ok(name.to_owned())
    }

    fn install_snippet(&self, _: &str, name: &str) -> String {
        name.to_owned()
    }
}
