//! Names of packages, and the paths of their programs, as Composer accepts them.
//!
//! What this is not: who may publish under a name (grants), or where a name comes from (sources).
//!
//! Written after Composer 2.10's `ValidatingArrayLoader::hasPackageNamingError` and `PlatformRepository.php`. Clients
//! before 2.10.2 check neither names (GHSA-499r-g7pc-vmp9) nor programs (GHSA-gjfg-22fp-rrxx) of what they install, so
//! Larder does it for them when a package comes in.

/// The longest name that is taken in, in bytes. Composer has no limit of its own.
pub const MAX_NAME_LENGTH: usize = 255;

/// Names that Windows reserves for devices: a folder can have none of them.
const RESERVED: [&str; 22] = [
    "nul", "con", "prn", "aux", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "lpt1", "lpt2",
    "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];

/// Why a name is not that of a package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Over [`MAX_NAME_LENGTH`] bytes.
    #[error("a package name of {0} bytes is too long: at most {MAX_NAME_LENGTH}")]
    TooLong(usize),
    /// Not `vendor/name`.
    #[error(
        "`{}` is not a package name: expected vendor/name, each of letters and digits in words separated by one of . _ -",
        .0.escape_debug()
    )]
    Shape(String),
    /// A part is one of the names of devices on Windows.
    #[error("`{name}` is not a package name: `{part}` is reserved on Windows")]
    Reserved {
        /// The whole name.
        name: String,
        /// The reserved part, in small letters.
        part: String,
    },
    /// It would be taken for the file of a document.
    #[error("`{0}` is not a package name: it cannot end in .json, use -json")]
    JsonSuffix(String),
    /// Capital letters.
    #[error("`{name}` is not a package name: no capital letters, use `{suggestion}`")]
    Capitals {
        /// The name as given.
        name: String,
        /// The same in small letters, words apart.
        suggestion: String,
    },
    /// `php`, `ext-json`...: part of the machine, never a package.
    #[error("`{0}` is a part of the platform and cannot be a package")]
    Platform(String),
}

/// Checks the name under which a package is to be kept.
pub fn check_package(name: &str) -> Result<(), NameError> {
    if is_platform(name) {
        return Err(NameError::Platform(name.to_owned()));
    }
    check(name, suggested)
}

/// Checks a name that a package refers to (`require`, `replace`...): a package, or a part of the platform.
pub fn check_link(name: &str) -> Result<(), NameError> {
    if is_platform(name) {
        return Ok(());
    }
    check(name, str::to_ascii_lowercase)
}

fn check(name: &str, suggestion: fn(&str) -> String) -> Result<(), NameError> {
    if name.len() > MAX_NAME_LENGTH {
        return Err(NameError::TooLong(name.len()));
    }
    let parts =
        name.split_once('/').filter(|(vendor, package)| is_words(vendor, &["-"]) && is_words(package, &["--", "-"]));
    let Some((vendor, package)) = parts else {
        return Err(NameError::Shape(name.to_owned()));
    };
    for part in [vendor, package] {
        let part = part.to_ascii_lowercase();
        if RESERVED.contains(&part.as_str()) {
            return Err(NameError::Reserved { name: name.to_owned(), part });
        }
    }
    if name.strip_suffix(".json").is_some() {
        return Err(NameError::JsonSuffix(name.to_owned()));
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(NameError::Capitals { name: name.to_owned(), suggestion: suggestion(name) });
    }
    Ok(())
}

/// Whether the name is a part of the machine: PHP, an extension, a library, an API of Composer.
#[must_use]
pub fn is_platform(name: &str) -> bool {
    const WHOLE: [&str; 9] = [
        "php",
        "php-64bit",
        "php-ipv6",
        "php-zts",
        "php-debug",
        "hhvm",
        "composer",
        "composer-plugin-api",
        "composer-runtime-api",
    ];
    let name = name.to_ascii_lowercase();
    let part = name.strip_prefix("ext-").or_else(|| name.strip_prefix("lib-"));
    WHOLE.contains(&name.as_str()) || part.is_some_and(|part| is_words(part, &["-"]))
}

/// Letters and digits, between them single dots, underscores, or one of the given dashes (the longest first).
fn is_words(text: &str, dashes: &[&str]) -> bool {
    let mut rest = text;
    loop {
        let word = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = dashes.iter().chain(&[".", "_"]).find(|one| rest.starts_with(**one));
        match separator {
            Some(separator) => rest = &rest[separator.len()..],
            None => return false,
        }
    }
}

/// `FooBar` becomes `foo-bar`, `XMLParser` becomes `xml-parser`.
fn suggested(name: &str) -> String {
    let mut apart = String::with_capacity(name.len() + 4);
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let upper = |at: usize| rest.as_bytes().get(at).is_some_and(u8::is_ascii_uppercase);
        let lower = |at: usize| rest.as_bytes().get(at).is_some_and(u8::is_ascii_lowercase);
        let taken = if lower(0) && upper(1) {
            2
        } else if upper(0) && upper(1) && lower(2) {
            3
        } else {
            apart.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        apart.push(first);
        apart.push('-');
        apart.push_str(&rest[1..taken]);
        rest = &rest[taken..];
    }
    apart.to_ascii_lowercase()
}

/// Why a path in `bin` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BinError {
    /// It leads out of the folder of the package.
    #[error("the bin path `{}` leads out of the package: no `..` in it", .0.escape_debug())]
    Escapes(String),
    /// Nothing, or only slashes.
    #[error("a bin path is empty")]
    Empty,
    /// A line break, a zero byte or the like.
    #[error("the bin path `{}` has a control character in it", .0.escape_debug())]
    ControlCharacter(String),
}

/// Checks a path of `bin` and gives it as the client uses it: from the folder of the package, without a slash in front.
pub fn check_bin(path: &str) -> Result<&str, BinError> {
    if path.contains(char::is_control) {
        return Err(BinError::ControlCharacter(path.to_owned()));
    }
    if path.split(['/', '\\']).any(|part| part == "..") {
        return Err(BinError::Escapes(path.to_owned()));
    }
    match path.trim_start_matches('/') {
        "" => Err(BinError::Empty),
        inside => Ok(inside),
    }
}
