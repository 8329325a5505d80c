//! The open connections, bounded: which one has to go when another comes, and which has taken too long.
//!
//! ```text
//!   accept ─► First ──bytes──► Header ──headers──► Body ──request──► Answer ──its answer──► Idle ──bytes──► Header …
//!              10 s             10 s                10 s (guard)      15 s (guard)            60 s
//! ```
//!
//! A newcomer is always let in. When all places are taken, the connection that has waited longest for its client is closed;
//! when none waits, the oldest one. So whoever holds all places, with slow requests or with many, cannot keep out the probes
//! of `/healthz`, after which Kubernetes would restart a process that does its work. One peer has a share of the places;
//! beyond it, its newcomers take the places of its own connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// So many connections are open at a time.
const MOST: usize = 128;

/// So many of them from one peer: a quarter, so that no single one fills them.
const MOST_OF_A_PEER: usize = 32;

/// What a client may take to send a request, from the connection or the first byte to the end of its headers; and once more for
/// its body.
pub(super) const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// What a client may take to read its answer and to ask again: longer than the usual time between two scrapes.
const IDLE_WITHIN: Duration = Duration::from_secs(60);

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaits {
    /// The first byte of its first request.
    First,
    /// The rest of a request's headers.
    Header,
    /// The rest of a request's body. Whoever reads it counts the time, and answers.
    Body,
    /// The answer, which is being made here.
    Answer,
    /// The client: it reads the answer, or has nothing to ask.
    Idle,
}

impl Awaits {
    /// Returns how long it may, if the client is waited for.
    fn within(self) -> Option<Duration> {
        match self {
            Self::First | Self::Header => Some(REQUEST_WITHIN),
            Self::Idle => Some(IDLE_WITHIN),
            Self::Body | Self::Answer => None,
        }
    }
}

/// The network that a peer has for itself: an address of IPv4, the first 64 bits of one of IPv6 (RFC 6177).
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug)]
struct Open {
    peer: IpAddr,
    awaits: Awaits,
    since: Instant,
    /// Whether it was overdue when it was last looked at.
    is_overdue: bool,
    close: Arc<Notify>,
}

/// All open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Open>,
    next: u64,
}

/// One open connection; dropped, it is closed.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<Connections>,
    number: u64,
    close: Arc<Notify>,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a newcomer a place, for which another connection may have to go.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr, now: Instant) -> Place {
        let (number, close) = self.lock().admit(peer_of(from), now);
        Place { all: Arc::clone(self), number, close }
    }

    /// Closes the connections whose clients have taken too long, as two looks in a row find: when this process itself stood
    /// still, what a client has sent meanwhile is read between them.
    pub(super) fn close_overdue(&self, now: Instant) {
        self.lock().remove_where(|open| {
            let is_overdue = open.awaits.within().is_some_and(|within| now - open.since > within);
            std::mem::replace(&mut open.is_overdue, is_overdue) && is_overdue
        });
    }
}

impl Table {
    fn admit(&mut self, peer: IpAddr, now: Instant) -> (u64, Arc<Notify>) {
        let of_peer = self.open.values().filter(|open| open.peer == peer).count();
        if of_peer >= MOST_OF_A_PEER {
            self.evict(|open| open.peer == peer);
        } else if self.open.len() >= MOST {
            self.evict(|_| true);
        }
        let (number, close) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        self.open.insert(
            number,
            Open { peer, awaits: Awaits::First, since: now, is_overdue: false, close: Arc::clone(&close) },
        );
        (number, close)
    }

    /// Closes one of those that may go: the one that has waited longest for its client, else the oldest.
    fn evict(&mut self, may_go: impl Fn(&Open) -> bool) {
        let candidates = self.open.iter().filter(|(_, open)| may_go(open));
        let goes = candidates.min_by_key(|(number, open)| match open.awaits {
            Awaits::Answer => (true, None, **number),
            Awaits::First | Awaits::Header | Awaits::Body | Awaits::Idle => (false, Some(open.since), **number),
        });
        if let Some(open) = goes.map(|(number, _)| *number).and_then(|number| self.open.remove(&number)) {
            open.close.notify_one();
        }
    }

    fn remove_where(&mut self, goes: impl Fn(&mut Open) -> bool) {
        for (_, open) in self.open.extract_if(|_, open| goes(open)) {
            open.close.notify_one();
        }
    }
}

impl Place {
    /// Waits until the connection has to go.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    /// Notes that bytes came from the client. What comes while an answer is made, or goes on, changes nothing.
    pub(super) fn received(&self, now: Instant) {
        self.change(now, |awaits| matches!(awaits, Awaits::First | Awaits::Idle).then_some(Awaits::Header));
    }

    /// Notes that the headers of a request are complete.
    pub(super) fn headed(&self, now: Instant) {
        self.change(now, |_| Some(Awaits::Body));
    }

    /// Notes that a request is complete.
    pub(super) fn asked(&self, now: Instant) {
        self.change(now, |_| Some(Awaits::Answer));
    }

    /// Notes that its answer was made.
    pub(super) fn answered(&self, now: Instant) {
        self.change(now, |_| Some(Awaits::Idle));
    }

    fn change(&self, now: Instant, next: impl FnOnce(Awaits) -> Option<Awaits>) {
        if let Some(open) = self.all.lock().open.get_mut(&self.number)
            && let Some(awaits) = next(open.awaits)
        {
            (open.awaits, open.since, open.is_overdue) = (awaits, now, false);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::Ipv4Addr;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    fn is_closed(place: &Place) -> bool {
        let closed = pin!(place.closed());
        closed.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    fn look_twice(all: &Connections, now: Instant) {
        (0..2).for_each(|_| all.close_overdue(now));
    }

    /// Every place taken, by eight peers, one after the other.
    fn full(all: &Arc<Connections>, start: Instant) -> Vec<Place> {
        let mut places = Vec::new();
        for (index, peer) in (0..MOST).zip((0..8).cycle()) {
            let at = start + Duration::from_millis(index as u64);
            places.push(all.admit(address(peer), at));
        }
        places
    }

    #[test]
    fn a_newcomer_takes_the_place_of_whoever_has_waited_longest() {
        let (all, start) = (Arc::new(Connections::default()), Instant::now());
        let places = full(&all, start);
        // The first one has sent something since, the second one's answer is being made.
        let later = start + Duration::from_secs(1);
        places[0].received(later);
        places[1].asked(later);
        let newcomer = all.admit(address(99), later);
        let closed: Vec<usize> = (0..MOST).filter(|&at| is_closed(&places[at])).collect();
        assert_eq!(closed, [2]);
        assert!(!is_closed(&newcomer));
        assert_eq!(all.lock().open.len(), MOST);
        drop((places, newcomer));
        assert!(all.lock().open.is_empty());
    }

    #[test]
    fn answers_that_are_being_made_are_closed_last_and_by_age() {
        let (all, start) = (Arc::new(Connections::default()), Instant::now());
        let places = full(&all, start);
        places.iter().for_each(|place| place.asked(start));
        look_twice(&all, start + Duration::from_secs(3600));
        assert!(!places.iter().any(is_closed));
        places[7].answered(start);
        // Asking again makes no connection younger.
        places[0].asked(start + Duration::from_secs(1));
        let mut newcomers = Vec::new();
        for goes in [7, 0, 1] {
            newcomers.push(all.admit(address(99), start));
            newcomers[newcomers.len() - 1].asked(start);
            let closed: Vec<usize> = (0..MOST).filter(|&at| is_closed(&places[at])).collect();
            assert_eq!(closed, [goes]);
        }
    }

    #[test]
    fn whoever_sends_no_body_makes_room_before_an_answer_does() {
        let (all, start) = (Arc::new(Connections::default()), Instant::now());
        let places = full(&all, start);
        places.iter().for_each(|place| place.asked(start));
        places[9].headed(start + Duration::from_secs(1));
        let newcomer = all.admit(address(99), start);
        let closed: Vec<usize> = (0..MOST).filter(|&at| is_closed(&places[at])).collect();
        assert_eq!((closed, is_closed(&newcomer)), (vec![9], false));
    }

    #[test]
    fn a_peer_beyond_its_share_loses_its_own_places() {
        let (all, start) = (Arc::new(Connections::default()), Instant::now());
        let other = all.admit(address(2), start);
        // The addresses of one network of IPv6 are one peer.
        for from in [|_| address(1), |at: usize| IpAddr::V6(Ipv6Addr::from(0x2001_0db8_u128 << 96 | at as u128))] {
            let places: Vec<Place> = (0..=MOST_OF_A_PEER).map(|at| all.admit(from(at), start)).collect();
            let closed: Vec<usize> = (0..places.len()).filter(|&at| is_closed(&places[at])).collect();
            assert_eq!(closed, [0]);
        }
        assert!(!is_closed(&other));
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("an address");
        assert_eq!(peer_of(mapped), address(1));
    }

    #[test]
    fn whoever_takes_too_long_is_closed() {
        let (all, start) = (Arc::new(Connections::default()), Instant::now());
        let [silent, slow, idle, quick] = [1, 2, 3, 4].map(|peer| all.admit(address(peer), start));
        slow.received(start);
        // More bytes are no new request.
        slow.received(start + Duration::from_secs(9));
        for place in [&idle, &quick] {
            place.received(start);
            place.asked(start);
            place.answered(start);
        }
        let later = start + REQUEST_WITHIN + Duration::from_secs(1);
        quick.received(later);
        look_twice(&all, later);
        assert_eq!([&silent, &slow, &idle, &quick].map(is_closed), [true, true, false, false]);
        look_twice(&all, start + IDLE_WITHIN + Duration::from_secs(1));
        assert_eq!([&idle, &quick].map(is_closed), [true, true]);
    }

    #[test]
    fn nobody_is_closed_for_the_time_in_which_this_process_stood_still() {
        let (all, start) = (Arc::new(Connections::default()), Instant::now());
        let [sent, silent] = [1, 2].map(|peer| all.admit(address(peer), start));
        let later = start + REQUEST_WITHIN + Duration::from_secs(1);
        all.close_overdue(later);
        assert_eq!([&sent, &silent].map(is_closed), [false, false]);
        // What has lain there for long is read now.
        sent.received(later);
        all.close_overdue(later + Duration::from_secs(1));
        assert_eq!([&sent, &silent].map(is_closed), [false, true]);
        // It is overdue once more, and for the first time again.
        all.close_overdue(later + REQUEST_WITHIN + Duration::from_secs(1));
        assert!(!is_closed(&sent));
    }
}
