//! Guests that stand up again by themselves: what counts as fallen, from what a guest stands up, and which snapshots are
//! good enough for that.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

use super::Supervisor;
use super::guest::{Guest, Phase};
use super::keeping::Asked;
use super::ladder::{Ladder, Rung};
use super::lifecycle::State;
use super::taking::labels;
use crate::clock;
use crate::config::{Health, Restart};
use crate::snapshots::{Begin, CHECKPOINT, Lost, READY, SUSPENDED, StoreCommand, What};

/// A guest that is restored is where it was: nothing boots.
const RESTORED_WITHIN: Duration = Duration::from_secs(60);
/// A guest is suspended when its snapshot is complete, which may take a while on a busy machine.
const SUSPENDED_WITHIN: Duration = Duration::from_secs(60);
/// A guest that has stood for so long may have all its falls forgiven, however old the snapshot was.
const MAX_DOUBT: Duration = Duration::from_secs(3600);
/// One that fell after so many times `good-after` may fall of something else next time.
const STOOD_LONG: u32 = 10;
/// A VMM is asked by a host that may be busy with a large snapshot of it.
const MIN_PATIENCE: Duration = Duration::from_secs(30);
/// Lines of the journal.
const MAX_JOURNAL: usize = 1000;
/// Snapshots that wait for their verdict: an hour of one a second.
const MAX_PENDING: usize = 3600;

/// A guest's falls.
#[derive(Debug, Default)]
pub(super) struct Healing {
    /// Falls in a row.
    pub(super) ladder: Ladder,
    /// Falls since the host started.
    pub(super) falls: u32,
    /// How often it stood up again.
    pub(super) stands: u32,
    /// Why the present run is over before its VMM has ended.
    pub(super) fallen: Option<String>,
    /// It was ready once since the host started: what keeps it from starting now is a fall.
    pub(super) was_ready: bool,
    /// The fall that it stands up from: why, when, and how.
    standing: Option<(String, Duration, &'static str)>,
    /// What it loses by going back.
    pub(super) lost: Option<Lost>,
    /// Snapshots of the present run that are not known to be good yet, and when they were taken.
    pending: VecDeque<(u64, Duration)>,
    /// The newest good snapshot of those, and when it was taken.
    pub(super) last_good: Option<(u64, Duration)>,
    /// When it is forgiven what was before.
    healthy_at: Option<Duration>,
    /// When it got ready last.
    ready_at: Option<Duration>,
    /// For how long it stood before it fell, at most, in the present row of falls.
    stood: Duration,
    /// Why it fell last.
    reason: String,
    /// When it has fallen if it is not ready.
    ready_by: Option<Duration>,
    /// When it last gave a sign of life; `None` until the first.
    heard: Option<Duration>,
    /// When it was last known to be well by that.
    well: Option<Duration>,
    /// When its VMM was last asked whether it answers, and whether it has.
    asked: Option<(Duration, bool)>,
    /// The snapshot after which it was ended, because the machine goes down.
    pub(super) suspended: Option<u64>,
}

impl Healing {
    /// A run begins, or goes on from a snapshot.
    pub(super) fn begun(&mut self, now: Duration, rules: &Health, restored: bool, heals: bool) {
        let within = match (restored, rules.ready_within) {
            (true, _) if heals => Some(RESTORED_WITHIN),
            (_, within) => within,
        };
        self.ready_by = within.map(|within| now + within);
        self.fallen = None;
        self.suspended = None;
        self.says_goodbye();
    }

    /// The run is over.
    pub(super) fn over(&mut self) {
        self.pending.clear();
        self.ready_by = None;
        self.healthy_at = None;
        self.asked = None;
        self.says_goodbye();
    }

    /// It fell once more: whether that may be the fall before, come again. That takes no longer than from the snapshot to
    /// there, and has the same reason; but one that never got healthy is not asked for its reasons.
    fn falls_again(&mut self, reason: &str, now: Duration, rules: &Health) -> bool {
        let stood = self.ready_at.take().map(|at| now.saturating_sub(at));
        let healthy = stood.is_some_and(|stood| stood >= rules.good_after);
        let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        let same = words(&self.reason) == words(reason);
        reason.clone_into(&mut self.reason);
        let again = same || !healthy;
        let before = if again { self.stood } else { Duration::ZERO };
        // One that ran for days and falls is not doubted for days.
        let stood = stood.unwrap_or_default().min(rules.good_after * STOOD_LONG);
        self.stood = stood.max(before);
        again
    }

    /// For how long it has to stand until what was before is forgiven: what is in the snapshot may bring it down again when
    /// it gets there, and so may what it does after each start.
    fn doubt(&self, rules: &Health) -> Duration {
        let again = self.lost.as_ref().and_then(|lost| lost.ms);
        let again = Duration::from_millis(again.unwrap_or(0)).min(MAX_DOUBT);
        rules.good_after + again.max(self.stood)
    }

    /// It has been healthy for long enough, or somebody has it started by hand.
    pub(super) fn forgive(&mut self) {
        self.ladder.forgive();
        self.stood = Duration::ZERO;
    }

    /// Its VMM answers.
    pub(super) fn vmm_answers(&mut self) {
        if let Some((_, answered)) = &mut self.asked {
            *answered = true;
        }
    }

    /// Whether its VMM is to be asked whether it answers.
    fn is_to_be_asked(&mut self, now: Duration, rules: &Health) -> bool {
        let due = match self.asked {
            Some((when, answered)) => answered && when + rules.heartbeat <= now,
            None => true,
        };
        if due {
            self.asked = Some((now, false));
        }
        due
    }

    /// A sign of life is to be expected, as if it had given one at that time.
    pub(super) fn expect(&mut self, when: Duration) {
        self.heard.get_or_insert(when);
    }

    /// It has said that it gives no more signs of life.
    pub(super) fn says_goodbye(&mut self) {
        (self.heard, self.well) = (None, None);
    }

    /// It gave a sign of life, as one that is well.
    pub(super) fn heard(&mut self, now: Duration) {
        (self.heard, self.well) = (Some(now), Some(now));
    }

    /// It gave a sign of life, and whether it is well is not known.
    pub(super) fn lives(&mut self, now: Duration) {
        self.heard = Some(now);
    }

    /// Whether it gives signs of life.
    pub(super) fn is_heard(&self) -> bool {
        self.heard.is_some()
    }

    /// Whether it was healthy until `when`, as far as one can know now. Of one that gives signs of life the silence since
    /// may be its fall.
    fn was_healthy(&self, when: Duration, now: Duration) -> bool {
        let said_so = self.well.is_some_and(|well| well >= when);
        when <= now && (self.heard.is_none() || said_so)
    }

    /// A snapshot was taken, which is good if it was `ready` and stays healthy.
    pub(super) fn taken_if(&mut self, ready: bool, snapshot: u64, when: Duration) {
        if ready && self.pending.len() < MAX_PENDING {
            self.pending.push_back((snapshot, when));
        }
    }

    /// When something is due.
    pub(super) fn due(&self, rules: &Health) -> Option<Duration> {
        let good = (self.pending.front()).map(|(_, taken)| *taken + rules.good_after);
        // A sign of life says so in time.
        let unheard = self.heard.is_none();
        let (good, healthy) = (
            good.filter(|_| unheard),
            self.healthy_at.filter(|_| unheard),
        );
        let silent = self.heard.map(|heard| heard + 2 * rules.heartbeat);
        let vmm = self.asked.map(|(when, answered)| match answered {
            true => when + rules.heartbeat,
            false => when + vmm_patience(rules),
        });
        if self.fallen.is_some() {
            return None;
        }
        [good, silent, healthy, self.ready_by, vmm]
            .into_iter()
            .flatten()
            .min()
    }

    /// Why it has fallen by now.
    fn missed(&self, now: Duration, rules: &Health) -> Option<String> {
        if self.fallen.is_some() {
            return None;
        }
        if self.ready_by.is_some_and(|by| by <= now) {
            return Some("not ready in time".to_owned());
        }
        let patience = vmm_patience(rules);
        if matches!(self.asked, Some((when, false)) if when + patience <= now) {
            let seconds = patience.as_secs();
            return Some(format!("its VMM has not answered for {seconds} s"));
        }
        let silent = now.checked_sub(self.heard?)?;
        (silent >= 2 * rules.heartbeat)
            .then(|| format!("no sign of life for {} s", silent.as_secs()))
    }
}

/// How long a VMM may take for an answer.
fn vmm_patience(rules: &Health) -> Duration {
    (2 * rules.heartbeat).max(MIN_PATIENCE)
}

impl Guest {
    /// The rules that say when it has fallen.
    pub(super) fn rules(&self) -> Option<&Health> {
        self.config.as_ref().map(|config| &config.health)
    }
}

impl Supervisor {
    /// Whether a guest that falls goes back to a snapshot.
    pub(super) fn heals(&self, index: usize) -> bool {
        let config = self.guests[index].config.as_ref();
        self.keeping.has_disks()
            && config.is_some_and(|config| {
                config.checkpoints.is_some() && config.restart != Restart::Never
            })
    }

    /// A guest has fallen, though its VMM runs.
    pub(super) fn fell(&mut self, index: usize, reason: &str) {
        let guest = &mut self.guests[index];
        let stays_down = (guest.config.as_ref()).is_none_or(|it| it.restart == Restart::Never);
        if stays_down || guest.healing.fallen.is_some() {
            return;
        }
        let Some(vm) = guest.vm().filter(|vm| !vm.is_stopping()) else {
            return;
        };
        vm.fell(clock::now());
        guest.healing.fallen = Some(reason.to_owned());
        self.set_state(index, State::Unhealthy, reason);
    }

    /// A fallen guest's run is over: it stands up again, as far back as the ladder says.
    pub(super) fn stand_up(&mut self, index: usize, reason: String) {
        if self.guests[index].state != State::Unhealthy {
            self.set_state(index, State::Unhealthy, &reason);
        }
        let guest = &mut self.guests[index];
        let Some(rules) = guest.rules().cloned() else {
            return;
        };
        let healing = &mut guest.healing;
        healing.falls = healing.falls.saturating_add(1);
        healing.lost = None;
        if !healing.falls_again(&reason, clock::now(), &rules) {
            healing.ladder.forgive();
        }
        let (begin, how) = match healing.ladder.fell(&rules) {
            Rung::Back(steps) => {
                let reason = reason.clone();
                (Begin::Back { steps, reason }, "")
            }
            Rung::Cold => (Begin::Left, "booted from its disks as it left them"),
            Rung::Factory => {
                let reason = reason.clone();
                (Begin::Factory { reason }, "begun anew from its images")
            }
            Rung::Failed => {
                let falls = healing.ladder.falls();
                healing.standing = None;
                let name = guest.name.clone();
                let line =
                    format!("host: {name}: fell {falls} times in a row ({reason}), stays down");
                self.note(&line);
                let detail = format!("fell {falls} times in a row, last: {reason}");
                return self.set_state(index, State::Failed, &detail);
            }
        };
        healing.standing = Some((reason, clock::now(), how));
        guest.begin = Some(begin);
        self.start(&[index], how);
    }

    /// Where a guest stands up from is known: not from a snapshot, if there is none.
    pub(super) fn nothing_to_go_back_to(&mut self, index: usize) {
        const HOW: &str = "no good snapshot, booted from its disks as it left them";
        let guest = &mut self.guests[index];
        let Some(rules) = guest.rules().cloned() else {
            return;
        };
        guest.healing.ladder.nothing_further_back(&rules);
        if let Some(standing) = &mut guest.healing.standing {
            standing.2 = HOW;
        }
        self.set_state(index, State::Starting, HOW);
    }

    /// A guest is ready: if it had fallen, it stands.
    pub(super) fn stands(&mut self, index: usize) {
        let now = clock::now();
        let guest = &mut self.guests[index];
        let Some(rules) = guest.rules().cloned() else {
            return;
        };
        let healing = &mut guest.healing;
        healing.was_ready = true;
        healing.ready_by = None;
        healing.ready_at = Some(now);
        healing.healthy_at = Some(now + healing.doubt(&rules));
        if rules.heartbeat_console.is_some() {
            healing.heard = Some(now);
        }
        let (standing, lost) = (healing.standing.take(), healing.lost.take());
        let name = &guest.name;
        let mut line = match &standing {
            Some((reason, since, _)) => {
                healing.stands = healing.stands.saturating_add(1);
                let took = now.saturating_sub(*since).as_millis();
                format!("host: {name}: fell ({reason}), stands {took} ms later")
            }
            None if lost.is_some() => {
                format!("host: {name}: the host went down while it ran")
            }
            None => return,
        };
        // Writing to a string cannot fail.
        let _ = match (&guest.restored, &standing) {
            (Some((snapshot, _)), _) => write!(line, " on snapshot {snapshot}"),
            (None, Some((.., how))) => write!(line, ", {how}"),
            (None, None) => Ok(()),
        };
        if let Some(lost) = lost {
            if let Some(ms) = lost.ms {
                let _ = write!(line, "; lost {}.{} s", ms / 1000, ms % 1000 / 100);
            }
            if let Some(evidence) = lost.evidence {
                let kib = lost.bytes.div_ceil(1024);
                let _ = write!(
                    line,
                    ", {kib} KiB of its disks, which are kept as snapshot {evidence}"
                );
            }
        }
        self.note(&line);
    }

    /// Says a line on the console and keeps it for `log`.
    pub(super) fn note(&mut self, line: &str) {
        self.console.say(line);
        if self.journal.len() == MAX_JOURNAL {
            self.journal.pop_front();
        }
        let line = line.strip_prefix("host: ").unwrap_or(line).to_owned();
        self.journal.push_back((clock::now(), line));
    }

    /// What is due of a guest's health.
    pub(super) fn check_health(&mut self, index: usize, now: Duration) {
        let guest = &mut self.guests[index];
        let Some(rules) = guest.rules().cloned() else {
            return;
        };
        if let Some(reason) = guest.healing.missed(now, &rules) {
            // Not again in this run, whatever becomes of it.
            guest.healing.ready_by = None;
            guest.healing.heard = None;
            guest.healing.asked = None;
            return self.fell(index, &reason);
        }
        let healing = &mut guest.healing;
        if healing.fallen.is_some() {
            return;
        }
        if guest.state == State::Ready && healing.is_to_be_asked(now, &rules) {
            // Any question will do.
            if let Phase::Up(vm) = &mut guest.phase {
                vm.ask_metrics();
            }
        }
        if (healing.healthy_at).is_some_and(|at| healing.was_healthy(at, now)) {
            healing.healthy_at = None;
            healing.forgive();
        }
        let mut good = Vec::new();
        while let Some(it) = healing.pending.front().copied() {
            if !healing.was_healthy(it.1 + rules.good_after, now) {
                break;
            }
            healing.pending.pop_front();
            good.push(it.0);
            guest.history.good(it.0);
            healing.last_good = Some(it);
        }
        if !good.is_empty() {
            // What cannot be marked is not gone back to.
            let _ = self
                .keeping
                .ask(What::Good { snapshots: good }, Asked::Nothing);
        }
    }

    /// The machine goes down: takes a snapshot of a guest to go on from when it starts again, and ends it then. Whether
    /// that can be done.
    pub(super) fn suspend(&mut self, index: usize, now: Duration) -> bool {
        let heals = self.heals(index) && self.keeping.lasts();
        let guest = &mut self.guests[index];
        if !heals || guest.state != State::Ready || guest.healing.fallen.is_some() {
            return false;
        }
        let limit = guest.config.as_ref().map(|config| config.stop_timeout);
        let thinning = (guest.config.as_ref())
            .and_then(|it| it.checkpoints)
            .map(|it| it.thinning);
        let mut labels = labels([CHECKPOINT, READY, SUSPENDED]);
        guest.label_agent(&mut labels);
        let Phase::Up(vm) = &mut guest.phase else {
            return false;
        };
        if !vm.suspend(now, limit.unwrap_or_default(), SUSPENDED_WITHIN) {
            return true;
        }
        let what = What::Take {
            guest: guest.name.clone(),
            labels,
            thinning,
        };
        match self.keeping.ask(what, Asked::Suspend { guest: index }) {
            Ok(()) => true,
            Err(_) => {
                // The power button, then.
                let guest = &mut self.guests[index];
                guest.agent.power_off();
                if let Some(vm) = guest.vm() {
                    vm.ask(now, limit.unwrap_or_default());
                }
                true
            }
        }
    }

    /// That snapshot was taken, or not.
    pub(super) fn suspended(&mut self, index: usize, how: Result<u64, String>) {
        let now = clock::now();
        let guest = &mut self.guests[index];
        let limit = guest.config.as_ref().map(|config| config.stop_timeout);
        let name = guest.name.clone();
        if how.is_err() {
            guest.agent.power_off();
        }
        match (how, guest.vm()) {
            (Ok(id), Some(vm)) if vm.is_suspending() => {
                vm.kill(now);
                guest.healing.suspended = Some(id);
                guest.history.suspended(id);
            }
            // It came too late: in it the guest may be about to power off, which nobody is to go on from.
            (Ok(snapshot), _) => {
                let command = StoreCommand::Delete { snapshot };
                let what = What::Stored { command };
                // Without a store it is not found either.
                let _ = self.keeping.ask(what, Asked::Nothing);
            }
            (Err(reason), Some(vm)) => {
                vm.ask(now, limit.unwrap_or_default());
                self.note(&format!(
                    "host: {name}: cannot be suspended, powers off: {reason}"
                ));
            }
            (Err(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_not_health_for_one_that_gives_signs_of_life() {
        let seconds = Duration::from_secs;
        let rules = Health::default();
        let mut healing = Healing::default();
        healing.taken_if(true, 1, seconds(20));
        assert_eq!(healing.due(&rules), Some(seconds(30)));
        assert!(healing.was_healthy(seconds(30), seconds(30)));
        // From now on only it can say so.
        healing.heard(seconds(29));
        assert!(!healing.was_healthy(seconds(30), seconds(40)));
        assert_eq!(healing.due(&rules), Some(seconds(49)));
        healing.lives(seconds(35));
        assert!(!healing.was_healthy(seconds(30), seconds(40)));
        healing.heard(seconds(40));
        assert!(healing.was_healthy(seconds(30), seconds(40)));
        // One that shuts down is not expected to.
        healing.says_goodbye();
        assert!(healing.was_healthy(seconds(41), seconds(41)));
        assert_eq!(healing.missed(seconds(1000), &rules), None);
    }

    #[test]
    fn another_fall_of_one_that_was_healthy_is_the_first_of_its_kind() {
        let seconds = Duration::from_secs;
        let rules = Health::default();
        let mut healing = Healing::default();
        let mut again = |ready: Option<u64>, reason, now| {
            healing.ready_at = ready.map(seconds);
            healing.falls_again(reason, seconds(now), &rules)
        };
        assert!(!again(Some(0), "silent for 12 s", 30));
        assert!(again(Some(31), "silent for 13 s", 60), "the same");
        assert!(!again(Some(61), "panic", 75), "another");
        assert!(again(Some(76), "silent for 12 s", 80), "too soon");
        assert!(again(None, "panic", 200), "it never got ready");
    }

    #[test]
    fn one_that_falls_late_after_each_start_is_forgiven_later_than_that() {
        let seconds = Duration::from_secs;
        let rules = Health::default();
        let mut healing = Healing::default();
        let doubt = |healing: &mut Healing, ready: u64, fell| {
            healing.ready_at = Some(seconds(ready));
            healing.falls_again("panic", seconds(fell), &rules);
            healing.doubt(&rules)
        };
        assert_eq!(doubt(&mut healing, 100, 112), seconds(10 + 12));
        assert_eq!(
            doubt(&mut healing, 113, 114),
            seconds(10 + 12),
            "the longest"
        );
        healing.lost = Some(Lost {
            ms: Some(15_000),
            bytes: 0,
            evidence: None,
        });
        assert_eq!(healing.doubt(&rules), seconds(10 + 15));
        healing.lost = None;
        healing.forgive();
        assert_eq!(doubt(&mut healing, 0, 86_400), seconds(10 + 100));
    }

    #[test]
    fn one_that_is_expected_has_an_interval_more() {
        let seconds = Duration::from_secs;
        let rules = Health::default();
        let mut healing = Healing::default();
        healing.expect(seconds(10) + rules.heartbeat);
        assert_eq!(healing.missed(seconds(39), &rules), None);
        assert!(healing.missed(seconds(40), &rules).is_some());
        healing.heard(seconds(12));
        healing.expect(seconds(100));
        assert!(healing.missed(seconds(32), &rules).is_some());
    }
}
