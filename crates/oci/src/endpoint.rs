//! What a request is about, read from its path; which methods it knows.

/// Where all of it lives.
pub(crate) const ROOT: &str = "/v2/";

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    /// `/v2/`: whether this is a registry, and who is asking.
    Base,
    /// `/v2/token`
    Token,
    /// `/v2/_catalog`
    Catalog,
    /// `name/tags/list`
    Tags { name: &'a str },
    /// `name/manifests/REFERENCE`
    Manifest { name: &'a str, reference: &'a str },
    /// `name/blobs/DIGEST`
    Blob { name: &'a str, digest: &'a str },
    /// `name/blobs/uploads/`
    Uploads { name: &'a str },
    /// `name/blobs/uploads/ID`
    Upload { name: &'a str, id: &'a str },
    /// `name/referrers/DIGEST`
    Referrers { name: &'a str, digest: &'a str },
}

impl<'a> Endpoint<'a> {
    /// Reads a decoded path. A name may have words of this protocol in it, so what comes last decides.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        if path == "/v2" {
            return Some(Self::Base);
        }
        let rest = path.strip_prefix(ROOT)?;
        match rest {
            "" => return Some(Self::Base),
            "token" => return Some(Self::Token),
            "_catalog" => return Some(Self::Catalog),
            _ => {}
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags { name });
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads").or_else(|| rest.strip_suffix("/blobs/uploads/")) {
            return Some(Self::Uploads { name });
        }
        let (before, last) = rest.rsplit_once('/')?;
        if let Some(name) = before.strip_suffix("/blobs/uploads") {
            return Some(Self::Upload { name, id: last });
        }
        let (name, word) = before.rsplit_once('/')?;
        match word {
            "manifests" => Some(Self::Manifest { name, reference: last }),
            "blobs" => Some(Self::Blob { name, digest: last }),
            "referrers" => Some(Self::Referrers { name, digest: last }),
            _ => None,
        }
    }

    /// The repository that it is about.
    pub(crate) fn name(&self) -> Option<&'a str> {
        match self {
            Self::Base | Self::Token | Self::Catalog => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. } => Some(name),
        }
    }

    /// The methods that it knows, as `Allow` writes them.
    pub(crate) fn methods(&self) -> &'static str {
        match self {
            Self::Base | Self::Catalog | Self::Tags { .. } | Self::Referrers { .. } => "GET, HEAD",
            Self::Token => "GET, POST",
            Self::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Self::Blob { .. } => "GET, HEAD, DELETE",
            Self::Uploads { .. } => "POST",
            Self::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let cases = [
            ("/v2", Some(Endpoint::Base)),
            ("/v2/", Some(Endpoint::Base)),
            ("/v2/token", Some(Endpoint::Token)),
            ("/v2/_catalog", Some(Endpoint::Catalog)),
            ("/v2/a/tags/list", Some(Endpoint::Tags { name: "a" })),
            ("/v2/a/b/tags/list", Some(Endpoint::Tags { name: "a/b" })),
            ("/v2/a/manifests/1", Some(Endpoint::Manifest { name: "a", reference: "1" })),
            ("/v2/a/manifests/b/manifests/1", Some(Endpoint::Manifest { name: "a/manifests/b", reference: "1" })),
            ("/v2/a/blobs/uploads", Some(Endpoint::Uploads { name: "a" })),
            ("/v2/a/blobs/uploads/", Some(Endpoint::Uploads { name: "a" })),
            ("/v2/a/blobs/uploads/x", Some(Endpoint::Upload { name: "a", id: "x" })),
            ("/v2/a/blobs/uploads/b/blobs/uploads/x", Some(Endpoint::Upload { name: "a/blobs/uploads/b", id: "x" })),
            (
                "/v2/a/referrers/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                Some(Endpoint::Referrers { name: "a", digest }),
            ),
            ("/v2/a", None),
            ("/v2/a/b", None),
            ("/v2/a/other/x", None),
            ("/v3/", None),
        ];
        for (path, expected) in cases {
            assert_eq!(Endpoint::parse(path), expected, "{path}");
        }
    }
}
