//! Cluster configurations: how clients find the nodes and the vbuckets of a bucket, both ways.
//!
//! A bucket-level map for connections with a bucket, a global one for those without. The members are those
//! that the public SDKs insist on, and nothing the node cannot do is advertised.
//!
//! Invariants
//! - `nodesExt` has no `hostname`: clients use the host they connected to. `nodes` and `serverList` say
//!   `$HOST`, which they replace.
//! - Every row of the vbucket map is `[0]`: one node owns everything.
//!
//! Cost: rendered when the configuration changes, then served as bytes; about 5 bytes a vbucket.
//!
//! Does not know: sockets, how versions are chosen, who asks.
//! Source: KV binary protocol, cluster configuration; the members by what each SDK refuses to do without.

use serde::{Deserialize, Serialize};

use super::extras::ConfigVersion;

/// What the bucket of this node can do, in the words of the cluster map. Durable writes, xattrs, DCP and views
/// are missing on purpose.
pub const BUCKET_CAPABILITIES: &[&str] =
    &["cbhello", "cccp", "collections", "nodesExt", "preserveExpiry", "rangeScan", "touch"];

/// Where this node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePorts {
    /// The port of this protocol.
    pub kv: u16,
    /// The management port. Some clients reject a map without one, others wait long for a silent one.
    pub mgmt: Option<u16>,
}

/// Which bucket a map describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketDescription<'a> {
    /// Its name.
    pub name: &'a str,
    /// 128 random bits, shown as 32 hex digits.
    pub uuid: u128,
    /// How many vbuckets it has.
    pub vbucket_count: u16,
    /// Whether it lives in memory only.
    pub is_ephemeral: bool,
    /// The uid of its collections manifest.
    pub manifest_uid: u64,
}

#[derive(Serialize)]
struct MapJson<'a> {
    rev: i64,
    #[serde(rename = "revEpoch")]
    rev_epoch: i64,
    #[serde(rename = "nodesExt")]
    nodes_ext: [NodeExtJson; 1],
    #[serde(rename = "clusterCapabilitiesVer")]
    cluster_capabilities_version: [u8; 2],
    #[serde(rename = "clusterCapabilities")]
    cluster_capabilities: EmptyObject,
    #[serde(flatten)]
    bucket: Option<BucketJson<'a>>,
}

#[derive(Serialize)]
struct EmptyObject {}

#[derive(Serialize)]
struct NodeExtJson {
    services: ServicesJson,
    #[serde(rename = "thisNode")]
    this_node: bool,
}

#[derive(Serialize)]
struct ServicesJson {
    kv: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    mgmt: Option<u16>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BucketJson<'a> {
    name: &'a str,
    node_locator: &'static str,
    bucket_type: &'static str,
    uuid: String,
    nodes: [NodeJson; 1],
    bucket_capabilities_ver: &'static str,
    bucket_capabilities: &'static [&'static str],
    collections_manifest_uid: String,
    v_bucket_server_map: ServerMapJson,
}

#[derive(Serialize)]
struct NodeJson {
    hostname: String,
    ports: DirectJson,
}

#[derive(Serialize)]
struct DirectJson {
    direct: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServerMapJson {
    hash_algorithm: &'static str,
    num_replicas: u8,
    server_list: [String; 1],
    v_bucket_map: Vec<[u8; 1]>,
}

/// The port that `nodes` names when there is no management port; clients only parse it.
const MGMT_PORT_DEFAULT: u16 = 8091;

fn render(version: ConfigVersion, ports: NodePorts, bucket: Option<BucketJson<'_>>) -> Vec<u8> {
    let map = MapJson {
        rev: version.rev,
        rev_epoch: version.epoch,
        nodes_ext: [NodeExtJson {
            services: ServicesJson { kv: ports.kv, mgmt: ports.mgmt },
            this_node: true,
        }],
        cluster_capabilities_version: [1, 0],
        cluster_capabilities: EmptyObject {},
        bucket,
    };
    serde_json::to_vec(&map).expect("strings and numbers always have a JSON form")
}

/// The map for connections that have selected `bucket`.
#[must_use]
pub fn encode_bucket(version: ConfigVersion, ports: NodePorts, bucket: &BucketDescription<'_>) -> Vec<u8> {
    let json = BucketJson {
        name: bucket.name,
        node_locator: "vbucket",
        bucket_type: if bucket.is_ephemeral { "ephemeral" } else { "membase" },
        uuid: format!("{:032x}", bucket.uuid),
        nodes: [NodeJson {
            hostname: format!("$HOST:{}", ports.mgmt.unwrap_or(MGMT_PORT_DEFAULT)),
            ports: DirectJson { direct: ports.kv },
        }],
        bucket_capabilities_ver: "",
        bucket_capabilities: BUCKET_CAPABILITIES,
        collections_manifest_uid: format!("{:x}", bucket.manifest_uid),
        v_bucket_server_map: ServerMapJson {
            hash_algorithm: "CRC",
            num_replicas: 0,
            server_list: [format!("$HOST:{}", ports.kv)],
            v_bucket_map: vec![[0]; usize::from(bucket.vbucket_count)],
        },
    };
    render(version, ports, Some(json))
}

/// The map for connections without a bucket.
#[must_use]
pub fn encode_global(version: ConfigVersion, ports: NodePorts) -> Vec<u8> {
    render(version, ports, None)
}

/// A map, as this project's own clients read it: one node, so the number of vbuckets is what matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMap {
    /// The version.
    pub version: ConfigVersion,
    /// Name of the bucket; none in a global map.
    pub bucket: Option<String>,
    /// How many vbuckets the bucket has; 0 in a global map.
    pub vbucket_count: u16,
}

#[derive(Deserialize)]
struct ParsedMap {
    rev: i64,
    #[serde(rename = "revEpoch", default)]
    rev_epoch: i64,
    name: Option<String>,
    #[serde(rename = "vBucketServerMap")]
    server_map: Option<ParsedServerMap>,
}

#[derive(Deserialize)]
struct ParsedServerMap {
    #[serde(rename = "vBucketMap")]
    vbucket_map: Vec<serde::de::IgnoredAny>,
}

impl ClusterMap {
    /// Reads the JSON; `None` if it is not a map, or has more vbuckets than ids.
    #[must_use]
    pub fn decode(json: &[u8]) -> Option<ClusterMap> {
        let parsed: ParsedMap = serde_json::from_slice(json).ok()?;
        let rows = parsed.server_map.map_or(0, |map| map.vbucket_map.len());
        Some(ClusterMap {
            version: ConfigVersion { epoch: parsed.rev_epoch, rev: parsed.rev },
            bucket: parsed.name,
            vbucket_count: u16::try_from(rows).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: ConfigVersion = ConfigVersion { epoch: 1, rev: 7 };
    const PORTS: NodePorts = NodePorts { kv: 11210, mgmt: Some(18091) };

    fn bucket() -> serde_json::Value {
        let bucket = BucketDescription {
            name: "bkt",
            uuid: 0x5d1b,
            vbucket_count: 3,
            is_ephemeral: false,
            manifest_uid: 0x1f,
        };
        serde_json::from_slice(&encode_bucket(VERSION, PORTS, &bucket)).unwrap()
    }

    /// Each of these was found to be indispensable to at least one public SDK.
    #[test]
    fn the_bucket_map_has_every_member_that_some_client_insists_on() {
        let map = bucket();
        assert_eq!(map["rev"], 7);
        assert_eq!(map["revEpoch"], 1);
        assert_eq!(map["name"], "bkt");
        assert_eq!(map["nodeLocator"], "vbucket");
        assert_eq!(map["nodes"][0]["hostname"], "$HOST:18091");
        assert_eq!(map["nodes"][0]["ports"]["direct"], 11210);
        assert_eq!(map["nodesExt"][0]["services"]["kv"], 11210);
        assert_eq!(map["nodesExt"][0]["services"]["mgmt"], 18091);
        assert_eq!(map["nodesExt"][0]["thisNode"], true);
        assert_eq!(map["clusterCapabilities"], serde_json::json!({}));
        assert_eq!(map["clusterCapabilitiesVer"], serde_json::json!([1, 0]));
        assert_eq!(map["vBucketServerMap"]["hashAlgorithm"], "CRC");
        assert_eq!(map["vBucketServerMap"]["numReplicas"], 0);
        assert_eq!(map["vBucketServerMap"]["serverList"], serde_json::json!(["$HOST:11210"]));
        assert_eq!(map["vBucketServerMap"]["vBucketMap"], serde_json::json!([[0], [0], [0]]));
        assert_eq!(map["uuid"].as_str().map(str::len), Some(32));
        assert_eq!(map["collectionsManifestUid"], "1f");
    }

    /// A literal `$HOST` there is a name to resolve for one SDK, which then never connects.
    #[test]
    fn the_authoritative_node_list_has_no_hostname() {
        assert!(bucket()["nodesExt"][0].get("hostname").is_none());
    }

    #[test]
    fn only_what_the_node_can_do_is_advertised() {
        let capabilities = bucket()["bucketCapabilities"].to_string();
        assert!(capabilities.contains("rangeScan") && capabilities.contains("collections"));
        for missing in ["xattr", "durableWrite", "\"dcp\"", "couchapi"] {
            assert!(!capabilities.contains(missing), "{missing}");
        }
    }

    #[test]
    fn the_global_map_has_no_bucket_and_both_can_be_read_back() {
        let global = encode_global(VERSION, PORTS);
        let json: serde_json::Value = serde_json::from_slice(&global).unwrap();
        assert!(json.get("name").is_none() && json.get("vBucketServerMap").is_none());
        assert!(json["nodesExt"][0]["services"].get("kv").is_some());
        let expected = ClusterMap { version: VERSION, bucket: None, vbucket_count: 0 };
        assert_eq!(ClusterMap::decode(&global), Some(expected));

        let bucket = BucketDescription {
            name: "b\"k",
            uuid: 1,
            vbucket_count: 1024,
            is_ephemeral: false,
            manifest_uid: 0,
        };
        let expected = ClusterMap { version: VERSION, bucket: Some("b\"k".to_owned()), vbucket_count: 1024 };
        assert_eq!(ClusterMap::decode(&encode_bucket(VERSION, PORTS, &bucket)), Some(expected));
        assert_eq!(ClusterMap::decode(b"{}"), None);
    }

    #[test]
    fn a_node_without_management_port_advertises_none() {
        let json: serde_json::Value =
            serde_json::from_slice(&encode_global(VERSION, NodePorts { mgmt: None, ..PORTS })).unwrap();
        assert!(json["nodesExt"][0]["services"].get("mgmt").is_none());
    }
}
