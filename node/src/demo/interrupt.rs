//! Ctrl-C during the demonstration: the node and the scratch directory go before the process does.
//!
//! Invariants
//! - A process id is forgotten before it is waited for, so no other process is ever killed.
//!
//! Does not know: what the demonstration is doing.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What must not outlive the demonstration.
#[derive(Debug, Default)]
struct Belongings {
    node: Option<Pid>,
    scratch: Option<PathBuf>,
}

/// What is cleaned up on SIGINT and SIGTERM.
#[derive(Debug, Clone)]
pub(super) struct Interrupt {
    belongings: Arc<Mutex<Belongings>>,
}

impl Interrupt {
    /// Listens from now on.
    pub(super) fn listen() -> io::Result<Interrupt> {
        let interrupt = Interrupt { belongings: Arc::default() };
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let listening = interrupt.clone();
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                listening.clean_up();
                std::process::exit(128 + signal);
            }
        });
        Ok(interrupt)
    }

    fn lock(&self) -> MutexGuard<'_, Belongings> {
        self.belongings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node that runs now; `None` before it is waited for.
    pub(super) fn set_node(&self, node: Option<Pid>) {
        self.lock().node = node;
    }

    /// The directory to remove.
    pub(super) fn set_scratch(&self, scratch: Option<PathBuf>) {
        self.lock().scratch = scratch;
    }

    fn clean_up(&self) {
        let belongings = self.lock();
        if let Some(node) = belongings.node {
            let _ = kill_process(node, Signal::KILL);
        }
        if let Some(scratch) = &belongings.scratch {
            let _ = std::fs::remove_dir_all(scratch);
            eprintln!("\ninterrupted; {} is removed", scratch.display());
        }
    }
}
