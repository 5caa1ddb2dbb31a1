//! How many connections are open, and which one makes room for another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::state::State;

/// Places beyond the bound, on which only probes are answered.
pub(super) const PROBE_PLACES: usize = 16;

/// What a connection is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Everything.
    Full,
    /// Probes: all other places are taken.
    ProbesOnly,
}

/// The open connections.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    open: Mutex<Open>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Connection>,
    next_id: u64,
}

#[derive(Debug)]
struct Connection {
    admission: Admission,
    state: Arc<State>,
    /// Given up for another one, and about to end.
    evicted: bool,
}

/// One connection's place, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    pub(super) admission: Admission,
    places: Arc<Places>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default(), freed: Notify::new() }
    }

    /// Finds a place for a connection. When all are taken, the one that has waited longest for a request's head is given
    /// up for it; where none waits, it gets a place for probes. `None` when those are taken as well, by connections that
    /// are being answered.
    pub(super) fn admit(self: &Arc<Self>, state: &Arc<State>) -> Option<Place> {
        let mut open = self.lock();
        let admission = if open.has_room(Admission::Full, self.most) {
            Admission::Full
        } else if open.has_room(Admission::ProbesOnly, PROBE_PLACES) {
            Admission::ProbesOnly
        } else {
            return None;
        };
        let id = open.next_id;
        open.next_id += 1;
        open.connections.insert(id, Connection { admission, state: Arc::clone(state), evicted: false });
        Some(Place { id, admission, places: Arc::clone(self) })
    }

    /// Gives up the connection that has waited longest for a request's head; returns whether there was one.
    pub(super) fn evict_one(&self) -> bool {
        let mut open = self.lock();
        open.evict(|_| true)
    }

    /// Resolves when a connection has ended since the last call.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // A map that a panic left behind is whole: its changes do not panic half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Whether one of `most` places of this kind is free, or can be made so.
    fn has_room(&mut self, admission: Admission, most: usize) -> bool {
        let taken = self.connections.values().filter(|other| other.admission == admission && !other.evicted).count();
        taken < most || self.evict(|other| other.admission == admission)
    }

    fn evict(&mut self, among: impl Fn(&Connection) -> bool) -> bool {
        let waiting = self.connections.values_mut().filter(|other| !other.evicted && among(other));
        let waiting = waiting.filter_map(|other| Some((other.state.waiting_since()?, other)));
        let Some((_, longest)) = waiting.min_by_key(|(since, _)| *since) else { return false };
        // Its request may have begun in between; the next accept finds another one.
        longest.evicted = longest.state.evict();
        longest.evicted
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.id);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> Arc<State> {
        let state = Arc::new(State::new());
        state.begin_request().unwrap();
        state
    }

    #[test]
    fn those_that_wait_make_room_and_those_that_are_answered_do_not() {
        let places = Arc::new(Places::new(2));
        let (waiting, answered) = (Arc::new(State::new()), busy());
        let mut taken: Vec<_> = [&waiting, &answered].map(|state| places.admit(state).unwrap()).into();
        taken.push(places.admit(&busy()).unwrap());
        assert_eq!(taken[2].admission, Admission::Full);
        waiting.begin_request().unwrap_err();
        // From here on nothing waits but on the places for probes.
        let probes: Vec<_> = (0..PROBE_PLACES).map(|_| Arc::new(State::new())).collect();
        taken.extend(probes.iter().map(|state| places.admit(state).unwrap()));
        assert!(taken[3..].iter().all(|place| place.admission == Admission::ProbesOnly));
        taken.push(places.admit(&busy()).unwrap());
        probes[0].begin_request().unwrap_err();
        for probe in &probes[1..] {
            probe.begin_request().unwrap();
        }
        assert!(places.admit(&Arc::new(State::new())).is_none());
        assert!(!places.evict_one());
        // An answered one that ends leaves its place; one that was given up has none to leave.
        taken.swap_remove(1);
        taken.swap_remove(0);
        assert_eq!(places.admit(&busy()).unwrap().admission, Admission::Full);
    }
}
