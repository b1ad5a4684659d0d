//! Civil time without a time zone database.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: u64 = 86_400;

/// A moment in UTC, to the second. Times before 1970 show as 1970.
pub struct Utc {
    year: u64,
    month: u64,
    day: u64,
    second_of_day: u64,
}

impl From<SystemTime> for Utc {
    fn from(time: SystemTime) -> Self {
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (year, month, day) = civil_from_days(seconds / SECONDS_PER_DAY);
        Self {
            year,
            month,
            day,
            second_of_day: seconds % SECONDS_PER_DAY,
        }
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            year,
            month,
            day,
            second_of_day,
        } = self;
        let (hour, minute, second) = (
            second_of_day / 3_600,
            second_of_day / 60 % 60,
            second_of_day % 60,
        );
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"
        )
    }
}

/// Days since 1970-01-01 to (year, month, day) in the proleptic Gregorian calendar.
///
/// Years are counted from March 1 here: the leap day is then the last day of its year, and one formula fits every
/// month.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    /// Days of 400 years, after which the calendar repeats.
    const ERA: u64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const EPOCH_OFFSET: u64 = 719_468;

    let days = days + EPOCH_OFFSET;
    let (era, day_of_era) = (days / ERA, days % ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_from_march + 2) / 5 + 1;
    let month = if months_from_march < 10 {
        months_from_march + 3
    } else {
        months_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> String {
        Utc::from(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
    }

    #[test]
    fn known_moments_are_named_correctly() {
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_000_000_000), "2001-09-09 01:46:40");
        assert_eq!(at(4_107_542_399), "2100-02-28 23:59:59");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00");
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut previous = civil_from_days(0);
        for days in 1..=146_097 {
            let next = civil_from_days(days);
            let (year, month, day) = previous;
            let same_month = next == (year, month, day + 1);
            let new_month = next == (year, month + 1, 1) && day >= 28;
            let new_year = next == (year + 1, 1, 1) && (month, day) == (12, 31);
            assert!(
                same_month || new_month || new_year,
                "{previous:?} then {next:?}"
            );
            previous = next;
        }
        assert_eq!(previous, (2370, 1, 1));
    }

    #[test]
    fn a_clock_before_1970_shows_1970() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Utc::from(before).to_string(), "1970-01-01 00:00:00");
    }
}
