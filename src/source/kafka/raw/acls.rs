//! Requests about access control lists: what they are, and adding some.

use std::ffi::{CString, c_char};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use super::admin::{Answer, GRACE, Options, controller, silence};
use super::batch::Queue;
use super::handle::Handle;
use super::{Failure, code, codes, string, sys};

/// Who may do what.
pub(crate) struct Acl {
    /// The codes of Kafka's `ResourceType`, `PatternType`, `AclOperation` and `AclPermissionType`; 0 is one that librdkafka does not
    /// know.
    pub(crate) resource: i32,
    pub(crate) pattern: i32,
    pub(crate) operation: i32,
    pub(crate) permission: i32,
    pub(crate) name: String,
    pub(crate) principal: String,
    pub(crate) host: String,
}

/// What is asked of access control lists.
struct Filter(NonNull<sys::rd_kafka_AclBindingFilter_t>);

impl Drop for Filter {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_AclBinding_destroy(self.0.as_ptr()) };
    }
}

impl Filter {
    fn everything() -> Result<Self, Failure> {
        let mut text = [0; 512];
        // SAFETY: nulls are wildcards; the buffer lives during the call; the answer is ours.
        let filter = unsafe {
            sys::rd_kafka_AclBindingFilter_new(
                sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_ANY,
                ptr::null(),
                sys::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_ANY,
                ptr::null(),
                ptr::null(),
                sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_ANY,
                sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ANY,
                text.as_mut_ptr(),
                text.len(),
            )
        };
        NonNull::new(filter).map(Self).ok_or_else(silence)
    }
}

/// DescribeAcls of everything.
pub(crate) fn acls(handle: &Arc<Handle>, wait: Duration) -> Result<Vec<Acl>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBEACLS, wait)?;
    options.ask(controller(handle, wait)?)?;
    let (queue, filter) = (Queue::new(handle), Filter::everything()?);
    // SAFETY: all live during the call; librdkafka copies the filter.
    unsafe { sys::rd_kafka_DescribeAcls(handle.rk(), filter.0.as_ptr(), options.as_ptr(), queue.as_ptr()) };
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: as in `groups`.
    unsafe {
        let result = sys::rd_kafka_event_DescribeAcls_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let found = sys::rd_kafka_DescribeAcls_result_acls(result, &raw mut count);
        let acl = |at| {
            let acl = *found.add(at);
            Acl {
                resource: codes::acl_resource(acl),
                pattern: codes::acl_pattern(acl),
                operation: codes::acl_operation(acl),
                permission: codes::acl_permission(acl),
                name: string(sys::rd_kafka_AclBinding_name(acl)),
                principal: string(sys::rd_kafka_AclBinding_principal(acl)),
                host: string(sys::rd_kafka_AclBinding_host(acl)),
            }
        };
        Ok((0..count).map(acl).collect())
    }
}

/// A list that is to be made.
pub(crate) struct NewAcl {
    /// Codes as those of [`Acl`].
    pub(crate) resource: i32,
    pub(crate) pattern: i32,
    pub(crate) operation: i32,
    pub(crate) permission: i32,
    pub(crate) name: CString,
    pub(crate) principal: CString,
    pub(crate) host: CString,
}

/// The lists of one request.
struct New(Vec<*mut sys::rd_kafka_AclBinding_t>);

impl Drop for New {
    fn drop(&mut self) {
        for acl in &self.0 {
            // SAFETY: owned, destroyed once.
            unsafe { sys::rd_kafka_AclBinding_destroy(*acl) };
        }
    }
}

impl New {
    fn add(&mut self, acl: &NewAcl) -> Result<(), Failure> {
        let mut text = [0 as c_char; 512];
        // SAFETY: names and buffer live during the call, which copies them; it refuses a code that it does not know with null.
        let made = unsafe {
            codes::acl_new(
                acl.resource,
                acl.name.as_ptr(),
                acl.pattern,
                acl.principal.as_ptr(),
                acl.host.as_ptr(),
                acl.operation,
                acl.permission,
                text.as_mut_ptr(),
                text.len(),
            )
        };
        if made.is_null() {
            // SAFETY: the text is a C string, for the call has failed.
            return Err(Failure { code: code::INVALID_ARG, text: unsafe { string(text.as_ptr()) } });
        }
        self.0.push(made);
        Ok(())
    }
}

/// CreateAcls, of the controller: why each was refused, in their order. One that is there already is none that is refused.
pub(crate) fn create_acls(
    handle: &Arc<Handle>,
    acls: &[NewAcl],
    wait: Duration,
) -> Result<Vec<Option<Failure>>, Failure> {
    let options = Options::new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATEACLS, wait)?;
    let queue = Queue::new(handle);
    let mut new = New(Vec::with_capacity(acls.len()));
    acls.iter().try_for_each(|acl| new.add(acl))?;
    // SAFETY: all live during the call; librdkafka copies the lists.
    unsafe { sys::rd_kafka_CreateAcls(handle.rk(), new.0.as_mut_ptr(), new.0.len(), options.as_ptr(), queue.as_ptr()) };
    let answer = Answer::of(&queue, wait + GRACE)?;
    answer.check()?;
    // SAFETY: as in `acls`; an error is null or belongs to the answer.
    unsafe {
        let result = sys::rd_kafka_event_CreateAcls_result(answer.as_ptr());
        if result.is_null() {
            return Err(silence());
        }
        let mut count = 0;
        let made = sys::rd_kafka_CreateAcls_result_acls(result, &raw mut count);
        if count != acls.len() {
            return Err(silence());
        }
        let refused = |at| {
            let error = sys::rd_kafka_acl_result_error(*made.add(at));
            if error.is_null() {
                return None;
            }
            let code = codes::error_code(error);
            (code != 0).then(|| Failure { code, text: string(sys::rd_kafka_error_string(error)) })
        };
        Ok((0..count).map(refused).collect())
    }
}
