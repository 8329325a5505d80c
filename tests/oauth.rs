//! A cluster that takes tokens of an OAuth endpoint (KIP-768), which are good for a few seconds.
//!
//! ```text
//!   tidelog ── client id and secret, TLS ──► token endpoint (oidc-provider) ◄── public keys ── broker
//!      └────────────────────────────── token ────────────────────────────────────────────────────▲
//! ```

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::kafka::certificates;
use crate::rig::kafka::{Kafka, KafkaOptions, free_port};
use crate::rig::process::{Process, temporary_directory};
use crate::rig::topics::{Codec, Message};
use crate::rig::{parts, unique, wait_until};
use crate::site::{STOP, Settings, Site};

const SOON: Duration = Duration::from_secs(60);

/// A token endpoint and where its plain and its secure port are.
fn endpoint(folder: &Path) -> (Process, u16, u16) {
    let (http, https) = (free_port(), free_port());
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oauth/server.mjs"))
        .args([http.to_string(), https.to_string()])
        .args([folder.join("server.key"), folder.join("server.crt")])
        .env("RIG_PAGE", &parts().page);
    let mut process = Process::start(node, &folder.join("log"));
    wait_until("the token endpoint to listen", SOON, || {
        assert!(process.ended().is_none(), "{}", process.output());
        process.output().contains("listening")
    });
    (process, http, https)
}

#[test]
fn a_cluster_that_takes_tokens_of_an_endpoint_is_archived_longer_than_a_token_is_good() {
    let folder = temporary_directory("oauth");
    certificates(folder.path());
    let (issuer, http, https) = endpoint(folder.path());
    let (address, keys) = (format!("127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{http}/jwks"));
    let login = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;";
    let validator = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler";
    let properties = [
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TOKENS:SASL_PLAINTEXT"),
        ("sasl.enabled.mechanisms", "OAUTHBEARER"),
        // Whoever does not renew its login is cut off with the end of its token (KIP-368).
        ("connections.max.reauth.ms", "3600000"),
        ("listener.name.tokens.oauthbearer.sasl.jaas.config", login),
        ("listener.name.tokens.oauthbearer.sasl.server.callback.handler.class", validator),
        ("listener.name.tokens.oauthbearer.sasl.oauthbearer.jwks.endpoint.url", &keys),
        ("listener.name.tokens.oauthbearer.sasl.oauthbearer.expected.audience", "kafka"),
        ("sasl.oauthbearer.jwks.endpoint.url", &keys),
        ("sasl.oauthbearer.expected.audience", "kafka"),
    ];
    let kafka = Kafka::start(KafkaOptions {
        properties: properties.map(|(name, value)| (name, value.to_owned())).to_vec(),
        listener: Some(format!("TOKENS://{address}")),
        java: vec![format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys}")],
        ..KafkaOptions::default()
    });
    let topic = unique("tokens");
    kafka.create_topic(&topic, 1, &[]);
    let produce = |from: i32| {
        let message = |n: i32| Message::new(0, "key", &format!("record {n}"));
        kafka.produce(&topic, Codec::None, &(from..from + 100).map(message).collect::<Vec<_>>());
    };
    produce(0);

    let secret = folder.path().join("secret");
    std::fs::write(&secret, "a secret, of course\n").expect("the secret can be written");
    let (url, authority) = (format!("https://127.0.0.1:{https}/token"), folder.path().join("ca.crt"));
    let properties = [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanisms", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.client.id", "archiver"),
        ("sasl.oauthbearer.token.endpoint.url", &url),
        ("sasl.oauthbearer.scope", "archive"),
        ("https.ca.location", &authority.display().to_string()),
    ];
    let site = Site::new(&address, &Settings { topics: &[&topic], properties: &properties, ..Settings::default() });
    let from_file =
        format!("\"sasl.oauthbearer.client.secret\" = {{ file = {secret:?} }}\n\"sasl.oauthbearer.client.id\"");
    site.reconfigure("\"sasl.oauthbearer.client.id\"", &from_file);
    site.tidelog(&["check", "--connect"]).expect(0);
    let given = || issuer.output().matches("gave a token").count();
    let mut program = site.start();
    site.wait_archived(&kafka, &[&topic], &mut [&mut program]);
    let first = given();
    wait_until("two tokens to be over", SOON, || {
        program.assert_running();
        given() >= first + 4
    });
    produce(100);
    site.wait_archived(&kafka, &[&topic], &mut [&mut program]);
    program.terminate(STOP);
    site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
    assert_eq!(site.replay(&topic, &format!("{topic}.back"), &[])["records"], 200);

    // What is wrong is told, and the secret never.
    let refused = |words: &[&str]| {
        let output = site.tidelog(&["check", "--connect"]);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(output.status == Some(1) && words.iter().all(|word| said.contains(word)), "{said}");
        assert!(!said.contains("another one"), "{said}");
    };
    std::fs::write(&secret, "another one").expect("the secret can be written");
    refused(&["invalid_client"]);
    std::fs::write(&secret, "a secret, of course").expect("the secret can be written");
    site.reconfigure("ca.crt", "other.crt");
    refused(&["certificate"]);
    site.reconfigure("other.crt", "ca.crt");
    drop(issuer);
    refused(&["token"]);
}
