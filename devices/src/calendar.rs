//! The proleptic Gregorian calendar, UTC.

use std::time::Duration;

/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: u64 = 146_097;
/// From 0000-03-01 to 1970-01-01. Years that start in March end with the leap day.
const EPOCH_DAYS: u64 = 719_468;

/// A second of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc {
    /// The year, from 1970.
    pub year: u64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 is Sunday.
    pub day_of_week: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59: leap seconds are not counted.
    pub second: u8,
}

impl Utc {
    /// The second in which that time after the beginning of 1970 lies.
    #[must_use]
    pub fn since_1970(time: Duration) -> Self {
        let (days, second_of_day) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
        let shifted = days + EPOCH_DAYS;
        let (era, day_of_era) = (shifted / ERA_DAYS, shifted % ERA_DAYS);
        let leap_days = day_of_era / 1_460 + day_of_era / 146_096;
        let year_of_era = (day_of_era + day_of_era / 36_524 - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March are 31, 30, 31, 30, 31 days long, twice and a bit: 153 days in five.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };

        // Each value is below 100 by its construction.
        let byte = |value: u64| value.to_le_bytes()[0];
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: byte(month),
            day: byte(day),
            // The epoch was a Thursday.
            day_of_week: byte((days + 4) % 7 + 1),
            hour: byte(second_of_day / 3_600),
            minute: byte(second_of_day / 60 % 60),
            second: byte(second_of_day % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_400_years_is_counted() {
        let leap = |year: u64| {
            year.is_multiple_of(400) || year.is_multiple_of(4) && !year.is_multiple_of(100)
        };
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..ERA_DAYS {
            let time = Utc::since_1970(Duration::from_secs(days * 86_400));
            let shown = (time.year, time.month, time.day);
            assert_eq!(shown, (year, month, day), "day {days}");
            let last = match month {
                2 => 28 + u8::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }
}
