//! Starting and stopping a node.
//!
//! The main thread takes the directory and the ports, starts one thread a core, tells them the catalog when all have their shards open, prints
//! the ready line, and waits for a signal. Stopping goes in two steps: first every core ends its connections, because answers may still come
//! from other cores; then every core makes its shards durable and ends.
//!
//! Invariants
//! - Nothing is accepted before every shard is open. Everything acknowledged is durable when [`serve`] returns `Ok`.
//! - The directory is locked as long as a core runs.
//!
//! Does not know: opcodes, formats, what a core executes.

mod core_main;

use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ringbase_storage::shard::RecoveryReport;
use ringbase_storage::types::ShardId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::auth::Users;
use crate::auth::users::{UsersError, os_random};
use crate::bucket::{BucketSet, SharedBuckets};
use crate::check::preflight;
use crate::command::{Catalog, CatalogOptions};
use crate::config::{Config, ConfigError};
use crate::core::doorbell::Doorbell;
use crate::core::socket::{BindError, bind_all};
use crate::core::{CoreId, CoreSettings, CoreThread, StartError, executor};
use crate::directory::{DataDirectory, DirectoryError};
use crate::net::Admission;
use crate::protocol::cluster_map::NodePorts;
use crate::protocol::extras::ConfigVersion;
use crate::service::core_mail;
use core_main::{CorePlan, CoreReport, Ready, ShardPlan, run_core};

/// What VERSION answers: a version that clients know how to read, then ours.
const VERSION: &str = concat!("7.6.0-ringbase-", env!("CARGO_PKG_VERSION"));

/// Stack and slack for clients that have connected but not authenticated.
const UNAUTHENTICATED_MAX: usize = 1000;

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A core.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel, or a limit of this process.
    #[error("this machine does not let a node run: {0}; `ringbase check` tells more")]
    Machine(String),
    /// The users file.
    #[error("cannot use the users file")]
    Users(#[source] Box<UsersError>),
    /// The operating system.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A core could not open its shards, or not make them durable.
    #[error("core {core}: {text}")]
    Core {
        /// Which.
        core: CoreId,
        /// What it said, causes included.
        text: String,
    },
}

/// What the ready line says.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ReadyLine {
    /// Address of the protocol.
    pub listen: SocketAddr,
    /// Address of the management port.
    pub mgmt_listen: SocketAddr,
    /// Cores in use.
    pub cores: usize,
    /// Shards of the directory.
    pub shards: u16,
    /// Vbuckets of a bucket.
    pub vbuckets: u16,
    /// Whether the last stop was clean; `None` for a new directory.
    pub clean: Option<bool>,
    /// Records replayed from the logs.
    pub recovered_records: u64,
    /// Milliseconds from start to ready.
    pub started_in_ms: u64,
    /// Bytes of DMA memory that the kernel has registered, all cores.
    pub registered_bytes: usize,
    /// Why something is not registered, if so.
    pub unregistered_because: Option<String>,
    /// Whether clients need no authentication.
    pub open: bool,
}

impl std::fmt::Display for ReadyLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ReadyLine { listen, mgmt_listen, cores, shards, vbuckets, .. } = self;
        let history = match self.clean {
            None => "new".to_owned(),
            Some(true) => "clean start".to_owned(),
            Some(false) => format!("recovered {} records", self.recovered_records),
        };
        let registered = match &self.unregistered_because {
            None => format!("{} MiB registered", self.registered_bytes >> 20),
            Some(why) => format!("{} MiB registered ({why})", self.registered_bytes >> 20),
        };
        write!(
            f,
            "ringbase ready on {listen} (management {mgmt_listen}): {cores} cores, {shards} shards, {vbuckets} vbuckets, \
             {history} in {} ms, ring buffers {registered}",
            self.started_in_ms
        )
    }
}

/// What the main thread tells a core.
struct Orders {
    bell: Doorbell,
    catalog: Mutex<Option<Arc<Catalog>>>,
    step: Mutex<Step>,
}

/// How far a core may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Open,
    Serve,
    EndConnections,
    Close,
}

impl Orders {
    fn go(&self, step: Step) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
        self.bell.ring();
    }

    fn step(&self) -> Step {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Event {
    Core(CoreId, Box<CoreReport>),
    Signal(i32),
}

/// Reports for a core; also that its thread ended without having come to its end, or never ran.
struct Watch {
    core: CoreId,
    events: mpsc::Sender<Event>,
    ended: bool,
}

impl Watch {
    fn tell(&self, what: CoreReport) {
        // Fails only when the main thread no longer listens.
        let _ = self.events.send(Event::Core(self.core, Box::new(what)));
    }

    /// The core came to its end.
    fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(CoreReport::Failed("its thread ended early".into()));
        }
    }
}

/// Runs a node until SIGTERM or SIGINT. `ready` is called once it serves.
///
/// # Errors
/// What keeps it from starting, or from stopping cleanly.
pub fn serve(config: &Config, ready: impl FnOnce(&ReadyLine)) -> Result<(), ServeError> {
    let started = std::time::Instant::now();
    preflight().map_err(ServeError::Machine)?;
    let users = match &config.users {
        Some(path) => Users::load(path).map_err(|error| ServeError::Users(Box::new(error)))?,
        None => Users::development(&mut os_random),
    };
    let mut directory = DataDirectory::open(&config.data)?;
    let fresh = directory.shards() == 0;
    let cpus = executor::cpus_allowed()
        .map_err(|source| ServeError::System { what: "read the CPU mask", source })?;
    let cores = core_count(config, &directory, cpus.len())?;
    let listeners = bind_all(config.listen, cores)?;
    let listen = listeners.first().map_or(config.listen, |bound| bound.address());
    let mut management = bind_all(config.mgmt_listen, 1)?;
    let mgmt_listen = management.first().map_or(config.mgmt_listen, |bound| bound.address());
    if fresh {
        directory.begin_format(config.shards.unwrap_or(cores as u16))?;
    }
    let shards = directory.shards();
    let hosts: Vec<CoreId> = (0..shards).map(|shard| CoreId(shard % cores as u16)).collect();

    let (events, inbox) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|source| ServeError::System { what: "listen to signals", source })?;
    let signal_events = events.clone();
    let signals_handle = signals.handle();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal_events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });

    let admission = Admission::new(config.max_connections as usize, UNAUTHENTICATED_MAX);
    let settings = CoreSettings { spin_before_park: config.spin, ..CoreSettings::default() };
    let bucket_uuid = uuid::Uuid::new_v4().as_u128();
    let mut running: Vec<(CoreThread<()>, Arc<Orders>)> = Vec::new();
    let mails = core_mail(cores).map_err(|source| ServeError::System { what: "make an eventfd", source })?;
    let shared = SharedBuckets::default();
    for ((index, listener), mail) in (0..cores).zip(listeners).zip(mails) {
        let core = CoreId(index as u16);
        let bell =
            Doorbell::new().map_err(|source| ServeError::System { what: "make an eventfd", source })?;
        let orders = Arc::new(Orders { bell, catalog: Mutex::new(None), step: Mutex::new(Step::Open) });
        let plan = CorePlan {
            core,
            cores,
            shards: hosts
                .iter()
                .zip(0u16..)
                .filter(|(host, _)| **host == core)
                .map(|(_, shard)| ShardPlan { id: ShardId(shard), path: directory.shard_path(shard) })
                .collect(),
            shard_count: shards,
            fresh,
            bucket_uuid,
            hosts: hosts.clone(),
            config: config.clone(),
            listener,
            management: if index == 0 { management.pop() } else { None },
            mail,
            admission: admission.clone(),
            orders: orders.clone(),
            shared: shared.clone(),
        };
        let watch = Watch { core, events: events.clone(), ended: false };
        let thread = executor::start(core, cpus[index], &settings, move || async move {
            run_core(plan, |what| watch.tell(what)).await;
            watch.end();
        })?;
        running.push((thread, orders));
    }
    drop(events);
    let node = Node { running, inbox, started, listen, mgmt_listen, shards, fresh };
    let result = node.run(config, users, &directory, ready);
    signals_handle.close();
    result
}

fn core_count(config: &Config, directory: &DataDirectory, cpus: usize) -> Result<usize, ServeError> {
    let wanted = config.cores.map_or(cpus, usize::from);
    let refuse = |key, text: String| ServeError::Config(ConfigError::Value { key, text });
    if wanted > cpus {
        return Err(refuse("cores", format!("{wanted} cores, but this process may run on {cpus} CPUs only")));
    }
    let shards = directory.shards();
    if shards > 0 && config.shards.is_some_and(|asked| asked != shards) {
        return Err(refuse("shards", format!("the directory was formatted with {shards} shards")));
    }
    let shards = if shards > 0 { shards } else { config.shards.unwrap_or(wanted as u16) };
    Ok(wanted.min(usize::from(shards)).min(usize::from(config.vbuckets)))
}

struct Node {
    running: Vec<(CoreThread<()>, Arc<Orders>)>,
    inbox: mpsc::Receiver<Event>,
    started: std::time::Instant,
    listen: SocketAddr,
    mgmt_listen: SocketAddr,
    shards: u16,
    fresh: bool,
}

impl Node {
    fn run(
        self,
        config: &Config,
        users: Users,
        directory: &DataDirectory,
        ready: impl FnOnce(&ReadyLine),
    ) -> Result<(), ServeError> {
        let mut result = self.open(config, users, directory).map(|line| ready(&line));
        if result.is_ok() {
            result = self.until_signal();
        }
        // Whatever happened, the cores are taken down in order.
        for step in [Step::EndConnections, Step::Close] {
            for (_, orders) in &self.running {
                orders.go(step);
            }
            if step == Step::EndConnections && result.is_ok() {
                result = self.wait_for_all(|report| matches!(report, CoreReport::ConnectionsEnded));
            }
        }
        let Node { running, inbox, .. } = self;
        for (thread, _) in running {
            // What ended a thread says more than that it ended.
            if let Err(error) = thread.join() {
                result = Err(error.into());
            }
        }
        for event in inbox.try_iter() {
            if let Event::Core(core, report) = event
                && let CoreReport::Failed(text) = *report
            {
                result = result.and(Err(ServeError::Core { core, text }));
            }
        }
        result
    }

    fn open(
        &self,
        config: &Config,
        users: Users,
        directory: &DataDirectory,
    ) -> Result<ReadyLine, ServeError> {
        let mut opened: Vec<Ready> = Vec::new();
        while opened.len() < self.running.len() {
            match self.next_event()? {
                Event::Core(_, report) => match *report {
                    CoreReport::Ready(ready) => opened.push(ready),
                    CoreReport::Serving | CoreReport::ConnectionsEnded | CoreReport::Failed(_) => {}
                },
                Event::Signal(_) => return Err(ServeError::System { what: "start", source: interrupted() }),
            }
        }
        if self.fresh {
            directory.end_format()?;
        }
        let buckets = opened.iter().find_map(|ready| ready.buckets.clone()).unwrap_or_default();
        let vbuckets = opened.first().map_or(0, |ready| ready.vbuckets);
        if config.vbuckets_given && config.vbuckets != vbuckets {
            let text = format!("the directory was formatted with {vbuckets} vbuckets");
            return Err(ConfigError::Value { key: "vbuckets", text }.into());
        }
        let open = config.users.is_none();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let options = CatalogOptions {
            vbucket_count: vbuckets,
            ports: NodePorts { kv: self.listen.port(), mgmt: Some(self.mgmt_listen.port()) },
            map_version: ConfigVersion { epoch: 1, rev: now.as_secs() as i64 },
            users,
            open_bucket: open.then(|| {
                let named = buckets.iter().find(|bucket| bucket.name == config.bucket);
                named.or(buckets.first()).map_or_else(|| config.bucket.clone(), |bucket| bucket.name.clone())
            }),
            version: VERSION.to_owned(),
            started_at: now.as_secs() as u32,
        };
        let catalog = Arc::new(Catalog::new(Arc::new(BucketSet::new(buckets)), options));
        for (_, orders) in &self.running {
            *orders.catalog.lock().unwrap_or_else(PoisonError::into_inner) = Some(catalog.clone());
            orders.go(Step::Serve);
        }
        self.wait_for_all(|report| matches!(report, CoreReport::Serving))?;
        let reports = || opened.iter().flat_map(|ready| &ready.reports);
        Ok(ReadyLine {
            listen: self.listen,
            mgmt_listen: self.mgmt_listen,
            cores: self.running.len(),
            shards: self.shards,
            vbuckets,
            clean: (!self.fresh).then(|| reports().all(|report: &RecoveryReport| report.clean)),
            recovered_records: reports().map(|report| report.records).sum(),
            started_in_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            registered_bytes: opened.iter().map(|ready| ready.ring.registered_buffer_bytes).sum(),
            unregistered_because: opened.iter().find_map(|ready| ready.ring.unregistered_because.clone()),
            open,
        })
    }

    fn until_signal(&self) -> Result<(), ServeError> {
        loop {
            match self.next_event()? {
                Event::Signal(signal) => {
                    tracing::info!(signal, "stopping");
                    return Ok(());
                }
                Event::Core(..) => {}
            }
        }
    }

    fn wait_for_all(&self, wanted: impl Fn(&CoreReport) -> bool) -> Result<(), ServeError> {
        let mut count = 0;
        while count < self.running.len() {
            if let Event::Core(_, report) = self.next_event()? {
                count += usize::from(wanted(&report));
            }
        }
        Ok(())
    }

    /// The next event; a core that has failed is an error.
    fn next_event(&self) -> Result<Event, ServeError> {
        match self.inbox.recv() {
            Ok(Event::Core(core, report)) => match *report {
                CoreReport::Failed(text) => Err(ServeError::Core { core, text }),
                other => Ok(Event::Core(core, Box::new(other))),
            },
            Ok(event) => Ok(event),
            Err(_) => Err(ServeError::System { what: "hear from any core", source: interrupted() }),
        }
    }
}

fn interrupted() -> std::io::Error {
    std::io::ErrorKind::Interrupted.into()
}
