//! Archived access control lists at the target: made before its topics are filled, read back, and none of the target's own removed. Without
//! the right to make them, or without an authorizer, nothing is begun (`recover` has that).

use serde_json::Value;

use crate::connect_check::{Guarded, LOGIN};
use crate::http::{Service, site_at};
use crate::recover::wait_log_archived;
use crate::rig::postgres::{Postgres, PostgresOptions};
use crate::rig::topics::{Codec, Message};
use crate::rig::unique;
use crate::site::{Settings, Site};
use crate::state::wait_state;

#[test]
fn archived_access_control_lists_are_made_before_the_topics_and_the_target_keeps_its_own() {
    let guarded = Guarded::start();
    let postgres = Postgres::start(PostgresOptions::default());
    let topic = unique("shop");
    guarded.kafka.create_topic(&topic, 1, &[]);
    guarded.kafka.produce(&topic, Codec::None, &[Message::new(0, "key", "a record")]);
    let add = |args: &[&str]| guarded.acls(&[&["--add"], args].concat());
    add(&["--allow-principal", "User:reader", "--operation", "Read", "--topic", &topic]);
    add(&[
        "--deny-principal",
        "User:other",
        "--operation",
        "Write",
        "--topic",
        "shop",
        "--resource-pattern-type",
        "prefixed",
    ]);
    let more =
        format!("[state]\nevery = \"1s\"\n[postgres]\nurl = {:?}\nmax_age = \"300ms\"\n", postgres.url("postgres"));
    let settings = Settings { topics: &[&topic], ..Settings::default() };
    let (site, server) = site_at(&guarded.kafka.bootstrap(), &settings, &more);
    let mut service = Service { program: site.start(), site, server };
    let number = |state: &Value| state["acls"].as_array().map(Vec::len);
    wait_state(&mut service, "acls", "both lists", |state| number(state) == Some(2));
    service.site.wait_archived(&guarded.kafka, &[&topic], &mut [&mut service.program]);
    postgres.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    wait_log_archived(&service, &postgres);
    let now = service.site.tidelog(&["ls", "--commits", "--json"]).expect(0).json();
    let to =
        now["commits"].as_array().and_then(|all| all.last()).expect("commits")["end"].as_str().expect("a position");

    let copy = format!("new-{topic}");
    // Somebody lets a writer in that the archived cluster does not know.
    add(&["--allow-principal", "User:writer", "--operation", "Write", "--topic", &copy]);
    let pipeline = |bootstrap: &str, properties: &[(&str, &str)]| {
        let properties = properties.iter().map(|(key, value)| format!("{key:?} = {value:?}\n")).collect::<String>();
        let text = format!(
            "[kafka]\nbootstrap_servers = {bootstrap:?}\nrename = \"^shop=new-shop\"\ntopics = [{topic:?}]\nacls = true\n[kafka.properties]\n{properties}"
        );
        service.site.home().write("pipeline.toml", &text);
    };
    let recover = |site: &Site, journal: &str, more: &[&str]| {
        let args =
            ["recover", "--to", to, "--pipeline", "pipeline.toml", "--only", "topics", "--journal", journal, "--json"];
        site.tidelog(&[&args, more].concat())
    };
    pipeline(&guarded.address, &LOGIN);
    let refused = recover(&service.site, "refused", &[]);
    assert!(refused.status == Some(1) && refused.stderr.contains("--operation Alter"), "{refused:?}");
    assert!(guarded.kafka.partitions(&copy).is_none() && !service.site.home().path().join("refused").exists());

    pipeline(&guarded.kafka.bootstrap(), &[]);
    let report = recover(&service.site, "first", &[]).expect(3).json();
    let proof = |report: &Value| {
        let steps = report["steps"].as_array().expect("steps").clone();
        let step = steps.into_iter().find(|step| step["step"] == "acls").expect("the step");
        step["proof"].as_str().expect("words").to_owned()
    };
    assert_eq!(proof(&report), "2 lists made, 0 were there, all read back", "{report}");
    let differences = report["differences"].to_string();
    assert!(differences.contains(&format!("ALLOW User:writer from * WRITE on TOPIC {copy}")), "{report}");
    let there = wait_state(&mut service, "acls", "the new ones", |state| number(state) == Some(5));
    let there = there["acls"].as_array().expect("lists");
    let has = |principal: &str, name: &str, pattern: &str, permission: &str| {
        let is = |acl: &&Value| {
            (&acl["principal"], &acl["name"], &acl["pattern"], &acl["permission"])
                == (&principal.into(), &name.into(), &pattern.into(), &permission.into())
        };
        there.iter().any(|acl| is(&acl))
    };
    assert!(
        has("User:reader", &copy, "LITERAL", "ALLOW") && has("User:other", "new-shop", "PREFIXED", "DENY"),
        "{there:?}"
    );
    assert!(
        has("User:writer", &copy, "LITERAL", "ALLOW") && has("User:reader", &topic, "LITERAL", "ALLOW"),
        "{there:?}"
    );
    assert_eq!(guarded.kafka.consume_all(&copy).len(), 1);
    // Begun again, as after a kill before it was written down: there is nothing to make.
    let again = recover(&service.site, "second", &["--yes"]).expect(3).json();
    assert_eq!(proof(&again), "0 lists made, 2 were there, all read back", "{again}");
    service.program.assert_running();
}
