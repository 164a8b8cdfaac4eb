//! Waiting for the next request with open eyes, for a moment, where requests follow each other closely.
//!
//! A thread that sleeps in its read of the device has to be woken, mostly on another processor, which takes longer than the
//! work that most requests are. A program that asks for one name after the other is back with the next request within
//! microseconds. So the thread that has answered looks for it for a moment ([`DEFAULT_LIMIT`]) before it sleeps.
//!
//! What keeps that from costing others:
//! - one thread of a mount does so at a time, and none while others serve as many requests as half the processors: the programs
//!   that asked need the other half;
//! - only after requests that followed each other closely: an idle mount, or one that is asked now and then, never polls;
//! - only while it pays: where most looks find nothing in time, polling stops for a number of requests that doubles each time
//!   it does not pay again;
//! - the processor is offered to others all the time. Where one takes it, which may be the very program that is to send the
//!   request, there is no sleeping processor to be spared: polling stops for a time that doubles likewise;
//! - never on a single processor, where nobody could ask meanwhile.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

/// How long a thread looks for the next request unless told otherwise. A program that was woken by a reply asks for the next
/// name after 10 to 15 µs where its processor was busy until then, and later where that had gone to sleep.
pub const DEFAULT_LIMIT: Duration = Duration::from_micros(50);

/// A request that comes so soon after the last answer follows it closely: longer than it takes to be woken.
const CLOSE: Duration = Duration::from_micros(200);

/// How many have to follow each other closely before the first look.
const CLOSE_ENOUGH: u32 = 4;

/// How many more looks may fail than succeed.
const MOST_CREDIT: u32 = 8;

/// The credit of a new trial.
const TRIAL_CREDIT: u32 = 2;

/// What a look costs in which others took the processor.
const CROWDED_COST: u32 = 2;

/// For how many requests polling stops where they come too late, the first time and at most.
const PAUSE: RangeInclusive<u32> = 64..=4096;

/// How long it stops where others want the processor. Who offers it may get it back after a few milliseconds only.
const CROWDED_PAUSE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(1);

/// A processor that comes back only after so long was taken by another. Nobody takes it: less than a microsecond.
const TAKEN: Duration = Duration::from_micros(8);

/// What came of a look for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It is there.
    Found,
    /// It did not come in time.
    Nothing,
    /// Others had the processor meanwhile.
    Crowded,
}

/// Whether to look for the next request, by what came of it lately.
#[derive(Debug)]
struct Record {
    /// When the last request was answered.
    answered: Option<Instant>,
    /// How many requests in a row followed closely.
    close: u32,
    /// Looks that succeeded less those that failed, within bounds.
    credit: u32,
    /// For how many requests there are no looks.
    pause: u32,
    /// How long the next pause is.
    next_pause: u32,
    /// There are no looks until then.
    crowded_until: Option<Instant>,
    /// How long that is the next time.
    next_crowded: Duration,
}

impl Record {
    fn new() -> Record {
        Record {
            answered: None,
            close: 0,
            credit: TRIAL_CREDIT,
            pause: 0,
            next_pause: *PAUSE.start(),
            crowded_until: None,
            next_crowded: *CROWDED_PAUSE.start(),
        }
    }

    /// A request that came at `came` was answered. True: it pays to look for the next.
    fn answered(&mut self, came: Instant, now: Instant) -> bool {
        let last = self.answered.replace(now);
        let closely = last.is_some_and(|last| came.saturating_duration_since(last) <= CLOSE);
        if !closely {
            self.close = 0;
            return false;
        }
        if self.close < CLOSE_ENOUGH {
            self.close += 1;
            return false;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        if self.crowded_until.is_some_and(|until| now < until) {
            return false;
        }
        self.crowded_until = None;
        true
    }

    /// What came of a look that ended at `now`.
    fn looked(&mut self, look: Look, now: Instant) {
        let cost = match look {
            Look::Found => {
                self.credit = (self.credit + 1).min(MOST_CREDIT);
                if self.credit == MOST_CREDIT {
                    self.next_pause = *PAUSE.start();
                    self.next_crowded = *CROWDED_PAUSE.start();
                }
                return;
            }
            Look::Nothing => 1,
            Look::Crowded => CROWDED_COST,
        };
        self.credit = self.credit.saturating_sub(cost);
        if self.credit > 0 {
            return;
        }
        self.credit = TRIAL_CREDIT;
        if look == Look::Crowded {
            self.crowded_until = Some(now + self.next_crowded);
            self.next_crowded = (self.next_crowded * 2).min(*CROWDED_PAUSE.end());
        } else {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(*PAUSE.end());
        }
    }
}

/// What the threads of a mount poll with.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// For how long at most; zero: never. Immutable.
    limit: Duration,
    /// Set once, before the first request.
    device: OnceLock<OwnedFd>,
    /// How many threads of the session serve requests at the moment. Atomic.
    at_work: AtomicUsize,
    /// Beside so many at work nobody polls. Immutable.
    most_at_work: usize,
    /// Held by the thread that polls; a leaf lock that nobody waits for.
    record: Mutex<Record>,
}

impl BusyPoll {
    /// `threads`: how many serve the mount, as many as there are processors.
    pub(super) fn new(limit: Duration, threads: usize) -> BusyPoll {
        BusyPoll {
            limit,
            at_work: AtomicUsize::new(0),
            most_at_work: threads / 2,
            device: OnceLock::new(),
            record: Mutex::new(Record::new()),
        }
    }

    /// The device that requests come from.
    pub(super) fn watch(&self, device: OwnedFd) {
        if self.device.set(device).is_err() {
            log::error!("a mount got a second device");
        }
    }

    /// Called by a thread that has read a request.
    pub(super) fn begin(&self) {
        self.at_work.fetch_add(1, Ordering::Relaxed);
    }

    /// Called by a thread that is about to read the next request, having answered one that came at `came`. Returns when one is
    /// there or is not to be waited for here.
    pub(super) fn wait(&self, came: Instant, answered: Instant) {
        let others = self.at_work.fetch_sub(1, Ordering::Relaxed) - 1;
        if self.limit.is_zero() || others >= self.most_at_work {
            return;
        }
        let (Some(device), Some(mut record)) = (self.device.get(), self.record.try_lock()) else {
            return;
        };
        if record.answered(came, answered) {
            let look = look(device, answered, self.limit);
            record.looked(look, Instant::now());
        }
    }
}

/// Looks whether a request comes so soon after `since`.
fn look(device: impl AsFd, since: Instant, limit: Duration) -> Look {
    let mut passed = since.elapsed();
    loop {
        let mut device = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        // What else is wrong with it, the read will tell.
        if poll(&mut device, PollTimeout::ZERO).unwrap_or(1) != 0 {
            return Look::Found;
        }
        std::thread::yield_now();
        let before = std::mem::replace(&mut passed, since.elapsed());
        if passed - before > TAKEN {
            return Look::Crowded;
        }
        if passed > limit {
            return Look::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(10);
    const LATER: Duration = Duration::from_millis(5);

    /// Answers as many requests, each so long after the one before, and says after how many of them it looked for the next,
    /// where it then finds one or not.
    fn looks(
        record: &mut Record,
        now: &mut Instant,
        gap: Duration,
        requests: u32,
        look: Look,
    ) -> u32 {
        let mut looks = 0;
        for _ in 0..requests {
            let came = *now + gap;
            *now = came + SOON;
            if record.answered(came, *now) {
                looks += 1;
                record.looked(look, *now);
            }
        }
        looks
    }

    #[test]
    fn requests_now_and_then_are_not_looked_for() {
        let (mut record, mut now) = (Record::new(), Instant::now());
        assert_eq!(looks(&mut record, &mut now, LATER, 10_000, Look::Found), 0);
        // Nor is the first that follows closely.
        for _ in 0..1000 {
            assert_eq!(looks(&mut record, &mut now, LATER, 1, Look::Found), 0);
            assert_eq!(
                looks(&mut record, &mut now, SOON, CLOSE_ENOUGH, Look::Found),
                0
            );
        }
    }

    #[test]
    fn requests_that_follow_closely_are_looked_for() {
        let (mut record, mut now) = (Record::new(), Instant::now());
        let looked = looks(&mut record, &mut now, SOON, 1000, Look::Found);
        assert_eq!(looked, 1000 - 1 - CLOSE_ENOUGH);
    }

    #[test]
    fn what_does_not_pay_becomes_rare() {
        let (mut record, mut now) = (Record::new(), Instant::now());
        looks(&mut record, &mut now, SOON, 20_000, Look::Nothing);
        let looked = looks(&mut record, &mut now, SOON, 100_000, Look::Nothing);
        assert!(
            looked <= 100_000 / PAUSE.end() * TRIAL_CREDIT + TRIAL_CREDIT,
            "{looked}"
        );
        // And pays again.
        looks(&mut record, &mut now, SOON, *PAUSE.end(), Look::Found);
        let looked = looks(&mut record, &mut now, SOON, 1000, Look::Found);
        assert_eq!(looked, 1000);
    }

    #[test]
    fn half_of_the_looks_may_fail() {
        let (mut record, mut now) = (Record::new(), Instant::now());
        looks(&mut record, &mut now, SOON, 100, Look::Found);
        let mut looked = 0;
        for i in 0..1000 {
            looked += looks(
                &mut record,
                &mut now,
                SOON,
                1,
                [Look::Found, Look::Nothing][i % 2],
            );
        }
        assert_eq!(looked, 1000);
    }

    #[test]
    fn where_others_want_the_processor_looks_become_rare() {
        let (mut record, mut now) = (Record::new(), Instant::now());
        let looked = looks(&mut record, &mut now, SOON, 1_000_000, Look::Crowded);
        // 20 s of requests.
        assert!(looked <= 30, "{looked}");
        looks(&mut record, &mut now, SOON, 100_000, Look::Found);
        assert_eq!(looks(&mut record, &mut now, SOON, 1000, Look::Found), 1000);
        // One disturbance does no harm.
        assert_eq!(looks(&mut record, &mut now, SOON, 1, Look::Crowded), 1);
        assert_eq!(looks(&mut record, &mut now, SOON, 1000, Look::Found), 1000);
    }

    #[test]
    fn a_request_that_is_there_is_found() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let now = Instant::now();
        assert_ne!(look(&reader, now, Duration::ZERO), Look::Found);
        std::io::Write::write_all(&mut writer, b"x").unwrap();
        assert_eq!(look(&reader, now, Duration::ZERO), Look::Found);
    }

    /// Answers requests that follow closely, and says how many of them were taken for such, up to what a look needs.
    fn close_to(poll: &BusyPoll) -> u32 {
        let (reader, _writer) = std::io::pipe().unwrap();
        poll.watch(reader.into());
        let now = Instant::now();
        for _ in 0..100 {
            poll.begin();
            poll.wait(now, now);
        }
        poll.record.lock().close
    }

    #[test]
    fn no_limit_no_look() {
        assert_eq!(close_to(&BusyPoll::new(Duration::ZERO, 8)), 0);
        let short = BusyPoll::new(Duration::from_nanos(1), 8);
        assert_eq!(close_to(&short), CLOSE_ENOUGH);
    }

    #[test]
    fn nobody_looks_beside_as_many_as_half_the_processors() {
        let poll = BusyPoll::new(Duration::from_nanos(1), 4);
        poll.begin();
        poll.begin();
        assert_eq!(close_to(&poll), 0);
        let poll = BusyPoll::new(Duration::from_nanos(1), 4);
        poll.begin();
        assert_eq!(close_to(&poll), CLOSE_ENOUGH);
    }
}
