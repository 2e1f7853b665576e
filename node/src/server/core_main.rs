//! The life of one core: open the shards, serve, end the connections, close the shards.
//!
//! Invariants
//! - Every report is sent once, in the order of the life; `Failed` may replace any of them.
//!
//! Does not know: the other cores.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ringbase_storage::cache::BlockCache;
use ringbase_storage::causes::whole;
use ringbase_storage::env::Env;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::Device;
use ringbase_storage::io::device::{OpenOptions, RingDevice, sync_directory};
use ringbase_storage::io::ring::{Ring, RingConfig, RingFacts};
use ringbase_storage::shard::{FormatOptions, RecoveryReport, ScrubOptions, Shard, ShardOptions, format};
use ringbase_storage::types::{BucketId, ShardId};

use super::{Orders, Step};
use crate::bucket::{Engine, SharedBuckets};
use crate::config::Config;
use crate::core::doorbell::DoorbellWaiter;
use crate::core::event::Event;
use crate::core::ring_host::HostedRing;
use crate::core::socket::BoundSocket;
use crate::core::{CoreId, host};
use crate::net::{Admission, Net, NetSettings, mgmt};
use crate::range_scan::{self, RangeScanConfig};
use crate::service::{CoreMail, CoreParts, CoreService};

/// Time that connections have for their last bytes when the node stops.
const GRACE: Duration = Duration::from_secs(5);

/// The buffers of streams may hold one part of so many of a core's memory.
const STREAM_SHARE: usize = 16;

/// A shard of this core.
pub(super) struct ShardPlan {
    pub(super) id: ShardId,
    pub(super) path: PathBuf,
}

/// What a core is to do.
pub(super) struct CorePlan {
    pub(super) core: CoreId,
    pub(super) cores: usize,
    pub(super) shards: Vec<ShardPlan>,
    pub(super) shard_count: u16,
    pub(super) fresh: bool,
    pub(super) bucket_uuid: u128,
    pub(super) hosts: Vec<CoreId>,
    pub(super) config: Config,
    pub(super) listener: BoundSocket,
    pub(super) management: Option<BoundSocket>,
    pub(super) mail: CoreMail,
    pub(super) admission: Arc<Admission>,
    pub(super) orders: Arc<Orders>,
    /// What the cores may look at of each other's buckets.
    pub(super) shared: SharedBuckets,
}

/// The shards of a core are open.
pub(super) struct Ready {
    pub(super) ring: RingFacts,
    /// What shard 0 says, if this core hosts it.
    pub(super) buckets: Option<Vec<BucketDesc>>,
    pub(super) vbuckets: u16,
    pub(super) reports: Vec<RecoveryReport>,
}

/// What a core tells the main thread.
pub(super) enum CoreReport {
    Ready(Ready),
    Serving,
    ConnectionsEnded,
    Failed(String),
}

pub(super) async fn run_core(plan: CorePlan, tell: impl Fn(CoreReport)) {
    if let Err(text) = live(plan, &tell).await {
        tell(CoreReport::Failed(text));
    }
}

async fn live(plan: CorePlan, tell: &impl Fn(CoreReport)) -> Result<(), String> {
    let env = host::env();
    let waiter = plan.orders.bell.waiter().map_err(|error| whole(&error))?;
    let hosted = HostedRing::start(&RingConfig::default()).map_err(|error| whole(&error))?;
    let ring = hosted.ring().clone();
    let facts = ring.facts().clone();
    if let Some(why) = &facts.unregistered_because {
        tracing::warn!(core = plan.core.0, %why, "the storage ring runs without registered memory");
    }
    let (shards, reports) = open_shards(&plan, &env, &ring).await?;
    let document_bytes = plan.config.memory_bytes / 5 * 2;
    let engine = Engine::new(env.clone(), shards.clone(), document_bytes).map_err(|error| whole(&error))?;
    let engine = engine.sharing(plan.shared.clone());
    tell(CoreReport::Ready(Ready {
        ring: facts,
        buckets: engine.authority().map(Shard::buckets),
        vbuckets: engine.vbucket_count(),
        reports,
    }));
    wait_for(&waiter, &plan.orders, Step::Serve).await;
    let catalog = plan.orders.catalog.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(catalog) = catalog else {
        // The node stops before it served.
        return close_shards(&shards, hosted).await;
    };

    engine.reconcile(catalog.set()).await.map_err(|error| whole(&error))?;
    engine.publish(catalog.set()).map_err(|error| whole(&error))?;
    engine.bring_events_into_line().await;

    let config = &plan.config;
    let parts = CoreParts {
        core: plan.core,
        env: env.clone(),
        engine,
        ring,
        hosts: plan.hosts.clone(),
        catalog,
        scans: RangeScanConfig {
            scans_max: range_scan::scans_max(config.memory_bytes),
            max_lifetime: config.scan_lifetime,
            send_size: config.send_size,
            readers_max: 0,
        },
        stream_bytes_max: config.memory_bytes as usize / plan.cores / STREAM_SHARE,
        direct_reads: config.direct_reads,
    };
    let service = CoreService::start(parts, plan.mail).map_err(|error| whole(&error))?;
    let settings = NetSettings { handshake_timeout: config.handshake, ..NetSettings::default() };
    let net = Net::start(plan.core, plan.listener, service.clone(), settings, plan.admission.clone());
    let net = net.map_err(|error| whole(&error))?;
    let stop_management = Rc::new(Event::new());
    if let Some(management) = plan.management {
        mgmt::start(management, stop_management.clone()).map_err(|error| whole(&error))?;
    }
    tell(CoreReport::Serving);

    wait_for(&waiter, &plan.orders, Step::EndConnections).await;
    stop_management.notify();
    net.stop_accepting().await;
    service.cancel_scans();
    net.close_all(GRACE).await;
    tell(CoreReport::ConnectionsEnded);

    wait_for(&waiter, &plan.orders, Step::Close).await;
    service.close_mail();
    close_shards(&shards, hosted).await
}

async fn wait_for(waiter: &DoorbellWaiter, orders: &Orders, step: Step) {
    while orders.step() < step {
        waiter.wait().await;
    }
}

async fn close_shards(shards: &[Shard], hosted: HostedRing) -> Result<(), String> {
    let mut result = Ok(());
    for shard in shards {
        result = result.and(shard.close().await.map_err(|reason| reason.to_string()));
        shard.detach();
    }
    hosted.stop();
    result
}

async fn open_shards(
    plan: &CorePlan,
    env: &Env,
    ring: &Rc<Ring>,
) -> Result<(Vec<Shard>, Vec<RecoveryReport>), String> {
    let config = &plan.config;
    let core_memory = config.memory_bytes as usize / plan.cores;
    let shard_memory = core_memory / plan.shards.len().max(1);
    let options = ShardOptions {
        resident_bytes_max: shard_memory / 5 * 2,
        memtable_bytes_max: shard_memory / 5,
        scrub: ScrubOptions {
            period_seconds: config.scrub_period.as_secs(),
            bytes_per_second: config.scrub_rate,
        },
        ..ShardOptions::default()
    };
    let cache = BlockCache::new(core_memory - core_memory / 5 * 2);
    let (mut shards, mut reports) = (Vec::new(), Vec::new());
    for planned in &plan.shards {
        let open = |name: &str| -> Result<Rc<dyn Device>, String> {
            let options = OpenOptions { create: plan.fresh, create_new: plan.fresh, len_bytes_min: 0 };
            let device = RingDevice::open(ring, &planned.path.join(name), &options);
            Ok(Rc::new(device.map_err(|error| whole(&error))?))
        };
        let (wal, data) = (open("wal")?, open("data")?);
        if plan.fresh {
            let geometry = Geometry {
                shard: planned.id,
                shard_count: plan.shard_count,
                vbucket_count: config.vbuckets,
                wal_segments: config.wal_segments,
                wal_segment_bytes: config.wal_segment_bytes,
            };
            let format_options = FormatOptions { geometry, grow_bytes: options.grow_bytes };
            format(env, &wal, &data, format_options).await.map_err(|error| whole(&error))?;
            sync_directory(&planned.path).map_err(|error| whole(&error))?;
        }
        let opened = Shard::open(env.clone(), wal, data, cache.clone(), options).await;
        let (shard, report) =
            opened.map_err(|error| format!("{}: {}", planned.path.display(), whole(&error)))?;
        if let Some(repaired) = &report.repaired {
            tracing::warn!(shard = planned.id.0, %repaired, "a damaged superblock slot was repaired from the other");
        }
        if plan.fresh {
            let bucket = BucketDesc {
                id: BucketId(1),
                uuid: plan.bucket_uuid,
                name: config.bucket.clone(),
                config: String::new(),
            };
            shard.create_bucket(bucket).await.map_err(|error| whole(&error))?;
        }
        shards.push(shard);
        reports.push(report);
    }
    Ok((shards, reports))
}
