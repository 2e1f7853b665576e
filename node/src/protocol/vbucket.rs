//! SET_VBUCKET and GET_VBUCKET: the state of a vbucket, and which nodes have copies of it.
//!
//! SET_VBUCKET's extras are the state, one byte; its value, if any, is a JSON object:
//!
//! | key | value |
//! |---|---|
//! | `topology` | one or two chains `[active, replica or null, …]` of node names; only with the state active |
//! | `use_snapshot` | the vbucket is to be made of copied files |
//! | `next_expected_state` | what the vbucket will be next, a hint |
//!
//! Cost: the value is parsed once; what is kept of it is bounded.
//!
//! Does not know: who may ask, what a state allows.

use serde::{Deserialize, Serialize};

use super::dcp::signal::VbucketState;
use super::error_context::Refusal;
use super::status::Status;

/// Chains of a topology, at most.
const CHAINS_MAX: usize = 2;

/// Nodes of a chain, at most.
const NODES_MAX: usize = 4;

/// Longest value of a request, in bytes: a topology of the longest names, and room beside them.
const VALUE_BYTES_MAX: usize = 2 * CHAINS_MAX * NODES_MAX * NODE_BYTES_MAX;

/// Longest name of a node, in bytes.
const NODE_BYTES_MAX: usize = 256;

/// Which nodes have copies of a vbucket: one chain, or two while they change.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Topology {
    chains: Vec<Vec<Option<String>>>,
}

impl Topology {
    /// Checks the chains of a request.
    ///
    /// # Errors
    /// EINVAL.
    fn checked(self) -> Result<Topology, Refusal> {
        if self.chains.is_empty() || self.chains.len() > CHAINS_MAX {
            return Err(Refusal::einval("A topology has one or two chains"));
        }
        for chain in &self.chains {
            if chain.is_empty() || chain.len() > NODES_MAX {
                return Err(Refusal::einval("A chain has one to four nodes"));
            }
            if !matches!(chain.first(), Some(Some(_))) {
                return Err(Refusal::einval("A chain begins with the active node"));
            }
            for (index, node) in chain.iter().enumerate() {
                let Some(name) = node else { continue };
                if name.is_empty() || name.len() > NODE_BYTES_MAX {
                    return Err(Refusal::einval("A node's name has 1 to 256 bytes"));
                }
                if chain[..index].contains(node) {
                    return Err(Refusal::einval("A chain names each node once"));
                }
            }
        }
        Ok(self)
    }

    /// Whether the active node alone is a majority of every chain; so it is if nothing is said.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.chains.iter().all(|chain| chain.len() / 2 + 1 == 1)
    }

    /// As text; empty if nothing is said.
    #[must_use]
    pub fn to_text(&self) -> String {
        if self.chains.is_empty() { String::new() } else { serde_json::to_string(self).unwrap_or_default() }
    }

    /// What [`Self::to_text`] made; `None` if it did not.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Topology> {
        if text.is_empty() { Some(Topology::default()) } else { serde_json::from_str(text).ok() }
    }
}

/// The request SET_VBUCKET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetVbucket {
    /// What the vbucket is to be.
    pub state: VbucketState,
    /// Which nodes have copies, if the request says so.
    pub topology: Option<Topology>,
}

impl SetVbucket {
    /// Decodes extras and value.
    ///
    /// # Errors
    /// EINVAL; NOT_SUPPORTED if the vbucket is to be made of copied files.
    pub fn decode(extras: &[u8], value: &[u8]) -> Result<SetVbucket, Refusal> {
        let state = match extras {
            [state] => VbucketState::from_u32(u32::from(*state)),
            _ => None,
        };
        let state = state.ok_or(Refusal::einval("Unknown vbucket state"))?;
        if value.is_empty() {
            return Ok(SetVbucket { state, topology: None });
        }
        // An array would be taken for the fields in their order.
        if value.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Refusal::einval("The value is no JSON object"));
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(Refusal::einval("The value is too long"));
        }
        let Value { topology, use_snapshot, next_expected_state } =
            serde_json::from_slice(value).map_err(|_| {
                Refusal::einval("The value is no JSON object of topology, use_snapshot and so on")
            })?;
        if use_snapshot.is_some() {
            return Err(Refusal::new(
                Status::NOT_SUPPORTED,
                "Vbuckets are not made of copied files on this node",
            ));
        }
        if next_expected_state.is_some_and(|name| VbucketState::of_name(&name).is_none()) {
            return Err(Refusal::einval("next_expected_state is no state of a vbucket"));
        }
        let topology = topology.map(Topology::checked).transpose()?;
        if topology.is_some() && state != VbucketState::Active {
            return Err(Refusal::einval("Only an active vbucket has a topology"));
        }
        Ok(SetVbucket { state, topology })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Value {
    #[serde(default)]
    topology: Option<Topology>,
    #[serde(default)]
    use_snapshot: Option<String>,
    #[serde(default)]
    next_expected_state: Option<String>,
}

/// The value of GET_VBUCKET's answer.
#[must_use]
pub fn encode_vbucket_state(state: VbucketState) -> [u8; 4] {
    (state as u32).to_be_bytes()
}

/// Reads it.
#[must_use]
pub fn decode_vbucket_state(value: &[u8]) -> Option<VbucketState> {
    VbucketState::from_u32(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(json: &str) -> Result<Topology, Status> {
        let value = format!("{{\"topology\":{json}}}");
        let decoded = SetVbucket::decode(&[1], value.as_bytes());
        decoded.map(|set| set.topology.unwrap()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn a_state_is_one_byte_and_there_are_four() {
        for (byte, state) in
            [VbucketState::Active, VbucketState::Replica, VbucketState::Pending, VbucketState::Dead]
                .into_iter()
                .enumerate()
        {
            let set = SetVbucket::decode(&[byte as u8 + 1], b"").unwrap();
            assert_eq!(set, SetVbucket { state, topology: None });
            assert_eq!(decode_vbucket_state(&encode_vbucket_state(state)), Some(state));
            assert_eq!(VbucketState::of_name(state.name()), Some(state));
        }
        for extras in [&[][..], &[0], &[5], &[255], &[0, 0, 0, 1]] {
            assert!(SetVbucket::decode(extras, b"").is_err(), "{extras:?}");
        }
        for value in [&[][..], &[1], &[0, 0, 0, 9], &[0, 0, 0, 0, 1]] {
            assert_eq!(decode_vbucket_state(value), None, "{value:?}");
        }
    }

    #[test]
    fn a_topology_is_one_or_two_chains_of_one_to_four_nodes_that_begin_with_the_active() {
        for (json, alone) in [
            (r#"[["a"]]"#, true),
            (r#"[["a"],["b"]]"#, true),
            (r#"[["a","b"]]"#, false),
            (r#"[["a",null]]"#, false),
            (r#"[["a"],["b",null,null,"c"]]"#, false),
        ] {
            let topology = topology(json).unwrap();
            assert_eq!((topology.is_alone(), topology.to_text()), (alone, json.to_owned()));
            assert_eq!(Topology::from_text(json), Some(topology));
        }
        let long = format!("[[\"{}\"]]", "n".repeat(257));
        for json in [
            "[]",
            r#"[["a"],["b"],["c"]]"#,
            "[[]]",
            r#"[["a","b","c","d","e"]]"#,
            r#"[[null,"b"]]"#,
            r#"[[""]]"#,
            r#"[["a","a"]]"#,
            r#"["a"]"#,
            r#"[[1]]"#,
            r#"{}"#,
            &long,
        ] {
            assert_eq!(topology(json), Err(Status::EINVAL), "{json}");
        }
        assert_eq!(Topology::from_text(""), Some(Topology::default()));
        assert!(Topology::default().is_alone());
    }

    #[test]
    fn a_value_is_an_object_with_known_keys_that_fit_the_state() {
        let status = |state: u8, value: &str| {
            SetVbucket::decode(&[state], value.as_bytes()).map(|_| ()).map_err(|refusal| refusal.status)
        };
        assert_eq!(status(1, "{}"), Ok(()));
        assert_eq!(status(2, r#"{"topology":null,"next_expected_state":"active"}"#), Ok(()));
        assert_eq!(status(2, r#"{"topology":[["a"]]}"#), Err(Status::EINVAL));
        assert_eq!(status(2, r#"{"use_snapshot":"fbr"}"#), Err(Status::NOT_SUPPORTED));
        for value in ["[]", "1", "{", "{\"topologie\":[]}", r#"{"next_expected_state":"gone"}"#, "\u{1}"] {
            assert_eq!(status(1, value), Err(Status::EINVAL), "{value}");
        }
    }
}
