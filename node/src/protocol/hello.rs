//! HELLO: which features a connection turns on, both ways.
//!
//! Invariants
//! - A granted set holds only features that were requested and offered, and each one's prerequisites.
//! - The encoded reply is ascending without duplicates.
//!
//! Cost: a set of features is one 64-bit word.
//!
//! Does not know: what a feature changes; the connection that keeps the set.

use super::error_context::Refusal;

macro_rules! features {
    ($($number:literal $variant:ident $text:literal,)*) => {
        /// A feature that a client may ask for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Feature {
            $(#[doc = concat!($text, ".")] $variant = $number,)*
        }

        impl Feature {
            /// Every feature of the protocol, ascending.
            pub const ALL: &[Feature] = &[$(Feature::$variant),*];

            /// The feature with this number, if it is one.
            #[must_use]
            pub fn from_u16(number: u16) -> Option<Feature> {
                Some(match number {
                    $($number => Feature::$variant,)*
                    _ => return None,
                })
            }
        }
    };
}

features! {
    0x02 Tls "Never granted",
    0x03 TcpNoDelay "Small segments are sent at once",
    0x04 MutationSeqno "Mutations answer with vbucket uuid and seqno",
    0x05 TcpDelay "Never granted",
    0x06 Xattr "Datatype bit XATTR and xattr paths",
    0x07 Xerror "All statuses may be sent",
    0x08 SelectBucket "SELECT_BUCKET is understood",
    0x0a Snappy "Datatype bit SNAPPY on documents",
    0x0b Json "Datatype bit JSON",
    0x0c Duplex "The server may send requests",
    0x0d ClustermapChangeNotification "New cluster maps are pushed in full; needs Duplex",
    0x0e UnorderedExecution "Responses may overtake each other",
    0x0f Tracing "Every response tells the server's duration",
    0x10 AltRequest "Flexible frames are understood",
    0x11 SyncReplication "Durability requirements are understood",
    0x12 Collections "Keys carry a collection id",
    0x13 SnappyEverywhere "Datatype bit SNAPPY on any value",
    0x14 PreserveTtl "Preserve-TTL is understood",
    0x15 VAttr "Virtual attributes; needs XATTR",
    0x17 SubdocCreateAsDeleted "A sub-document command may create a tombstone",
    0x18 SubdocDocumentMacroSupport "Macros of the document's metadata; needs XATTR",
    0x19 SubdocReplaceBodyWithXattr "An xattr may become the body",
    0x1a ReportUnitUsage "Responses tell billing units",
    0x1b NonBlockingThrottlingMode "Throttled requests are refused, not delayed",
    0x1c SubdocReplicaRead "Sub-document lookups on replicas",
    0x1d GetClusterConfigWithKnownVersion "GET_CLUSTER_CONFIG may name the version that is known",
    0x1e DedupeNotMyVbucketClustermap "NOT_MY_VBUCKET repeats no map that was sent",
    0x1f ClustermapChangeNotificationBrief "Versions of new cluster maps are pushed; needs Duplex",
    0x20 SubdocAllowsAccessOnMultipleXattrKeys "More than one xattr key in a command",
    0x21 SubdocBinaryXattr "Binary xattrs",
    0x22 RangeScanIncludeXattr "Range scans may return xattrs; needs XATTR",
    0x23 SubdocAllowReplicaReadOnDeletedDocs "Lookups of tombstones on replicas",
    0x24 GetRandomKeyIncludeXattr "GET_RANDOM_KEY may return xattrs; needs XATTR, JSON and SnappyEverywhere",
    0x25 MutateWithMeta "MUTATE_WITH_META is understood",
    0x26 DcpSkipDeletesInInitialBackfill "A first backfill may leave out tombstones",
}

impl Feature {
    /// Features that must be in the same HELLO.
    #[must_use]
    pub fn prerequisites(self) -> Features {
        match self {
            Feature::ClustermapChangeNotification | Feature::ClustermapChangeNotificationBrief => {
                Features::of(&[Feature::Duplex])
            }
            Feature::VAttr | Feature::SubdocDocumentMacroSupport | Feature::RangeScanIncludeXattr => {
                Features::of(&[Feature::Xattr])
            }
            Feature::GetRandomKeyIncludeXattr => {
                Features::of(&[Feature::Xattr, Feature::Json, Feature::SnappyEverywhere])
            }
            _ => Features::NONE,
        }
    }
}

/// A set of features.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// No feature: the state of a new connection.
    pub const NONE: Features = Features(0);

    /// What this node can grant so far. Snappy, unordered execution, server requests and durability have no meaning here yet, so clients are told
    /// that they are off. Xattrs come in with metadata and go out on streams and range scans; sub-document commands are refused with or without them.
    pub const OFFERED: Features = Features::of(&[
        Feature::TcpNoDelay,
        Feature::MutationSeqno,
        Feature::Xattr,
        Feature::Xerror,
        Feature::SelectBucket,
        Feature::Json,
        Feature::Tracing,
        Feature::AltRequest,
        Feature::Collections,
        Feature::PreserveTtl,
        Feature::GetClusterConfigWithKnownVersion,
        Feature::DedupeNotMyVbucketClustermap,
        Feature::RangeScanIncludeXattr,
    ]);

    /// The set of these features.
    #[must_use]
    pub const fn of(features: &[Feature]) -> Features {
        let mut bits = 0;
        let mut index = 0;
        while index < features.len() {
            bits |= 1 << features[index] as u16;
            index += 1;
        }
        Features(bits)
    }

    /// Whether `feature` is on.
    #[must_use]
    #[inline]
    pub fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u16) != 0
    }

    /// Whether all of `other` are on.
    #[must_use]
    pub fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set and `feature`.
    #[must_use]
    pub fn with(self, feature: Feature) -> Features {
        Features(self.0 | 1 << feature as u16)
    }

    /// This set without `feature`.
    #[must_use]
    pub fn without(self, feature: Feature) -> Features {
        Features(self.0 & !(1 << feature as u16))
    }

    /// The features in ascending order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |feature| self.has(*feature))
    }

    /// Reads a list of 16-bit numbers; numbers that mean nothing are left out.
    ///
    /// # Errors
    /// EINVAL for an odd number of bytes.
    pub fn decode(value: &[u8]) -> Result<Features, Refusal> {
        let (numbers, rest) = value.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Refusal::einval("The list of features has an odd number of bytes"));
        }
        let known = numbers.iter().filter_map(|number| Feature::from_u16(u16::from_be_bytes(*number)));
        Ok(known.fold(Features::NONE, Features::with))
    }

    /// The list of 16-bit numbers, ascending: the value of a request or a response.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        self.iter().flat_map(|feature| (feature as u16).to_be_bytes()).collect()
    }

    /// What a HELLO with this value is granted by a server that offers `offered`.
    ///
    /// The result replaces everything an earlier HELLO granted. SnappyEverywhere brings Snappy with it; a
    /// feature whose prerequisite was requested but is not offered is left out.
    ///
    /// # Errors
    /// EINVAL for an odd number of bytes, or a feature whose prerequisite the client did not request.
    pub fn negotiate(value: &[u8], offered: Features) -> Result<Features, Refusal> {
        let requested = Features::decode(value)?;
        let mut granted = Features::NONE;
        for feature in requested.iter() {
            let needed = feature.prerequisites();
            if !requested.contains(needed) {
                return Err(Refusal::einval("A requested feature needs another one in the same HELLO"));
            }
            if offered.has(feature) && offered.contains(needed) {
                granted = granted.with(feature);
            }
        }
        granted = granted.without(Feature::Tls).without(Feature::TcpDelay);
        if granted.has(Feature::SnappyEverywhere) {
            granted = granted.with(Feature::Snappy);
        }
        Ok(granted)
    }
}

/// Who a HELLO comes from.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Name and version of the client, at most 32 characters if it came as JSON.
    pub name: String,
    /// The client's id of this connection, at most 33 characters.
    pub connection_id: Option<String>,
}

#[derive(serde::Deserialize, serde::Serialize)]
struct AgentJson {
    #[serde(default)]
    a: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    i: Option<String>,
}

impl Agent {
    /// Reads the key of a HELLO. Text that begins with `{` but is not the expected JSON becomes the name.
    #[must_use]
    pub fn decode(key: &[u8]) -> Agent {
        let cut = |text: String, chars_max| text.chars().take(chars_max).collect::<String>();
        if key.first() == Some(&b'{')
            && let Ok(AgentJson { a, i }) = serde_json::from_slice(key)
        {
            return Agent { name: cut(a, 32), connection_id: i.map(|id| cut(id, 33)) };
        }
        Agent { name: String::from_utf8_lossy(key).into_owned(), connection_id: None }
    }

    /// The key of a HELLO, as JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let json = AgentJson { a: self.name.clone(), i: self.connection_id.clone() };
        serde_json::to_vec(&json).expect("two strings always have a JSON form")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn list(numbers: &[u16]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    fn granted(numbers: &[u16], offered: Features) -> Result<Vec<u8>, Status> {
        Features::negotiate(&list(numbers), offered).map(Features::encode).map_err(|refusal| refusal.status)
    }

    const ALL: Features = Features::of(Feature::ALL);

    #[test]
    fn the_reply_is_ascending_without_duplicates_and_without_refused_numbers() {
        assert_eq!(granted(&[7, 4, 4, 0x0b, 9, 0x16, 0x7fff, 1, 2, 5], ALL), Ok(list(&[4, 7, 0x0b])));
        assert_eq!(granted(&[4, 6, 7, 0x0a, 0x22], Features::OFFERED), Ok(list(&[4, 6, 7, 0x22])));
        assert_eq!(granted(&[], ALL), Ok(Vec::new()));
    }

    #[test]
    fn an_odd_list_and_a_missing_prerequisite_fail_the_whole_hello() {
        assert_eq!(Features::negotiate(&[0, 4, 0], ALL).unwrap_err().status, Status::EINVAL);
        for alone in [0x0d, 0x1f, 0x15, 0x18, 0x22] {
            assert_eq!(granted(&[4, alone], ALL), Err(Status::EINVAL), "{alone:#x}");
        }
        assert_eq!(granted(&[0x24, 6, 0x0b], ALL), Err(Status::EINVAL));
        assert_eq!(granted(&[0x24, 6, 0x0b, 0x13], ALL), Ok(list(&[6, 0x0a, 0x0b, 0x13, 0x24])));
        assert_eq!(granted(&[0x1f, 0x0c], ALL), Ok(list(&[0x0c, 0x1f])), "order does not matter");
    }

    #[test]
    fn a_feature_whose_prerequisite_is_not_offered_is_left_out() {
        let offered = Features::of(&[Feature::VAttr, Feature::Json]);
        assert_eq!(granted(&[6, 0x15, 0x0b], offered), Ok(list(&[0x0b])));
    }

    /// The lists that real clients send.
    #[test]
    fn real_clients_lists_are_granted_without_an_error() {
        for (client, numbers) in [
            (
                "cxx",
                &[
                    3, 6, 7, 8, 0xb, 0xc, 0x10, 0xf, 0x11, 0x15, 0x12, 0x17, 0x14, 0x1c, 0x21, 0xe, 0xd,
                    0x1e, 0xa, 4,
                ][..],
            ),
            (
                "libcouchbase",
                &[2, 6, 0xb, 0xc, 0x1f, 0x1d, 0x1e, 8, 7, 3, 0xa, 0x13, 4, 0xf, 0x12, 0xe, 0x17, 0x14],
            ),
            ("gocbcore", &[2, 6, 8, 0x1e, 0x1d, 0xc, 7, 0xb, 0x12, 0x10, 0x17, 0x19, 0x14, 0x1c, 0x11]),
            (
                "rust",
                &[1, 6, 7, 0xa, 0x13, 0xb, 0xe, 0x11, 0x19, 8, 0x17, 0x10, 0x12, 0x1d, 0x1e, 0x1f, 0xc, 0x14],
            ),
        ] {
            let granted = Features::negotiate(&list(numbers), Features::OFFERED).expect(client);
            assert!(granted.contains(Features::of(&[Feature::Xerror, Feature::Json, Feature::Collections])));
        }
    }

    #[test]
    fn an_agent_is_json_or_plain_text_and_its_parts_are_bounded() {
        assert_eq!(Agent::decode(b"mchello v1.0").name, "mchello v1.0");
        let json = Agent::decode(br#"{"a":"demo/1.0","i":"66388CF5BFCF7522/18CC8791579B567C"}"#);
        assert_eq!(json.name, "demo/1.0");
        assert_eq!(json.connection_id.as_deref(), Some("66388CF5BFCF7522/18CC8791579B567C"));
        assert_eq!(Agent::decode(&json.encode()), json);
        assert_eq!(Agent::decode(b"{broken").name, "{broken");
        let long = format!(r#"{{"a":"{}","i":"{}"}}"#, "é".repeat(100), "i".repeat(100));
        let cut = Agent::decode(long.as_bytes());
        assert_eq!(cut.name.chars().count(), 32);
        assert_eq!(cut.connection_id.map(|id| id.len()), Some(33));
    }
}
