//! The command line of `ringctl collection`.
//!
//! Does not know: nodes, manifests.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_help = "\
A bucket's documents live in collections, and these in scopes. Creating and dropping need the role
admin; they change the bucket's manifest, on all cores and on disk when the command returns. A
scope comes with its first collection. What was dropped is gone at once.

Examples:
  ringctl collection create shop.orders --max-ttl 3600
  ringctl collection list --bucket sessions
  ringctl collection drop shop.orders
  ringctl collection drop shop                       the scope with all its collections")]
pub(crate) struct CollectionArgs {
    #[command(subcommand)]
    pub(crate) action: CollectionAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CollectionAction {
    /// Create a collection, and its scope if need be
    Create {
        /// SCOPE.COLLECTION; without a scope it is _default
        path: String,
        /// Longest life of a document, in seconds, 0 for no limit [default: the bucket's]
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
        max_ttl: Option<u32>,
    },
    /// List the collections with ids, documents and bytes
    List,
    /// Drop a collection, or a scope with its collections
    Drop {
        /// SCOPE.COLLECTION or SCOPE
        path: String,
    },
}
