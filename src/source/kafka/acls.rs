//! The access control lists of a cluster: read, and added to. None is ever removed here.

use std::ffi::CString;

use serde::{Deserialize, Serialize};

use super::cluster::Cluster;
use super::raw::{self, Resource};
use crate::error::{Error, Kind, Result, ResultExt as _};

/// SECURITY_DISABLED.
const NO_AUTHORIZER: i32 = 54;

/// So many lists go into one request: a controller takes them as one batch of its log.
const AT_ONCE: usize = 500;

/// The access control lists of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acls {
    /// Without one everybody may do everything; none where that is not told.
    pub authorizer: Option<bool>,
    /// The lists, in order.
    pub acls: Vec<Acl>,
}

/// Who may do what, in the words of `kafka-acls.sh`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Acl {
    /// `TOPIC`, `GROUP`, `CLUSTER`, `TRANSACTIONAL_ID`.
    pub resource: String,
    /// Of which resource, or what its name begins with.
    pub name: String,
    /// `LITERAL`, `PREFIXED`.
    pub pattern: String,
    /// Who.
    pub principal: String,
    /// From where.
    pub host: String,
    /// `READ`, `WRITE` …
    pub operation: String,
    /// `ALLOW`, `DENY`.
    pub permission: String,
}

/// `ResourceType`, `PatternType`, `AclOperation`, `AclPermissionType` (org.apache.kafka.common.acl and .resource), as far as librdkafka knows
/// them: what a newer broker has besides it gives as 0.
const RESOURCES: [&str; 6] = ["UNKNOWN", "ANY", "TOPIC", "GROUP", "CLUSTER", "TRANSACTIONAL_ID"];
const PATTERNS: [&str; 5] = ["UNKNOWN", "ANY", "MATCH", "LITERAL", "PREFIXED"];
const PERMISSIONS: [&str; 4] = ["UNKNOWN", "ANY", "DENY", "ALLOW"];
const OPERATIONS: [&str; 13] = [
    "UNKNOWN",
    "ANY",
    "ALL",
    "READ",
    "WRITE",
    "CREATE",
    "DELETE",
    "ALTER",
    "DESCRIBE",
    "CLUSTER_ACTION",
    "DESCRIBE_CONFIGS",
    "ALTER_CONFIGS",
    "IDEMPOTENT_WRITE",
];

impl Acl {
    pub(super) fn of(acl: raw::Acl) -> Self {
        let word = |words: &[&'static str], code: i32| {
            let known = usize::try_from(code).ok().and_then(|code| words.get(code).copied());
            known.unwrap_or("UNKNOWN").to_owned()
        };
        Self {
            resource: word(&RESOURCES, acl.resource),
            name: acl.name,
            pattern: word(&PATTERNS, acl.pattern),
            principal: acl.principal,
            host: acl.host,
            operation: word(&OPERATIONS, acl.operation),
            permission: word(&PERMISSIONS, acl.permission),
        }
    }

    /// The codes of the resource, the pattern, the operation and the permission; none if one of them is no list's, or not known here.
    fn codes(&self) -> Option<[i32; 4]> {
        let code = |words: &[&str], word: &str, first: usize| {
            let at = words.iter().position(|known| *known == word).filter(|at| *at >= first)?;
            i32::try_from(at).ok()
        };
        Some([
            code(&RESOURCES, &self.resource, 2)?,
            code(&PATTERNS, &self.pattern, 3)?,
            code(&OPERATIONS, &self.operation, 2)?,
            code(&PERMISSIONS, &self.permission, 2)?,
        ])
    }

    /// Whether it can be made: archives may have words that this version does not know.
    pub fn is_known(&self) -> bool {
        self.codes().is_some()
    }

    fn to_raw(&self) -> Result<raw::NewAcl> {
        let text = |text: &str| CString::new(text).or_err(Kind::Config, || format!("{text:?} holds a NUL byte"));
        let codes = self.codes().ok_or_else(|| Error::new(Kind::Unsupported, format!("{self} is not known here")))?;
        let [resource, pattern, operation, permission] = codes;
        let (name, principal, host) = (text(&self.name)?, text(&self.principal)?, text(&self.host)?);
        Ok(raw::NewAcl { resource, pattern, operation, permission, name, principal, host })
    }
}

impl std::fmt::Display for Acl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resource, name, pattern, principal, host, operation, permission } = self;
        let how = if pattern == "PREFIXED" { "…" } else { "" };
        write!(f, "{permission} {principal} from {host} {operation} on {resource} {name}{how}")
    }
}

impl Cluster {
    /// Returns the access control lists; none where this client may not see them.
    ///
    /// librdkafka 2.12.1 gives an empty list where the brokers refuse to tell, or have no authorizer
    /// (`rd_kafka_DescribeAclsResponse_parse` drops the error code): so an empty one is held against what else is told.
    pub async fn acls(&self) -> Result<Option<Acls>> {
        let before = self.may_describe().await?;
        let acls = self.request("cannot ask for access control lists", raw::acls).await?;
        let refused = before == Some(false) || (acls.is_empty() && self.may_describe().await? == Some(false));
        if acls.is_empty() && refused {
            return Ok(None);
        }
        let authorizer = if acls.is_empty() { self.has_authorizer().await? } else { Some(true) };
        let mut acls: Vec<Acl> = acls.into_iter().map(Acl::of).collect();
        acls.sort_unstable();
        Ok(Some(Acls { authorizer, acls }))
    }

    /// Adds access control lists; those that are there already stay as they are.
    ///
    /// # Errors
    /// [`Kind::Config`] without an authorizer, [`Kind::Denied`] without `ALTER` on the cluster, and the first list that is refused.
    pub async fn create_acls(&self, acls: &[Acl]) -> Result<()> {
        for some in acls.chunks(AT_ONCE) {
            let wanted = some.iter().map(Acl::to_raw).collect::<Result<Vec<_>>>()?;
            let made = self.request("cannot create access control lists", move |handle, wait| {
                raw::create_acls(handle, &wanted, wait)
            });
            for (acl, failure) in some.iter().zip(made.await?) {
                match failure {
                    None => {}
                    Some(failure) if failure.code == NO_AUTHORIZER => return Err(no_authorizer()),
                    Some(failure) => {
                        let error = failure.into_error(format_args!("cannot create {acl}"));
                        let may = error.kind() == Kind::Denied;
                        return Err(if may { error.hint(ALTER) } else { error });
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns whether this client may describe the cluster; none where the brokers do not tell.
    pub(super) async fn may_describe(&self) -> Result<Option<bool>> {
        self.request("cannot ask for the rights of the cluster", raw::may_describe).await
    }

    /// Returns whether the brokers have an authorizer; none where they do not tell.
    async fn has_authorizer(&self) -> Result<Option<bool>> {
        let broker = self.request("cannot ask for the brokers", |handle, wait| raw::controller(handle, wait)).await?;
        let settings = self.settings(Resource::Broker, &[broker.to_string()]).await?.into_values().next();
        let class = settings.and_then(|settings| settings.ok()?.remove("authorizer.class.name"));
        Ok(class.map(|class| class.value.is_some_and(|class| !class.is_empty())))
    }
}

const ALTER: &str = "grant ALTER and DESCRIBE on the cluster: kafka-acls.sh --add --allow-principal … --operation Alter --operation Describe --cluster";

/// The brokers take no access control lists.
pub fn no_authorizer() -> Error {
    Error::new(Kind::Config, "the brokers have no authorizer, and take no access control lists (SECURITY_DISABLED)")
        .hint("set authorizer.class.name at the brokers, or leave the lists out")
}

/// The brokers do not tell this client their access control lists.
pub fn not_told() -> Error {
    Error::new(Kind::Denied, "the brokers do not tell this client their access control lists").hint(ALTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw_acl([resource, pattern, operation, permission]: [i32; 4]) -> raw::Acl {
        let (name, principal, host) = ("n".into(), "User:a".into(), "*".into());
        raw::Acl { resource, pattern, operation, permission, name, principal, host }
    }

    #[test]
    fn codes_that_nobody_knows_are_unknown() {
        let acl = Acl::of(raw_acl([99, -1, 12, 3]));
        let words = [&acl.resource, &acl.pattern, &acl.operation, &acl.permission];
        assert_eq!(words, ["UNKNOWN", "UNKNOWN", "IDEMPOTENT_WRITE", "ALLOW"]);
        assert!(!acl.is_known());
    }

    #[test]
    fn what_was_read_is_written_with_the_same_codes_and_no_wildcard_of_a_question_is() {
        for resource in 0..6 {
            for (pattern, operation, permission) in [(3, 2, 2), (4, 12, 3), (2, 3, 3), (3, 1, 3), (3, 3, 1)] {
                let codes = [resource, pattern, operation, permission];
                let written = Acl::of(raw_acl(codes)).codes();
                let is_of_a_list = resource >= 2 && pattern >= 3 && operation >= 2 && permission >= 2;
                assert_eq!(written, is_of_a_list.then_some(codes));
            }
        }
    }
}
