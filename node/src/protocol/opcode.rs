//! Opcodes: what a request asks for.
//!
//! A newtype over the byte, because a peer may send any of 256 and the answer echoes it. The table at
//! the foot gives each defined number its name; [`Opcode::kind`] tells undefined from removed ones.
//!
//! Does not know: which arguments an opcode takes (`validate`), which ones this node executes.
//! Source: KV binary protocol, list of commands.

use std::fmt;

/// The second byte of a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opcode(pub u8);

/// Whether a number means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpcodeKind {
    /// It has a meaning, though this node may not offer it.
    Defined,
    /// It had a meaning once; the answer is NOT_SUPPORTED.
    Removed,
    /// It never had one; the answer is UNKNOWN_COMMAND.
    Undefined,
}

impl Opcode {
    /// What kind of number this is.
    #[must_use]
    #[inline]
    pub fn kind(self) -> OpcodeKind {
        KINDS[self.0 as usize]
    }

    /// The opcode with this name, in any letter case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Opcode> {
        (0..=u8::MAX)
            .map(Opcode)
            .find(|opcode| opcode.kind() != OpcodeKind::Undefined && opcode.name().eq_ignore_ascii_case(name))
    }

    /// Whether a successful one is not answered at all.
    ///
    /// The members of the Get family that are quiet (see [`Opcode::is_quiet_on_miss`]) are not among
    /// them: those answer a hit and keep silent on a miss.
    #[must_use]
    #[inline]
    pub fn is_quiet_on_success(self) -> bool {
        matches!(
            self,
            Opcode::SET_Q
                | Opcode::ADD_Q
                | Opcode::REPLACE_Q
                | Opcode::DELETE_Q
                | Opcode::INCREMENT_Q
                | Opcode::DECREMENT_Q
                | Opcode::APPEND_Q
                | Opcode::PREPEND_Q
                | Opcode::SETQ_WITH_META
                | Opcode::ADDQ_WITH_META
                | Opcode::DELQ_WITH_META
        )
    }

    /// Whether KEY_ENOENT is not answered.
    #[must_use]
    #[inline]
    pub fn is_quiet_on_miss(self) -> bool {
        matches!(self, Opcode::GET_Q | Opcode::GET_KQ | Opcode::GAT_Q | Opcode::GETQ_META)
    }

    /// Whether it belongs to DCP.
    #[must_use]
    #[inline]
    pub fn is_dcp(self) -> bool {
        matches!(self.0, 0x50..=0x67)
    }

    /// Whether it works on a path inside a document.
    #[must_use]
    #[inline]
    pub fn is_subdoc(self) -> bool {
        matches!(self.0, 0xc5..=0xd3)
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            OpcodeKind::Undefined => write!(f, "{:#04x}", self.0),
            OpcodeKind::Defined | OpcodeKind::Removed => f.write_str(self.name()),
        }
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opcode({:#04x} {})", self.0, self.name())
    }
}

/// The opcodes of requests that a server starts (magic 0x82).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ServerOpcode {
    /// A new cluster map.
    ClustermapChangeNotification = 1,
    /// Ask an external provider to authenticate a user.
    Authenticate = 2,
    /// Tell an external provider which users are active.
    ActiveExternalUsers = 3,
    /// Ask an external provider for a user's rights.
    GetAuthorization = 4,
}

impl ServerOpcode {
    /// The server opcode with this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<ServerOpcode> {
        Some(match number {
            1 => ServerOpcode::ClustermapChangeNotification,
            2 => ServerOpcode::Authenticate,
            3 => ServerOpcode::ActiveExternalUsers,
            4 => ServerOpcode::GetAuthorization,
            _ => return None,
        })
    }
}

const KINDS: [OpcodeKind; 256] = {
    let mut kinds = [OpcodeKind::Undefined; 256];
    let mut index = 0;
    while index < DEFINED.len() {
        kinds[DEFINED[index] as usize] = OpcodeKind::Defined;
        index += 1;
    }
    let mut number = 0x70;
    while number <= 0x79 {
        kinds[number] = OpcodeKind::Defined;
        number += 1;
    }
    kinds[0x84] = OpcodeKind::Defined;
    let mut index = 0;
    while index < REMOVED.len() {
        kinds[REMOVED[index] as usize] = OpcodeKind::Removed;
        index += 1;
    }
    kinds
};

/// Numbers that had a meaning once.
const REMOVED: &[u8] = &[
    0x08, 0x18, 0x2c, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x40,
    0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x5a, 0x97, 0x9e, 0x9f, 0xa6, 0xa7, 0xaa, 0xac, 0xb0, 0xb1,
    0xc1, 0xc2, 0xf0, 0xf2,
];

macro_rules! opcodes {
    ($($number:literal $constant:ident $name:literal,)*) => {
        impl Opcode {
            $(
                #[doc = concat!("`", $name, "`, ", stringify!($number), ".")]
                pub const $constant: Opcode = Opcode($number);
            )*

            /// The protocol's name for it: `Get`, `RangeScanCreate`, …
            #[must_use]
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($number => $name,)*
                    0x70..=0x79 => "Fusion",
                    0x84 => "SetChronicleAuthToken",
                    _ => match self.kind() {
                        OpcodeKind::Removed => "Removed",
                        OpcodeKind::Defined | OpcodeKind::Undefined => "Undefined",
                    },
                }
            }
        }

        /// Every number that the table names.
        const DEFINED: &[u8] = &[$($number),*];
    };
}

opcodes! {
    0x00 GET "Get",
    0x01 SET "Set",
    0x02 ADD "Add",
    0x03 REPLACE "Replace",
    0x04 DELETE "Delete",
    0x05 INCREMENT "Increment",
    0x06 DECREMENT "Decrement",
    0x07 QUIT "Quit",
    0x08 FLUSH "Flush",
    0x09 GET_Q "GetQ",
    0x0a NOOP "Noop",
    0x0b VERSION "Version",
    0x0c GET_K "GetK",
    0x0d GET_KQ "GetKQ",
    0x0e APPEND "Append",
    0x0f PREPEND "Prepend",
    0x10 STAT "Stat",
    0x11 SET_Q "SetQ",
    0x12 ADD_Q "AddQ",
    0x13 REPLACE_Q "ReplaceQ",
    0x14 DELETE_Q "DeleteQ",
    0x15 INCREMENT_Q "IncrementQ",
    0x16 DECREMENT_Q "DecrementQ",
    0x17 QUIT_Q "QuitQ",
    0x18 FLUSH_Q "FlushQ",
    0x19 APPEND_Q "AppendQ",
    0x1a PREPEND_Q "PrependQ",
    0x1b VERBOSITY "Verbosity",
    0x1c TOUCH "Touch",
    0x1d GAT "Gat",
    0x1e GAT_Q "GatQ",
    0x1f HELLO "Hello",
    0x20 SASL_LIST_MECHS "SaslListMechs",
    0x21 SASL_AUTH "SaslAuth",
    0x22 SASL_STEP "SaslStep",
    0x23 IOCTL_GET "IoctlGet",
    0x24 IOCTL_SET "IoctlSet",
    0x25 CONFIG_VALIDATE "ConfigValidate",
    0x26 CONFIG_RELOAD "ConfigReload",
    0x27 AUDIT_PUT "AuditPut",
    0x28 AUDIT_CONFIG_RELOAD "AuditConfigReload",
    0x29 SHUTDOWN "Shutdown",
    0x2a SET_BUCKET_THROTTLE_PROPERTIES "SetBucketThrottleProperties",
    0x2b SET_BUCKET_DATA_LIMIT_EXCEEDED "SetBucketDataLimitExceeded",
    0x2c SET_NODE_THROTTLE_PROPERTIES "SetNodeThrottleProperties",
    0x2d SET_ACTIVE_ENCRYPTION_KEYS "SetActiveEncryptionKeys",
    0x2e PRUNE_ENCRYPTION_KEYS "PruneEncryptionKeys",
    0x2f REGISTER_AUTH_TOKEN "RegisterAuthToken",
    0x3d SET_VBUCKET "SetVbucket",
    0x3e GET_VBUCKET "GetVbucket",
    0x3f DEL_VBUCKET "DelVbucket",
    0x48 GET_ALL_VB_SEQNOS "GetAllVbSeqnos",
    0x49 GET_EX "GetEx",
    0x4a GET_EX_REPLICA "GetExReplica",
    0x4b MUTATE_WITH_META "MutateWithMeta",
    0x50 DCP_OPEN "DcpOpen",
    0x51 DCP_ADD_STREAM "DcpAddStream",
    0x52 DCP_CLOSE_STREAM "DcpCloseStream",
    0x53 DCP_STREAM_REQ "DcpStreamReq",
    0x54 DCP_GET_FAILOVER_LOG "DcpGetFailoverLog",
    0x55 DCP_STREAM_END "DcpStreamEnd",
    0x56 DCP_SNAPSHOT_MARKER "DcpSnapshotMarker",
    0x57 DCP_MUTATION "DcpMutation",
    0x58 DCP_DELETION "DcpDeletion",
    0x59 DCP_EXPIRATION "DcpExpiration",
    0x5a DCP_FLUSH "DcpFlush",
    0x5b DCP_SET_VBUCKET_STATE "DcpSetVbucketState",
    0x5c DCP_NOOP "DcpNoop",
    0x5d DCP_BUFFER_ACKNOWLEDGEMENT "DcpBufferAcknowledgement",
    0x5e DCP_CONTROL "DcpControl",
    0x5f DCP_SYSTEM_EVENT "DcpSystemEvent",
    0x60 DCP_PREPARE "DcpPrepare",
    0x61 DCP_SEQNO_ACKNOWLEDGED "DcpSeqnoAcknowledged",
    0x62 DCP_COMMIT "DcpCommit",
    0x63 DCP_ABORT "DcpAbort",
    0x64 DCP_SEQNO_ADVANCED "DcpSeqnoAdvanced",
    0x65 DCP_OSO_SNAPSHOT "DcpOsoSnapshot",
    0x66 DCP_CACHE_TRANSFER "DcpCacheTransfer",
    0x67 DCP_CACHE_TRANSFER_END "DcpCacheTransferEnd",
    0x80 STOP_PERSISTENCE "StopPersistence",
    0x81 START_PERSISTENCE "StartPersistence",
    0x82 SET_PARAM "SetParam",
    0x83 GET_REPLICA "GetReplica",
    0x85 CREATE_BUCKET "CreateBucket",
    0x86 DELETE_BUCKET "DeleteBucket",
    0x87 LIST_BUCKETS "ListBuckets",
    0x89 SELECT_BUCKET "SelectBucket",
    0x8a PAUSE_BUCKET "PauseBucket",
    0x8b RESUME_BUCKET "ResumeBucket",
    0x8c VALIDATE_BUCKET_CONFIG "ValidateBucketConfig",
    0x91 OBSERVE_SEQNO "ObserveSeqno",
    0x92 OBSERVE "Observe",
    0x93 EVICT_KEY "EvictKey",
    0x94 GET_LOCKED "GetLocked",
    0x95 UNLOCK_KEY "UnlockKey",
    0x96 GET_FAILOVER_LOG "GetFailoverLog",
    0xa0 GET_META "GetMeta",
    0xa1 GETQ_META "GetqMeta",
    0xa2 SET_WITH_META "SetWithMeta",
    0xa3 SETQ_WITH_META "SetqWithMeta",
    0xa4 ADD_WITH_META "AddWithMeta",
    0xa5 ADDQ_WITH_META "AddqWithMeta",
    0xa8 DEL_WITH_META "DelWithMeta",
    0xa9 DELQ_WITH_META "DelqWithMeta",
    0xad ENABLE_TRAFFIC "EnableTraffic",
    0xae DISABLE_TRAFFIC "DisableTraffic",
    0xaf IFCONFIG "Ifconfig",
    0xb2 RETURN_META "ReturnMeta",
    0xb3 COMPACT_DB "CompactDb",
    0xb4 SET_CLUSTER_CONFIG "SetClusterConfig",
    0xb5 GET_CLUSTER_CONFIG "GetClusterConfig",
    0xb6 GET_RANDOM_KEY "GetRandomKey",
    0xb7 SEQNO_PERSISTENCE "SeqnoPersistence",
    0xb8 GET_KEYS "GetKeys",
    0xb9 COLLECTIONS_SET_MANIFEST "CollectionsSetManifest",
    0xba COLLECTIONS_GET_MANIFEST "CollectionsGetManifest",
    0xbb COLLECTIONS_GET_ID "CollectionsGetID",
    0xbc COLLECTIONS_GET_SCOPE_ID "CollectionsGetScopeID",
    0xc5 SUBDOC_GET "SubdocGet",
    0xc6 SUBDOC_EXISTS "SubdocExists",
    0xc7 SUBDOC_DICT_ADD "SubdocDictAdd",
    0xc8 SUBDOC_DICT_UPSERT "SubdocDictUpsert",
    0xc9 SUBDOC_DELETE "SubdocDelete",
    0xca SUBDOC_REPLACE "SubdocReplace",
    0xcb SUBDOC_ARRAY_PUSH_LAST "SubdocArrayPushLast",
    0xcc SUBDOC_ARRAY_PUSH_FIRST "SubdocArrayPushFirst",
    0xcd SUBDOC_ARRAY_INSERT "SubdocArrayInsert",
    0xce SUBDOC_ARRAY_ADD_UNIQUE "SubdocArrayAddUnique",
    0xcf SUBDOC_COUNTER "SubdocCounter",
    0xd0 SUBDOC_MULTI_LOOKUP "SubdocMultiLookup",
    0xd1 SUBDOC_MULTI_MUTATION "SubdocMultiMutation",
    0xd2 SUBDOC_GET_COUNT "SubdocGetCount",
    0xd3 SUBDOC_REPLACE_BODY_WITH_XATTR "SubdocReplaceBodyWithXattr",
    0xda RANGE_SCAN_CREATE "RangeScanCreate",
    0xdb RANGE_SCAN_CONTINUE "RangeScanContinue",
    0xdc RANGE_SCAN_CANCEL "RangeScanCancel",
    0xe0 PREPARE_SNAPSHOT "PrepareSnapshot",
    0xe1 RELEASE_SNAPSHOT "ReleaseSnapshot",
    0xe2 DOWNLOAD_SNAPSHOT "DownloadSnapshot",
    0xe3 GET_FILE_FRAGMENT "GetFileFragment",
    0xf1 ISASL_REFRESH "IsaslRefresh",
    0xf3 GET_CMD_TIMER "GetCmdTimer",
    0xf4 SET_CTRL_TOKEN "SetCtrlToken",
    0xf5 GET_CTRL_TOKEN "GetCtrlToken",
    0xf6 UPDATE_EXTERNAL_USER_PERMISSIONS "UpdateExternalUserPermissions",
    0xf7 RBAC_REFRESH "RbacRefresh",
    0xf8 AUTH_PROVIDER "AuthProvider",
    0xfb DROP_PRIVILEGE "DropPrivilege",
    0xfc ADJUST_TIMEOFDAY "AdjustTimeofday",
    0xfd EWOULDBLOCK_CTL "EwouldblockCtl",
    0xfe GET_ERROR_MAP "GetErrorMap",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_defined_removed_or_undefined_as_the_protocol_lists_them() {
        let count = |kind| (0..=u8::MAX).filter(|n| Opcode(*n).kind() == kind).count();
        assert_eq!(count(OpcodeKind::Removed), REMOVED.len());
        assert_eq!(count(OpcodeKind::Removed), 38);
        assert_eq!(Opcode(0xff).kind(), OpcodeKind::Undefined);
        assert_eq!(Opcode(0x06).kind(), OpcodeKind::Defined);
        assert_eq!(Opcode::FLUSH.kind(), OpcodeKind::Removed);
        assert_eq!(Opcode(0x75).kind(), OpcodeKind::Defined);
    }

    #[test]
    fn names_lead_back_to_their_opcode() {
        for number in 0..=u8::MAX {
            let opcode = Opcode(number);
            if opcode.kind() == OpcodeKind::Defined && opcode.name() != "Fusion" {
                assert_eq!(Opcode::from_name(opcode.name()), Some(opcode));
            }
        }
        assert_eq!(Opcode::from_name("rangescancreate"), Some(Opcode::RANGE_SCAN_CREATE));
        assert_eq!(Opcode::from_name("Undefined"), None);
        assert_eq!(Opcode(0xff).to_string(), "0xff");
        assert_eq!(Opcode::GET.to_string(), "Get");
    }
}
