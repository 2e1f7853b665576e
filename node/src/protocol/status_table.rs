//! The table behind `status`: code, constant, error-map name, remapping, attributes, description.
//!
//! Data only; one row per code that a server may send. Split from `status` so that the rules there
//! stay on a screen.
//!
//! Does not know: how the rows are used.
//! Source: KV binary protocol, response statuses and error map revision 9.

use super::attributes::*;
use super::{Status, StatusRow, WithoutXerror};

macro_rules! statuses {
    ($($code:literal $constant:ident $map_name:literal $rule:ident $(($to:expr))? [$($attribute:ident)|+] $text:literal,)*) => {
        impl Status {
            $(
                #[doc = concat!($text, ".")]
                pub const $constant: Status = Status($code);
            )*
        }

        /// Every row, in ascending order of the code.
        pub(super) const ROWS: &[StatusRow] = &[
            $(StatusRow {
                status: Status($code),
                name: stringify!($constant),
                map_name: $map_name,
                description: $text,
                attributes: $($attribute)|+,
                without_xerror: WithoutXerror::$rule $(($to))?,
            },)*
        ];
    };
}

statuses! {
    0x00 SUCCESS "SUCCESS" Sent [SUCCESS] "Success",
    0x01 KEY_ENOENT "KEY_ENOENT" Sent [ITEM_ONLY] "The key, or the entity that was named, does not exist",
    0x02 KEY_EEXISTS "KEY_EEXISTS" Sent [ITEM_ONLY] "The key exists, or the CAS does not match",
    0x03 E2BIG "E2BIG" Sent [ITEM_ONLY | INVALID_INPUT] "Value too large",
    0x04 EINVAL "EINVAL" Sent [INTERNAL | INVALID_INPUT] "Malformed or illegal request",
    0x05 NOT_STORED "NOT_STORED" Sent [INTERNAL | ITEM_ONLY] "Not stored: the key, or the required seqno, does not exist",
    0x06 DELTA_BADVAL "DELTA_BADVAL" Sent [ITEM_ONLY | INVALID_INPUT] "The value is not a number that can be counted",
    0x07 NOT_MY_VBUCKET "NOT_MY_VBUCKET" Sent [FETCH_CONFIG | INVALID_INPUT] "The vbucket is not here, or not in the needed state",
    0x08 NO_BUCKET "NO_BUCKET" Disconnect [CONN_STATE_INVALIDATED] "No bucket selected",
    0x09 LOCKED "LOCKED" Locked [ITEM_LOCKED | ITEM_ONLY | RETRY_NOW] "The document is locked",
    0x0a DCP_STREAM_NOT_FOUND "STREAM_NOT_FOUND" Becomes(Status::KEY_ENOENT) [CONN_STATE_INVALIDATED] "No stream for this vbucket/opaque",
    0x0b DCP_OPAQUE_NO_MATCH "OPAQUE_NO_MATCH" Becomes(Status::KEY_EEXISTS) [CONN_STATE_INVALIDATED] "Opaque does not match the stream",
    0x0c EWOULDTHROTTLE "EWOULD_THROTTLE" Sent [TEMP | RETRY_LATER | RATE_LIMIT] "Throttled, try again later",
    0x0d ECONFIGONLY "ECONFIG_ONLY" Sent [FETCH_CONFIG | RETRY_NOW] "The bucket has only a cluster configuration on this node",
    0x0e NOT_LOCKED "NOT_LOCKED" Becomes(Status::ETMPFAIL) [ITEM_ONLY] "The document is not locked",
    0x0f CAS_VALUE_INVALID "CAS_VALUE_INVALID" Becomes(Status::KEY_EEXISTS) [ITEM_ONLY] "The CAS of the item is not acceptable",
    0x1f AUTH_STALE "AUTH_STALE" Disconnect [CONN_STATE_INVALIDATED | AUTH] "Authentication context expired; re-authenticate",
    0x20 AUTH_ERROR "AUTH_ERROR" Sent [CONN_STATE_INVALIDATED | AUTH] "Authentication failed",
    0x21 AUTH_CONTINUE "AUTH_CONTINUE" Sent [SPECIAL_HANDLING] "Another SASL round is needed",
    0x22 ERANGE "ERANGE" Sent [INVALID_INPUT] "Value outside the legal range",
    0x23 ROLLBACK "ROLLBACK" Sent [DCP | SPECIAL_HANDLING] "The consumer must roll back",
    0x24 EACCESS "EACCESS" Disconnect [SUPPORT] "No privilege, or not authenticated",
    0x25 NOT_INITIALIZED "NOT_INITIALIZED" Sent [CONN_STATE_INVALIDATED] "Node not initialised",
    0x26 ENCRYPTION_KEY_NOT_AVAILABLE "ENCRYPTION_KEY_NOT_AVAILABLE" Sent [SPECIAL_HANDLING] "Encryption-at-rest key missing",
    0x27 CHECKSUM_MISMATCH "CHECKSUM_MISMATCH" Disconnect [SPECIAL_HANDLING] "Checksum of transferred data wrong",
    0x28 EXPIRY_OVERFLOW "EXPIRY_OVERFLOW" Disconnect [ITEM_ONLY | SYSTEM_CONSTRAINT | NO_RETRY] "Now + relative expiry exceeds 32 bits",
    0x29 LOCK_EXPIRY_OVERFLOW "LOCK_EXPIRY_OVERFLOW" Disconnect [ITEM_ONLY | SYSTEM_CONSTRAINT | NO_RETRY] "Lock expiry exceeds range",
    0x30 RATE_LIMITED_NETWORK_INGRESS "RATE_LIMITED_NETWORK_INGRESS" Sent [TEMP | RETRY_LATER | RATE_LIMIT] "Limit of received bytes reached",
    0x31 RATE_LIMITED_NETWORK_EGRESS "RATE_LIMITED_NETWORK_EGRESS" Sent [TEMP | RETRY_LATER | RATE_LIMIT] "Limit of sent bytes reached",
    0x32 RATE_LIMITED_MAX_CONNECTIONS "RATE_LIMITED_MAX_CONNECTIONS" Becomes(Status::E2BIG) [CONN_STATE_INVALIDATED | RATE_LIMIT] "Too many connections",
    0x33 RATE_LIMITED_MAX_COMMANDS "RATE_LIMITED_MAX_COMMANDS" Sent [TEMP | RETRY_LATER | RATE_LIMIT] "Limit of commands reached",
    0x35 BUCKET_SIZE_LIMIT_EXCEEDED "BUCKET_SIZE_LIMIT_EXCEEDED" Sent [ITEM_ONLY | SYSTEM_CONSTRAINT | NO_RETRY] "Writes stopped: the bucket is too large",
    0x36 BUCKET_RESIDENT_RATIO_TOO_LOW "BUCKET_RESIDENT_RATIO_TOO_LOW" Sent [ITEM_ONLY | SYSTEM_CONSTRAINT | NO_RETRY] "Writes stopped: too little of the bucket is resident",
    0x37 BUCKET_DATA_SIZE_TOO_BIG "BUCKET_DATA_SIZE_TOO_BIG" Sent [ITEM_ONLY | SYSTEM_CONSTRAINT | NO_RETRY] "Writes stopped: too much data per node",
    0x38 BUCKET_DISK_SPACE_TOO_LOW "BUCKET_DISK_SPACE_TOO_LOW" Sent [ITEM_ONLY | SYSTEM_CONSTRAINT | NO_RETRY] "Writes stopped: too little disk space",
    0x50 BUCKET_PAUSED "BUCKET_PAUSED" Sent [SUPPORT] "Bucket is paused",
    0x51 CANCELLED "CANCELLED" Disconnect [ITEM_ONLY | RETRY_NOW] "The operation was cancelled",
    0x80 UNKNOWN_FRAME_INFO "UNKNOWN_FRAME_INFO" Sent [SUPPORT] "Frame-info id unknown",
    0x81 UNKNOWN_COMMAND "UNKNOWN_COMMAND" Sent [SUPPORT] "Opcode unknown",
    0x82 ENOMEM "ENOMEM" Sent [TEMP | RETRY_LATER] "Out of memory",
    0x83 NOT_SUPPORTED "NOT_SUPPORTED" Sent [SUPPORT] "Known opcode, not available here or with these options",
    0x84 EINTERNAL "EINTERNAL" Sent [INTERNAL | CONN_STATE_INVALIDATED] "Internal error",
    0x85 EBUSY "EBUSY" Sent [TEMP | RETRY_NOW] "Too busy",
    0x86 ETMPFAIL "ETMPFAIL" Sent [TEMP | RETRY_NOW] "Temporary failure, retry",
    0x87 XATTR_EINVAL "XATTR_EINVAL" Sent [INVALID_INPUT] "Xattr section malformed",
    0x88 UNKNOWN_COLLECTION "UNKNOWN_COLLECTION" NeedsCollections [INVALID_INPUT] "Unknown collection",
    0x8a CANNOT_APPLY_COLLECTIONS_MANIFEST "CANNOT_APPLY_COLLECTIONS_MANIFEST" Becomes(Status::EINTERNAL) [INVALID_INPUT] "Manifest not a legal successor",
    0x8c UNKNOWN_SCOPE "UNKNOWN_SCOPE" NeedsCollections [INVALID_INPUT] "Unknown scope",
    0x8d DCP_STREAM_ID_INVALID "DCP stream-ID invalid" Disconnect [INVALID_INPUT] "Stream id missing, zero, or not allowed",
    0xa0 DURABILITY_INVALID_LEVEL "DurabilityInvalidLevel" Disconnect [INVALID_INPUT] "Durability level invalid",
    0xa1 DURABILITY_IMPOSSIBLE "DurabilityImpossible" Disconnect [ITEM_ONLY | INVALID_INPUT] "Not enough replicas configured/online",
    0xa2 SYNC_WRITE_IN_PROGRESS "SyncWriteInProgress" Becomes(Status::ETMPFAIL) [ITEM_ONLY | RETRY_LATER] "Key has a pending sync write",
    0xa3 SYNC_WRITE_AMBIGUOUS "SyncWriteAmbiguous" Disconnect [ITEM_ONLY] "Timeout or topology change; outcome unknown",
    0xa4 SYNC_WRITE_RE_COMMIT_IN_PROGRESS "SyncWriteReCommitInProgress" Becomes(Status::ETMPFAIL) [ITEM_ONLY | RETRY_LATER] "A pending sync write of an earlier life is being committed again",
    0xa5 RANGE_SCAN_CANCELLED "RangeScanCancelled" Disconnect [SUCCESS] "The range scan was cancelled",
    0xa6 RANGE_SCAN_MORE "RangeScanMore" Disconnect [SUCCESS] "The limit of this continue is reached, there is more",
    0xa7 RANGE_SCAN_COMPLETE "RangeScanComplete" Disconnect [SUCCESS] "The range scan has ended",
    0xa8 VB_UUID_NOT_EQUAL "VbUuidNotEqual" Disconnect [INVALID_INPUT] "Vbucket uuid differs from the required one",
    0xc0 SUBDOC_PATH_ENOENT "SUBDOC_PATH_ENOENT" Sent [SUBDOC | ITEM_ONLY] "Path does not exist",
    0xc1 SUBDOC_PATH_MISMATCH "SUBDOC_PATH_MISMATCH" Sent [SUBDOC | ITEM_ONLY] "Path component type does not fit the document",
    0xc2 SUBDOC_PATH_EINVAL "SUBDOC_PATH_EINVAL" Sent [SUBDOC | INVALID_INPUT] "Path syntax error, or path kind illegal for the op",
    0xc3 SUBDOC_PATH_E2BIG "SUBDOC_PATH_E2BIG" Sent [SUBDOC | INVALID_INPUT] "Path too long / too many components",
    0xc4 SUBDOC_DOC_E2DEEP "SUBDOC_PATH_E2DEEP" Sent [SUBDOC | INVALID_INPUT] "Document nests too deep",
    0xc5 SUBDOC_VALUE_CANTINSERT "SUBDOC_VALUE_CANTINSERT" Sent [SUBDOC | INVALID_INPUT] "Fragment is not legal at that place",
    0xc6 SUBDOC_DOC_NOTJSON "SUBDOC_DOC_NOTJSON" Sent [SUBDOC | ITEM_ONLY] "Document is not JSON",
    0xc7 SUBDOC_NUM_ERANGE "SUBDOC_NUM_ERANGE" Sent [SUBDOC | ITEM_ONLY] "Existing number outside int64",
    0xc8 SUBDOC_DELTA_EINVAL "SUBDOC_DELTA_EINVAL" Sent [SUBDOC | ITEM_ONLY] "Delta is zero or not a 64-bit integer",
    0xc9 SUBDOC_PATH_EEXISTS "SUBDOC_PATH_EEXISTS" Sent [SUBDOC | ITEM_ONLY] "Path already exists",
    0xca SUBDOC_VALUE_ETOODEEP "SUBDOC_VALUE_ETOODEEP" Sent [SUBDOC | INVALID_INPUT | ITEM_ONLY] "Fragment nests too deep",
    0xcb SUBDOC_INVALID_COMBO "SUBDOC_INVALID_COMBO" Sent [SUBDOC | INVALID_INPUT] "Illegal number/combination of operations",
    0xcc SUBDOC_MULTI_PATH_FAILURE "SUBDOC_MULTI_PATH_FAILURE" Sent [SUBDOC | SPECIAL_HANDLING] "At least one path failed",
    0xcd SUBDOC_SUCCESS_DELETED "SUBDOC_SUCCESS_DELETED" Sent [ITEM_DELETED | SUCCESS | SUBDOC] "Success, document is a tombstone",
    0xce SUBDOC_XATTR_INVALID_FLAG_COMBO "SUBDOC_XATTR_INVALID_FLAG_COMBO" Sent [SUBDOC | INVALID_INPUT] "Xattr path flags illegal",
    0xcf SUBDOC_XATTR_INVALID_KEY_COMBO "SUBDOC_XATTR_INVALID_KEY_COMBO" Sent [SUBDOC | INVALID_INPUT] "More than one xattr key",
    0xd0 SUBDOC_XATTR_UNKNOWN_MACRO "SUBDOC_XATTR_UNKNOWN_MACRO" Sent [SUBDOC | INVALID_INPUT] "Macro unknown",
    0xd1 SUBDOC_XATTR_UNKNOWN_VATTR "SUBDOC_XATTR_UNKNOWN_VATTR" Sent [SUBDOC | INVALID_INPUT] "Virtual attribute unknown",
    0xd2 SUBDOC_XATTR_CANT_MODIFY_VATTR "SUBDOC_XATTR_CANT_MODIFY_VATTR" Sent [SUBDOC | INVALID_INPUT] "Virtual attribute is read only",
    0xd3 SUBDOC_MULTI_PATH_FAILURE_DELETED "SUBDOC_MULTI_PATH_FAILURE_DELETED" Sent [ITEM_DELETED | SUBDOC | SPECIAL_HANDLING] "At least one path failed, document is a tombstone",
    0xd4 SUBDOC_INVALID_XATTR_ORDER "SUBDOC_INVALID_XATTR_ORDER" Sent [SUBDOC | INVALID_INPUT] "Xattr specs must come first",
    0xd5 SUBDOC_XATTR_UNKNOWN_VATTR_MACRO "SUBDOC_XATTR_UNKNOWN_VATTR_MACRO" Sent [SUBDOC | INVALID_INPUT] "Virtual attribute macro unknown",
    0xd6 SUBDOC_CAN_ONLY_REVIVE_DELETED_DOCUMENTS "SUBDOC_CAN_ONLY_REVIVE_DELETED_DOCUMENTS" Sent [SUBDOC | ITEM_ONLY] "ReviveDocument on a live document",
    0xd7 SUBDOC_DELETED_DOCUMENT_CANT_HAVE_VALUE "SUBDOC_DELETED_DOCUMENT_CANT_HAVE_VALUE" Sent [SUBDOC | ITEM_ONLY] "Tombstone cannot get a body",
    0xd8 SUBDOC_FIELD_NOT_BINARY_VALUE "SUBDOC_FIELD_NOT_BINARY_VALUE" Sent [SUBDOC | ITEM_ONLY] "Binary flag on a field that is not a binary xattr",
}
