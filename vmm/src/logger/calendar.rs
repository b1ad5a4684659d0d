//! A point in time as people write it: RFC 3339, UTC, microseconds.

use std::fmt;
use std::time::Duration;

/// Time since 1970.
pub(super) struct Utc(pub Duration);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Days of 400 years, after which the calendar repeats.
        const ERA_DAYS: u64 = 146_097;
        /// From 0000-03-01 to 1970-01-01. Years that start in March end with the leap day.
        const EPOCH_DAYS: u64 = 719_468;

        let (days, second) = (self.0.as_secs() / 86_400, self.0.as_secs() % 86_400);
        let (era, day) = (
            (days + EPOCH_DAYS) / ERA_DAYS,
            (days + EPOCH_DAYS) % ERA_DAYS,
        );
        let leap_days = day / 1_460 + day / 146_096;
        let year_of_era = (day + day / 36_524 - leap_days) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March are 31, 30, 31, 30, 31 days long, twice and a bit: 153 days in five.
        let from_march = (5 * day_of_year + 2) / 153;
        let day_of_month = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let micros = self.0.subsec_micros();
        write!(
            f,
            "{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_points_in_time() {
        // By date(1).
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
            (1_795_359_600, "2026-11-22T15:00:00.000000Z"),
        ] {
            assert_eq!(Utc(Duration::from_secs(seconds)).to_string(), text);
        }
    }
}
