//! Secrets in the settings of other programs: which values they are, and what is shown in their place.
//!
//! The settings of a connector are kept as they are, since only so it can be made again, and are shown without what gives
//! access: passwords and keys by their name, passwords in URLs and connection strings by their place. What only says where
//! a secret is (`${file:/path:key}`, `${env:NAME}`: Connect's config providers, KIP-297) is none.
//!
//! This shows too little rather than too much. It knows names that are in use, and cannot know all.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// What stands in place of a secret.
pub const HIDDEN: &str = "********";

/// Parts of the names of settings with secrets. Kafka's and Connect's own, those of Debezium, and of common sinks.
const SECRET: [&str; 19] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "jaas",
    "credential",
    "user.info",
    "private.key",
    "access.key",
    "account.key",
    "api.key",
    "apikey",
    "shared.key",
    "sas.key",
    "keystore.key",
    "auth.header",
    "authorization",
];

/// Ends of the names of settings that say how or where, whatever stands before.
const HARMLESS: [&str; 13] = [
    ".url",
    ".uri",
    ".class",
    ".ms",
    ".path",
    ".file",
    ".location",
    ".type",
    ".source",
    ".provider",
    ".enabled",
    ".algorithm",
    ".key.id",
];

fn regex(pattern: &str) -> Regex {
    // Each is tried by the tests below.
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("{pattern}: {error}"))
}

/// A reference to what a config provider gives.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| regex(r"\$\{[^{}]+\}"));
/// The password of a URL.
static IN_URL: LazyLock<Regex> = LazyLock::new(|| regex(r"(://[^\s/?#:@]*:)([^\s@]+)@"));
/// A password or a key in a connection string, a query or a list of options.
static ASSIGNED: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"(?i)\b([a-z_.]*(?:password|passwd|pwd|secret|token|accountkey|sharedaccesskey|signature)\s*=\s*["']?)([^"'&;,\s]+)"#,
    )
});

/// Returns a setting as it is shown.
pub fn shown<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    if !is_secret_name(name) {
        return within(value);
    }
    if value.is_empty() || is_reference(value) {
        return Cow::Borrowed(value);
    }
    // The options of a login module name several things; with all secrets elsewhere they may be read.
    let all_elsewhere = name.to_lowercase().contains("jaas") && value.contains("${") && within(value) == value;
    if all_elsewhere { Cow::Borrowed(value) } else { Cow::Borrowed(HIDDEN) }
}

/// Returns a text without the secrets that its form gives away.
pub fn within(text: &str) -> Cow<'_, str> {
    let hide = |text: &str| {
        let without = |found: &regex::Captures<'_>, end: &str| {
            let (before, secret) = (&found[1], &found[2]);
            let secret = if is_reference(secret) { secret } else { HIDDEN };
            format!("{before}{secret}{end}")
        };
        let text = IN_URL.replace_all(text, |found: &regex::Captures<'_>| without(found, "@")).into_owned();
        ASSIGNED.replace_all(&text, |found: &regex::Captures<'_>| without(found, "")).into_owned()
    };
    let hidden = hide(text);
    if hidden == text { Cow::Borrowed(text) } else { Cow::Owned(hidden) }
}

/// Returns whether a setting holds a secret as plain text.
pub fn is_plain(name: &str, value: &str) -> bool {
    shown(name, value) != value
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase().replace(['_', '-'], ".");
    SECRET.iter().any(|part| name.contains(part)) && !HARMLESS.iter().any(|end| name.ends_with(end))
}

fn is_reference(value: &str) -> bool {
    REFERENCE.replace_all(value.trim(), "").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_where_they_are_is_shown() {
        let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"u\" password=";
        for (name, value, expected) in [
            ("database.password", "hunter2", HIDDEN),
            (
                "database.password",
                "${file:/etc/secrets.properties:password}",
                "${file:/etc/secrets.properties:password}",
            ),
            ("connection.password", "${env:DB_PASSWORD}", "${env:DB_PASSWORD}"),
            ("connection.password", "${env:DB_PASSWORD}hunter2", HIDDEN),
            ("database.password", "", ""),
            ("ssl.keystore.password", "hunter2", HIDDEN),
            ("ssl.keystore.key", "-----BEGIN PRIVATE KEY-----", HIDDEN),
            ("ssl.keystore.location", "/etc/keystore.jks", "/etc/keystore.jks"),
            ("aws.secret.access.key", "hunter2", HIDDEN),
            ("aws_access_key_id", "AKIA", "AKIA"),
            ("snowflake.private.key", "hunter2", HIDDEN),
            ("snowflake.private.key.passphrase", "hunter2", HIDDEN),
            ("value.converter.basic.auth.user.info", "me:hunter2", HIDDEN),
            ("value.converter.basic.auth.credentials.source", "USER_INFO", "USER_INFO"),
            ("sasl.oauthbearer.token.endpoint.url", "https://idp/token", "https://idp/token"),
            ("sasl.oauthbearer.client.credentials.client.secret", "hunter2", HIDDEN),
            ("gcs.credentials.json", "{}", HIDDEN),
            ("producer.override.sasl.jaas.config", &format!("{jaas}\"hunter2\";"), HIDDEN),
            (
                "sasl.jaas.config",
                &format!("{jaas}\"${{file:/s:p}}\";"),
                "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"u\" password=\"${file:/s:p}\";",
            ),
            (
                "connection.url",
                "jdbc:postgresql://me:hunter2@db:5432/shop",
                "jdbc:postgresql://me:********@db:5432/shop",
            ),
            (
                "connection.url",
                "jdbc:postgresql://db/shop?user=me&password=hunter2&x=1",
                "jdbc:postgresql://db/shop?user=me&password=********&x=1",
            ),
            ("mongodb.connection.string", "mongodb+srv://me:hun/ter2@c/d", "mongodb+srv://me:********@c/d"),
            ("mongodb.connection.string", "mongodb://me:${env:P}@c/d", "mongodb://me:${env:P}@c/d"),
            ("azure.connection", "AccountName=a;AccountKey=hunter2==;X=y", "AccountName=a;AccountKey=********;X=y"),
            ("topics", "orders,passwords", "orders,passwords"),
            (
                "key.converter",
                "org.apache.kafka.connect.json.JsonConverter",
                "org.apache.kafka.connect.json.JsonConverter",
            ),
            ("tasks.max", "1", "1"),
        ] {
            assert_eq!(shown(name, value), expected, "{name}");
            assert_eq!(is_plain(name, value), expected != value, "{name}");
        }
    }

    #[test]
    fn a_text_of_any_form_is_shown_without_the_passwords_of_urls() {
        let said = "cannot connect to postgres://a:b@h/d: password=x, token = y";
        assert_eq!(within(said), "cannot connect to postgres://a:********@h/d: password=********, token = ********");
    }
}
