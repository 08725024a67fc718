//! PHP packages as teams write them, in Git repositories of a forge, and what clients make of their metadata.

use larder_testkit::{
    Forge,
    forge::{File, Repository},
};
use serde_json::{Map, Value, json};

/// The files of `acme/text` as of `version`: a library without dependencies.
pub fn text(version: &str) -> Vec<File> {
    let manifest = json!({
        "name": "acme/text",
        "description": "Text for people",
        "type": "library",
        "license": "MIT",
        "require": {"php": ">=7.4"},
        "autoload": {"psr-4": {"Acme\\Text\\": "src/"}},
        "extra": {"branch-alias": {"dev-main": "1.x-dev"}},
    });
    let class = format!(
        "<?php\nnamespace Acme\\Text;\n\nfinal class Greeting\n{{\n    public const VERSION = '{version}';\n\n    \
         public static function to(string $name): string\n    {{\n        return \"Hello, $name\";\n    }}\n}}\n"
    );
    vec![manifest_file(&manifest), File::new("src/Greeting.php", class), File::new("README.md", "# Text\n")]
}

/// The files of `acme/money` as of `version`: a library that needs `acme/text`.
pub fn money(version: &str) -> Vec<File> {
    let manifest = json!({
        "name": "acme/money",
        "description": "Amounts with currencies",
        "type": "library",
        "license": "proprietary",
        "require": {"php": ">=7.4", "acme/text": "^1.0"},
        "autoload": {"psr-4": {"Acme\\Money\\": "src/"}, "files": ["src/functions.php"]},
    });
    let class = format!(
        "<?php\nnamespace Acme\\Money;\n\nfinal class Price\n{{\n    public const VERSION = '{version}';\n\n    \
         public static function of(int $cents): string\n    {{\n        \
         return \\Acme\\Text\\Greeting::to(euros($cents));\n    }}\n}}\n"
    );
    let functions = "<?php\nnamespace Acme\\Money;\n\nfunction euros(int $cents): string\n{\n    \
                     return number_format($cents / 100, 2) . ' EUR';\n}\n";
    vec![manifest_file(&manifest), File::new("src/Price.php", class), File::new("src/functions.php", functions)]
}

/// The files of `globex/shop` as of `version`: another vendor's application, which needs both.
pub fn shop(version: &str) -> Vec<File> {
    let manifest = json!({
        "name": "globex/shop",
        "description": "A shop",
        "type": "project",
        "require": {"php": ">=7.4", "acme/text": "^1.0", "acme/money": "^2.0"},
        "autoload": {"psr-4": {"Globex\\Shop\\": "src/"}},
        "bin": ["bin/shop"],
    });
    let program = format!(
        "#!/usr/bin/env php\n<?php\nrequire $_composer_autoload_path ?? __DIR__ . '/../vendor/autoload.php';\n\
         echo 'shop {version}: ', \\Globex\\Shop\\Till::bill(1999), PHP_EOL;\n"
    );
    let class = "<?php\nnamespace Globex\\Shop;\n\nfinal class Till\n{\n    public static function bill(int $cents): string\n    {\n        \
                 return \\Acme\\Money\\Price::of($cents);\n    }\n}\n";
    vec![manifest_file(&manifest), File::executable("bin/shop", program), File::new("src/Till.php", class)]
}

/// A small package of any name.
pub fn named(name: &str, version: &str) -> Vec<File> {
    let manifest = json!({"name": name, "description": format!("{name} {version}"), "license": "MIT"});
    vec![manifest_file(&manifest), File::new("version.php", format!("<?php\nreturn '{version}';\n"))]
}

/// `composer.json`.
pub fn manifest_file(manifest: &Value) -> File {
    File::new("composer.json", format!("{manifest:#}\n"))
}

/// A repository with a commit and a tag on `main` for each version.
pub fn repository(forge: &Forge, name: &str, tags: &[&str], files: impl Fn(&str) -> Vec<File>) -> Repository {
    let repository = forge.repository(name);
    for tag in tags {
        release(&repository, tag, files(tag.trim_start_matches('v')));
    }
    repository
}

/// One more commit on `main` with a tag. Returns the commit.
#[expect(clippy::needless_pass_by_value, reason = "callers make the files for this one commit")]
pub fn release(repository: &Repository, tag: &str, files: Vec<File>) -> String {
    let commit = repository.commit("main", &format!("Release {tag}"), &files);
    repository.tag(tag, &commit);
    commit
}

/// Versions as `composer/metadata-minifier` expands them: each entry holds what differs from the one before.
pub fn expand(minified: &Value) -> Vec<Value> {
    let mut whole = Map::new();
    let mut expanded = Vec::new();
    for entry in minified.as_array().into_iter().flatten() {
        for (key, value) in entry.as_object().into_iter().flatten() {
            if value == "__unset" {
                whole.remove(key);
            } else {
                whole.insert(key.clone(), value.clone());
            }
        }
        expanded.push(Value::Object(whole.clone()));
    }
    expanded
}
