//! `list.json` and `search.json`: names, over what a view sees.

use http::StatusCode;
use larder_auth::View;
use larder_core::Result;
use larder_http::{Request, Response};
use serde_json::{Map, Value, json};

use crate::documents::Catalogue;

/// How many results a search gives.
const RESULTS: usize = 100;

/// `{"packageNames": […]}`, narrowed by `filter` (a name in which `*` stands for anything) and `vendor`.
pub(crate) fn list(catalogue: &Catalogue, view: &View, request: &Request) -> Result<Response> {
    let query = request.query()?;
    let filter = query.get("filter").map(|filter| filter.to_ascii_lowercase());
    let vendor = query.get("vendor").map(|vendor| format!("{}/", vendor.to_ascii_lowercase()));
    let names: Vec<&str> = catalogue
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| filter.as_deref().is_none_or(|filter| wildcard(filter, name)))
        .filter(|name| vendor.as_deref().is_none_or(|vendor| name.starts_with(vendor)))
        .filter(|name| view.sees(name))
        .collect();
    Ok(Response::json(StatusCode::OK, &json!({"packageNames": names})))
}

/// `{"results": […], "total": n}`: packages whose name or description holds every word of `q`.
pub(crate) fn search(catalogue: &Catalogue, view: &View, request: &Request) -> Result<Response> {
    let query = request.query()?;
    let words: Vec<String> =
        query.get("q").unwrap_or_default().to_lowercase().split_whitespace().take(16).map(str::to_owned).collect();
    let kind = query.get("type").filter(|kind| !kind.is_empty());
    let found: Vec<&(String, Value)> = catalogue
        .iter()
        .filter(|(_, summary)| kind.as_deref().is_none_or(|kind| type_of(summary) == kind))
        .filter(|(name, summary)| {
            let description = text(summary, "description").to_lowercase();
            words.iter().all(|word| name.contains(word.as_str()) || description.contains(word.as_str()))
        })
        .filter(|(name, _)| view.sees(name))
        .collect();
    let results: Vec<Value> = found.iter().take(RESULTS).map(|(name, summary)| result(name, summary)).collect();
    Ok(Response::json(StatusCode::OK, &json!({"results": results, "total": found.len()})))
}

fn result(name: &str, summary: &Value) -> Value {
    let mut result = Map::new();
    result.insert("name".to_owned(), name.into());
    result.insert("description".to_owned(), text(summary, "description").into());
    result.insert("url".to_owned(), "".into());
    if let Some(abandoned) = summary.get("abandoned").filter(|abandoned| **abandoned != Value::Bool(false)) {
        result.insert("abandoned".to_owned(), abandoned.clone());
    }
    Value::Object(result)
}

fn text<'a>(summary: &'a Value, field: &str) -> &'a str {
    summary.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn type_of(summary: &Value) -> &str {
    summary.get("type").and_then(Value::as_str).unwrap_or("library")
}

/// `BasePackage::packageNameToRegexp`: `*` stands for anything, slashes included.
fn wildcard(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::wildcard;

    #[test]
    fn wildcards() {
        for (pattern, name, expected) in [
            ("acme/lib", "acme/lib", true),
            ("acme/lib", "acme/libs", false),
            ("acme/*", "acme/lib", true),
            ("*lib*", "acme/lib-a", true),
            ("a*e/*b", "acme/lib", true),
            ("a*e/*c", "acme/lib", false),
            ("*", "acme/lib", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(wildcard(pattern, name), expected, "{pattern} {name}");
        }
    }
}
