//! The tasks of a single-threaded host: futures, their wakers and the list of those that are ready.
//!
//! The order in which ready tasks are polled is the host's: the simulator draws, the blocking host takes the first.
//!
//! Invariants
//! - A task is in the ready list at most once; a waker of an ended task does nothing to its successor in the slot.
//! - No borrow is held while a task is polled or dropped.
//!
//! Cost: one allocation for a task and one for its waker; some 50 ns a wake-up.
//!
//! Does not know: time, devices.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::ThreadId;

use super::LocalFuture;

/// Slot number of futures that are polled by the host itself, not by [`Tasks::poll`].
const HOST_SLOT: u32 = u32::MAX;

/// One task, or one future that the host polls itself. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId {
    slot: u32,
    generation: u32,
}

impl TaskId {
    /// A number for traces.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn number(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.generation)
    }
}

/// Wakers must be `Send`, hence the mutex; it is not contended unless another thread wakes.
struct Ready {
    list: Mutex<VecDeque<TaskId>>,
    home: ThreadId,
    /// Called after a wake-up by another thread, so that it can end the host's wait.
    on_foreign_wake: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Ready {
    fn list(&self) -> MutexGuard<'_, VecDeque<TaskId>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes one task.
pub(crate) struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl TaskWaker {
    /// The task it wakes.
    pub(crate) fn id(&self) -> TaskId {
        self.id
    }

    /// The task was taken off the ready list and is about to be polled: the next wake-up counts again.
    pub(crate) fn taken(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        self.ready.list().push_back(self.id);
        if let Some(on_foreign_wake) = &self.ready.on_foreign_wake
            && std::thread::current().id() != self.ready.home
        {
            on_foreign_wake();
        }
    }
}

struct Task {
    /// Absent while the task is being polled.
    future: Option<LocalFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

/// The tasks of one host.
pub(crate) struct Tasks {
    ready: Arc<Ready>,
    slots: RefCell<Vec<Option<Task>>>,
    free_slots: RefCell<Vec<u32>>,
    next_generation: Cell<u32>,
    closed: Cell<bool>,
}

impl Tasks {
    /// No tasks. `on_foreign_wake` is called when another thread wakes one.
    pub(crate) fn new(on_foreign_wake: Option<Box<dyn Fn() + Send + Sync>>) -> Tasks {
        let home = std::thread::current().id();
        Tasks {
            ready: Arc::new(Ready { list: Mutex::default(), home, on_foreign_wake }),
            slots: RefCell::default(),
            free_slots: RefCell::default(),
            next_generation: Cell::new(0),
            closed: Cell::new(false),
        }
    }

    fn waker(&self, slot: u32) -> Arc<TaskWaker> {
        let generation = self.next_generation.get();
        self.next_generation.set(generation.wrapping_add(1));
        let id = TaskId { slot, generation };
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) })
    }

    /// A waker for a future that the host polls itself when its id comes up.
    pub(crate) fn host_waker(&self) -> Arc<TaskWaker> {
        self.waker(HOST_SLOT)
    }

    /// Adds a task, ready to run. After [`Tasks::close`] the task is dropped.
    pub(crate) fn spawn(&self, future: LocalFuture<'static, ()>) {
        if self.closed.get() {
            return;
        }
        let free_slot = self.free_slots.borrow_mut().pop();
        let slot = free_slot.unwrap_or_else(|| {
            let mut slots = self.slots.borrow_mut();
            slots.push(None);
            u32::try_from(slots.len() - 1).expect("fewer than 2^32 tasks")
        });
        let waker = self.waker(slot);
        self.slots.borrow_mut()[slot as usize] =
            Some(Task { future: Some(future), waker: Arc::clone(&waker) });
        waker.wake();
    }

    /// How many tasks are ready.
    pub(crate) fn ready_count(&self) -> usize {
        self.ready.list().len()
    }

    /// Takes the task that has been ready longest.
    pub(crate) fn take_first(&self) -> Option<TaskId> {
        self.ready.list().pop_front()
    }

    /// Takes the ready task at `index`.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn take_at(&self, index: usize) -> Option<TaskId> {
        self.ready.list().swap_remove_back(index)
    }

    /// Polls a task once, if there still is such a task.
    pub(crate) fn poll(&self, id: TaskId) {
        let taken = match self.slots.borrow_mut().get_mut(id.slot as usize) {
            Some(Some(task)) if task.waker.id == id => {
                task.waker.taken();
                task.future.take().map(|future| (future, Arc::clone(&task.waker)))
            }
            Some(_) | None => None,
        };
        let Some((mut future, waker)) = taken else { return };
        let waker = Waker::from(waker);
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if self.closed.get() {
            return;
        }
        if ended {
            self.slots.borrow_mut()[id.slot as usize] = None;
            self.free_slots.borrow_mut().push(id.slot);
        } else if let Some(task) = &mut self.slots.borrow_mut()[id.slot as usize] {
            task.future = Some(future);
        }
    }

    /// Drops every task and takes no more.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let tasks = std::mem::take(&mut *self.slots.borrow_mut());
        drop(tasks);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn task_woken_twice_is_ready_once_and_again_after_it_was_polled() {
        let tasks = Tasks::new(None);
        let seen = Rc::new(RefCell::new(None::<Waker>));
        let polls = Rc::new(Cell::new(0));
        let (keep, count) = (Rc::clone(&seen), Rc::clone(&polls));
        tasks.spawn(Box::pin(std::future::poll_fn(move |context| {
            count.set(count.get() + 1);
            *keep.borrow_mut() = Some(context.waker().clone());
            std::task::Poll::Pending
        })));
        tasks.poll(tasks.take_first().unwrap());
        let waker = seen.borrow().clone().unwrap();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(tasks.ready_count(), 1);
        tasks.poll(tasks.take_first().unwrap());
        waker.wake_by_ref();
        assert_eq!((tasks.ready_count(), polls.get()), (1, 2));
    }

    #[test]
    fn waker_of_an_ended_task_does_not_touch_the_next_one_in_its_slot() {
        let tasks = Tasks::new(None);
        tasks.spawn(Box::pin(async {}));
        let ended = tasks.take_first().unwrap();
        tasks.poll(ended);
        tasks.spawn(Box::pin(async {}));
        let next = tasks.take_first().unwrap();
        assert_eq!(next.slot, ended.slot);
        tasks.poll(ended);
        assert!(tasks.slots.borrow()[next.slot as usize].is_some());
    }

    #[test]
    fn wake_up_from_another_thread_is_announced() {
        let announced = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&announced);
        let tasks = Tasks::new(Some(Box::new(move || flag.store(true, Ordering::SeqCst))));
        let waker = tasks.host_waker();
        waker.wake_by_ref();
        assert!(!announced.load(Ordering::SeqCst));
        waker.taken();
        std::thread::spawn(move || waker.wake()).join().unwrap();
        assert!(announced.load(Ordering::SeqCst));
    }
}
