//! Requests about settings: what topics and brokers are set to, and setting topics otherwise.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::admin::{Answer, GRACE, Options, silence};
use super::batch::Queue;
use super::handle::Handle;
use super::{Failure, check, codes, string, sys, text_of};

/// Whose settings are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Topic,
    Broker,
}

/// The settings of one resource by name, or why they are not told.
pub(crate) type Settings = Result<BTreeMap<String, Setting>, Failure>;

/// A setting as it is in force.
pub(crate) struct Setting {
    /// None where the broker does not show it, for it is a secret.
    pub(crate) value: Option<String>,
    pub(crate) source: Source,
}

/// Where a setting comes from (KIP-226).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Somebody has set it for the topic.
    Topic,
    /// Somebody has set it for a broker or for all of them.
    Broker,
    /// Kafka's own.
    Default,
}

impl Source {
    fn of(code: i32) -> Self {
        const TOPIC: i32 = sys::rd_kafka_ConfigSource_t::RD_KAFKA_CONFIG_SOURCE_DYNAMIC_TOPIC_CONFIG as i32;
        const DEFAULT: i32 = sys::rd_kafka_ConfigSource_t::RD_KAFKA_CONFIG_SOURCE_DEFAULT_CONFIG as i32;
        match code {
            TOPIC => Self::Topic,
            DEFAULT => Self::Default,
            _ => Self::Broker,
        }
    }
}

/// The resources of one request.
struct Resources(Vec<*mut sys::rd_kafka_ConfigResource_t>);

impl Drop for Resources {
    fn drop(&mut self) {
        for resource in &self.0 {
            // SAFETY: owned, destroyed once.
            unsafe { sys::rd_kafka_ConfigResource_destroy(*resource) };
        }
    }
}

/// DescribeConfigs: the settings of each of `names`, its defaults included.
pub(crate) fn describe_configs(
    handle: &Arc<Handle>,
    of: Resource,
    names: &[CString],
    wait: Duration,
) -> Result<BTreeMap<String, Settings>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, wait)?;
    let queue = Queue::new(handle);
    let kind = match of {
        Resource::Topic => sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
        Resource::Broker => sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_BROKER,
    };
    // SAFETY: all live during the calls; librdkafka copies the resources, which are freed after the request.
    unsafe {
        let made = names.iter().map(|name| sys::rd_kafka_ConfigResource_new(kind, name.as_ptr()));
        let mut all = Resources(made.collect());
        let count = all.0.len();
        sys::rd_kafka_DescribeConfigs(handle.rk(), all.0.as_mut_ptr(), count, options.as_ptr(), queue.as_ptr());
    }
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: the event is live and of this type (the queue is used for one request); everything is read within its counts
    // and copied before the event is freed.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConfigs_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let resources = sys::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
        Ok((0..count).map(|at| settings_of(*resources.add(at))).collect())
    }
}

/// # Safety
/// `resource` is one of a live answer.
unsafe fn settings_of(resource: *const sys::rd_kafka_ConfigResource_t) -> (String, Settings) {
    // SAFETY: the caller promises a live resource; its entries and strings live as long.
    unsafe {
        let name = string(sys::rd_kafka_ConfigResource_name(resource));
        let code = sys::rd_kafka_ConfigResource_error(resource) as i32;
        if code != 0 {
            let text = sys::rd_kafka_ConfigResource_error_string(resource);
            let text = if text.is_null() { text_of(code) } else { string(text) };
            return (name, Err(Failure { code, text }));
        }
        let mut count = 0;
        let found = sys::rd_kafka_ConfigResource_configs(resource, &raw mut count);
        let all = (0..count).map(|at| {
            let entry = *found.add(at);
            let value = sys::rd_kafka_ConfigEntry_value(entry);
            let value = (!value.is_null()).then(|| string(value));
            let setting = Setting { value, source: Source::of(codes::setting_source(entry)) };
            (string(sys::rd_kafka_ConfigEntry_name(entry)), setting)
        });
        (name, Ok(all.collect()))
    }
}

/// IncrementalAlterConfigs of one topic (KIP-339): what has no value is taken back, so that the topic follows its cluster; settings
/// that are not named stay. All of it or nothing.
pub(crate) fn alter_topic(
    handle: &Arc<Handle>,
    topic: &CStr,
    changes: &[(CString, Option<CString>)],
    wait: Duration,
) -> Result<(), Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS, wait)?;
    let queue = Queue::new(handle);
    // SAFETY: all live during the calls; librdkafka copies names, values and the resource, which is freed after the request.
    unsafe {
        let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        let mut all = Resources(vec![sys::rd_kafka_ConfigResource_new(kind, topic.as_ptr())]);
        for (name, value) in changes {
            let (operation, value) = match value {
                Some(value) => (sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET, value.as_ptr()),
                None => (sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_DELETE, ptr::null()),
            };
            check(sys::rd_kafka_ConfigResource_add_incremental_config(all.0[0], name.as_ptr(), operation, value))?;
        }
        sys::rd_kafka_IncrementalAlterConfigs(
            handle.rk(),
            all.0.as_mut_ptr(),
            all.0.len(),
            options.as_ptr(),
            queue.as_ptr(),
        );
    }
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: as in `describe_configs`.
    unsafe {
        let result = sys::rd_kafka_event_IncrementalAlterConfigs_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let resources = sys::rd_kafka_IncrementalAlterConfigs_result_resources(result, &raw mut count);
        if count == 0 {
            return Err(silence());
        }
        settings_of(*resources).1.map(|_| ())
    }
}
