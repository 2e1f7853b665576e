//! The state of one connection: who it is, which bucket it uses, what it negotiated.
//!
//! Invariants
//! - Without an identity only the opcodes that need none are executed.
//! - Authentication selects no bucket. On an open node a connection starts in the open bucket; a client that knows
//!   SELECT_BUCKET (it says so in HELLO) leaves it and chooses for itself.
//! - A connection whose bucket is emptied stays in it; one whose bucket is deleted has none from its next request on.
//! - A [`SessionView`] says all that another core may need, and is as it was when its request was accepted.
//!
//! Cost: a few hundred bytes a connection.
//!
//! Does not know: sockets, what its requests do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use ringbase_storage::env::Env;
use ringbase_storage::types::BucketId;

use super::catalog::Catalog;
use crate::auth::{Identity, Role, SaslServer};
use crate::bucket::BucketSet;
use crate::protocol::extras::ConfigVersion;
use crate::protocol::frame::FrameLimits;
use crate::protocol::hello::Agent;
use crate::protocol::{ConnectionState, Feature, Features, Manifest};
pub use crate::range_scan::ConnectionId;

/// What travels of a session with each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    /// Whose request it is.
    pub connection: ConnectionId,
    /// What HELLO granted.
    pub features: Features,
    /// The selected bucket.
    pub bucket: Option<BucketId>,
    /// What its user may do; none before authentication.
    pub role: Option<Role>,
    /// Whether it has been sent the current cluster map.
    pub knows_map: bool,
}

impl SessionView {
    /// What validation must know.
    #[must_use]
    #[inline]
    pub fn connection_state(&self) -> ConnectionState {
        ConnectionState {
            authenticated: self.role.is_some(),
            features: self.features,
            config_only_bucket: false,
        }
    }
}

/// How a connection came to its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Selection {
    None,
    /// The open bucket, at the beginning.
    Given(BucketId),
    /// By SELECT_BUCKET.
    Chosen(BucketId),
}

/// The user of a connection that needs no authentication.
const OPEN_USER: &str = "local";

/// See the module.
#[derive(Debug)]
pub struct Session {
    pub(super) shared: Rc<Shared>,
    id: ConnectionId,
    identity: Option<Identity>,
    selection: Selection,
    pub(super) features: Features,
    pub(super) agent: Agent,
    pub(super) sasl: SaslServer,
    /// The version of the map last sent for the current selection.
    pub(super) map_sent: Option<ConfigVersion>,
    /// Changes of the catalog that it has followed.
    followed: u64,
    map_version: ConfigVersion,
    /// The collections of the selected bucket; of none: those of a new one.
    manifest: Arc<Manifest>,
    is_emptying: bool,
    is_dcp: bool,
}

/// What the sessions of a core share.
pub struct Shared {
    catalog: RefCell<Rc<Catalog>>,
    /// Changes of the catalog.
    changes: Cell<u64>,
    vbucket_count: u16,
    /// The core.
    pub env: Env,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({} buckets)", self.catalog.borrow().buckets().len())
    }
}

impl Shared {
    /// What the sessions of a core share.
    #[must_use]
    pub fn new(catalog: Catalog, env: Env) -> Rc<Shared> {
        let vbucket_count = catalog.vbucket_count();
        let catalog = RefCell::new(Rc::new(catalog));
        Rc::new(Shared { catalog, changes: Cell::new(0), vbucket_count, env })
    }

    /// The node as it is now.
    #[must_use]
    pub fn catalog(&self) -> Rc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// The buckets of the node have changed: every session follows with its next request.
    pub fn set_buckets(&self, set: Arc<BucketSet>) {
        let catalog = self.catalog().with(set);
        self.catalog.replace(Rc::new(catalog));
        self.changes.set(self.changes.get() + 1);
    }

    /// Vbuckets of every bucket.
    #[must_use]
    #[inline]
    pub fn vbucket_count(&self) -> u16 {
        self.vbucket_count
    }
}

impl Session {
    /// A connection that has said nothing yet.
    #[must_use]
    pub fn new(shared: Rc<Shared>, id: ConnectionId) -> Session {
        let catalog = shared.catalog();
        let identity = catalog.is_open().then(|| Identity { user: OPEN_USER.to_owned(), role: Role::Admin });
        let mut session = Session {
            followed: shared.changes.get(),
            map_version: catalog.map_version(),
            manifest: Arc::new(Manifest::epoch()),
            is_emptying: false,
            is_dcp: false,
            shared,
            id,
            identity,
            selection: catalog.open_bucket().map_or(Selection::None, Selection::Given),
            features: Features::NONE,
            agent: Agent::default(),
            sasl: SaslServer::new(),
            map_sent: None,
        };
        session.follow(&catalog);
        session
    }

    /// Takes note of what has become of the selected bucket since the last request.
    #[inline]
    pub(super) fn follow_buckets(&mut self) {
        if self.followed != self.shared.changes.get() {
            let catalog = self.shared.catalog();
            self.follow(&catalog);
        }
    }

    #[cold]
    fn follow(&mut self, catalog: &Catalog) {
        self.followed = self.shared.changes.get();
        self.map_version = catalog.map_version();
        let set = catalog.set();
        let current = |id| set.current(id);
        self.selection = match self.selection {
            Selection::None => Selection::None,
            Selection::Given(id) => current(id).map_or(Selection::None, Selection::Given),
            Selection::Chosen(id) => current(id).map_or(Selection::None, Selection::Chosen),
        };
        self.is_emptying = set.emptying.is_some() && set.emptying == self.bucket();
        if let Some(bucket) = self.bucket().and_then(|id| catalog.bucket(id)) {
            self.manifest = bucket.manifest.clone();
        }
    }

    /// The collections of the selected bucket.
    #[must_use]
    #[inline]
    pub(super) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Whether the selected bucket is being emptied: it takes no requests for a moment.
    #[must_use]
    #[inline]
    pub(super) fn is_emptying(&self) -> bool {
        self.is_emptying
    }

    /// What its requests carry to other cores.
    #[must_use]
    #[inline]
    pub fn view(&self) -> SessionView {
        SessionView {
            connection: self.id,
            features: self.features,
            bucket: self.bucket(),
            role: self.identity.as_ref().map(|identity| identity.role),
            knows_map: self.knows_map(),
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Its user, once there is one.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// It has become a DCP connection: it stays with its user and its bucket, and datatypes tell of JSON.
    pub fn begin_dcp(&mut self) {
        self.is_dcp = true;
        self.features = self.features.with(Feature::Json);
    }

    /// Whether it is a DCP connection.
    #[must_use]
    pub(super) fn is_dcp(&self) -> bool {
        self.is_dcp
    }

    /// What its client calls itself.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// What HELLO granted.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether a user has authenticated, or none needs to.
    #[must_use]
    #[inline]
    pub fn is_authenticated(&self) -> bool {
        self.identity.is_some()
    }

    /// How large its next frame may be.
    #[must_use]
    #[inline]
    pub fn frame_limits(&self) -> FrameLimits {
        if self.is_authenticated() { FrameLimits::AUTHENTICATED } else { FrameLimits::UNAUTHENTICATED }
    }

    /// The selected bucket.
    #[must_use]
    #[inline]
    pub fn bucket(&self) -> Option<BucketId> {
        match self.selection {
            Selection::None => None,
            Selection::Given(bucket) | Selection::Chosen(bucket) => Some(bucket),
        }
    }

    /// Whether the current cluster map has been sent for the selected bucket.
    #[must_use]
    #[inline]
    pub(super) fn knows_map(&self) -> bool {
        self.map_sent == Some(self.map_version)
    }

    pub(super) fn set_identity(&mut self, identity: Option<Identity>) {
        self.identity = identity;
    }

    /// Selects a bucket, or none.
    pub(super) fn select(&mut self, bucket: Option<BucketId>) {
        self.selection = bucket.map_or(Selection::None, Selection::Chosen);
        self.map_sent = None;
        let catalog = self.shared.catalog();
        self.follow(&catalog);
    }

    /// Leaves the bucket that it did not choose.
    pub(super) fn leave_given_bucket(&mut self) {
        if let Selection::Given(_) = self.selection {
            self.select(None);
        }
    }
}
