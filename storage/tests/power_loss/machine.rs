//! A store on a mounted file system: the kernel's ring, O_DIRECT files, one shard; and its client.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::cache::BlockCache;
use ringbase_storage::causes::whole;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::Device;
use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{OpenOptions, RingDevice};
use ringbase_storage::io::ring::RingConfig;
use ringbase_storage::shard::{FormatOptions, Shard, format};
use ringbase_storage::types::ShardId;

use crate::daemon::SharedDisk;
use crate::tolerant::{Met, get, reported_by_id, scan, wait_persisted, write};
use crate::world::{Model, OPTIONS, VBUCKETS, VbModel, default_bucket};

/// Keys of a vbucket.
const KEYS: u32 = 30;

type Devices = (Rc<dyn Device>, Rc<dyn Device>);

fn open_files(host: &BlockingHost, directory: &Path, create: bool) -> Result<Devices, String> {
    let open = |name: &str| {
        let options = OpenOptions { create, ..OpenOptions::default() };
        let device = RingDevice::open(host.ring(), &directory.join(name), &options);
        device.map(|device| Rc::new(device) as Rc<dyn Device>).map_err(|error| whole(&error))
    };
    Ok((open("wal")?, open("data")?))
}

/// A process with a store.
pub(crate) struct Machine {
    pub(crate) shard: Shard,
    pub(crate) host: BlockingHost,
}

impl Machine {
    /// Makes a store with one bucket.
    pub(crate) fn format(directory: &Path) {
        let host = BlockingHost::new(&RingConfig::default()).expect("this kernel has io_uring");
        let (wal, data) = open_files(&host, directory, true).expect("there is a file system");
        let geometry = Geometry {
            shard: ShardId(0),
            shard_count: 1,
            vbucket_count: VBUCKETS,
            wal_segments: 4,
            wal_segment_bytes: 64 << 10,
        };
        let options = FormatOptions { geometry, grow_bytes: OPTIONS.grow_bytes };
        host.block_on(format(&host.env(), &wal, &data, options)).expect("nothing fails");
        let machine = Machine::start_with(host, wal, data).expect("nothing fails");
        machine.host.block_on(async {
            machine.shard.create_bucket(default_bucket()).await.expect("nothing fails");
            machine.shard.close().await.expect("nothing fails");
        });
    }

    /// Starts on what is there; says why it cannot.
    pub(crate) fn start(directory: &Path) -> Result<Machine, String> {
        let host = BlockingHost::new(&RingConfig::default()).expect("this kernel has io_uring");
        let (wal, data) = open_files(&host, directory, false)?;
        Machine::start_with(host, wal, data)
    }

    fn start_with(host: BlockingHost, wal: Rc<dyn Device>, data: Rc<dyn Device>) -> Result<Machine, String> {
        let open = Shard::open(host.env(), wal, data, BlockCache::new(128 << 10), OPTIONS);
        let (shard, _) = host.block_on(open).map_err(|error| whole(&error))?;
        Ok(Machine { shard, host })
    }

    /// Random operations, any of which may fail; the disk is told after each what has been promised.
    pub(crate) fn run_client(
        &self,
        model: &Model,
        disk: &SharedDisk,
        random: &mut Xoshiro256PlusPlus,
        operations: u32,
        met: &mut Met,
    ) {
        self.host.block_on(async {
            for _ in 0..operations {
                self.operate(model, random, met).await;
                let reported = reported_by_id(&self.shard);
                disk.lock().reported = reported;
            }
        });
    }

    async fn operate(&self, model: &Model, random: &mut Xoshiro256PlusPlus, met: &mut Met) {
        let stores = self.shard.vbuckets();
        let store = &stores[random.random_range(0..stores.len())];
        let key = format!("\0key{:02}", random.random_range(0..KEYS));
        match random.random_range(0..100) {
            0..62 => {
                let len = [20, 400, 4000][random.random_range(0..3)];
                let value = vec![random.random::<u8>(); random.random_range(0..len)];
                let value = random.random_bool(0.85).then_some(&value[..]);
                write(store, model, key.as_bytes(), value, met).await;
            }
            62..68 => drop(get(store, model, key.as_bytes(), met).await),
            68..84 => wait_persisted(&self.shard, store, met).await,
            84..88 => {
                if let Ok(view) = store.open_view().await {
                    let known = model.borrow()[store.id().0 as usize].clone();
                    scan(&view, &known, met).await;
                }
            }
            88..92 => drop(self.shard.flush().await),
            92..94 => self.shard.compact().await,
            _ => store.sleep(Duration::from_millis(1)).await,
        }
    }

    /// Reads everything in every way; an error is no violation, a wrong answer is one.
    pub(crate) fn read_all(&self, model: &Model, met: &mut Met) {
        self.host.block_on(async {
            for store in self.shard.vbuckets() {
                for n in 0..KEYS {
                    get(&store, model, format!("\0key{n:02}").as_bytes(), met).await;
                }
                if let Ok(view) = store.open_view().await {
                    let known = model.borrow()[store.id().0 as usize].clone();
                    scan(&view, &known, met).await;
                }
            }
            self.shard.compact().await;
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shard.detach();
    }
}

/// A model of its own, as `known` says.
pub(crate) fn model_of(known: &[VbModel]) -> Model {
    Rc::new(RefCell::new(known.to_vec()))
}
